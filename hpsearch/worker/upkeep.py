"""What every worker does for its study besides training: queue lost trials again, and give back its own at the end."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass, replace

from hpsearch.errors import StorageError
from hpsearch.logs import get_logger
from hpsearch.signals import RELEASE_SECONDS
from hpsearch.store.claims.ledger import Ledger
from hpsearch.store.studies import StoredStudy
from hpsearch.study.definition import StudyDefinition
from hpsearch.wording import counted
from hpsearch.worker.ledger_access import LedgerAccess

_log = get_logger("worker")


@dataclass(kw_only=True)
class Reaper:
    """Queues trials again, now and then: those of dead workers, and those that another program has ended.

    Args:
        name: of this worker.
    """

    name: str
    _reaped_at: float = 0.0
    _looked_at: float = -math.inf
    _look_seconds: float = 0.0  # how long the last look for trials that were ended outside took

    def reap(self, access: LedgerAccess, *, is_idle: bool) -> None:
        """Queue again what has to be, if it is time to look.

        The query for trials that were ended outside takes 0.3 s for 20,000 points that are not counted: an idle worker
        spends at most a tenth of its time on it.

        Args:
            is_idle: whether the worker has nothing to do, and looks at every call.
        """
        absence_seconds = access.ledger.absence_seconds
        started = time.monotonic()
        if is_idle or started - self._reaped_at > absence_seconds:
            self._reaped_at = started
            self._tell(access.ask(Ledger.reap, 0), "of dead workers")
        started = time.monotonic()
        if started - self._looked_at >= (10 * self._look_seconds if is_idle else 4 * absence_seconds):
            number = access.ask(Ledger.give_back_ended_outside, 0)
            self._looked_at = time.monotonic()
            self._look_seconds = self._looked_at - started
            self._tell(number, "ended outside hpsearch")

    def _tell(self, number: int, which: str) -> None:
        if number:
            _log.warning("%s: %s %s queued again", self.name, counted(number, "trial"), which)


def check_same_study(definition: StudyDefinition, study: StoredStudy) -> None:
    """Raise StorageError if this stored definition, under the study's id, is that of another study.

    The number of epochs may differ.
    """
    if definition.with_max_epochs(1).value_sha256 != study.definition.with_max_epochs(1).value_sha256:
        raise StorageError(
            f"the database was restored to older data: study number {study.study_id} is another study now",
            hint=f"restart the workers of study {study.name}",
        )


def give_back_all(ledger: Ledger, name: str, reason: str, *, is_crash: bool = False) -> None:
    """Give back all trials of a worker that ends, within RELEASE_SECONDS; if that fails, their leases expire.

    Args:
        name: of the worker.
        reason, is_crash: as in `Ledger.release`.
    """
    # A worker that was asked to stop waits for no other answer, but it does for this one.
    database = replace(
        ledger.database,
        patience_seconds=RELEASE_SECONDS,
        answer_seconds=RELEASE_SECONDS,
        abandoned=threading.Event(),
    )
    try:
        number = replace(ledger, database=database).release(reason, is_crash=is_crash)
    except StorageError as error:
        _log.warning("%s: its trials could not be given back; their leases will expire: %s", name, error)
        return
    if number:
        _log.info("%s: %s; %s given back", name, reason, counted(number, "trial"))
