"""A keeper starts scripts as they are, and when it says that one has ended, nothing of it is left."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from hpsearch.scripts.keeper import client
from hpsearch.scripts.keeper.client import Ended, Event, Keeper, KeeperLost, NotStarted, Started, StartRequest
from hpsearch.scripts.keeper.dead_keeper import KEEPER_TOKEN
from hpsearch.scripts.keeper.processes import read_process

ROOT = Path(__file__).parents[4]
WAIT_SECONDS = 60.0  # of a machine that has much else to do
SLEEP = "sleep 1000"
PYTHON = f"{sys.executable} -I -S -c"

# Each leaves, or is, a process that is hard to find or to end. They say "ready" once it is there.
STUBBORN = {
    "plain": f"echo ready; {SLEEP}",
    "child": f"{SLEEP} & echo ready; wait",
    "session": f"setsid {SLEEP} & echo ready; wait",
    "nohup": f"nohup {SLEEP} & echo ready; wait",
    "double-fork": f"(setsid sh -c '{SLEEP} & {SLEEP} &' &); echo ready; {SLEEP}",
    "no-environment": f"(env -i setsid {SLEEP} &); echo ready; {SLEEP}",
    "ignores-sigterm": f"trap '' TERM; (setsid {SLEEP} &); echo ready; while :; do {SLEEP}; done",
    "stopped": "echo ready; kill -STOP $$",
    # A process that never lives long enough to be listed, in one process group and in a new session each time.
    "hops": f"trap '' TERM; {PYTHON} 'import os\nwhile True:\n if os.fork(): os._exit(0)' & echo ready; {SLEEP}",
    "hops-in-sessions": f"trap '' TERM; {PYTHON} 'import os\nwhile True:\n if os.fork(): os._exit(0)\n os.setsid()' &"
    f" echo ready; {SLEEP}",
    "forks": f"trap '' TERM; echo ready; while :; do setsid {SLEEP} & sleep 0.01; done",
}

# A worker: starts scripts, says who is who, and then prints its events.
WORKER = """
import json, os, sys
from hpsearch.scripts.keeper.client import Keeper, StartRequest, Started
programs, environment = json.loads(sys.stdin.readline())
null = os.open(os.devnull, os.O_WRONLY)
keeper = Keeper()
for key, program in enumerate(programs):
    argv = ["sh", "-c", program]
    request = StartRequest(key=key, argv=argv, environment=environment, folder="/", output=null, grace_seconds=0.3)
    keeper.start(request)
started = []
while len(started) < len(programs):
    started += [event.pid for event in keeper.poll(60) if isinstance(event, Started)]
print(json.dumps([keeper.pid, started]), flush=True)
while True:
    for event in keeper.poll(60):
        print(event, flush=True)
"""


def wait_until(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.01)


def find_marked(mark: str) -> list[int]:
    """Living processes with the mark in their environment or arguments; zombies have neither, nor has execve."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and int(folder.name) != os.getpid():
            try:
                if mark.encode() in (folder / "environ").read_bytes() + (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))
            except OSError:
                continue
    return found


