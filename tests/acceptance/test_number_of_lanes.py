"""A study finds the same whatever the number of lanes: the same best point, the same curves within rounding.

The rates are such that training is stable. A rate that is too high makes it chaotic: float32 and float64 then part
within an epoch, and so do two orders of adding up.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import optuna
import pytest

from tests.acceptance.in_process import hpsearch_here

pytestmark = pytest.mark.acceptance

# All optimizers and L1 have a path of their own through the lanes' step; widths share a cohort.
STUDY = """
name = "lanes-{lanes}"
[data]
dataset = "digits"
[model]
hidden_units = 100
[training]
batch_size = 20
max_epochs = 4
optimizer = "{optimizer}"
[search]
learning_rate = {{ log10 = [{decades}] }}
lambda_1 = [0.0, 0.0001]
hidden_units = [60, 100]
[stopping]
rule = "none"
"""


@pytest.fixture
def run(tmp_path: Path, database_url: str) -> Callable[..., dict[int, optuna.trial.FrozenTrial]]:
    """Run a study with so many lanes; its trials by point."""

    def start(lanes: int, **values: str) -> dict[int, optuna.trial.FrozenTrial]:
        path = tmp_path / f"lanes-{lanes}.toml"
        path.write_text(STUDY.format(lanes=lanes, **values))
        environment = {"HPSEARCH_HOME": str(tmp_path / "home"), "HPSEARCH_STORAGE": database_url}
        worker = ("worker", f"lanes-{lanes}", "--lanes", str(lanes), "--device", "cpu")
        for arguments in (("create", path), worker):
            done = hpsearch_here(*arguments, folder=tmp_path, environment=environment)
            assert done.returncode == 0, done.stderr
        study = optuna.load_study(study_name=f"lanes-{lanes}", storage=database_url)
        return {trial.user_attrs["point"]: trial for trial in study.trials}

    return start


@pytest.mark.parametrize(("optimizer", "decades"), [("sgd", "-1, -3"), ("momentum", "-2, -3")])
def test_one_lane_and_eight_lanes_find_the_same(
    run: Callable[..., dict[int, optuna.trial.FrozenTrial]], optimizer: str, decades: str
) -> None:
    alone, together = (run(lanes, optimizer=optimizer, decades=decades) for lanes in (1, 8))

    assert alone.keys() == together.keys()
    assert len(alone) >= 8
    for point, trial in alone.items():
        other = together[point]
        assert trial.params == other.params
        assert trial.state == other.state
        for epoch, value in trial.intermediate_values.items():
            # Rounding may tip one of the 256 validation images.
            assert other.intermediate_values[epoch] == pytest.approx(value, abs=1.5 / 256)
        assert other.user_attrs["best_validation_nll"] == pytest.approx(
            trial.user_attrs["best_validation_nll"], rel=1e-4
        )

    def rank(trial: optuna.trial.FrozenTrial) -> tuple[float, float]:
        assert trial.value is not None
        return trial.value, trial.user_attrs["best_validation_nll"]

    assert min(alone, key=lambda point: rank(alone[point])) == min(together, key=lambda point: rank(together[point]))
