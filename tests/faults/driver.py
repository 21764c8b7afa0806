"""One hpsearch process with a fault prepared in it: shorter limits, slower epochs, a death at a chosen place.

The package has no backdoor for tests. What a fault needs is patched into the process here, from outside, before the
command line runs as it stands: `python -m tests.faults.driver '{"epoch_seconds": 0.1}' worker STUDY`.
"""

from __future__ import annotations

import ctypes
import dataclasses
import faulthandler
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from datetime import time as time_of_day
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import event

from hpsearch.cli.main import main as hpsearch_main
from hpsearch.epoch_report import EpochReport
from hpsearch.store.claims import requeue as requeue_module
from hpsearch.store.claims.claim import Result
from hpsearch.store.claims.ledger import Ledger
from hpsearch.store.connection import answer_limit as answer_limit_module
from hpsearch.store.connection import database as database_module
from hpsearch.store.connection.answer_limit import ANSWER_SECONDS
from hpsearch.store.connection.database import Database
from hpsearch.study.settings import TrialSettings
from hpsearch.training.lanes.cohort import Cohort
from hpsearch.worker.options import WorkerSettings

_CLONE_NEWNET = 0x40000000
_LONGEST_PAUSE_SECONDS = 1.0  # between two tries to reach a database, in place of 5: in keeping with the leases


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What to change in a process. As in earnest, a worker that is absent is missed after half a lease.

    Args:
        lease_seconds, absence_seconds, outage_seconds, poll_seconds, checkpoint_seconds, answer_seconds: in place of
            the service's own limits; no checkpoints but a stopped worker's last one, and an unchanged time for answers.
        max_crashes: in place of MAX_CRASHES.
        epoch_seconds: an epoch takes at least so long: time to hit it.
        hold: while this file is there, every epoch waits in its middle, from the n-th (`hold_from_epoch`) on.
        wait_for: the command begins once this file is there.
        acknowledged: every result that the database has acknowledged is appended here, as JSON lines.
        epochs: every epoch that was trained is appended here, as JSON lines: the process, its trials, their epochs.
        kill_before_epoch: SIGKILL when this process would begin its n-th epoch (from 1).
        kill_before_sql: SIGKILL right before the first statement that contains this.
        cut_before_sql: the connection is lost right before the first statement that contains this.
        kill_before_rename: SIGKILL right before the n-th rename (`rename_number`) to a path that contains this.
        poison_learning_rate: a trial with this rate kills its worker as soon as it has a lane.
        clock_offset_seconds: the process's clock is wrong by so much.
        suspicious_values: times among the values of SQL statements are appended here.
        network_namespace: the process lives in this network namespace.
        python: what `sys.executable` says: a supervisor starts its workers with it.
    """

    lease_seconds: float = 6.0
    absence_seconds: float = 3.0
    outage_seconds: float = 60.0
    poll_seconds: float = 0.1
    checkpoint_seconds: float = 0.0
    answer_seconds: float | None = None
    max_crashes: int | None = None
    epoch_seconds: float = 0.0
    hold: str | None = None
    hold_from_epoch: int = 1
    wait_for: str | None = None
    acknowledged: str | None = None
    epochs: str | None = None
    kill_before_epoch: int | None = None
    kill_before_sql: str | None = None
    cut_before_sql: str | None = None
    kill_before_rename: str | None = None
    rename_number: int = 1
    poison_learning_rate: float | None = None
    clock_offset_seconds: float = 0.0
    suspicious_values: str | None = None
    network_namespace: str | None = None
    python: str | None = None

    def as_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))


def drive(faults: Faults, arguments: Sequence[str]) -> None:
    """Prepare the fault, then run the command line; exits with its code."""
    if sys.stderr is not None:
        faulthandler.register(signal.SIGUSR1)
    if faults.network_namespace is not None:
        _enter_network_namespace(faults.network_namespace)
    if faults.python is not None:
        sys.executable = faults.python
    _shorten_limits(faults)
    _watch_epochs(faults)
    _watch_results(faults)
    _watch_statements(faults)
    _watch_renames(faults)
    _shift_clock(faults)
    while faults.wait_for is not None and not Path(faults.wait_for).exists():
        time.sleep(0.005)
    hpsearch_main(list(arguments))


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _enter_network_namespace(name: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/run/netns", name).open() as namespace:
        if libc.setns(namespace.fileno(), _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter network namespace {name}")


def _shorten_limits(faults: Faults) -> None:
    _put_in_place_of_defaults(Ledger, lease_seconds=faults.lease_seconds, absence_seconds=faults.absence_seconds)
    _put_in_place_of_defaults(
        Database, outage_seconds=faults.outage_seconds, answer_seconds=faults.answer_seconds or ANSWER_SECONDS
    )
    _put_in_place_of_defaults(
        WorkerSettings, poll_seconds=faults.poll_seconds, checkpoint_seconds=faults.checkpoint_seconds
    )
    pause = database_module.wait_random_exponential
    database_module.wait_random_exponential = lambda multiplier, max: pause(  # type: ignore[assignment, misc]
        multiplier=multiplier, max=min(max, _LONGEST_PAUSE_SECONDS)
    )
    if faults.answer_seconds is not None:
        answer_limit_module._Limit.seconds = faults.answer_seconds
    if faults.max_crashes is not None:
        requeue_module.MAX_CRASHES = faults.max_crashes


def _put_in_place_of_defaults(cls: Any, **values: Any) -> None:
    """Have a dataclass's constructor use these where it would use its defaults; what differs from them stands."""
    original = cls.__init__
    defaults = {field.name: field.default for field in dataclasses.fields(cls)}

    def init(self: Any, *args: Any, **given: Any) -> None:
        for name, value in values.items():
            if given.get(name, defaults[name]) == defaults[name]:
                given[name] = value
        original(self, *args, **given)

    cls.__init__ = init


