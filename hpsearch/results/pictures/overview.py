"""All numbers for the pictures of a report: filters of the best trials, and the best trial's judgement."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from hpsearch.artifacts.best_parameters import Artifacts
from hpsearch.data.files.lookup import DataLocations
from hpsearch.data.splits import SelectionData
from hpsearch.errors import HpsearchError, InputError
from hpsearch.results.pictures.judgement import Judgement
from hpsearch.results.pictures.kept_filters import KeptFilters, has_filters, read_filters
from hpsearch.results.summary import StudySummary
from hpsearch.results.trial_summary import TrialSummary
from hpsearch.store.studies import StoredStudy
from hpsearch.study.definition import BEST_WITH_PICTURES
from hpsearch.worker.preparation import load_study_data


@dataclass(frozen=True, kw_only=True)
class PictureOverview:
    """What a report shows in pictures.

    Args:
        filters: of the best trials, best first.
        judgement: of the best trial; None: `missing` says why.
        missing: a line for each thing that cannot be shown.
    """

    filters: tuple[KeptFilters, ...] = ()
    judgement: Judgement | None = None
    missing: tuple[str, ...] = ()


def trials_with_filters(summary: StudySummary) -> list[TrialSummary]:
    """Those of the best complete trials whose filters a worker has stored, best first."""
    return [trial for trial in summary.complete[:BEST_WITH_PICTURES] if has_filters(trial)]


def read_overview(summary: StudySummary, open_artifacts: Callable[[], Artifacts]) -> PictureOverview:
    """Read everything that can be shown on this machine. Nothing is downloaded.

    Args:
        open_artifacts: opens what the workers wrote; may raise an HpsearchError.
    Raises:
        NothingCompleteError: no trial is complete.
    """
    best, study = summary.require_best(), summary.study
    try:
        artifacts = open_artifacts()
    except HpsearchError as error:
        return PictureOverview(missing=(f"no pictures: {_told(error)}",))
    filters: list[KeptFilters] = []
    judgement, missing = None, []
    for trial in summary.complete[:BEST_WITH_PICTURES]:
        try:
            filters.append(read_filters(study, trial, artifacts))
        except InputError as error:  # none were kept
            missing.append(_told(error))
        except HpsearchError as error:
            missing.append(f"no filters of trial {trial.number}: {_told(error)}")
    try:
        judgement = Judgement.of(study, best, artifacts, load_local_data(study))
    except HpsearchError as error:
        missing.append(f"no confusion matrix and no misclassified images: {_told(error)}")
    return PictureOverview(filters=tuple(filters), judgement=judgement, missing=tuple(missing))


def has_pictures(summary: StudySummary) -> bool:
    """Whether a report has something to show or to say: keep_every is set, or was when the best trials were trained."""
    return summary.study.definition.keep_every is not None or bool(trials_with_filters(summary))


def _told(error: HpsearchError) -> str:
    return f"{error} ({error.hint})" if error.hint else str(error)


def load_local_data(study: StoredStudy) -> SelectionData:
    """The study's training and validation data from this machine; nothing is downloaded.

    Raises:
        DataError: it is missing, damaged, or not the data that the study was created with.
    """
    return load_study_data(study, locations=replace(DataLocations.from_environment(), allow_download=False))
