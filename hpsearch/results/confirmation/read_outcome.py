"""Read the current results of a study's confirmation, from the database alone.

plan.py creates the points of the companion study; outcome.py interprets their results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hpsearch.results.confirmation.companion_study import (
    SEED,
    Companion,
    Parameters,
    configurations_of,
    seeds_of,
    without_seed,
)
from hpsearch.results.confirmation.comparison import compare
from hpsearch.results.confirmation.outcome import Confirmation, ConfirmedConfiguration
from hpsearch.results.summary import StudySummary, read_summary
from hpsearch.results.trial_summary import TrialSummary
from hpsearch.store.connection.database import Database
from hpsearch.store.rows.correct_images import read_correctness
from hpsearch.store.rows.trial_state import StoredState
from hpsearch.stored_json import damaged
from hpsearch.study.space import point_key


def read_confirmation(database: Database, search: StudySummary, found: Companion) -> Confirmation:
    """Read the confirmation of a study.

    Comparing 5 points with 10 seeds on 10,000 images takes a third of a second of processor time.

    Args:
        search: the study's summary.
        found: its companion study.
    Raises:
        StorageError: stored results are damaged, or trials have different numbers of validation images.
    """
    companion = read_summary(database, found.name)
    # After the summary: the bits are written when a trial ends, so every trial that is complete by then has them.
    recorded = read_correctness(database, [trial.trial_id for trial in companion.complete])
    correctness = {trial_id: each.unpacked() for trial_id, each in recorded.items()}
    if len(sizes := {len(each) for each in correctness.values()}) > 1:
        place = "table hpsearch_correctness, column num_images"
        raise damaged(f"the correct images of study {found.name!r}", place, f"trials differ: {sorted(sizes)} images")
    return confirmation_of(search, companion, correctness, found.num_parameters)


def confirmation_of(
    search: StudySummary,
    companion: StudySummary,
    correctness: Mapping[int, NDArray[np.bool_]],
    num_parameters: Sequence[int],
) -> Confirmation:
    """Build a confirmation from what was read.

    Args:
        correctness: trial id in the companion study -> which validation images it classifies correctly, [N].
        num_parameters: of each configuration's network, in the order of the companion's points.
    """
    points = [dict(point) for point in companion.study.definition.search.points]
    configurations = [
        _configuration(search, companion, parameters, number, seeds_of(points), correctness)
        for parameters, number in zip(configurations_of(points), num_parameters, strict=False)
    ]
    compared = [i for i, configuration in enumerate(configurations) if configuration.left_out is None]
    by_seed = [{int(t.point_parameters[SEED]): t.trial_id for t in configurations[i].trials} for i in compared]
    seeds = tuple(seed for seed in seeds_of(points) if by_seed and all(seed in trials for trials in by_seed))
    comparison = None
    if seeds:
        comparison = compare(np.array([[correctness[trials[seed]] for seed in seeds] for trials in by_seed]))
        for i, mean, difference in zip(compared, comparison.means, comparison.from_winner, strict=True):
            configurations[i] = replace(configurations[i], mean=mean, difference=difference)
    return Confirmation(
        study=search.name,
        companion=companion,
        configurations=tuple(configurations),
        comparison=comparison,
        seeds=seeds,
    )


def _configuration(
    search: StudySummary,
    companion: StudySummary,
    parameters: Parameters,
    num_parameters: int,
    seeds: Sequence[int],
    correctness: Mapping[int, NDArray[np.bool_]],
) -> ConfirmedConfiguration:
    reduce, left_to_study = search.study.definition.reduce, search.study.definition.left_to_study
    own = point_key(parameters)
    trials = [t for t in companion.trials if t.is_current and point_key(without_seed(t.named_parameters)) == own]
    complete = tuple(trial for trial in trials if trial.is_complete)
    order = [dimension.name for dimension in search.study.definition.search.dimensions]
    trained = without_seed({**parameters, **left_to_study(parameters)})
    return ConfirmedConfiguration(
        parameters={name: trained[name] for name in order if name in trained},
        search_trial=next(
            (t for t in search.complete if point_key(without_seed(reduce(t.named_parameters))) == own), None
        ),
        trials=complete,
        num_seeds=len(seeds),
        num_parameters=num_parameters,
        left_out=_objection(trials, complete, correctness),
    )


def _objection(
    trials: Sequence[TrialSummary], complete: Sequence[TrialSummary], correctness: Mapping[int, NDArray[np.bool_]]
) -> str | None:
    """Why a configuration cannot be compared; None if it can be."""
    lost = [trial for trial in trials if trial.stored_state is StoredState.PRUNED]
    failed = [trial for trial in trials if trial.stored_state is StoredState.FAIL]
    silent = [trial for trial in complete if trial.trial_id not in correctness]
    if lost:
        detail = lost[0].attributes.get("stop_detail") or "no reason recorded"
        return f"{len(lost)} of {len(trials)} seeds gave no result (trial {lost[0].number}: {detail})"
    if failed:
        reason = failed[0].attributes.get("fail_reason") or "no reason recorded"
        return f"{len(failed)} of {len(trials)} seeds were given up (trial {failed[0].number}: {reason})"
    if silent:
        return f"trial {silent[0].number} has no record of its correct images: an older version trained it"
    if not complete:
        return "no seed has ended yet"
    return None