class Scripts:
    """Starts scripts with a keeper in this process and collects its events."""

    def __init__(self, folder: Path) -> None:
        self.keeper = Keeper()
        self.folder = folder
        self.mark = uuid.uuid4().hex
        self.events: list[Event] = []

    def start(self, key: int, *argv: str, **changes: Any) -> None:
        output = os.open(self.output(key), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        request = {"folder": str(self.folder), "environment": self.environment, "output": output, **changes}
        self.keeper.start(StartRequest(key=key, argv=argv, **request))
        os.close(output)

    def shell(self, key: int, program: str, **changes: Any) -> None:
        self.start(key, "sh", "-c", program, **changes)

    @property
    def environment(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "MARK": self.mark}

    def output(self, key: int) -> Path:
        return self.folder / f"{key}.out"

    def wait_for_event(self, kind: type[Any], key: int | None = None) -> Any:
        """The event, which stays among `events`."""
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            for event in self.events:
                if isinstance(event, kind) and (key is None or event.key == key):
                    return event
            assert time.monotonic() < deadline, f"no {kind.__name__} of {key}: {self.events}"
            self.events += self.keeper.poll(0.5)

    def start_ready(self, key: int, program: str, **changes: Any) -> int:
        """Start a script that says "ready"; returns its process id."""
        self.shell(key, program, **changes)
        pid: int = self.wait_for_event(Started, key).pid
        wait_until(lambda: "ready" in self.output(key).read_text(), "a script is ready")
        return pid


@pytest.fixture
def scripts(tmp_path: Path) -> Iterator[Scripts]:
    scripts = Scripts(tmp_path)
    with scripts.keeper:
        yield scripts
    assert find_marked(scripts.mark) == []


def guardian_of(pid: int) -> int:
    process = read_process(pid)
    assert process is not None
    return process.parent


@pytest.mark.parametrize(
    ("program", "exit_code", "number"),
    [
        ("exit 0", 0, None),
        ("exit 3", 3, None),
        ("exit 255", 255, None),
        ("kill -9 $$", None, signal.SIGKILL),
        ("kill -TERM $$", None, signal.SIGTERM),
        ("kill -SEGV $$", None, signal.SIGSEGV),
    ],
)
def test_the_end_has_the_exit_code_or_the_signal(
    scripts: Scripts, program: str, exit_code: int | None, number: int | None
) -> None:
    scripts.shell(1, program)
    assert scripts.wait_for_event(Ended) == Ended(key=1, exit_code=exit_code, signal=number)
    assert [type(event) for event in scripts.events] == [Started, Ended]


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A folder of programs that cannot be executed."""
    for name, text, mode in (
        ("plain.sh", "#!/bin/sh\n", 0o644),
        ("windows.sh", "#!/usr/bin/python3\r\nprint()\r\n", 0o755),
        ("headless", "echo hello\n", 0o755),
    ):
        (tmp_path / name).write_bytes(text.encode())
        (tmp_path / name).chmod(mode)
    return tmp_path


@pytest.mark.parametrize(
    ("argv", "changes", "number", "text"),
    [
        (["./missing"], {}, errno.ENOENT, "'./missing'"),
        (["missing-from-path"], {}, errno.ENOENT, "'missing-from-path'"),
        (["./plain.sh"], {}, errno.EACCES, "'./plain.sh'"),
        (["./windows.sh"], {}, errno.ENOENT, r"'/usr/bin/python3\r', the interpreter in the first line of"),
        (["./headless"], {}, errno.ENOEXEC, "'./headless'"),
        (["./plain.sh/x"], {}, errno.ENOTDIR, "'./plain.sh/x'"),
        (["true"], {"folder": "/no/such"}, errno.ENOENT, "folder '/no/such'"),
        (["true", "x" * 3_000_000], {}, errno.E2BIG, "true'"),
    ],
)
def test_a_program_that_cannot_be_executed_is_not_started(
    scripts: Scripts, broken: Path, argv: list[str], changes: dict[str, Any], number: int, text: str
) -> None:
    scripts.start(1, *argv, **changes)
    event = scripts.wait_for_event(NotStarted)
    assert (event.key, event.error_number) == (1, number)
    assert text in event.message
    assert event.message.startswith(os.strerror(number))
    assert len(scripts.events) == 1


@pytest.mark.parametrize(
    "changes",
    [{"argv": []}, {"argv": [""]}, {"argv": ["a\0b"]}, {"environment": {"a=b": ""}}, {"environment": {"": ""}}],
)
def test_a_request_that_no_program_could_have_is_an_error_of_the_caller(
    scripts: Scripts, changes: dict[str, Any]
) -> None:
    values = {"argv": ["true"], "environment": {}, "folder": "/", "output": 2, **changes}
    with pytest.raises(ValueError, match=r"script|variable"):
        scripts.keeper.start(StartRequest(key=1, **values))


def test_a_program_is_searched_on_the_path_of_the_script(scripts: Scripts, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "mine"
    program.write_text("#!/bin/sh\necho found\n")
    program.chmod(0o755)
    scripts.start(1, "mine", environment={"PATH": f"/no/such:{program.parent}"})
    assert scripts.wait_for_event(Ended).exit_code == 0
    assert scripts.output(1).read_text() == "found\n"


def test_a_script_has_the_arguments_environment_and_folder_of_the_request(scripts: Scripts, tmp_path: Path) -> None:
    program = "import os, sys, json; print(json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]))"
    environment = {"LANG": "C.UTF-8", "NAME": "ä\udcff\n", "EMPTY": ""}
    scripts.start(1, sys.executable, "-I", "-S", "-c", program, "ü", "a b\n", environment=environment)
    scripts.wait_for_event(Ended)
    arguments, found, folder = json.loads(scripts.output(1).read_text())
    assert len(found.pop(KEEPER_TOKEN)) == 32
    assert (arguments, found, folder) == (["ü", "a b\n"], environment, str(tmp_path))


def test_standard_output_and_error_are_the_output_and_standard_input_is_empty(scripts: Scripts) -> None:
    scripts.shell(1, "echo one; echo two >&2; cat; readlink /proc/$$/fd/0")
    scripts.wait_for_event(Ended)
    assert scripts.output(1).read_text() == "one\ntwo\n/dev/null\n"


def test_a_script_inherits_three_descriptors_and_no_more(scripts: Scripts, tmp_path: Path) -> None:
    with (tmp_path / "secret").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        with Keeper() as second:  # started while the file is open and inheritable
            null = os.open(os.devnull, os.O_WRONLY)
            second.start(StartRequest(key=1, argv=["sleep", "9"], environment=os.environ, folder="/", output=null))
            os.close(null)
            [started] = second.poll(WAIT_SECONDS)
            assert isinstance(started, Started)
            folder = Path(f"/proc/{started.pid}/fd")  # the program loads its libraries through number 3
            wait_until(lambda: sorted(one.name for one in folder.iterdir()) == ["0", "1", "2"], "three descriptors")
            second.end(1)


def test_the_extra_descriptor_is_number_three(scripts: Scripts) -> None:
    reader, writer = os.pipe()
    scripts.shell(1, "echo hello >&3; ls -1 /proc/$$/fd", extra=writer)
    os.close(writer)
    scripts.wait_for_event(Ended)
    assert os.read(reader, 100) == b"hello\n"
    assert os.read(reader, 100) == b""  # nobody else holds the other end
    os.close(reader)
    assert scripts.output(1).read_text().split() == ["0", "1", "2", "3"]


def test_the_output_ends_with_the_script(scripts: Scripts) -> None:
    reader, writer = os.pipe()
    scripts.shell(1, "echo hello", output=writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        assert file.read() == b"hello\n"


def test_a_script_leads_a_session_and_handles_all_signals_by_default(scripts: Scripts) -> None:
    scripts.start(1, "sleep", "1000")
    pid = scripts.wait_for_event(Started).pid
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    assert os.getsid(pid) == os.getpgid(pid) == pid
    handled = sum(1 << (number - 1) for number in signal.valid_signals())  # the C library keeps two for itself
    assert {name: int(status[name], 16) & handled for name in ("SigBlk", "SigIgn", "SigCgt")} == dict.fromkeys(
        ("SigBlk", "SigIgn", "SigCgt"), 0
    )


@pytest.mark.parametrize("program", STUBBORN.values(), ids=STUBBORN)
def test_nothing_is_left_after_the_end(scripts: Scripts, program: str) -> None:
    scripts.start_ready(1, program)
    scripts.keeper.end(1, 0.3)
    scripts.wait_for_event(Ended)
    assert find_marked(scripts.mark) == []


@pytest.mark.parametrize(
    "daemon",
    [f"setsid {SLEEP} &", f"(setsid {SLEEP} &);", f"nohup {SLEEP} &", f"(env -i setsid sh -c '{SLEEP}; # $MARK' &);"],
)
def test_what_the_main_process_leaves_is_gone_before_the_end(scripts: Scripts, daemon: str) -> None:
    scripts.shell(1, f"{daemon} exit 7")
    assert scripts.wait_for_event(Ended).exit_code == 7
    assert find_marked(scripts.mark) == []


def test_a_daemon_that_forks_while_the_main_process_exits_is_gone_before_the_end(scripts: Scripts) -> None:
    program = f"(setsid sh -c '{SLEEP} & {SLEEP} &' &); (sh -c '{SLEEP} & {SLEEP} &' &)"
    for key in range(50):  # the moments differ
        scripts.shell(key, program, grace_seconds=0.05)
        scripts.wait_for_event(Ended, key)
        assert find_marked(scripts.mark) == []


def test_a_process_may_end_within_the_grace(scripts: Scripts) -> None:
    scripts.start_ready(1, "trap 'sleep 0.1; echo saved; exit 4' TERM; echo ready; while :; do sleep 0.02; done")
    scripts.keeper.end(1, WAIT_SECONDS)
    assert scripts.wait_for_event(Ended).exit_code == 4
    assert "saved" in scripts.output(1).read_text()


def test_a_stopped_process_gets_its_grace(scripts: Scripts) -> None:
    scripts.start_ready(1, "trap 'exit 4' TERM; echo ready; kill -STOP $$; while :; do :; done")
    scripts.keeper.end(1, WAIT_SECONDS)
    assert scripts.wait_for_event(Ended).exit_code == 4


def test_a_second_request_shortens_the_grace(scripts: Scripts) -> None:
    scripts.start_ready(1, STUBBORN["ignores-sigterm"])
    scripts.keeper.end(1, 1000)
    scripts.keeper.end(1, 0)
    assert scripts.wait_for_event(Ended).signal == signal.SIGKILL


def test_the_end_of_one_script_leaves_the_other_alone(scripts: Scripts) -> None:
    marks = {key: uuid.uuid4().hex for key in (1, 2)}
    for key, mark in marks.items():
        scripts.start_ready(key, STUBBORN["double-fork"], environment={**scripts.environment, "MINE": mark})
    wait_until(lambda: all(len(find_marked(mark)) == 4 for mark in marks.values()), "two trees of processes")
    scripts.keeper.end(1)
    scripts.wait_for_event(Ended, 1)
    assert [len(find_marked(mark)) for mark in marks.values()] == [0, 4]


def test_a_script_that_nobody_reads_does_not_block_the_keeper(scripts: Scripts) -> None:
    reader, writer = os.pipe()
    scripts.start(1, "yes", output=writer)
    os.close(writer)
    scripts.shell(2, "exit 0")
    assert scripts.wait_for_event(Ended).key == 2
    scripts.keeper.end(1, 0)
    scripts.wait_for_event(Ended, 1)
    os.close(reader)


def test_a_selector_sees_events(scripts: Scripts) -> None:
    assert select.select([scripts.keeper], [], [], 0)[0] == []
    scripts.shell(1, "exit 0")
    assert select.select([scripts.keeper], [], [], WAIT_SECONDS)[0]
    scripts.wait_for_event(Ended)
    assert scripts.keeper.poll(0) == []


def test_closing_ends_scripts_and_leaks_no_descriptor(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")  # noqa: PTH208
    scripts = Scripts(tmp_path)
    with scripts.keeper:
        scripts.start_ready(1, STUBBORN["double-fork"], grace_seconds=0.3)
        os.kill(scripts.keeper.pid, signal.SIGKILL)
        scripts.wait_for_event(KeeperLost)
        scripts.start_ready(2, STUBBORN["double-fork"], grace_seconds=0.3)
    scripts.keeper.close()
    assert find_marked(scripts.mark) == []
    assert len(os.listdir("/proc/self/fd")) == len(before)  # noqa: PTH208


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_signals_of_a_terminal_do_nothing_to_the_keeper(scripts: Scripts, number: signal.Signals) -> None:
    pid = scripts.start_ready(1, STUBBORN["plain"])
    for process in (scripts.keeper.pid, guardian_of(pid)):
        os.kill(process, number)
    scripts.shell(2, "exit 0")
    assert scripts.wait_for_event(Ended).key == 2


@pytest.mark.parametrize("whom", ["keeper", "guardian"])
def test_sigterm_ends_the_scripts_below(scripts: Scripts, whom: str) -> None:
    pid = scripts.start_ready(1, STUBBORN["plain"])
    os.kill({"keeper": scripts.keeper.pid, "guardian": guardian_of(pid)}[whom], signal.SIGTERM)
    assert scripts.wait_for_event(Ended) == Ended(key=1, exit_code=None, signal=signal.SIGTERM)
    assert find_marked(scripts.mark) == []


@pytest.mark.parametrize("whom", ["guardian", "keeper"])
def test_exit_0_after_the_sigterm_of_a_guardian_is_no_result(scripts: Scripts, whom: str) -> None:
    """Its worker has not asked for that end, so it would take the exit code for the script's own."""
    pid = scripts.start_ready(1, "trap 'exit 0' TERM; echo ready; while :; do sleep 0.01; done", grace_seconds=5.0)
    os.kill({"keeper": scripts.keeper.pid, "guardian": guardian_of(pid)}[whom], signal.SIGTERM)
    assert scripts.wait_for_event(Ended) == Ended(key=1, exit_code=None, signal=signal.SIGTERM)


def test_a_killed_guardian_is_the_end_of_its_script_only(scripts: Scripts) -> None:
    pid = scripts.start_ready(1, STUBBORN["ignores-sigterm"])
    mark = uuid.uuid4().hex
    scripts.start_ready(2, STUBBORN["double-fork"], environment={**scripts.environment, "MINE": mark})
    wait_until(lambda: len(find_marked(mark)) == 4, "a tree of processes")
    os.kill(guardian_of(pid), signal.SIGKILL)
    assert scripts.wait_for_event(Ended) == Ended(key=1, exit_code=None, signal=signal.SIGKILL)
    assert sorted(find_marked(scripts.mark)) == sorted(find_marked(mark))
    assert len(find_marked(mark)) == 4


def test_a_stopped_guardian_still_ends_its_script(scripts: Scripts) -> None:
    pid = scripts.start_ready(1, STUBBORN["plain"])
    os.kill(guardian_of(pid), signal.SIGSTOP)
    scripts.keeper.end(1)
    scripts.wait_for_event(Ended)


def test_a_killed_keeper_is_replaced_after_its_scripts_have_ended(scripts: Scripts) -> None:
    scripts.start_ready(1, STUBBORN["ignores-sigterm"], grace_seconds=0.2)
    old = scripts.keeper.pid
    os.kill(old, signal.SIGKILL)
    scripts.wait_for_event(KeeperLost)
    scripts.shell(2, "exit 3")  # waits for the new keeper
    assert scripts.wait_for_event(Ended, 1) == Ended(key=1, exit_code=None, signal=signal.SIGKILL)
    assert find_marked(scripts.mark) in ([], [scripts.wait_for_event(Started, 2).pid])
    assert scripts.wait_for_event(Ended, 2).exit_code == 3
    assert scripts.keeper.pid != old


def test_a_keeper_that_is_closed_at_once_costs_no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_RELAUNCH_SECONDS", WAIT_SECONDS)
    with Keeper():
        pass
    monkeypatch.setattr(client, "_PROGRAM", "raise SystemExit(1)")
    started = time.monotonic()
    with Keeper() as keeper:
        assert keeper.poll(WAIT_SECONDS) == [KeeperLost()]
    assert time.monotonic() - started < WAIT_SECONDS


def test_a_keeper_that_cannot_live_is_not_started_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = client._PROGRAM
    monkeypatch.setattr(client, "_PROGRAM", "raise SystemExit(1)")
    monkeypatch.setattr(client, "_SHORTEST_LIFE_SECONDS", WAIT_SECONDS)  # of a busy machine
    scripts = Scripts(tmp_path)
    with scripts.keeper:
        scripts.wait_for_event(KeeperLost)
        time.sleep(0.5)
        scripts.events += scripts.keeper.poll()
        assert scripts.events == [KeeperLost()]
        monkeypatch.setattr(client, "_PROGRAM", program)
        scripts.shell(1, "exit 3")
        assert scripts.wait_for_event(Ended, 1).exit_code == 3


def test_a_keeper_that_is_killed_costs_the_worker_none_of_its_own_children(scripts: Scripts) -> None:
    mark = uuid.uuid4().hex
    own_environment = {**os.environ, "MINE": mark}
    own = subprocess.Popen(["sleep", "1000"], start_new_session=True, env=own_environment)
    subprocess.run(["sh", "-c", "setsid sleep 1000 & exit"], env=own_environment, check=True)
    exited = subprocess.Popen(["sh", "-c", "exit 5"])
    os.waitid(os.P_PID, exited.pid, os.WEXITED | os.WNOWAIT)
    pid = scripts.start_ready(1, STUBBORN["double-fork"])
    for process in (scripts.keeper.pid, guardian_of(pid)):
        os.kill(process, signal.SIGKILL)
    scripts.wait_for_event(Ended)
    assert exited.wait() == 5
    left = find_marked(mark)
    for process in left:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    own.wait()
    assert len(left) == 2


def test_the_keeper_loads_the_standard_library_and_its_own_modules_alone() -> None:
    program = f"import sys; sys.path.append({str(ROOT)!r}); import hpsearch.scripts.keeper.service; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-I", "-S", "-c", program], check=True, capture_output=True, text=True)
    loaded = set(found.stdout.split())
    own = {name for name in loaded if name.partition(".")[0] == "hpsearch"}
    modules = ("guardian", "processes", "protocol", "script_start", "service", "signals")
    package = "hpsearch.scripts.keeper"
    assert own == {"hpsearch", "hpsearch.scripts", package, *(f"{package}.{name}" for name in modules)}
    assert {name.partition(".")[0] for name in loaded - own} <= sys.stdlib_module_names | {"__main__"}
    assert loaded.isdisjoint({"pathlib", "subprocess", "threading"})  # each takes milliseconds and memory


