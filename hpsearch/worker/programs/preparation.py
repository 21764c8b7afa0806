"""Checks and registers a study whose trials are programs, and checks a worker's machine before it claims a point."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from hpsearch import environment
from hpsearch.errors import DataError, InputError, SurroundingsError
from hpsearch.logs import get_logger
from hpsearch.store.connection.database import Database
from hpsearch.store.registration import Registration, register_study
from hpsearch.store.studies import StoredStudy
from hpsearch.study.definition import StudyDefinition
from hpsearch.study.program import SEED, CommandSettings, ObjectiveSettings, ProgramSettings
from hpsearch.study.settings import TrialSettings
from hpsearch.study.space import ZERO_SUFFIX
from hpsearch.worker.programs.objective_check import check_objective

_log = get_logger("worker")
_BLOCK_BYTES = 2**20
_SHELLS = ("sh", "bash", "dash", "zsh")


class CannotStartError(SurroundingsError):
    """The program of a study cannot be started on this machine."""


def prepare_program(database: Database, definition: StudyDefinition, place: Path) -> Registration:
    """Create the study, find it with the same definition and files, or change it to this definition.

    Args:
        place: the folder that `cwd` and `files` are relative to.
    Raises:
        DataError: one of its files is missing.
        InputError: it is an objective that cannot be imported or called.
        DefinitionMismatchError: the study exists with other files, or with a definition that cannot become this one.
        StorageError: the database went away.
    """
    assert definition.program is not None
    checksums = file_checksums(definition.program, place)
    if definition.objective is not None:
        check_objective(definition.objective, place, seed=definition.seed)
    return register_study(database, definition, dataset_checksums=checksums, cohort_of=_no_cohort)


def file_checksums(program: ProgramSettings, place: Path) -> dict[str, str]:
    """Return the SHA-256 of each file that belongs to the study. Raises DataError."""
    return {name: _sha256(place / (program.cwd or "") / name) for name in program.files}


def check_files(study: StoredStudy, place: Path) -> None:
    """Raises DataError: a file that belongs to the study is missing on this machine, or is another one."""
    program = study.definition.program
    assert program is not None
    found = file_checksums(program, place)
    for name, expected in study.dataset_checksums.items():
        if found.get(name) != expected:
            raise DataError(
                f"study {study.name!r} was created with another {name}: found {found.get(name)}, expected {expected}",
                hint="use the same files on all machines; a changed program is a new study (--set name=...)",
            )


def require_consent(definition: StudyDefinition, *, is_given: bool, command: str | None = None) -> None:
    """Check that this worker may run the study's program: whoever can write to the database could have changed it.

    Args:
        is_given: by `--commands`.
        command: the command that asks; None: `hpsearch worker` with the study's name.
    Raises:
        InputError: nobody has allowed that.
    """
    program = definition.program
    assert program is not None
    described = describe_program(program)
    if is_given or os.environ.get(environment.COMMANDS) in ("1", definition.consent):
        _log.info("study %s runs %s", definition.name, described)
        return
    command = command or f"hpsearch worker {definition.name}"
    raise InputError(
        f"study {definition.name!r} runs a program on this machine, which nobody has allowed: {described}",
        hint=f"{command} --commands, or {environment.COMMANDS}=1: it runs with your rights",
    )


def describe_program(program: ProgramSettings) -> str:
    """The program of a study on one line, with its placeholders."""
    text = f"the objective {program.function}" if isinstance(program, ObjectiveSettings) else program.line
    return text if len(text) <= 200 else text[:197] + "..."


def check_values(definition: StudyDefinition, parameters: Mapping[str, object]) -> None:
    """Check that a point's values are numbers, or those of the study that this worker was allowed to run.

    Numbers can do no more harm than the program does with them; a text, or what becomes a text, may stand where a
    program's name is.

    Raises:
        InputError: somebody has changed a value in the database.
    """
    known = {dimension.name: dimension.values for dimension in definition.search.dimensions}
    if definition.objective is not None:  # it asks for its values: only a listed seed is put into its environment
        known, parameters = {SEED: ()}, {name: value for name, value in parameters.items() if name == SEED}
        parameters = {} if definition.is_drawn else parameters
    for name, value in parameters.items():
        searched = name.removesuffix(ZERO_SUFFIX)
        if searched not in known or not (isinstance(value, bool | int | float) or value in known[searched]):
            raise InputError(
                f"study {definition.name!r}: a point has {name} = {value!r:.80}, which is none of the study's values",
                hint="the study was changed after this worker had started, or a point was changed in the database; "
                "nothing was run with it",
            )


def check_can_start(program: ProgramSettings, place: Path, variables: Mapping[str, str]) -> None:
    """Look whether the program can be started here, before a point is claimed.

    Args:
        variables: of the worker's environment; its PATH is searched.
    Raises:
        CannotStartError: no such folder, program or script, or it may not be executed.
    """
    folder = place / (program.cwd or "")
    variables = {**variables, **{name: text for name, text in program.env if "{" not in text}}
    if not folder.is_dir():
        _refuse(f"{program.section}.cwd: there is no folder {folder}", "start the worker beside it")
    if not isinstance(program, CommandSettings) or "{" in program.run[0].replace("{python}", ""):
        return
    name = program.run[0].replace("{python}", sys.executable)
    found = shutil.which(name if "/" not in name else str(folder / name), path=variables.get("PATH", os.defpath))
    if found is None:
        exists = "/" in name and (folder / name).exists()
        _refuse(
            f"{program.section}.run: {name!r} " + ("may not be executed" if exists else "was not found"),
            f"chmod +x {name}" if exists else "name a program on the PATH, or a path relative to the folder",
        )
    _check_interpreter(Path(found))
    script = program.run[1] if len(program.run) > 1 else ""
    is_script = script.endswith((".py", ".sh")) and not script.startswith("-") and "{" not in script
    reads_script = Path(name).name.startswith("python") or Path(name).name in _SHELLS
    if is_script and reads_script and not (folder / script).is_file():
        _refuse(
            f"{program.section}.run: there is no script {script} in {folder}", "start the worker beside it, or set cwd"
        )


def _check_interpreter(path: Path) -> None:
    """Refuse a script whose first line names an interpreter that is not there (`#!/usr/bin/python3\\r`)."""
    try:
        with path.open("rb") as file:
            first = file.readline(256)
    except OSError:
        return
    line = first.removesuffix(b"\n")
    interpreter = os.fsdecode(line[2:].strip(b" \t").split(b" ")[0])
    has_windows_end = line.endswith(b"\r")
    if not first.startswith(b"#!") or (Path(interpreter).exists() and not has_windows_end):
        return
    hint = "the file has Windows line ends: dos2unix mends it" if has_windows_end else "mend its first line"
    _refuse(f"{path}: its interpreter {interpreter!r} does not exist", hint)


def _refuse(message: str, hint: str) -> NoReturn:
    raise CannotStartError(message, hint=f"{hint}; no attempt was spent")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read: {error.strerror}",
            hint="`files` are relative to the folder in which hpsearch is started, or to `cwd`",
        ) from error
    return digest.hexdigest()


def _no_cohort(settings: TrialSettings) -> str:
    raise AssertionError("programs have no cohorts")
