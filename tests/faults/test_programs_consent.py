"""Who may run a program here, what it is given, and what it must not see."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url

from hpsearch.study.study_file import parse_definition
from tests.faults.driver import Faults
from tests.faults.processes import HpsearchProcess
from tests.faults.programs import ProgramArena

pytestmark = pytest.mark.faults

FAST = Faults(lease_seconds=600.0, absence_seconds=0.5)
SENTINEL = "s3nt1nel-pa55word"

# All that a script can see of hpsearch, as JSON lines: name, content.
LOOK = """
import json, os, sys
found = {"environ": repr(dict(os.environ)), "descriptors": sorted(map(int, os.listdir("/proc/self/fd")))[:-1]}
pid = os.getpid()
while pid > 1:
    found[f"cmdline {pid}"] = open(f"/proc/{pid}/cmdline", "rb").read().decode(errors="replace")
    pid = int(open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[1])
for guardian in (os.getppid(), int(open(f"/proc/{os.getppid()}/stat").read().rpartition(")")[2].split()[1])):
    found[f"environ {guardian}"] = open(f"/proc/{guardian}/environ", "rb").read().decode(errors="replace")
    for name in os.listdir(f"/proc/{guardian}/fd"):
        found[f"{guardian} fd {name}"] = os.readlink(f"/proc/{guardian}/fd/{name}")
place = os.path.dirname(os.environ["HPSEARCH_FOLDER"])
for root, _, names in os.walk(place):
    for name in names:
        path = os.path.join(root, name)
        found[path] = open(path, "rb").read().decode(errors="replace") if os.path.isfile(path) else ""
with open("seen", "w") as file:
    json.dump(found, file)
with open(os.environ["HPSEARCH_REPORTS"], "w") as file:
    file.write(json.dumps({"step": 1, "value": 0.5}) + "\\n")
print("the password is", sys.argv[2])
"""


def run_directly(programs: ProgramArena, command: Sequence[str], **environment: str) -> HpsearchProcess:
    return programs.start(*command, faults=FAST, **environment)


def refused(programs: ProgramArena, process: HpsearchProcess) -> str:
    """A worker that was refused: exit code 2, and nothing was claimed or started."""
    assert process.wait() == 2, process.said
    assert programs.num_in("RUNNING", "FAIL", "COMPLETE") == 0
    assert programs.steps == []
    return process.said


def test_a_worker_runs_no_program_without_consent(programs: ProgramArena) -> None:
    programs.create_programs(2)
    plain = ("worker", programs.study_name, "--lanes", "1")
    said = refused(programs, run_directly(programs, plain))
    assert "runs a program on this machine, which nobody has allowed: sh script.sh {number}" in said
    assert "--commands" in said
    assert run_directly(programs, plain, HPSEARCH_COMMANDS="1").wait() == 0
    programs.judge()


def test_a_launcher_s_consent_holds_for_its_program_alone(programs: ProgramArena) -> None:
    """Whoever can write to the database may change the study, but not what is run."""
    programs.create_programs(2)
    consent = parse_definition(programs.program_document(2), source="test").consent
    assert consent is not None
    plain = ("worker", programs.study_name, "--lanes", "1")
    before = _definition(programs)
    (programs.folder / "other.sh").write_text("touch owned")
    _change_definition(programs, lambda text: text.replace("script.sh", "other.sh"))
    assert "other.sh" in _definition(programs)
    refused(programs, run_directly(programs, plain, HPSEARCH_COMMANDS=consent))
    assert not (programs.folder / "owned").exists()
    _change_definition(programs, lambda text: before)
    assert run_directly(programs, plain, HPSEARCH_COMMANDS=consent).wait() == 0
    programs.judge()


def test_another_value_in_the_database_is_not_run(programs: ProgramArena) -> None:
    """The values are a part of what is run: one may stand where the program's name is."""
    (programs.folder / "tools").mkdir()
    (programs.folder / "tool").write_text('#!/bin/sh\necho \'{"step": 1, "value": 1}\' > $HPSEARCH_REPORTS\n')
    (programs.folder / "tool").chmod(0o755)
    (programs.folder / "owner").write_text("#!/bin/sh\ntouch owned\n")
    (programs.folder / "owner").chmod(0o755)
    search = {"search": {"tool": ["./tool"]}}
    programs.create_programs(1, run=["{tool}"], sections=search)
    programs.ask(
        """
        UPDATE trial_params SET distribution_json = replace(distribution_json, './tool', './owner')
        """
    )
    worker = programs.worker(faults=FAST)
    assert worker.wait() in (2, 3), worker.said
    assert not (programs.folder / "owned").exists()
    assert "./owner" in worker.said