class WorkerProcess:
    """A worker with one script, and the processes between them; at the end of the block they must all be gone."""

    def __init__(self, program: str) -> None:
        self.mark = uuid.uuid4().hex
        environment = {"PATH": os.environ["PATH"], "MARK": self.mark}
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([[program], environment]) + "\n")
        self.process.stdin.flush()
        keeper_pid, [script] = json.loads(self.process.stdout.readline())
        guardian = guardian_of(script)
        self.pids = {"worker": self.process.pid, "keeper": keeper_pid, "guardian": guardian, "script": script}

    def kill(self, whom: str) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pids[whom], signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self.kill("worker")
        self.process.communicate()
        if kind is not None:
            return  # what has failed is told, not what follows from it
        others = [self.pids[name] for name in ("keeper", "guardian", "script")]
        wait_until(lambda: find_marked(self.mark) == [], "the script's processes are gone")
        wait_until(lambda: not any(is_alive(pid) for pid in others), "keeper and guardian are gone")


def is_alive(pid: int) -> bool:
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


@pytest.mark.parametrize("order", [*itertools.permutations(["worker", "keeper", "guardian", "script"])], ids="-".join)
def test_kills_in_any_order_leave_no_process(order: tuple[str, ...]) -> None:
    with WorkerProcess(STUBBORN["double-fork"]) as worker:
        for whom in order:
            worker.kill(whom)
            wait_until(lambda: find_marked(worker.mark) == [], "the script's processes are gone")


