"""Studies of programs with made-up reports in a real PostgreSQL, written through the ledger as a worker does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hpsearch.epoch_report import StepReport
from hpsearch.results.status import StudyStatus, read_status
from hpsearch.store.claims.claim import Claim, Outcome, Result
from hpsearch.store.claims.ledger import Ledger
from hpsearch.store.connection.database import Database
from hpsearch.store.rows.trial_state import LAST_LINES
from hpsearch.store.studies import StoredStudy, load_study
from hpsearch.study.study_file import parse_definition
from hpsearch.worker.programs.preparation import prepare_program

RUN = ["{python}", "train.py", "--lr={lr}", "--seed={seed}"]


@dataclass(frozen=True, kw_only=True)
class MadeUpPrograms:
    """A study of programs and the one worker that writes it."""

    database: Database
    name: str

    @property
    def study(self) -> StoredStudy:
        return load_study(self.database, self.name)

    @property
    def status(self) -> StudyStatus:
        return read_status(self.database, self.name, with_curves=True)

    def complete(self, values: Sequence[float], **attributes: Any) -> Claim:
        """Complete the next point with its best value; the program has reported one value per step."""
        metric = self.study.definition.judged_by
        losses = [metric.loss_of(value) for value in values]
        return self._finish(losses, Outcome.COMPLETE, min(losses), {"stop_reason": "finished", **attributes})

    def prune(self, values: Sequence[float]) -> Claim:
        losses = [self.study.definition.judged_by.loss_of(value) for value in values]
        return self._finish(losses, Outcome.PRUNED, losses[-1], {"stop_reason": "pruned"})

    def fail(self, *lines: str, max_attempts: int = 1) -> Claim:
        """Let an attempt at the next point fail; after `max_attempts` its point is given up."""
        ledger = self._ledger
        (claim,) = ledger.claim(1)
        reason = "ended with exit code 3" + (LAST_LINES + "\n".join(lines) if lines else "; it printed nothing")
        assert ledger.give_back([claim.hold], reason, max_attempts=max_attempts)
        return claim

    def complete_all(self, value_of: Callable[[dict[str, Any]], float]) -> None:
        ledger = self._ledger
        while claims := ledger.claim(1):
            loss = self.study.definition.judged_by.loss_of(value_of(dict(claims[0].parameters)))
            self._write(ledger, claims[0], [loss], Outcome.COMPLETE, loss, {"stop_reason": "finished"})

    @property
    def _ledger(self) -> Ledger:
        return Ledger(database=self.database, study_id=self.study.study_id, owner=1)

    def _finish(
        self, losses: Sequence[float], outcome: Outcome, loss: float | None, attributes: dict[str, Any]
    ) -> Claim:
        ledger = self._ledger
        (claim,) = ledger.claim(1)
        self._write(ledger, claim, losses, outcome, loss, attributes)
        return claim

    def _write(
        self,
        ledger: Ledger,
        claim: Claim,
        losses: Sequence[float],
        outcome: Outcome,
        loss: float,
        attributes: dict[str, Any],
    ) -> None:
        reports = [StepReport(step=step, loss=each, seconds=1.0) for step, each in enumerate(losses, start=1)]
        ledger.record_steps({claim.trial_id: reports}, {claim.trial_id: 0})
        written = {
            "epochs": len(losses),
            "best_epoch": losses.index(min(losses)) + 1,
            "best_validation_nll": None,
            "seconds": 1.0,
            "worker": "host:1",
            "device": "cpu",
            **attributes,
        }
        result = Result(trial_id=claim.trial_id, outcome=outcome, loss=loss, attributes=written)
        assert ledger.finish([result]) == {claim.trial_id}


ProgramsMaker = Callable[..., MadeUpPrograms]


@pytest.fixture
def make_programs(database: Database, tmp_path: Path) -> ProgramsMaker:
    """make_programs(search, command keys): a study that nobody has worked on yet, of a command in `tmp_path`."""

    def make(search: dict[str, Any] | None = None, *, name: str = "mine", **command: Any) -> MadeUpPrograms:
        document = {
            "name": name,
            "command": {"run": RUN, "metric": "val_loss", "gpus": 0, **command},
            "search": search or {"lr": [0.1, 0.01, 0.001]},
        }
        prepare_program(database, parse_definition(document, source="test"), tmp_path)
        return MadeUpPrograms(database=database, name=name)

    return make


@pytest.fixture
def trained(make_programs: ProgramsMaker) -> MadeUpPrograms:
    """Three points: complete with 0.5 and 0.25, and given up."""
    programs = make_programs()
    programs.complete([0.75, 0.5])
    programs.complete([0.5, 0.25], **{"reported:train_loss": 0.125})
    programs.fail("loading data", "Error: <script>alert(1)</script>")
    return programs