def _definition(programs: ProgramArena) -> str:
    (row,) = programs.ask("SELECT value_json FROM study_user_attributes WHERE value_json LIKE '%.sh%'")
    return str(row.value_json)


def _change_definition(programs: ProgramArena, change: Any) -> None:
    before = _definition(programs)
    programs.ask(
        "UPDATE study_user_attributes SET value_json = :after WHERE value_json = :before",
        after=change(before),
        before=before,
    )


@pytest.mark.parametrize("way", ["worker", "run"])
def test_a_script_does_not_see_the_storage_s_password(programs: ProgramArena, way: str) -> None:
    """Not in its environment, descriptors, folders, nor in the arguments of all that are above it."""
    (programs.folder / "look.py").write_text(LOOK)
    url = make_url(programs.server.url).set(password=SENTINEL).render_as_string(hide_password=False)
    run = ["{python}", "look.py", "{number}", "secret"]
    programs.storage_url = url
    if way == "worker":
        programs.create_programs(1, run=run)
        process = programs.worker(faults=FAST, AWS_SECRET_ACCESS_KEY=SENTINEL, PGPASSWORD=SENTINEL)
    else:
        study = programs.folder / "study.toml"
        study.write_text(_study(run))
        process = programs.start("run", str(study), "--workers", "1", "--lanes", "1", faults=FAST, PGPASSWORD=SENTINEL)
    assert process.wait() == 0, process.said
    seen: dict[str, Any] = json.loads((programs.folder / "seen").read_text())
    assert [name for name, content in seen.items() if SENTINEL in str(content)] == []
    assert seen["descriptors"] == [0, 1, 2]
    assert "HPSEARCH_STORAGE" not in seen["environ"]
    assert not any("password" in str(content) for name, content in seen.items() if " fd " in name)


def test_an_output_is_stored_without_the_password(programs: ProgramArena) -> None:
    (programs.folder / "look.py").write_text(LOOK)
    programs.storage_url = make_url(programs.server.url).set(password=SENTINEL).render_as_string(hide_password=False)
    programs.create_programs(1, run=["{python}", "look.py", "{number}", f"a{SENTINEL}b"])
    assert programs.worker(faults=FAST).wait() == 0
    (output,) = programs.artifacts.iterdir()
    assert "the password is" in output.read_text()
    assert SENTINEL not in output.read_text()


def _study(run: Sequence[str]) -> str:
    return f"""
name = "faults"
[command]
run = {json.dumps(list(run))}
gpus = 0
[search]
number = [10]
[stopping]
rule = "none"
"""


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (["no-such-program", "{number}"], "'no-such-program' was not found"),
        (["./plain.sh", "{number}"], "'./plain.sh' may not be executed"),
        (["./windows.py", "{number}"], "the file has Windows line ends"),
        (["{python}", "no-such.py", "{number}"], "there is no script no-such.py"),
        (["sh", "no-such.sh", "{number}"], "there is no script no-such.sh"),
    ],
)
def test_a_command_that_cannot_start(programs: ProgramArena, run: list[str], message: str) -> None:
    """Exit 3 before a claim; no attempt is spent."""
    (programs.folder / "plain.sh").write_text("#!/bin/sh\n")
    (programs.folder / "windows.py").write_text("#!/usr/bin/env python3\r\n")
    (programs.folder / "windows.py").chmod(0o755)
    programs.create_programs(2, run=run)
    _not_started(programs, message)


def test_a_command_whose_folder_is_missing(programs: ProgramArena) -> None:
    programs.create_programs(2, cwd="elsewhere")
    _not_started(
        programs, f"there is no folder {Path('elsewhere')}".replace("elsewhere", str(programs.folder / "elsewhere"))
    )


def _not_started(programs: ProgramArena, message: str) -> None:
    worker = programs.worker(faults=FAST)
    assert worker.wait() == 3, worker.said
    assert message in worker.said
    assert "no attempt was spent" in worker.said
    assert programs.num_in("WAITING") == 2
    assert {row.attempt for row in programs.ask("SELECT attempt FROM hpsearch_points")} == {1}
