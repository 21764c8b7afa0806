"""What the programs that whole_study.py starts have in common: their arguments, their data, and what they print."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.usual_loop import check_settings
from hpsearch.data.catalog import load_selection_data
from hpsearch.data.files.lookup import DataLocations
from hpsearch.data.splits import SelectionData
from hpsearch.errors import InputError
from hpsearch.study.definition import StudyDefinition
from hpsearch.study.study_file import load_definition


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """How a whole study ended.

    Args:
        num_points: of the grid that ended, pruned or not.
        trial_epochs: trained in all.
        best_error: lowest validation error (a fraction) of any trial.
        best_point: its parameters.
    """

    num_points: int
    trial_epochs: int
    best_error: float
    best_point: dict[str, float | int | str | bool]

    def print(self) -> None:
        """One line of JSON: the last line on stdout."""
        print(json.dumps(asdict(self)), flush=True)

    @classmethod
    def parse(cls, output: str) -> StudyResult:
        return cls(**json.loads(output.strip().splitlines()[-1]))


def usual_arguments(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study_file", type=Path)
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--processes", type=int, default=1, help="trials trained at the same time")
    return parser


def load_usual_definition(options: argparse.Namespace) -> StudyDefinition:
    """The study.

    Raises:
        InputError: it asks for something that the usual loop cannot do, or that only hpsearch does.
    """
    definition = load_definition(options.study_file, options.overrides)
    if definition.is_drawn or definition.stopping.rule != "none":
        raise InputError(f"{options.study_file}: must be a grid with the stopping rule none, to be the same everywhere")
    for point in definition.points():
        check_settings(definition.resolve(point))
    return definition


def load_images(definition: StudyDefinition) -> SelectionData:
    """The study's images.

    Raises:
        DataError: they are missing or damaged.
    """
    return load_selection_data(definition.data, locations=DataLocations.from_environment())
