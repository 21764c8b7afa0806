"""Read the current results of a study's confirmation, from the database alone.

plan.py creates the points of the companion study; outcome.py interprets their results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpsearch.metric import PairedTest
from hpsearch.results.confirmation.companion_study import (
    SEED,
    Companion,
    Parameters,
    configurations_of,
    seeds_of,
    without_seed,
)
from hpsearch.results.confirmation.compared import Comparison
from hpsearch.results.confirmation.comparison import compare, compare_losses, compare_values
from hpsearch.results.confirmation.outcome import Confirmation, ConfirmedConfiguration
from hpsearch.results.failures import failure_of
from hpsearch.results.summary import StudySummary, read_summary
from hpsearch.results.trial_summary import TrialSummary
from hpsearch.store.connection.database import Database
from hpsearch.store.rows.correct_images import read_correctness
from hpsearch.store.rows.example_losses import read_example_losses
from hpsearch.store.rows.trial_state import StoredState
from hpsearch.stored_json import damaged
from hpsearch.study.space import point_key

Record = NDArray[np.bool_] | NDArray[np.float32] | NDArray[np.float64]


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
    trial_ids = [trial.trial_id for trial in companion.complete]
    place = "table hpsearch_correctness, column num_images"
    records: dict[int, Record]
    sizes_of_groups = companion.study.group_sizes
    if companion.metric.is_reported:
        records = {trial.trial_id: np.array([trial.loss]) for trial in companion.complete}
    elif companion.metric.test is PairedTest.MCNEMAR and sizes_of_groups is None:
        records = {trial_id: each.unpacked() for trial_id, each in read_correctness(database, trial_ids).items()}
    else:
        place = "table hpsearch_example_losses, column num_examples"
        records = dict(read_example_losses(database, trial_ids))
    if len(sizes := {len(each) for each in records.values()}) > 1:
        raise damaged(f"the correct images of study {found.name!r}", place, f"trials differ: {sorted(sizes)} images")
    if sizes_of_groups is not None:
        records = {trial_id: parts_of_groups(its, sizes_of_groups, found.name) for trial_id, its in records.items()}
    return confirmation_of(search, companion, records, found.num_parameters)


def parts_of_groups(record: Record, sizes: Sequence[int], name: str) -> NDArray[np.float32]:
    """The parts of the loss of groups, from their sums (`Judge.record`): the loss, and a group's influence on it.

    The loss is a mean over rows. Without this its interval would be that of a mean over groups, which varies with the
    groups' sizes, too.

    Raises:
        StorageError: there are not as many groups as the study has.
    """
    if len(record) != len(sizes):
        what, place = f"the losses of study {name!r}", "table hpsearch_example_losses, column num_examples"
        raise damaged(what, place, f"{len(record)} groups, but the data has {len(sizes)}")
    shares = np.asarray(sizes) / np.mean(sizes)
    loss = record.mean(dtype=np.float64)
    return np.asarray(record + loss * (1.0 - shares), dtype=np.float32)


def confirmation_of(
    search: StudySummary,
    companion: StudySummary,
    records: Mapping[int, Record],
    num_parameters: Sequence[int | None],
) -> Confirmation:
    """Build a confirmation from what was read.

    Args:
        records: trial id in the companion study -> which validation images it classifies correctly, bool [N], or its
            losses on the validation examples, float32 [N]; of a program its loss alone, float64 [1].
        num_parameters: of each configuration's network, in the order of the companion's points.
    """
    points = [dict(point) for point in companion.study.definition.search.points]
    configurations = [
        _configuration(search, companion, parameters, number, seeds_of(points), records)
        for parameters, number in zip(configurations_of(points), num_parameters, strict=False)
    ]
    compared = [i for i, configuration in enumerate(configurations) if configuration.left_out is None]
    by_seed = [{int(t.point_parameters[SEED]): t.trial_id for t in configurations[i].trials} for i in compared]
    seeds = tuple(seed for seed in seeds_of(points) if by_seed and all(seed in trials for trials in by_seed))
    comparison = None
    if seeds:
        recorded = np.array([[records[trials[seed]] for seed in seeds] for trials in by_seed])
        is_share = companion.metric.test is PairedTest.MCNEMAR
        are_groups = companion.study.group_sizes is not None
        comparison = _compare(recorded, is_reported=search.metric.is_reported, is_share=is_share, are_groups=are_groups)
        for i, mean, difference in zip(compared, comparison.means, comparison.from_winner, strict=True):
            configurations[i] = replace(configurations[i], mean=mean, difference=difference)
    return Confirmation(
        study=search.name,
        companion=companion,
        configurations=tuple(configurations),
        comparison=comparison,
        seeds=seeds,
        search_epochs=search.study.definition.step_limit,
    )


def _compare(recorded: NDArray[Any], *, is_reported: bool, is_share: bool, are_groups: bool) -> Comparison:
    if is_reported:
        return compare_values(recorded[:, :, 0])
    if recorded.dtype == np.bool_:
        return compare(recorded)
    return compare_losses(recorded, is_share=is_share, are_groups=are_groups)


def _configuration(
    search: StudySummary,
    companion: StudySummary,
    parameters: Parameters,
    num_parameters: int | None,
    seeds: Sequence[int],
    records: Mapping[int, Record],
) -> ConfirmedConfiguration:
    reduce, left_to_study = search.study.definition.reduce, search.study.definition.left_to_study
    own = point_key(parameters)
    trials = [t for t in companion.trials if t.is_listed and point_key(without_seed(t.named_parameters)) == own]
    complete = tuple(trial for trial in trials if trial.is_complete)
    trained = without_seed({**parameters, **left_to_study(parameters)})
    return ConfirmedConfiguration(
        parameters={name: trained[name] for name in search.searched_names if name in trained},
        search_trial=next(
            (t for t in search.complete if point_key(without_seed(reduce(t.named_parameters))) == own), None
        ),
        trials=complete,
        num_seeds=len(seeds),
        num_parameters=num_parameters,
        left_out=_objection(trials, complete, records),
    )


def _objection(
    trials: Sequence[TrialSummary], complete: Sequence[TrialSummary], records: Mapping[int, Record]
) -> str | None:
    """Why a configuration cannot be compared; None if it can be."""
    lost = [trial for trial in trials if trial.stored_state is StoredState.PRUNED]
    failed = [trial for trial in trials if trial.stored_state is StoredState.FAIL]
    silent = [trial for trial in complete if trial.trial_id not in records]
    if lost:
        detail = lost[0].attributes.get("stop_detail") or "no reason recorded"
        return f"{len(lost)} of {len(trials)} seeds gave no result (trial {lost[0].number}: {detail})"
    if failed:
        reason = failure_of(failed[0]).reason
        return f"{len(failed)} of {len(trials)} seeds were given up (trial {failed[0].number}: {reason})"
    if silent:
        return f"trial {silent[0].number} has no record of its correct images: an older version trained it"
    if not complete:
        return "no seed has ended yet"
    return None
