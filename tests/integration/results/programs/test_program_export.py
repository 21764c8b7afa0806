"""Exports of studies of programs: the command with its values."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hpsearch.artifacts.best_parameters import open_artifacts
from hpsearch.errors import InputError
from hpsearch.results.export import ExportFormat, export_model, export_point, render_export
from tests.integration.results.programs.conftest import RUN, MadeUpPrograms, ProgramsMaker


def exported(programs: MadeUpPrograms) -> dict[str, Any]:
    status = programs.status
    return export_point(status.choose(), status)


def test_the_command_has_its_values_as_a_list_and_as_a_line(make_programs: ProgramsMaker) -> None:
    programs = make_programs({"lr": [0.5], "opt": ["a b"]}, run=[*RUN, "{opt}"])
    programs.complete([1.0])
    command = exported(programs)["command"]
    assert command["run"] == ["python", "train.py", "--lr=0.5", "--seed=0", "a b"]
    assert command["line"] == "python train.py --lr=0.5 --seed=0 'a b'"
    assert shlex.split(command["line"]) == command["run"]


def test_it_has_the_metric_and_no_keys_of_a_model(trained: MadeUpPrograms) -> None:
    document = exported(trained)
    assert (document["metric"], document["direction"], document["value"]) == ("val_loss", "minimize", 0.25)
    assert document["parameters"] == {"lr": 0.01}
    assert document["reported"] == {"train_loss": 0.125}
    absent = {"settings", "dataset", "dataset_checksums", "validation_nll", "checks", "test_openings", "classes"}
    assert not absent & document.keys()
    assert "torch" not in document["versions"]["exported"]


def test_values_without_a_placeholder_are_variables_of_the_line(make_programs: ProgramsMaker) -> None:
    programs = make_programs({"a.b": [0.5], "c": [1]}, run=["sh", "-c", "echo $HPSEARCH_PARAM_A_B {c} $HPSEARCH_SEED"])
    programs.complete([1.0])
    line = exported(programs)["command"]["line"]
    assert subprocess.run(line, shell=True, capture_output=True, text=True, check=True).stdout == "0.5 1 0\n"


def test_a_program_that_reads_all_parameters_is_given_their_file(make_programs: ProgramsMaker) -> None:
    programs = make_programs(run=["train"], reads_parameters=True)
    programs.complete([1.0])
    assert exported(programs)["command"]["env"]["HPSEARCH_PARAMETERS"] == "PARAMETERS.json"


def test_the_file_of_the_parameters_is_given_to_a_command_that_names_its_variable(make_programs: ProgramsMaker) -> None:
    programs = make_programs(run=["sh", "-c", "train $HPSEARCH_PARAMETERS"])
    programs.complete([1.0])
    assert exported(programs)["command"]["env"]["HPSEARCH_PARAMETERS"] == "PARAMETERS.json"


def test_the_line_begins_in_the_folder_of_the_program(make_programs: ProgramsMaker) -> None:
    programs = make_programs(run=["train", "{lr}"], cwd="my code")
    programs.complete([1.0])
    assert exported(programs)["command"]["line"] == "cd 'my code' && HPSEARCH_SEED=0 train 0.1"


def test_the_studys_variables_are_part_of_the_command(make_programs: ProgramsMaker) -> None:
    programs = make_programs(run=["train", "{seed}"], env={"RATE": "{lr}"})
    programs.complete([1.0])
    assert exported(programs)["command"]["line"] == "RATE=0.1 train 0"


def test_the_files_of_the_study_have_their_checksums(make_programs: ProgramsMaker, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("")
    programs = make_programs(files=["train.py"])
    programs.complete([1.0])
    assert exported(programs)["files"] == {
        "train.py": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    }


def test_variables_have_the_names_that_a_program_reads(trained: MadeUpPrograms) -> None:
    lines = render_export(exported(trained), ExportFormat.ENV).splitlines()
    assert "HPSEARCH_PARAM_LR=0.01" in lines
    assert "HPSEARCH_SEED=0" in lines
    assert "HPSEARCH_COMMAND_LINE='python train.py --lr=0.01 --seed=0'" in lines


@pytest.mark.parametrize("export_format", list(ExportFormat))
def test_each_format_can_be_written(trained: MadeUpPrograms, export_format: ExportFormat) -> None:
    assert "train.py --lr=0.01" in render_export(exported(trained), export_format)


def test_the_exported_seed_is_that_of_the_point(make_programs: ProgramsMaker) -> None:
    programs = make_programs({"strategy": "listed", "points": [{"lr": 0.1, "seed": 8}]})
    programs.complete([1.0])
    document = json.loads(render_export(exported(programs), ExportFormat.JSON))
    assert (document["seed"], document["seed_of_point"]) == (0, 8)
    assert document["command"]["run"][-1] == "--seed=8"


def test_there_is_no_model_to_export(trained: MadeUpPrograms, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no model to write: the trials of study 'mine' are programs"):
        export_model(trained.status.choose(), open_artifacts(tmp_path / "artifacts"), tmp_path / "a.safetensors")
    assert not (tmp_path / "a.safetensors").exists()


def test_the_exporting_python_is_not_part_of_the_command(trained: MadeUpPrograms) -> None:
    assert sys.executable not in exported(trained)["command"]["line"]
