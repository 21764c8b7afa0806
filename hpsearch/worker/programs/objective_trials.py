"""Serves the processes of a worker's objectives: answers what they ask, and takes in what they tell."""

from __future__ import annotations

import json
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

from optuna.distributions import json_to_distribution
from sqlalchemy import text

from hpsearch.errors import StorageError
from hpsearch.logs import get_logger
from hpsearch.scripts.objectives.messages import Message
from hpsearch.search.stopping import StopDecision, StopReason
from hpsearch.store.claims.ledger import Ledger
from hpsearch.store.studies import StoredStudy
from hpsearch.study.program import SEED
from hpsearch.worker.programs.asked_parameters import AskedParameters, AskedTrial, LostTrialError, packed
from hpsearch.worker.programs.program_trial import LONGEST_NAME, Ending, ProgramTrial, is_storable

_log = get_logger("worker")

_ATTRIBUTES = text("""
    SELECT key, value_json FROM study_user_attributes
    WHERE study_id = :study AND NOT starts_with(key, 'hpsearch:')
""")


@final
class ObjectiveTrials:
    """One worker's objectives. Not thread-safe.

    Args:
        answer: sends the answer to a trial's process.
    """

    def __init__(self, study: StoredStudy, answer: Callable[[int, Message], None]) -> None:
        self._study = study
        self._answer = answer
        self._parameters = AskedParameters(study)
        self._asked: dict[int, AskedTrial] = {}
        self._questions: deque[tuple[int, Message]] = deque()  # not answered yet
        self._idle: set[str] = set()  # names of listed values that were warned of

    def take_in(self, messages: Sequence[tuple[int, Message]], trials: Mapping[int, ProgramTrial]) -> None:
        """Note questions, and what the processes of these trials tell."""
        for trial_id, message in messages:
            if "ask" in message:
                self._questions.append((trial_id, message))
            elif (trial := trials.get(trial_id)) is not None:
                _take_in(trial, message)
                if message.get("tell") == "returned":
                    self._note_idle(trial)

    def serve(self, ledger: Ledger, trials: Mapping[int, ProgramTrial]) -> list[int]:
        """Answer all questions, and return the trials that belong to another worker now.

        Args:
            trials: those whose processes run; questions of others are dropped.
        Raises:
            StorageError: the database is away. What is left is answered by the next call.
        """
        for trial_id in self._asked.keys() - trials.keys():
            del self._asked[trial_id]
        lost = []
        while self._questions:
            trial_id, message = self._questions[0]
            trial = trials.get(trial_id)
            if trial is not None and not trial.is_lost and trial_id not in lost:
                try:
                    self._answer(trial_id, self._answer_to(ledger, trial, message))
                except LostTrialError:
                    lost.append(trial_id)
            self._questions.popleft()
        return lost

    def _note_idle(self, trial: ProgramTrial) -> None:
        """Warn, once for each name, of what a listed point has and the objective has not asked for."""
        if self._study.definition.is_drawn or (asked := self._asked.get(trial.claim.trial_id)) is None:
            return
        for name in sorted(trial.claim.parameters.keys() - asked.listed - {SEED} - self._idle):
            self._idle.add(name)
            number = trial.claim.number
            _log.warning("trial %d: its listed point has %s, which the objective has not asked for", number, name)

    def _answer_to(self, ledger: Ledger, trial: ProgramTrial, message: Message) -> Message:
        try:
            return {"answer": self._found(ledger, trial, message)}
        except (StorageError, LostTrialError):
            raise
        except ValueError as error:
            return {"error": str(error), "is_value_error": True}
        except Exception as error:  # of a sampler, or of a message that no process of ours sends
            _log.exception("cannot answer the objective of trial %d", trial.claim.number)
            return {"error": f"hpsearch: {type(error).__name__}: {error}"}

    def _found(self, ledger: Ledger, trial: ProgramTrial, message: Message) -> Any:
        match message["ask"]:
            case "begin":
                return self._begin(ledger, trial)
            case "suggest":
                return self._suggest(ledger, trial, message)
            case "best":
                best = self._parameters.best(ledger)
                if best is None or best.value is None:
                    return None
                value = self._study.definition.judged_by.value_of(best.value)
                return {"value": value, "parameters": packed(best.params, best.distributions)}
            case "attributes":
                return {row.key: json.loads(row.value_json) for row in ledger.rows(_ATTRIBUTES)}
        raise ValueError(f"there is no question {message['ask']!r}")

    def _begin(self, ledger: Ledger, trial: ProgramTrial) -> dict[str, Any]:
        claim = trial.claim
        asked = self._asked[claim.trial_id] = self._parameters.begin(ledger, claim)
        stored, program = asked.stored, self._study.definition.program
        assert program is not None
        assert stored.datetime_start is not None
        return {
            "study": self._study.name,
            "direction": program.direction,
            "number": claim.number,
            "started": stored.datetime_start.isoformat(),
            "parameters": packed(stored.params, stored.distributions),
            "relative": packed(asked.trial.relative_params, asked.relative_space),
        }

    def _suggest(self, ledger: Ledger, trial: ProgramTrial, message: Message) -> float:
        name = message["name"]
        if not isinstance(name, str) or not is_storable(name):
            raise ValueError(f"a parameter's name must be a text of 1 to {LONGEST_NAME} characters, got {name!r:.60}")
        asked = self._asked[trial.claim.trial_id]
        value = self._parameters.suggest(ledger, asked, name, json_to_distribution(message["distribution"]))
        if self._study.definition.is_drawn:
            trial.set_parameters(asked.stored.params)
        return value


def _take_in(trial: ProgramTrial, message: Message) -> None:
    match message:
        case {"tell": "attribute", "key": str() as key, "value": value} if is_storable(key):
            trial.attributes[key] = value
        case {"tell": "returned", "value": float() | int() as value} if abs(value) <= sys.float_info.max:
            returned = StopDecision(StopReason.FINISHED, f"the objective returned {value:g}")
            trial.end(Ending(decision=returned, loss=trial.metric.loss_of(float(value))))
        case {"tell": "returned", "value": str("nan" | "inf" | "-inf") as shown}:
            trial.end(Ending(decision=StopDecision(StopReason.DIVERGED, f"diverged: the objective returned {shown}")))
        case {"tell": "pruned"}:
            trial.end(Ending(decision=StopDecision(StopReason.PRUNED, "the objective raised TrialPruned")))
        case {"tell": "failed", "why": str() as why}:
            trial.end(Ending(failure=why))
        case {"tell": "cannot start", "why": str() as why}:
            trial.end(Ending(failure=why, cannot_start=True))
        case _:
            _log.warning("the objective of trial %d told what is not understood: %.80r", trial.claim.number, message)
