"""Plotly figures of a trial's pictures, for notebooks: filters over time, confusion matrix, wrong images.

The report draws its own, in templates/sections/pictures.html.j2.
"""

from __future__ import annotations

import math

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from hpsearch.metric import ZERO_ONE
from hpsearch.results.pictures.judgement import Judgement, WrongImages
from hpsearch.results.pictures.kept_filters import KeptFilters
from hpsearch.results.report.images import filters_png, image_png
from hpsearch.results.report.plot_style import styled
from hpsearch.training.filter_series import evenly_chosen
from hpsearch.wording import counted

_PER_ROW = 6  # images in a row of a figure
_CELL_PIXELS = 190
_PALE_TO_DARK = [[0.0, "#ffffff"], [0.15, "#d6e4f3"], [1.0, "#2b6cb0"]]


def filters_figure(filters: KeptFilters, most: int) -> go.Figure:
    """The filters at `most` evenly spaced moments (or fewer), with the roughness of each moment."""
    moments = evenly_chosen(filters.epochs, most)
    captions = [filters.caption(at) for at in moments]
    figure = _sheet([filters_png(filters.relative[at]) for at in moments], captions, _CELL_PIXELS)
    about = f"{counted(len(filters.units), 'first-layer filter')}, positive weights orange, negative blue"
    figure.update_layout(title={"text": f"Trial {filters.trial}: {about}", "font": {"size": 15}})
    return figure


def confusion_figure(judgement: Judgement) -> go.Figure:
    """The confusion matrix; colours show shares of a row, so that rare classes are as visible as frequent ones."""
    counts = judgement.confusion
    classes = [judgement.name_of(label) for label in range(len(counts))]
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    heatmap = go.Heatmap(
        x=classes,
        y=classes,
        z=np.sqrt(shares),  # few errors in a row are visible beside many correct images
        text=counts,
        texttemplate="%{text}",
        colorscale=_PALE_TO_DARK,
        zmin=0,
        zmax=1,
        showscale=False,
        xgap=1,
        ygap=1,
        hovertemplate="%{text} images of class %{y} taken for %{x}<extra></extra>",
    )
    figure = styled(
        go.Figure(heatmap),
        height=480,
        width=560,
        xaxis={"title": {"text": "predicted class"}, "type": "category", "showgrid": False},
        yaxis={"title": {"text": "true class"}, "type": "category", "autorange": "reversed", "showgrid": False},
    )
    error = ZERO_ONE.text(float(1 - np.trace(counts) / counts.sum()))
    title = f"Trial {judgement.trial}: {error} of the validation images are wrong, macro-F1 {judgement.macro_f1:.4f}"
    figure.update_layout(title={"text": title})
    return figure


def wrong_images_figure(wrong: WrongImages) -> go.Figure:
    """The images with their true class, and the predicted class with its probability."""
    figure = _sheet([image_png(image) for image in wrong.images], wrong.captions, _CELL_PIXELS // 2)
    figure.update_layout(title={"text": f"Trial {wrong.trial}: {counted(len(wrong), 'most confident error')}"})
    return figure


def _sheet(sources: list[str], captions: list[tuple[str, str]], cell_pixels: int) -> go.Figure:
    """Images in rows, each below the two lines of its caption."""
    rows, columns = max(1, math.ceil(len(sources) / _PER_ROW)), max(1, min(_PER_ROW, len(sources)))
    row_pixels = cell_pixels + 50  # with room for two lines of text
    figure = make_subplots(
        rows=rows,
        cols=columns,
        subplot_titles=["<br>".join(caption) for caption in captions],
        horizontal_spacing=0.02,
        vertical_spacing=50 / (rows * row_pixels),
    )
    for at, source in enumerate(sources):
        image = go.Image(source=source, hoverinfo="skip")
        figure.add_trace(image, row=at // columns + 1, col=at % columns + 1)
    styled(figure, height=rows * row_pixels + 90, width=columns * (cell_pixels + 24) + 60)
    figure.update_layout(margin={"l": 30, "r": 30, "t": 100, "b": 10})
    figure.update_annotations(font={"size": 12})
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    return figure