def _watch_epochs(faults: Faults) -> None:
    train_epoch, prepare = Cohort.train_epoch, Cohort._prepare
    num_epochs = 0

    def slowly(self: Cohort) -> dict[Hashable, EpochReport]:
        nonlocal num_epochs
        num_epochs += 1
        if num_epochs == faults.kill_before_epoch:
            _die()
        ends = time.monotonic() + faults.epoch_seconds
        gate = faults.hold if num_epochs >= faults.hold_from_epoch else None
        reports = train_epoch(self)
        while time.monotonic() < ends or (gate is not None and Path(gate).exists()):
            time.sleep(0.005)
        if faults.epochs is not None:
            _append(faults.epochs, {"pid": os.getpid(), "epochs": {str(key): r.epoch for key, r in reports.items()}})
        return reports

    def poisonously(self: Cohort, key: Hashable, settings: TrialSettings, *args: Any, **options: Any) -> Any:
        if settings.training.learning_rate == faults.poison_learning_rate:
            _die()
        return prepare(self, key, settings, *args, **options)

    Cohort.train_epoch = slowly  # type: ignore[method-assign]
    Cohort._prepare = poisonously  # type: ignore[method-assign]


def _watch_results(faults: Faults) -> None:
    path = faults.acknowledged
    if path is None:
        return
    finish = Ledger.finish

    def tell(self: Ledger, results: Sequence[Result]) -> set[int]:
        counted = finish(self, results)
        for result in results:
            if result.trial_id in counted:
                state, value = result.outcome.value.name, result.loss
                _append(path, {"trial_id": result.trial_id, "state": state, "value": value})
        return counted

    Ledger.finish = tell  # type: ignore[method-assign]


def _watch_statements(faults: Faults) -> None:
    cuts_left = [faults.cut_before_sql]

    def look(connection: Any, _cursor: Any, statement: str, values: Any, *_rest: Any) -> None:
        if faults.kill_before_sql is not None and faults.kill_before_sql in statement:
            _die()
        if cuts_left[0] is not None and cuts_left[0] in statement:
            cuts_left[0] = None
            _cut(connection.connection.driver_connection.fileno())
        if faults.suspicious_values is not None:
            for value in _flat(values):
                if _looks_like_a_time(value):
                    _append(faults.suspicious_values, {"statement": statement, "value": repr(value)})

    event.listen(sqlalchemy.Engine, "before_cursor_execute", look)


def _cut(connection: int) -> None:
    with socket.socket(fileno=os.dup(connection)) as end:
        end.shutdown(socket.SHUT_RDWR)


def _flat(values: Any) -> list[Any]:
    if isinstance(values, Mapping):
        return _flat(list(values.values()))
    if isinstance(values, (list, tuple)):
        return [plain for value in values for plain in _flat(value)]
    return [values]


def _looks_like_a_time(value: object) -> bool:
    is_epoch_seconds = type(value) in (int, float) and abs(value - time.time()) < 10 * 86_400  # type: ignore[operator]
    return isinstance(value, (date, datetime, time_of_day)) or is_epoch_seconds


def _watch_renames(faults: Faults) -> None:
    fragment, num_left = faults.kill_before_rename, faults.rename_number
    if fragment is None:
        return

    def watched(rename: Callable[..., None]) -> Callable[..., None]:
        def to(source: Any, target: Any, **options: Any) -> None:
            nonlocal num_left
            num_left -= fragment in os.fspath(target)
            if num_left == 0:
                _die()
            rename(source, target, **options)

        return to

    os.replace, os.rename = watched(os.replace), watched(os.rename)  # pathlib looks them up here when it renames


def _shift_clock(faults: Faults) -> None:
    true_time = time.time
    if faults.clock_offset_seconds:
        time.time = lambda: true_time() + faults.clock_offset_seconds


def _append(path: str, line: Mapping[str, Any]) -> None:
    """One write per line: several processes may append at once, and a kill leaves whole lines."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(file, (json.dumps(line) + "\n").encode())
    finally:
        os.close(file)


if __name__ == "__main__":
    drive(Faults(**json.loads(sys.argv[1])), sys.argv[2:])
