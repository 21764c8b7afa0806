"""What `hpsearch check` looks at if trials are programs: of a command its lines, and one run until its first report.

Of an objective it looks whether the function can be imported and called; it is not called. A command runs as in a
worker, with the worker's keeper, streams, environment and folders, but in a temporary folder and without a database.
"""

from __future__ import annotations

import os
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from hpsearch.artifacts.store import open_store
from hpsearch.checks.finding import CheckReport, Finding, Verdict
from hpsearch.device.devices import VisibleDevices, wanted_gpus
from hpsearch.errors import DeviceError, InputError
from hpsearch.scripts.attempt_folders import AttemptFolders
from hpsearch.scripts.keeper.client import Ended, Keeper
from hpsearch.scripts.report_lines import Report
from hpsearch.scripts.script_environment import parameter_variables
from hpsearch.store.claims.claim import Claim
from hpsearch.store.rows.correct_images import Correctness
from hpsearch.store.studies import StoredStudy
from hpsearch.study.command_line import placeholders_in, render_command, render_environment
from hpsearch.study.corners import sample_points
from hpsearch.study.definition import StudyDefinition
from hpsearch.study.program import CommandSettings
from hpsearch.study.space import Point
from hpsearch.wording import counted, format_seconds, format_time
from hpsearch.worker.programs.attempts import Attempts
from hpsearch.worker.programs.example_results import CORRECT, ExampleResults
from hpsearch.worker.programs.objective_check import check_objective
from hpsearch.worker.programs.preparation import CannotStartError, check_can_start, file_checksums
from hpsearch.worker.programs.program_call import point_of

_SUBJECT = "command"
COMMAND_LINES: Final = "command lines"  # the check after which the command is run
_KEY = 1  # of the only attempt
_LOOK_SECONDS = 0.2
_PATHS = {"folder": "FOLDER", "parameters": "PARAMETERS.json"}  # which only an attempt has


@dataclass(kw_only=True)
class _Run:
    """How the command went until its first report, its end, or the end of the time.

    Args:
        seconds: until then.
        ended: by itself, before a report came.
        malformed: a line that is no report.
        results: of single examples, if the first report has any, or why they cannot be read.
    """

    report: Report | None = None
    seconds: float = 0.0
    ended: Ended | None = None
    malformed: str | None = None
    is_pattern_slow: bool = False
    results: Correctness | str | None = None
    tail: Sequence[str] = field(default=())

    def note_results(self, reader: ExampleResults) -> None:
        """Read the results of single examples that the first report has."""
        if self.report is None or CORRECT not in self.report.more:
            return
        try:
            self.results = reader.read(self.report.more[CORRECT])
        except InputError as error:
            self.results = str(error)


def check_command_study(
    definition: StudyDefinition,
    place: Path,
    *,
    version: str,
    seconds: float,
    on_finding: Callable[[Finding], None],
) -> CheckReport:
    """Fill in the command at three points, and run it at the middle one until its first report.

    Args:
        place: the folder in which hpsearch was started.
        seconds: that the command may take until its first report. It is then ended, with all that it has started.
    Raises:
        CannotStartError: the command cannot be started on this machine.
        DataError: one of its files is missing.
    """
    program, begun = definition.command, time.monotonic()
    assert program is not None
    checksums = file_checksums(program, place)
    check_can_start(program, place, os.environ)
    study = StoredStudy(study_id=0, definition=definition, dataset_checksums=checksums, versions={})
    findings = []
    with Keeper() as keeper, tempfile.TemporaryDirectory(prefix="hpsearch-check-") as folder:
        root = Path(folder)
        gpus = _gpus(program)
        attempts = Attempts(
            study,
            keeper,
            open_store(root / "artifacts"),
            AttemptFolders(root, "check"),
            devices=[gpus],
            base=os.environ,
            place=place,
            upload_seconds=0,
        )
        with attempts:
            for finding in _findings(attempts, definition, program, seconds):
                findings.append(finding)
                on_finding(finding)
    return CheckReport(
        study=definition.name,
        date=format_time(datetime.now(UTC)),
        version=version,
        checksums=checksums,
        findings=findings,
        seconds=time.monotonic() - begun,
    )


