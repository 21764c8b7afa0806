"""How the program of a trial is called: its values, its command line, its folder and its environment."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from hpsearch import environment
from hpsearch.scripts.attempt_folders import AttemptFolder
from hpsearch.scripts.script_environment import parameter_variables, script_environment
from hpsearch.store.claims.claim import Claim
from hpsearch.study.command_line import Value, render_command, render_environment
from hpsearch.study.definition import StudyDefinition
from hpsearch.study.program import CommandSettings, ObjectiveSettings, ProgramSettings
from hpsearch.study.space import without_zero_switches


@final
@dataclass(frozen=True, kw_only=True)
class ProgramCall:
    """The call that all attempts of a study make, with the values of each.

    Args:
        base: the worker's environment.
        place: the folder in which the worker was started.
    """

    definition: StudyDefinition
    base: Mapping[str, str]
    place: Path

    @property
    def program(self) -> ProgramSettings:
        program = self.definition.program
        assert program is not None
        return program

    @property
    def is_objective(self) -> bool:
        return isinstance(self.program, ObjectiveSettings)

    @property
    def folder(self) -> Path:
        """The current folder of the program."""
        return self.place / (self.program.cwd or "")

    def values(self, claim: Claim) -> dict[str, Value]:
        """What placeholders stand for, but for the paths of the attempt."""
        seed: dict[str, Value] = {"seed": self.definition.seed}
        own: dict[str, Value] = {"trial": claim.number, "attempt": claim.attempt, "python": sys.executable}
        if self.is_objective and self.definition.is_drawn:
            return {**seed, **own}  # whatever the objective calls `seed` is its own affair
        return {**seed, **point_of(claim), **own}  # no stored parameter stands for the interpreter

    def argv(self, claim: Claim, folder: AttemptFolder | None = None) -> list[str]:
        """The command line.

        Args:
            folder: None: in a message, where words stand for the paths of the attempt.
        """
        if isinstance(self.program, ObjectiveSettings):
            return [sys.executable, "-m", "hpsearch.scripts.objectives.process", self.program.function]
        assert isinstance(self.program, CommandSettings)
        paths = {"folder": "FOLDER", "parameters": "PARAMETERS"} if folder is None else _paths(folder)
        return render_command(self.program.run, {**self.values(claim), **paths})

    def environment(self, claim: Claim, folder: AttemptFolder, devices: Sequence[str]) -> dict[str, str]:
        """The whole environment of the program.

        Args:
            devices: UUIDs of its GPUs.
        """
        values = self.values(claim)
        own = {
            environment.REPORTS: str(folder.reports),
            environment.VERDICT: str(folder.verdict),
            environment.FOLDER: str(folder.folder),
            environment.PARAMETERS: str(folder.parameters),
            environment.SEED: str(values["seed"]),
            environment.TRIAL: str(claim.number),
            environment.ATTEMPT: str(claim.attempt),
            **parameter_variables(point_of(claim)),
        }
        return script_environment(
            self.base,
            pass_environment=self.program.pass_environment,
            own=own,
            settings=render_environment(dict(self.program.env), {**values, **_paths(folder)}),
            cpus=self.program.cpus,
            devices=devices,
            temporary=folder.temporary,
        )

    def describe(self, claim: Claim, argv: Sequence[str] | None = None) -> str:
        """The call on one line, for messages.

        Args:
            argv: of the attempt, if it has begun.
        """
        if isinstance(self.program, ObjectiveSettings):
            return f"the objective: {self.program.function}"
        return "the command: " + " ".join(argv or self.argv(claim))


def point_of(claim: Claim) -> dict[str, Value]:
    """The point's values by the names of its dimensions."""
    return without_zero_switches(claim.parameters)


def _paths(folder: AttemptFolder) -> dict[str, Value]:
    return {"folder": str(folder.folder), "parameters": str(folder.parameters)}
