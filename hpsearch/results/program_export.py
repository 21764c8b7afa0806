"""What an export holds of a study whose trials are programs: the command with its values, and its variables."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any, Final

from hpsearch import environment
from hpsearch.results.choice import ChosenPoint
from hpsearch.results.trial_summary import TrialSummary
from hpsearch.store.rows.trial_state import REPORTED_PREFIX
from hpsearch.study.command_line import (
    Value,
    as_text,
    parameter_variable,
    placeholders_in,
    render_command,
    render_environment,
)
from hpsearch.study.program import CommandSettings, ObjectiveSettings, ProgramSettings

# Stand for what each attempt has of its own.
_OF_ATTEMPT: Final[Mapping[str, Value]] = {"python": "python", "folder": "FOLDER", "parameters": "PARAMETERS.json"}


def program_content(program: ProgramSettings, chosen: ChosenPoint) -> dict[str, Any]:
    """The program's part of an export document.

    Returns:
        metric, direction   of the study
        seed_of_point       what `{seed}` and hpsearch.trial.seed() are
        command             of a command: run (the arguments with their values), env (the variables that it needs beside
                            them), cwd, and line (all of it, for a POSIX shell in the folder in which workers start)
        objective           of an objective: function
        reported            further values of the trial's last report, by name
        files               file name -> SHA-256, of the files that belong to the study
    """
    content: dict[str, Any] = {"metric": program.metric, "direction": program.direction, "seed_of_point": _seed(chosen)}
    if isinstance(program, CommandSettings):
        content["command"] = _command(program, chosen)
    if isinstance(program, ObjectiveSettings):
        content["objective"] = {"function": program.function}
    if reported := further_values(chosen.trial):
        content["reported"] = reported
    if chosen.study.dataset_checksums:
        content["files"] = dict(chosen.study.dataset_checksums)
    return content


def further_values(trial: TrialSummary) -> dict[str, Any]:
    """What a program has reported beside its value, by name."""
    attributes = trial.attributes.items()
    return {name.removeprefix(REPORTED_PREFIX): value for name, value in attributes if name.startswith(REPORTED_PREFIX)}


def filled_in_line(chosen: ChosenPoint) -> str | None:
    """The command of a point with its values, for a POSIX shell; None if its trial is no command."""
    program = chosen.study.definition.program
    return str(_command(program, chosen)["line"]) if isinstance(program, CommandSettings) else None


def program_variables(chosen: Mapping[str, Any]) -> dict[str, str]:
    """The variables that a program gets with this point, from an export document: HPSEARCH_PARAM_..., HPSEARCH_SEED."""
    values = {parameter_variable(name): as_text(value) for name, value in chosen["parameters"].items()}
    return {**values, environment.SEED: str(chosen["seed_of_point"]), **chosen.get("command", {}).get("env", {})}


def _command(program: CommandSettings, chosen: ChosenPoint) -> dict[str, Any]:
    trial = chosen.trial
    own: dict[str, Value] = {
        "seed": _seed(chosen),
        "trial": trial.number,
        "attempt": trial.attributes.get("attempt", 1),
    }
    values = {**_OF_ATTEMPT, **own, **trial.point_parameters}
    run = render_command(program.run, values)
    variables = {**_unplaced(program, values, trial.point_parameters), **render_environment(dict(program.env), values)}
    settings = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
    line = " ".join([*settings, shlex.join(run)])
    if program.cwd is not None:
        line = f"cd {shlex.quote(program.cwd)} && {line}"
    content = {"run": run, "line": line, "cwd": program.cwd}
    return content | ({"env": variables} if variables else {})


def _unplaced(program: CommandSettings, values: Mapping[str, Value], parameters: Mapping[str, Value]) -> dict[str, str]:
    """The variables with those values that no placeholder passes on."""
    placed = {name for text in (*program.run, *dict(program.env).values()) for name in placeholders_in(text)}
    if "parameters" in placed:
        placed |= set(parameters)
    variables = {parameter_variable(name): as_text(value) for name, value in parameters.items() if name not in placed}
    if program.reads_parameters or environment.PARAMETERS in " ".join([*program.run, *dict(program.env).values()]):
        variables[environment.PARAMETERS] = as_text(values["parameters"])
    return variables if "seed" in placed else {**variables, environment.SEED: as_text(values["seed"])}


def _seed(chosen: ChosenPoint) -> Value:
    return chosen.trial.point_parameters.get("seed", chosen.study.definition.seed)