@pytest.mark.parametrize("pair", [*itertools.permutations(["worker", "keeper", "guardian"], 2)], ids="-".join)
def test_two_kills_at_once_leave_no_process(pair: tuple[str, str]) -> None:
    with WorkerProcess(f"trap '' TERM; {STUBBORN['double-fork']}") as worker:
        for whom in pair:
            worker.kill(whom)
        if "worker" not in pair:
            assert worker.process.stdout is not None
            events = [worker.process.stdout.readline()[:5] for _ in range(2)]
            if pair[0] == "guardian":  # the keeper may report the end before it is killed itself
                events.sort(reverse=True)
            assert events == ["Keepe", "Ended"]
            assert find_marked(worker.mark) == []


def test_the_main_process_dies_even_if_all_above_it_are_killed_at_once() -> None:
    with WorkerProcess(f"trap '' TERM; exec {SLEEP}") as worker:
        for whom in ("guardian", "keeper", "worker"):
            worker.kill(whom)


@pytest.mark.slow
@pytest.mark.faults
def test_a_hundred_kills_at_random_moments_leave_no_process_and_lose_no_end(scripts: Scripts) -> None:
    generator = random.Random(17)
    for key in range(100):
        scripts.events.clear()
        # The end of the last script comes before the new keeper: a signal to the dead one would have no effect.
        wait_until(lambda: is_alive(scripts.keeper.pid), "the keeper is replaced")
        scripts.shell(key, "(setsid sleep 1000 &); sleep 1000", grace_seconds=0.2)
        if generator.random() < 0.8:
            pid = scripts.wait_for_event(Started, key).pid
            victims = [scripts.keeper.pid, guardian_of(pid), pid]
            generator.shuffle(victims)
            del victims[generator.randint(1, 3) :]
        else:  # somewhere in the start
            victims = [scripts.keeper.pid]
        time.sleep(generator.random() * 0.01)
        for victim in victims:
            try:
                os.kill(victim, signal.SIGKILL)
            except ProcessLookupError:  # an earlier kill has ended it
                continue
        scripts.wait_for_event(Ended, key)
        assert find_marked(scripts.mark) == []
        if scripts.keeper.pid in victims:
            scripts.wait_for_event(KeeperLost)
        assert sum(isinstance(event, Ended) for event in scripts.events) == 1
