"""Workers that pin GPUs which are not there: real processes, each with a session of its own, forked by this program.

It imports once, because a process with torch takes seconds to start. It reads a JSON object per line, {"wanted",
"waits", "is_shared"}, and forks a replica for each, which tells what happens to it as JSON lines on stdout:

    {"pid", "event": "started"}
    {"pid", "event": "log", "message"}      what the package logs
    {"pid", "event": "pinned", "device"}    it holds the GPU until SIGTERM, and looks after its lock meanwhile
    {"pid", "event": "doubled", "device"}   another replica was on that GPU at the same time
    {"pid", "event": "error", "message", "hint"}
    {"pid", "event": "ended", "code"}       of those that were not killed

Arguments: the database, the study, the number of GPUs of this machine, a folder with a file per GPU.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

from hpsearch.device.devices import Gpu, VisibleDevices
from hpsearch.device.pin import PinnedDevice, PinRules, pin_device
from hpsearch.errors import HpsearchError
from hpsearch.signals import StopSignal
from hpsearch.store.claims.ledger import Ledger
from hpsearch.store.connection.database import open_database


def fake_gpus(number: int) -> VisibleDevices:
    gpus = (
        Gpu(index=index, uuid=f"GPU-00000000-0000-0000-0000-{index:012d}", name="NVIDIA Fake")
        for index in range(number)
    )
    return VisibleDevices(gpus=tuple(gpus), has_cuda_build=True)


def say(event: str, **more: object) -> None:
    os.write(1, (json.dumps({"pid": os.getpid(), "event": event, **more}) + "\n").encode())


class _Teller(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say("log", message=record.getMessage())


def replica(url: str, study_id: int, num_gpus: int, folder: Path, request: dict[str, Any]) -> int:
    stop = StopSignal().install()
    say("started")
    database = open_database(url)
    ledger = Ledger(database=database, study_id=study_id)
    try:
        with pin_device(
            database,
            request["wanted"],
            fake_gpus(num_gpus),
            worker=f"testhost:{os.getpid()}",
            stop=stop,
            is_finished=lambda: ledger.counts().unfinished == 0,
            rules=PinRules(waits=request.get("waits", True), is_shared=request.get("is_shared", False)),
        ) as pinned:
            if pinned is not None:
                _use(pinned, stop, folder, is_shared=request.get("is_shared", False))
                pinned.require()
    except HpsearchError as error:
        say("error", message=str(error), hint=error.hint)
        return error.exit_code
    finally:
        database.close()
    return 0


def _use(pinned: PinnedDevice, stop: StopSignal, folder: Path, *, is_shared: bool) -> None:
    """Be on the GPU. The kernel frees the file's lock at the death of a process, before the server can know of it."""
    with (folder / str(pinned.device)).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_NB | (fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX))
        except BlockingIOError:
            say("doubled", device=pinned.description)
        say("pinned", device=pinned.description)
        while not stop.wait(0.05) and pinned.keep():
            pass


def serve(url: str, study_id: int, num_gpus: int, folder: Path) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the replicas
    for line in sys.stdin:
        if os.fork() == 0:
            random.seed()  # or all would wait the same random times
            logging.getLogger("hpsearch").setLevel(logging.INFO)
            logging.getLogger("hpsearch").addHandler(_Teller())
            code = 70
            try:
                code = replica(url, study_id, num_gpus, folder, json.loads(line))
            finally:
                say("ended", code=code)
                os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
