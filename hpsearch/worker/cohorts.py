"""Cohorts of a study: which points can be trained, which of them side by side, and how a cohort is opened."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import final

import torch

from hpsearch.data.resident import ResidentData
from hpsearch.errors import InputError
from hpsearch.metric import ZERO_ONE, Metric
from hpsearch.search.significance import critical_gains
from hpsearch.search.stopping import StoppingRule, stopping_rule, validation_interval
from hpsearch.study.settings import OPTION_PREFIX, ModelSettings, StoppingSettings, TrialSettings
from hpsearch.training.correct_images import ReferenceTest
from hpsearch.training.judge import judge_of
from hpsearch.training.lanes.cohort import Cohort
from hpsearch.training.lanes.cohort_shape import CohortShape
from hpsearch.training.networks.build import build_network

BuildCohort = Callable[..., Cohort]  # with the arguments of `Cohort`


def cohort_name(settings: TrialSettings) -> str:
    """Return a short name for the cohort of a point; points with the same name can share lanes.

    The name is the same in every process.
    """
    shape = CohortShape.of(settings)
    weights = "" if shape.class_weights == "none" else f", class_weights={shape.class_weights!r}"
    return hashlib.sha256(f"{shape!r}{weights}".encode()).hexdigest()[:16]


def decides_cohort(dimension: str) -> bool:
    """Whether points that differ in this dimension only may be of different cohorts."""
    shape = {field.name for field in fields(CohortShape)} | ModelSettings.model_fields.keys()
    return dimension in shape - {"activation", "initialization"} or dimension.startswith(OPTION_PREFIX)


@final
class Cohorts:
    """Opens the cohorts of one study, on one device.

    Args:
        data: resident on `device`; it does not include the test set.
        metric: by which validations are judged.
        build: makes a cohort; `Cohort` itself, except where lanes are diagnosed, minibatches are counted or nothing is
            trained.
    """

    def __init__(
        self,
        stopping: StoppingSettings,
        data: ResidentData,
        device: torch.device,
        build: BuildCohort = Cohort,
        metric: Metric = ZERO_ONE,
    ) -> None:
        self._stopping = stopping
        self._data = data
        self._build = build
        self._trainable: dict[tuple[int, ModelSettings], bool] = {}  # by batch size and model
        self.device = device
        self.num_classes = data.num_classes
        self.metric = metric
        self._judge = partial(
            judge_of,
            metric.name,
            num_classes=data.num_classes,
            deviation=data.target_deviation,
            groups=data.validation_groups,
        )

    def open(self, settings: TrialSettings) -> Cohort:
        """Return a cohort without trials, which this trial may join. It validates as often as the stopping rule needs.

        If the rule compares validations with each other, the cohort applies the rule's test to them.
        """
        test = None
        if self._stopping.rule == "significance":
            level = self._stopping.significance_level
            gains = critical_gains(len(self._data.validation_labels), level)
            test = ReferenceTest(level=level, critical_gains=gains)
        interval = validation_interval(self._stopping, self._num_minibatches(settings))
        return self._build(CohortShape.of(settings), self._data, self.device, interval, test, judge=self._judge)

    def stopping_rule(self, settings: TrialSettings) -> StoppingRule:
        """Return a new stopping rule for a trial with these settings."""
        return stopping_rule(self._stopping, num_minibatches=self._num_minibatches(settings))

    def is_trainable(self, settings: TrialSettings) -> bool:
        """Whether the data suits a trial's settings. Results are cached.

        A growing search may, for example, ask for a batch of more images than there are.
        """
        key = settings.training.batch_size, settings.model
        if key not in self._trainable:
            try:
                self._num_minibatches(settings)
                build_network(settings.model, self._data.example_shape, self._data.num_outputs)
                self._trainable[key] = True
            except InputError:
                self._trainable[key] = False
        return self._trainable[key]

    def _num_minibatches(self, settings: TrialSettings) -> int:
        return self._data.num_minibatches(settings.training.batch_size)