def check_objective_study(
    definition: StudyDefinition,
    place: Path,
    *,
    version: str,
    seconds: float,
    on_finding: Callable[[Finding], None],
) -> CheckReport:
    """Import the objective's module in a process of its own, and look whether the function takes a trial.

    Args:
        place: the folder in which hpsearch was started.
        seconds: that the import may take.
    Raises:
        DataError: one of its files is missing.
        InputError: it cannot be imported or called with a trial.
    """
    objective, begun = definition.objective, time.monotonic()
    assert objective is not None
    checksums = file_checksums(objective, place)
    check_objective(objective, place, seed=definition.seed, seconds=seconds)
    finding = Finding(
        check="function",
        subject=objective.section,
        verdict=Verdict.PASSED,
        found=f"{objective.function} can be imported, and takes one argument; it was not called",
    )
    on_finding(finding)
    return CheckReport(
        study=definition.name,
        date=format_time(datetime.now(UTC)),
        version=version,
        checksums=checksums,
        findings=[finding],
        seconds=time.monotonic() - begun,
    )


def _findings(
    attempts: Attempts, definition: StudyDefinition, program: CommandSettings, seconds: float
) -> Iterator[Finding]:
    middle, *corners = sample_points(definition)
    yield Finding(
        check=COMMAND_LINES,
        subject=_SUBJECT,
        verdict=Verdict.PASSED,
        found="each placeholder has a value, and each dimension is used; the first line is run",
        pictures=tuple(_command_line(attempts, program, _claim(point)) for point in (middle, *corners)),
    )
    run = _run(attempts, _claim(middle), seconds, program.grace_seconds)
    yield _first_report(run, program, seconds)
    if run.results is not None:
        yield _single_examples(run.results)
    if run.malformed is not None:
        yield _malformed(run.malformed, program)


def _claim(point: Point) -> Claim:
    return Claim(trial_id=_KEY, number=0, point=0, attempt=1, parameters=point)


def _gpus(program: CommandSettings) -> list[str]:
    """As many GPUs as a trial gets, whether others use them or not: there is no database in which to pin them."""
    gpus = wanted_gpus("auto", VisibleDevices.detect()) if program.gpus != 0 else ()
    number = (program.gpus or 1) if gpus or program.gpus else 0
    if number > len(gpus):
        raise DeviceError(
            f"command.gpus = {number}, and this machine has {len(gpus)}", hint="--set command.gpus=0 checks without"
        )
    return [str(gpu.uuid) for gpu in gpus[:number]]


def _command_line(attempts: Attempts, program: CommandSettings, claim: Claim) -> str:
    """The command at a point as one would type it, with the variables that it needs."""
    values = {**attempts.call.values(claim), **_PATHS}
    texts = [*program.run, *(text for _, text in program.env)]
    written = {name for text in texts for name in placeholders_in(text)}
    variables = render_environment(dict(program.env), values)
    if "parameters" not in written:
        variables |= parameter_variables({n: v for n, v in point_of(claim).items() if n not in written})
    settings = [f"{name}={shlex.quote(text)}" for name, text in variables.items()]
    return " ".join([*settings, shlex.join(render_command(program.run, values))])


