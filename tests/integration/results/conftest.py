"""Studies with made-up curves in a real PostgreSQL, written through registry and ledger as a worker does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import optuna
import pytest

from hpsearch.epoch_report import EpochReport, Validation
from hpsearch.search.samplers import build_sampler
from hpsearch.store.claims.claim import Claim, Outcome, Result
from hpsearch.store.claims.ledger import Ledger
from hpsearch.store.connection.database import Database
from hpsearch.store.registration import register_study
from hpsearch.store.studies import StoredStudy
from hpsearch.study.study_file import parse_definition
from tests.integration.results.vault_studies import artifacts, folder, locations, search

__all__ = ["artifacts", "folder", "locations", "search"]  # fixtures

CHECKSUMS = {"train-images-idx3-ubyte": "ba89" * 16, "train-labels-idx1-ubyte": "65a5" * 16}


@dataclass(frozen=True, kw_only=True)
class MadeUpStudy:
    """A study and the one worker that writes it."""

    database: Database
    study: StoredStudy
    ledger: Ledger

    @property
    def name(self) -> str:
        return self.study.name

    def claim(self) -> Claim:
        """The next point, with its parameters drawn where the strategy draws."""
        (claim,) = self.ledger.claim(1)
        definition = self.study.definition
        if not definition.is_drawn:
            return claim
        study = self.database.load_study(self.name)
        study.sampler = build_sampler(definition.search.strategy, study_seed=definition.seed, trial_number=claim.number)
        study.get_trials(deepcopy=False)  # Optuna's cache refuses to write to a trial that it has not read
        trial = optuna.Trial(study, claim.trial_id)
        for dimension in definition.search.dimensions:
            dimension.suggest(trial)
        return replace(claim, parameters=trial.params)

    def train(self, claim: Claim, errors: Sequence[float], nlls: Sequence[float] | None = None) -> None:
        """Report one epoch per error, one second each; without `nlls` the NLL is thrice the error."""
        for epoch, error in enumerate(errors, start=1):
            nll = nlls[epoch - 1] if nlls else 3 * error
            self.ledger.record({claim.trial_id: epoch_report(epoch, error, nll)})

    def complete(
        self, claim: Claim, errors: Sequence[float], nlls: Sequence[float] | None = None, **attributes: Any
    ) -> None:
        """Train the claim and count it with its best error."""
        self._finish(claim, Outcome.COMPLETE, errors, nlls, min(errors), attributes)

    def prune(self, claim: Claim, errors: Sequence[float], **attributes: Any) -> None:
        """Train the claim and count it as pruned, with its last error (if it has one)."""
        last = errors[-1] if errors else None
        self._finish(claim, Outcome.PRUNED, errors, None, last, {"stop_reason": "pruned", **attributes})

    def _finish(
        self,
        claim: Claim,
        outcome: Outcome,
        errors: Sequence[float],
        nlls: Sequence[float] | None,
        value: float | None,
        attributes: dict[str, Any],
    ) -> None:
        self.train(claim, errors, nlls)
        best_epoch = min(range(len(errors)), key=errors.__getitem__) + 1 if errors else 0
        written = {
            "stop_reason": "patience",
            "stop_detail": f"no significant improvement since epoch {best_epoch}",
            "epochs": len(errors),
            "best_epoch": best_epoch,
            "best_validation_nll": (nlls or [3 * error for error in errors])[best_epoch - 1] if errors else None,
            "seconds": float(len(errors)),
            "worker": "host:1",
            "device": "cpu",
            **attributes,
        }
        result = Result(trial_id=claim.trial_id, outcome=outcome, loss=value, attributes=written)
        assert self.ledger.finish([result]) == {claim.trial_id}


def epoch_report(epoch: int, error: float, nll: float) -> EpochReport:
    validation = Validation(iteration=100 * epoch, loss=error, nll=nll)
    return EpochReport(
        epoch=epoch, validations=(validation,), train_nll=0.9 * nll, learning_rate=0.1 / epoch, seconds=1.0
    )


StudyMaker = Callable[..., MadeUpStudy]


@pytest.fixture
def make_study(database: Database) -> StudyMaker:
    """make_study(search, **sections): a study that nobody has worked on yet."""

    def make(search: dict[str, Any] | None = None, **sections: Any) -> MadeUpStudy:
        document = {"name": "made-up", "search": search or {}, **sections}
        registration = register_study(
            database,
            parse_definition(document, source="test"),
            dataset_checksums=CHECKSUMS,
            cohort_of=lambda settings: "one",
        )
        assert registration.is_new
        study = registration.study
        ledger = Ledger(database=database, study_id=study.study_id, owner=1)
        return MadeUpStudy(database=database, study=study, ledger=ledger)

    return make


@pytest.fixture
def learning_rates(make_study: StudyMaker) -> MadeUpStudy:
    """A grid of four points over the learning rate alone: 0.1, 0.01, 0.001, 0.0001."""
    return make_study({"learning_rate": {"log10": [-1, -4]}})
