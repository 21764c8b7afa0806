"""The summary of a study, which `status`, `export` and `report` show: read from the database as of one moment.

Trials are ordered best first: COMPLETE trials by their value, ties broken by validation NLL; then the others. The
module only reads. Reading takes six SQL statements (seven with curves), whatever the number of trials.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import chain
from typing import Any

from sqlalchemy import Connection

from hpsearch.errors import NothingCompleteError, UncountedPointsError
from hpsearch.home import log_folder
from hpsearch.metric import Metric
from hpsearch.results.failures import Failure, by_reason, failure_of
from hpsearch.results.openings.intents import Intents, VaultIntent, select_intents
from hpsearch.results.openings.record import OpeningEntry, Openings, VaultRecord
from hpsearch.results.openings.stored_openings import select_openings
from hpsearch.results.trial_summary import TrialRows, TrialSummary, select_trials, trials_from, values_of
from hpsearch.results.verdicts import group_by_verdict
from hpsearch.store.connection.database import Database
from hpsearch.store.rows.counts import PointCounts, num_lost_points
from hpsearch.store.rows.foreign_endings import FOREIGN_STATE_ATTRIBUTE
from hpsearch.store.rows.round_rows import StoredRound, has_ended, read_rounds
from hpsearch.store.rows.trial_state import MAX_EPOCHS_REASON, RESUMED_AT_ATTRIBUTE, STOP_REASON_ATTRIBUTE, StoredState
from hpsearch.store.studies import StoredStudy, load_study
from hpsearch.wording import format_time, parameters_label, times

_FEWEST_EPOCHS = 10
_NUM_BEST = 5  # trials that tell whether the budget was too small
_MOST_FAILURES = 10  # failed attempts that are shown
_MOST_NAMED = 3  # points that an error message names
_OF_BEST = ["trial", "point", "value", "validation_nll", "best_epoch", "epochs", "params", "verdict", "verdict_detail"]


@dataclass(frozen=True, kw_only=True)
class StudySummary:
    """A study and all its trials as of one moment.

    Args:
        trials: best first.
        openings: openings of the test set, in order; empty while it is unopened.
        earlier_openings: openings of the test set by deleted studies of this name.
        intents: openings of the test set that were begun and have no number on record.
        earlier_intents: such openings by deleted studies of this name.
        round_rows: its rounds in order, including the row that ended its search.
        num_foreign: trials in Optuna's tables without a point: other programs have added them, and they are ignored.
        read_at: UTC.
    """

    study: StoredStudy
    trials: tuple[TrialSummary, ...]
    openings: tuple[VaultRecord, ...] = ()
    earlier_openings: tuple[VaultRecord, ...] = ()
    intents: tuple[VaultIntent, ...] = ()
    earlier_intents: tuple[VaultIntent, ...] = ()
    round_rows: tuple[StoredRound, ...] = ()
    num_foreign: int = 0
    read_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def name(self) -> str:
        return self.study.name

    @property
    def metric(self) -> Metric:
        return self.study.definition.judged_by

    @property
    def searched_names(self) -> tuple[str, ...]:
        """The names of the searched parameters: those of the study file, or what an objective has asked for so far."""
        if self.study.definition.objective is None:
            return tuple(dimension.name for dimension in self.study.definition.search.dimensions)
        return tuple(dict.fromkeys(name for trial in self.trials for name in trial.point_parameters))

    @property
    def complete(self) -> tuple[TrialSummary, ...]:
        """The trials that may be selected, best first."""
        return tuple(trial for trial in self.trials if trial.is_complete)

    @property
    def best(self) -> TrialSummary | None:
        return next((trial for trial in self.trials if trial.is_complete), None)

    @property
    def points(self) -> PointCounts:
        """The number of points by the state of their current trial."""
        states = [trial.stored_state for trial in self.trials if trial.is_current]
        return PointCounts(
            waiting=states.count(StoredState.WAITING) + sum(trial.awaits_requeue for trial in self.trials),
            running=states.count(StoredState.RUNNING),
            complete=states.count(StoredState.COMPLETE),
            pruned=states.count(StoredState.PRUNED),
            failed=states.count(StoredState.FAIL),
        )

    @property
    def is_finished(self) -> bool:
        """True when nothing is left to train and no round will follow."""
        num_lost = num_lost_points(self.study.definition, self.points.total)
        return has_ended(self.points.unfinished + num_lost, self.round_rows)

    @property
    def rounds(self) -> tuple[StoredRound, ...]:
        """The rounds that added points, in order; empty for a study that had all its points from the start."""
        return tuple(row for row in self.round_rows if not row.is_end)

    @property
    def search_ended(self) -> str | None:
        """Why no further round was opened; None while a round may follow, and for a study without rounds."""
        return next((row.reason for row in self.round_rows[-1:] if row.is_end), None)

    @property
    def running(self) -> tuple[TrialSummary, ...]:
        """The running trials, by number; their attributes `worker` and `device` say where they run."""
        return _by_number(t for t in self.trials if t.is_current and t.stored_state is StoredState.RUNNING)

    @property
    def num_epochs(self) -> int:
        """Epochs trained so far, by all attempts. Epochs that an attempt resumed from a checkpoint count once."""
        return sum(trial.num_epochs - int(trial.attributes.get(RESUMED_AT_ATTRIBUTE) or 0) for trial in self.trials)

    @property
    def failed_attempts(self) -> tuple[TrialSummary, ...]:
        """Attempts that failed with their worker or were ended by another program, by number.

        Their points were or will be queued again, or were given up.
        """
        return _by_number(trial for trial in self.trials if trial.stored_state is StoredState.FAIL)

    @property
    def given_up(self) -> tuple[TrialSummary, ...]:
        """The last attempts of points that were given up, by number."""
        return tuple(trial for trial in self.failed_attempts if trial.is_current)

    @property
    def reasons_of_given_up(self) -> Mapping[str, Sequence[Failure]]:
        """The last failures of points that were given up, by their reason; the most frequent reason first."""
        return by_reason(self.given_up)

    @property
    def failures(self) -> tuple[Failure, ...]:
        """The latest failed attempts, the last one first."""
        return tuple(map(failure_of, self.failed_attempts[: -_MOST_FAILURES - 1 : -1]))

    @property
    def num_lost_points(self) -> int:
        """Points whose trials another program has deleted.

        The next worker queues them again, unless rounds made them.
        """
        if self.rounds and self.rounds[0].number == 0:
            return max(0, sum(row.num_points for row in self.rounds) - self.points.total)
        return num_lost_points(self.study.definition, self.points.total)

    @property
    def num_ended_outside(self) -> int:
        """Trials that another program has ended. Their points were queued again, or will be by the next worker."""
        return sum(FOREIGN_STATE_ATTRIBUTE in trial.attributes for trial in self.trials)

    @property
    def still_improving(self) -> tuple[TrialSummary, ...]:
        """Those of the best trials that max_epochs ended while they still improved: best epoch among the last tenth.

        None if the number of epochs is searched, or so small that this says nothing.
        """
        definition = self.study.definition
        is_searched = any(dimension.name in ("max_epochs", "seed") for dimension in definition.search.dimensions)
        if is_searched or definition.training.max_epochs < _FEWEST_EPOCHS:
            return ()
        return tuple(
            trial
            for trial in self.complete[:_NUM_BEST]
            if trial.attributes.get(STOP_REASON_ATTRIBUTE) == MAX_EPOCHS_REASON
            and trial.num_epochs == definition.training.max_epochs
            and (trial.best_epoch or 0) > 0.9 * trial.num_epochs
        )

    def describe_small_budget(self) -> str:
        """One line if the budget of epochs was too small for most of the best trials; otherwise empty."""
        best, improving = self.complete[:_NUM_BEST], self.still_improving
        if not improving or (best[0] not in improving and 2 * len(improving) <= len(best)):
            return ""
        definition = self.study.definition
        epochs = definition.training.max_epochs
        who = "the best trial" if len(best) == 1 else f"{len(improving)} of the best {len(best)} trials"
        were = "were" if len(improving) > 1 else "was"
        told = f"{who} {were} still improving when max_epochs = {epochs} ended them"
        if not definition.is_continuable:
            return f"{told}: more epochs need a new study, because {definition.pruning.pruner} has divided them"
        return f"{told}: run it with --set training.max_epochs={2 * epochs}, and they go on"

    def require_best(self) -> TrialSummary:
        """The best trial.

        Raises:
            NothingCompleteError: no trial is complete; says how many points are in which state.
        """
        if self.best is None:
            raise NothingCompleteError(
                f"study {self.name!r} has no complete trial yet: {describe_counts(self.points)}",
                hint=self._why_nothing_is_complete,
            )
        return self.best

    @property
    def _why_nothing_is_complete(self) -> str:
        if self.points.unfinished:
            return f"train it first: hpsearch worker {self.name}"
        if self.given_up and self.study.definition.is_program:
            return f"hpsearch status {self.name} shows what its programs printed before they failed"
        return "every point was pruned or given up: change the search space or the pruning"

    def require_all_counted(self) -> None:
        """Check that no point was given up.

        Raises:
            UncountedPointsError: points were given up. The message names some of them, and the folder of the logs.
        """
        given_up = self.given_up
        if not given_up:
            return
        named = "; ".join(f"point {t.point} ({parameters_label(t.point_parameters)})" for t in given_up[:_MOST_NAMED])
        more = f" and {len(given_up) - _MOST_NAMED} more" if len(given_up) > _MOST_NAMED else ""
        counts = f"{len(given_up)} of {self.points.total} points"
        program = self.study.definition.program
        if program is not None:
            raise UncountedPointsError(
                f"{counts} were given up, their programs failed each time: {named}{more}",
                hint=f"hpsearch status {self.name} shows their last lines; when the program is mended, the same "
                f"command with --set {program.section}.max_attempts={program.max_attempts + 1} tries them again",
            )
        raise UncountedPointsError(
            f"{counts} could not be trained, their workers died or failed each time: {named}{more}",
            hint=f"the logs of the workers are in {log_folder()}",
        )

    def as_json(self) -> dict[str, Any]:
        """The summary in the output of `hpsearch status --json`; `StudyStatus.as_json` adds `chosen`, `confirmation`.

        These keys are stable; new keys may be added.

        name, strategy, seed, definition_sha256, read_at (UTC)
        dataset             null if trials are programs
        command             null, or what a program's trials run, with its placeholders; of an objective its function
        metric, direction   name of the study's metric, and minimize or maximize
        finished            no point is waiting or running, and no round will follow
        points              total, waiting, running, complete, pruned, failed (given up)
        rounds              rounds of points, in order: round (its number, as in the trials' attribute), points (number
                            of points it added), reason, opened_at (UTC); [] if the study had all points from the start
        search_ended        null, or why no further round was opened
        epochs              epochs trained so far, including failed attempts
        given_up            number of points given up, by the reason of their last attempt
        failed_attempts     number of trials that failed, or were ended by another program
        failures            the last ten of these, the latest first: trial, point, attempt, given_up, reason,
                            last_lines (of a program's output)
        ended_outside       number of trials that another program has ended: their values are ignored, and their points
                            are trained again
        lost_points         number of points whose trials another program has deleted: trained again, except in a
                            coarse-to-fine search
        foreign_trials      number of trials that other programs have added to the study: they are ignored
        running             running trials: trial (its number), point, epochs, worker and device (null if not known),
                            params
        best                null, or the best trial: trial (its number), point, value (of the
                            study's metric), validation_nll (what training minimises), best_epoch, epochs,
                            params (the searched keys), verdict and verdict_detail (null if it has none)
        still_improving     numbers of those of the best five trials that max_epochs ended while they still improved
        budgets             the numbers of epochs that the study has had, in order, the present one last; of a program
                            its max_steps, if it has any
        verdicts            number of counted trials by the likeliest cause that their verdict names, such as fine or
                            learning rate too low; "no verdict" for others
        checks              null if neither data nor networks were checked, otherwise the report of the last checks
                            (`CheckReport.as_json`): verdict, date, version, checksums, findings, ...
        test_openings       openings of the test set, in order (`VaultRecord.as_json`); [] if it is unopened
        earlier_test_openings   openings by deleted studies of this name
        test_intents        openings that were begun and have no number (`VaultIntent.as_json`)
        earlier_test_intents    such openings by deleted studies of this name
        """
        definition, best = self.study.definition, self.best
        return {
            "name": self.name,
            "strategy": definition.search.strategy,
            "dataset": definition.dataset,
            "command": definition.program and definition.program.line,
            "metric": self.metric.name,
            "direction": self.metric.direction,
            "seed": definition.seed,
            "definition_sha256": definition.sha256,
            "read_at": format_time(self.read_at),
            "finished": self.is_finished,
            "points": counts_as_json(self.points),
            "rounds": [
                {
                    "round": row.number,
                    "points": row.num_points,
                    "reason": row.reason,
                    "opened_at": format_time(row.opened_at),
                }
                for row in self.rounds
            ],
            "search_ended": self.search_ended,
            "epochs": self.num_epochs,
            "failed_attempts": len(self.failed_attempts),
            "given_up": {reason: len(failures) for reason, failures in self.reasons_of_given_up.items()},
            "failures": [failure.as_json() for failure in self.failures],
            "ended_outside": self.num_ended_outside,
            "lost_points": self.num_lost_points,
            "foreign_trials": self.num_foreign,
            "running": [
                values_of(trial, "trial", "point", "epochs", "worker", "device", "params") for trial in self.running
            ],
            "best": best and values_of(best, *_OF_BEST),
            "still_improving": [trial.number for trial in self.still_improving],
            "budgets": list(self.study.budgets or filter(None, [definition.step_limit])),
            "verdicts": {group.cause: len(group.trials) for group in group_by_verdict(self.trials)},
            "checks": self.study.checks,
            **self.test_set_as_json(),
        }

    def test_set_as_json(self) -> dict[str, Any]:
        """All records about the test set, under the keys that `status --json` and `test --json` use."""
        return {
            "test_openings": [record.as_json() for record in self.openings],
            "earlier_test_openings": [record.as_json() for record in self.earlier_openings],
            "test_intents": [intent.as_json() for intent in self.intents],
            "earlier_test_intents": [intent.as_json() for intent in self.earlier_intents],
        }

    @property
    def test_set(self) -> Mapping[str, Sequence[OpeningEntry]]:
        """All records about the test set under their headings; headings without records are left out."""
        deleted = "an earlier study of this name, which was deleted, opened the test set"
        records: dict[str, Sequence[OpeningEntry]] = {
            f"the test set was opened {times(len(self.openings))}": self.openings,
            deleted: self.earlier_openings,
            "the test set was opened without a number on record": self.intents,
            f"{deleted} without a number on record": self.earlier_intents,
        }
        return {heading: entries for heading, entries in records.items() if entries}

    def describe_test_set(self) -> list[str]:
        """Lines for display about all records of the test set; empty if there are none."""
        lines = []
        for heading, entries in self.test_set.items():
            lines += [f"{heading}:", *chain.from_iterable(entry.lines() for entry in entries)]
        return lines


def read_summary(database: Database, name: str, *, with_curves: bool = False) -> StudySummary:
    """Read a study with all its trials.

    Args:
        with_curves: also read every trial's epochs.
    Raises:
        StudyNotFoundError: no such study.
        InputError: not a study of hpsearch.
        StorageError: the database is not reachable, or its records of the study are damaged.
    """
    study = load_study(database, name)

    def work(connection: Connection) -> tuple[TrialRows, tuple[StoredRound, ...], Intents, Openings]:
        rows = select_trials(connection, study.study_id, with_curves=with_curves)
        rounds = read_rounds(connection, study.study_id)
        return rows, rounds, select_intents(connection, study), select_openings(connection, study)

    rows, rounds, (intents, earlier_intents), (openings, earlier) = database.transaction(work)
    return StudySummary(
        study=study,
        trials=trials_from(rows, study.definition),
        openings=openings,
        earlier_openings=earlier,
        intents=intents,
        earlier_intents=earlier_intents,
        round_rows=rounds,
        num_foreign=rows.num_foreign,
    )


def _by_number(trials: Iterable[TrialSummary]) -> tuple[TrialSummary, ...]:
    return tuple(sorted(trials, key=lambda trial: trial.number))


def describe_counts(points: PointCounts) -> str:
    """The counts as text: `3 waiting, 1 running, 0 complete, 2 pruned, 0 given up`."""
    return (
        f"{points.waiting} waiting, {points.running} running, {points.complete} complete, "
        f"{points.pruned} pruned, {points.failed} given up"
    )


def counts_as_json(points: PointCounts) -> dict[str, int]:
    """The number of points by the state of their current trial; `failed` counts points that were given up."""
    return {"total": points.total, **asdict(points)}
