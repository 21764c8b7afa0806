"""Our samplers against the test cases that Optuna ships for other people's."""

from __future__ import annotations

from collections.abc import Callable

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.samplers import BaseSampler
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    MultiObjectiveSamplerTestCase,
    RelativeSamplerTestCase,
    SingleOnlySamplerTestCase,
)

from hpsearch.search.samplers import CmaSampler, CoarseToFineSampler, PrunedAwareGPSampler, SobolSampler
from hpsearch.study.space import LogGrid


class TestCmaSampler(BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: CmaSampler(seed=1)


class TestPrunedAwareGPSampler(BasicSamplerTestCase, SingleOnlySamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: PrunedAwareGPSampler(seed=1, num_startup_trials=0)


@pytest.mark.slow
class TestPrunedAwareGPSamplerRelative(RelativeSamplerTestCase):
    """Apart: it fits hundreds of Gaussian processes, which takes minutes."""

    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: PrunedAwareGPSampler(seed=1, num_startup_trials=0)


class TestSobolSampler(BasicSamplerTestCase, RelativeSamplerTestCase, MultiObjectiveSamplerTestCase):
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return lambda: SobolSampler(seed=1)


def test_coarse_to_fine_is_for_one_objective() -> None:
    """Optuna's cases ask about parameters of their own, and it has none but those of its grid."""
    sampler = CoarseToFineSampler({"x": LogGrid(log10=(-1, -3))})
    study = optuna.create_study(directions=["minimize", "maximize"], sampler=sampler)
    trial = study._storage.get_trial(study._storage.create_new_trial(study._study_id))
    with pytest.raises(ValueError, match="the study has several objectives"):
        sampler.sample_independent(study, trial, "x", FloatDistribution(1e-3, 1e-1, log=True))
    with pytest.raises(ValueError, match="the study has several objectives"):
        study.ask()