def _run(attempts: Attempts, claim: Claim, seconds: float, grace_seconds: float) -> _Run:
    """Start the command, wait for its first report, and end it."""
    found, begun = _Run(), time.monotonic()
    attempts.start(claim)
    is_asked, is_over = False, False
    while not is_over:
        news = attempts.news(_LOOK_SECONDS)
        for refused in news.refused:
            raise CannotStartError(f"command cannot be started: {refused.message}", hint="mend the command")
        for batch in news.batches.values():
            if found.report is None and not is_asked:
                found.report = next(iter(batch.reports), None)
                found.note_results(attempts.results_of(claim))
            found.malformed = found.malformed or batch.malformed
            found.is_pattern_slow |= batch.is_too_slow
        is_over = bool(news.ended)
        if is_over and found.report is None and not is_asked:
            found.ended = news.ended[0]
        if not is_asked:
            found.seconds = time.monotonic() - begun
        if not is_asked and not is_over and (found.report is not None or found.seconds > seconds):
            is_asked = True
            attempts.end(_KEY, grace_seconds)
    found.tail = attempts.tail(_KEY).splitlines()
    attempts.forget(_KEY)
    return found


def _first_report(run: _Run, program: CommandSettings, seconds: float) -> Finding:
    way = f"pattern {program.pattern!r}" if program.pattern else "hpsearch.trial, or lines of JSON"
    base: dict[str, Any] = {"check": "first report", "subject": _SUBJECT}
    after = f"after {format_seconds(run.seconds)}"
    if run.report is not None:
        direction = "lower" if program.direction == "minimize" else "higher"
        told = f"step {run.report.step}: {program.metric} {run.report.value:g}, {after}"
        numbers = {"step": run.report.step, "value": run.report.value, "seconds": round(run.seconds, 3)}
        if run.report.has_diverged:
            return Finding(
                **base,
                verdict=Verdict.WARNING,
                found=told,
                expected="a number; a trial that reports a NaN or an infinity ends there as diverged",
                look_at=("the point in the middle of the space: move the space to where the script can train",),
                numbers=numbers,
            )
        return Finding(**base, verdict=Verdict.PASSED, found=f"{told}; {direction} is better", numbers=numbers)
    look_at = [f"{_SUBJECT}: see its last lines below"] if run.tail else [f"{_SUBJECT}: it has printed nothing"]
    has_failed = run.ended is not None and bool(run.ended.exit_code or run.ended.signal)
    if run.is_pattern_slow:
        look_at.insert(0, "command.pattern: it takes too long on this output; simplify it")
    elif program.pattern and not has_failed:
        look_at.insert(0, "command.pattern: compare it with the lines below")
    elif not has_failed:
        look_at.append("the script: call hpsearch.trial.report(step, value), or set pattern in [command]")
    told = f"none in {format_seconds(seconds)}; the command was ended" if run.ended is None else _end(run.ended, after)
    return Finding(
        **base,
        verdict=Verdict.WARNING if run.ended is None else Verdict.FAILED,
        found=told,
        expected=f"a step and a value by {way}" + ("" if run.ended else "; --seconds gives it more time"),
        look_at=tuple(look_at),
        pictures=tuple(run.tail),
    )


def _end(end: Ended, after: str) -> str:
    how = f"with exit code {end.exit_code}" if end.exit_code is not None else f"by signal {end.signal}"
    return f"the command ended {how} {after}, without a report"


def _single_examples(results: Correctness | str) -> Finding:
    base: dict[str, Any] = {"check": "single examples", "subject": _SUBJECT}
    if isinstance(results, str):
        return Finding(
            **base,
            verdict=Verdict.WARNING,
            found=results,
            expected="which validation examples are right: one 0 or 1 for each, or a file of them",
            look_at=("`correct` in the report: without it, every difference between two trials counts",),
        )
    right = results.unpacked()
    told = f"{counted(len(right), 'example')}, of which {right.mean():.2%} are right"
    return Finding(**base, verdict=Verdict.PASSED, found=told)


def _malformed(line: str, program: CommandSettings) -> Finding:
    expected = (
        "a step from 1 and a number where the pattern matches" if program.pattern else '{"step": 1, "value": 0.3}'
    )
    return Finding(
        check="report lines",
        subject=_SUBJECT,
        verdict=Verdict.WARNING,
        found=f"a line that is no report: {line}",
        expected=expected,
        look_at=("what writes this line: such lines are ignored",),
    )
