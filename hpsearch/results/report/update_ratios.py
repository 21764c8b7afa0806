"""The plot of a report's diagnosis: how large the trials' updates were, against their values."""

from __future__ import annotations

import plotly.graph_objects as go

from hpsearch.results.report.plot_style import (
    BEST,
    COMPLETE,
    PRUNED,
    RUNNING,
    Plot,
    plot_text,
    point_text,
    scatter,
    styled,
    value_axis,
)
from hpsearch.results.status import StudyStatus
from hpsearch.results.trial_summary import TrialSummary
from hpsearch.results.verdicts import NO_VERDICT, causes_of, group_by_verdict

HEALTHY = 1e-3  # docs/sources.md, section 8
_MOST_TRIALS = 2000
_COLOURS = ("#7c3aed", BEST, "#9d174d", RUNNING, "#92400e", "#1e40af", PRUNED)


def update_ratios(status: StudyStatus) -> Plot:
    """Each trial's largest ratio of update to weight at its end, and its value; a colour per verdict."""
    groups = group_by_verdict(status.summary.trials)
    figure, values, colours = go.Figure(), [], iter(_COLOURS * 2)
    metric = status.summary.metric
    for group in groups:
        colour = COMPLETE if group.cause == "fine" else next(colours)
        places = [
            (_ratio(trial), metric.shown(trial.value or 0.0), trial)
            for trial in group.trials[:_MOST_TRIALS]
            if _has_place(trial)
        ]
        if not places:
            continue
        values += [value for _, value, _ in places]
        figure.add_trace(
            scatter(
                group.cause,
                ((ratio, value) for ratio, value, _ in places),
                f"%{{text}}<br>update / weight %{{x:.1e}}, {metric.label} %{{y{metric.hover}",
                text=[_hover(trial) for *_, trial in places],
                marker={"color": colour, "size": 8},
            )
        )
    if not values:
        return Plot(caption=f"No trial has both {metric.validation_label} and a ratio of update to weight.")
    figure.add_vline(
        x=HEALTHY,
        line={"color": PRUNED, "dash": "dot", "width": 1},
        annotation={"text": "about 0.001 is healthy", "font": {"color": PRUNED}},
        annotation_position="top right",
    )
    axis = {"title": {"text": "update / weight, the layer with the largest"}, "type": "log", "exponentformat": "power"}
    styled(figure, height=400, xaxis=axis, yaxis=value_axis(metric, values))
    return Plot(
        caption="The size of one update of the weights, divided by the size of the weights, when the trial ended, and "
        f"its {metric.validation_label}. Point at a trial for its parameters.",
        figure=figure,
    )


def _hover(trial: TrialSummary) -> str:
    verdict = plot_text(" + ".join(causes_of(trial)) or NO_VERDICT)
    return f"trial {trial.number}: {verdict}<br>{point_text(trial.point_parameters)}"


def _ratio(trial: TrialSummary) -> float:
    ratio = trial.attributes.get("update_ratio")
    return float(ratio) if ratio else 0.0


def _has_place(trial: TrialSummary) -> bool:
    return trial.value is not None and _ratio(trial) > 0
