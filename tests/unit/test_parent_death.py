"""A worker ends with the process that started it, however that one ends."""

from __future__ import annotations

import subprocess
import sys

import pytest

from hpsearch.signals import end_with_parent

# Starts a child that says what signal ends it, waits until it is ready, and dies without another word.
PARENT = """
import os, signal, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], str(os.getpid())], stdout=subprocess.PIPE)
print(child.stdout.readline().decode().strip(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
CHILD = """
import os, signal, sys
from hpsearch.signals import end_with_parent
def leave(number, frame):
    os.write(2, b"left by " + signal.Signals(number).name.encode())
    os._exit(0)
signal.signal(signal.SIGTERM, leave)
end_with_parent(int(sys.argv[1]))
print("ready", flush=True)
while True:
    signal.sigtimedwait([], 0.01)  # pause() would miss a signal that comes just before it
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel of Linux")
def test_a_worker_gets_sigterm_when_its_parent_is_killed() -> None:
    # stderr stays open until the child ends: a child that is left behind is a time-out here.
    done = subprocess.run([sys.executable, "-c", PARENT, CHILD], capture_output=True, text=True, timeout=240)
    assert done.stdout == "ready\n"
    assert done.stderr == "left by SIGTERM"


def test_a_worker_whose_parent_is_gone_already_leaves_at_once() -> None:
    program = "from hpsearch.signals import end_with_parent; end_with_parent(2**22 + 1); print('stayed')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stdout) == (0, "")


def test_a_kernel_that_refuses_is_only_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Refusing:
        def prctl(self, *_: int) -> int:
            return -1

    monkeypatch.setattr("hpsearch.signals.ctypes.CDLL", lambda *_, **__: Refusing())
    monkeypatch.setattr("hpsearch.signals.os.getppid", lambda: 7)
    end_with_parent(7)
    if sys.platform == "linux":
        assert "cannot request a signal" in caplog.text
