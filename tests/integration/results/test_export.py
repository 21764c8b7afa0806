"""Exports from a real study: the document, and the best parameters out of the artifact folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from hpsearch.artifacts.best_parameters import Artifacts, open_artifacts
from hpsearch.atomic_file import write_file
from hpsearch.errors import ArtifactError, InputError, NothingCompleteError
from hpsearch.results.choice import choose_point
from hpsearch.results.export import ExportFormat, export_model, export_point, render_export
from hpsearch.results.status import StudyStatus
from hpsearch.results.summary import StudySummary, read_summary
from hpsearch.store.claims.claim import Claim
from hpsearch.store.claims.ledger import Ledger

WEIGHTS = {"output.weight": np.arange(6, dtype=np.float32).reshape(2, 3)}


@pytest.fixture
def artifacts(tmp_path: Path) -> Artifacts:
    return open_artifacts(tmp_path / "artifacts")


@pytest.fixture
def trained(learning_rates: Any, artifacts: Artifacts) -> StudySummary:
    """Two complete trials; the second is the best, and its parameters are kept."""
    learning_rates.complete(learning_rates.claim(), [0.3])
    claim = learning_rates.claim()
    _save(learning_rates, artifacts, claim)
    learning_rates.complete(claim, [0.2])
    return read_summary(learning_rates.database, "made-up")


def exported(summary: StudySummary) -> dict[str, Any]:
    return export_point(choose_point(summary, None), StudyStatus(summary=summary))


def _save(study: Any, artifacts: Artifacts, claim: Claim) -> None:
    """As the worker does."""
    metadata = {
        "study": study.name,
        "definition_sha256": study.study.definition.sha256,
        "trial": str(claim.number),
    }
    ledger = Ledger(database=study.database, study_id=study.study.study_id)
    assert artifacts.save_parameters(ledger.set_system_attribute, claim.trial_id, WEIGHTS, metadata)


def _artifact(artifacts: Artifacts) -> Path:
    (path,) = Path(artifacts.place).iterdir()
    return path


def test_the_document_of_a_drawn_study_names_its_point_without_switches(
    make_study: Callable[..., Any], tmp_path: Path
) -> None:
    search = {"strategy": "random", "num_points": 1, "lambda_1": {"log10": [-2, -5], "zero": True}}
    study = make_study(search, seed=3)
    claim = study.claim()
    study.complete(claim, [0.5, 0.25])
    path = tmp_path / "best.json"
    write_file(path, render_export(exported(read_summary(study.database, "made-up")), ExportFormat.JSON))
    content = json.loads(path.read_text())
    assert set(content["parameters"]) == {"lambda_1"}
    assert content["settings"]["training"]["lambda_1"] == content["parameters"]["lambda_1"]
    assert (content["value"], content["best_epoch"], content["seed"]) == (0.25, 2, 3)
    assert content["definition_sha256"] == study.study.definition.sha256
    assert content["dataset_checksums"] == dict(study.study.dataset_checksums)
    assert content["versions"]["created"] == content["versions"]["exported"]


def test_a_trials_own_seed_stands_beside_the_studys(make_study: Callable[..., Any]) -> None:
    study = make_study({"seed": [8]}, seed=3)
    study.complete(study.claim(), [0.5])
    document = exported(read_summary(study.database, "made-up"))
    content = json.loads(render_export(document, ExportFormat.JSON))
    assert (content["seed"], content["settings"]["training"]["seed"]) == (3, 8)
    lines = render_export(document, ExportFormat.ENV).splitlines()
    assert [line for line in lines if "SEED=" in line] == ["HPSEARCH_TRAINING_SEED=8", "HPSEARCH_SEED=3"]


def test_a_write_that_fails_leaves_the_old_export(trained: StudySummary, tmp_path: Path) -> None:
    folder = tmp_path / "exports"
    with pytest.raises(ArtifactError, match=f"cannot write {folder}/best.toml"):
        write_file(folder / "best.toml", render_export(exported(trained), ExportFormat.TOML))
    assert not folder.exists()


def test_the_model_is_the_best_trials_parameters_with_their_metadata(
    trained: StudySummary, artifacts: Artifacts, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    export_model(choose_point(trained, None), artifacts, path)
    np.testing.assert_array_equal(load_file(path)["output.weight"], WEIGHTS["output.weight"])
    with safe_open(path, framework="numpy") as file:
        assert file.metadata()["definition_sha256"] == trained.study.definition.sha256


def test_another_suffix_is_an_input_error_with_the_choices(
    trained: StudySummary, artifacts: Artifacts, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"unknown model format '\.onnx'") as caught:
        export_model(choose_point(trained, None), artifacts, tmp_path / "model.onnx")
    assert ".safetensors" in str(caught.value.hint)


def test_a_model_of_nothing_complete_is_an_error(learning_rates: Any, artifacts: Artifacts, tmp_path: Path) -> None:
    summary = read_summary(learning_rates.database, "made-up")
    with pytest.raises(NothingCompleteError, match="4 waiting"):
        export_model(choose_point(summary, None), artifacts, tmp_path / "model.safetensors")


def test_parameters_that_lie_elsewhere_are_missed_by_name_with_the_option_that_helps(
    trained: StudySummary, artifacts: Artifacts, tmp_path: Path
) -> None:
    elsewhere = open_artifacts(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError) as caught:
        export_model(choose_point(trained, None), elsewhere, tmp_path / "model.safetensors")
    name = _artifact(artifacts).name
    assert str(caught.value) == (f"artifact {name} (parameters.safetensors of trial 1) is not in {elsewhere.place}")
    assert "HPSEARCH_ARTIFACTS" in str(caught.value.hint)
    assert not (tmp_path / "model.safetensors").exists()


def test_damaged_parameters_are_not_exported(trained: StudySummary, artifacts: Artifacts, tmp_path: Path) -> None:
    artifact = _artifact(artifacts)
    artifact.write_bytes(artifact.read_bytes()[:-4])
    with pytest.raises(ArtifactError, match="is damaged"):
        export_model(choose_point(trained, None), artifacts, tmp_path / "model.safetensors")


FLIPS = [(position, value) for position in (-2, -6, -23) for value in (0x40, 0x7F)]


@pytest.mark.parametrize(("position", "value"), FLIPS)
def test_two_flipped_bytes_are_found(
    position: int, value: int, trained: StudySummary, artifacts: Artifacts, tmp_path: Path
) -> None:
    artifact = _artifact(artifacts)
    content = bytearray(artifact.read_bytes())
    content[position] ^= value
    content[position - 1] ^= value
    artifact.write_bytes(content)

    with pytest.raises(ArtifactError, match="is damaged: its checksum is wrong"):
        export_model(choose_point(trained, None), artifacts, tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({}, None),
        ({"output.weight": np.full((2, 500), np.inf, np.float32)}, "output.weight has numbers that are not finite"),
        ({"output.weight": np.zeros((500, 2), np.float32)}, "its shapes are"),
        ({"hidden.bias": np.zeros(3, np.float32)}, "its shapes are"),
        ({"other": np.zeros(3, np.float32)}, "its shapes are"),
    ],
)
def test_parameters_without_a_checksum_are_read_if_they_can_be_a_networks(
    change: dict[str, Any], what: str | None, trained: StudySummary, artifacts: Artifacts, tmp_path: Path
) -> None:
    """As older versions have kept them."""
    shapes = {"hidden.weight": (500, 9), "hidden.bias": 500, "output.weight": (2, 500), "output.bias": 2}
    arrays = {name: np.ones(shape, np.float32) for name, shape in shapes.items()} | change
    metadata = {"study": "made-up", "trial": "1", "definition_sha256": trained.study.definition.sha256}
    save_file(arrays, _artifact(artifacts), metadata=metadata)
    path = tmp_path / "model.safetensors"

    if what is None:
        export_model(choose_point(trained, None), artifacts, path)
        np.testing.assert_array_equal(load_file(path)["output.weight"], arrays["output.weight"])
    else:
        with pytest.raises(ArtifactError, match=f"is damaged: {what}"):
            export_model(choose_point(trained, None), artifacts, path)


def test_parameters_of_another_trial_are_not_exported(
    trained: StudySummary, artifacts: Artifacts, tmp_path: Path
) -> None:
    save_file(WEIGHTS, _artifact(artifacts), metadata={"study": "made-up", "trial": "0"})
    with pytest.raises(ArtifactError, match="says that it belongs to trial 0 of study 'made-up'"):
        export_model(choose_point(trained, None), artifacts, tmp_path / "model.safetensors")


def test_a_folder_in_the_artifacts_place_is_an_error(
    trained: StudySummary, artifacts: Artifacts, tmp_path: Path
) -> None:
    artifact = _artifact(artifacts)
    artifact.unlink()
    artifact.mkdir()
    with pytest.raises(ArtifactError, match="cannot be read"):
        export_model(choose_point(trained, None), artifacts, tmp_path / "model.safetensors")


def test_a_trial_without_an_artifact_says_so(learning_rates: Any, artifacts: Artifacts, tmp_path: Path) -> None:
    learning_rates.complete(learning_rates.claim(), [0.3])
    summary = read_summary(learning_rates.database, "made-up")
    with pytest.raises(ArtifactError, match=r"trial 0 of study 'made-up' has no parameters\.safetensors"):
        export_model(choose_point(summary, None), artifacts, tmp_path / "model.safetensors")
