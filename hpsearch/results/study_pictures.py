"""Pictures of a study's trials for Python and notebooks: what `hpsearch.load(name).pictures()` returns.

Everything is made from what the workers stored and from the validation images on this machine, never by training.
"""

from __future__ import annotations

from functools import cached_property
from typing import final

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from hpsearch.artifacts.best_parameters import open_artifacts
from hpsearch.data.splits import SelectionData
from hpsearch.errors import HpsearchError, InputError
from hpsearch.results.pictures.judgement import Judgement, WrongImages
from hpsearch.results.pictures.kept_filters import KeptFilters, has_filters, read_filters
from hpsearch.results.pictures.overview import load_local_data
from hpsearch.results.report.notebook_figures import confusion_figure, filters_figure, wrong_images_figure
from hpsearch.results.summary import StudySummary
from hpsearch.results.trial_summary import TrialSummary

MOMENTS, WRONG_IMAGES = 6, 24  # shown unless another number is requested


@final
class Pictures:
    """Pictures of a study's trials, as arrays and as plotly figures. A notebook shows those of the best trial.

    The trials are those at the time this object was created. Each method takes the number of a trial; None: the best
    trial of the search. Data and models are read once, at the first call that needs them, and nothing is downloaded.

    All methods raise:
        NothingCompleteError: no trial is complete.
        InputError: the study has no such trial, or what was requested was not kept; the message says why.
        ArtifactError: a file is missing or damaged.
        DataError: the data set is not on this machine, or is not the one that the study was created with; not raised
            by methods for filters.
    """

    def __init__(self, summary: StudySummary, artifacts: str) -> None:
        """Use `Study.pictures`."""
        self._summary = summary
        self._artifacts = open_artifacts(artifacts, is_read_only=True)
        self._judged: dict[int, Judgement] = {}

    @property
    def trials(self) -> list[int]:
        """The numbers of the trials that have filters, the best ones first."""
        return [trial.number for trial in self._summary.trials if trial.is_listed and has_filters(trial)]

    def filters(self, trial: int | None = None) -> KeptFilters:
        """The first-layer filters of a trial at the epochs that keep_every selects, and how noisy they are."""
        return read_filters(self._summary.study, self._trial(trial), self._artifacts)

    def filters_figure(self, trial: int | None = None, *, moments: int = MOMENTS) -> go.Figure:
        """The filters over time, at a number of evenly spaced moments."""
        return filters_figure(self.filters(trial), _positive("moments", moments))

    def confusion(self, trial: int | None = None) -> NDArray[np.int64]:
        """The confusion matrix on the validation images, [true class, predicted class]."""
        return self._judgement(trial).confusion

    def confusion_figure(self, trial: int | None = None) -> go.Figure:
        return confusion_figure(self._judgement(trial))

    def wrong(self, trial: int | None = None, *, number: int = WRONG_IMAGES) -> WrongImages:
        """The misclassified validation images whose wrong class has the highest probability, in this order."""
        return self._judgement(trial).most_wrong(_positive("number", number))

    def wrong_figure(self, trial: int | None = None, *, number: int = WRONG_IMAGES) -> go.Figure:
        return wrong_images_figure(self.wrong(trial, number=number))

    def __repr__(self) -> str:
        return f"<hpsearch.Pictures of {self._summary.name!r}: filters of {len(self.trials)} trials>"

    def _ipython_display_(self) -> None:
        """Show all figures of the best trial in a notebook, and a line for each one that cannot be made."""
        print(repr(self))
        for make in (self.filters_figure, self.confusion_figure, self.wrong_figure):
            try:
                figure = make()
            except HpsearchError as error:
                print(f"{error}" + (f" (hint: {error.hint})" if error.hint else ""))
            else:
                figure._ipython_display_()

    @cached_property
    def _data(self) -> SelectionData:
        return load_local_data(self._summary.study)

    def _judgement(self, number: int | None) -> Judgement:
        trial = self._trial(number)
        if not (trial.is_complete or trial.is_superseded):
            raise InputError(
                f"trial {trial.number} of study {self._summary.name!r} is not complete, so its model was not kept",
                hint="name a complete trial, or none for the best one",
            )
        if trial.number not in self._judged:
            self._judged[trial.number] = Judgement.of(self._summary.study, trial, self._artifacts, self._data)
        return self._judged[trial.number]

    def _trial(self, number: int | None) -> TrialSummary:
        if number is None:
            return self._summary.require_best()
        found = next((trial for trial in self._summary.trials if trial.number == number), None)
        if found is None:
            raise InputError(
                f"study {self._summary.name!r} has no trial {number!r}",
                hint=f"its trials have the numbers 0 to {len(self._summary.trials) - 1}",
            )
        return found


def _positive(name: str, number: int) -> int:
    if number < 1:
        raise InputError(f"{name} must be at least 1, got {number!r}")
    return number
