"""What trials must share to train side by side in one cohort."""

from __future__ import annotations

from dataclasses import dataclass, field

from hpsearch.study.settings import ClassWeights, ModelSettings, Precision, TrialSettings
from hpsearch.training.networks.padding import cohort_model


@dataclass(frozen=True, kw_only=True, slots=True)
class CohortShape:
    """The settings that trials must share to train in one cohort.

    Optimizers, rates, lambdas, schedules and seeds may differ, and so may the activation of an MLP. Hidden layers may
    differ in width within a class (`padding`); `model` then has the largest width of the class.
    """

    model: ModelSettings
    batch_size: int
    shuffle: bool
    precision: Precision
    # Not part of the text of a shape, from which the stored names of cohorts are made (`worker.cohorts.cohort_name`).
    class_weights: ClassWeights = field(default="none", repr=False)

    @classmethod
    def of(cls, settings: TrialSettings) -> CohortShape:
        model, its = cohort_model(settings.model), settings.training
        return cls(
            model=model,
            batch_size=its.batch_size,
            shuffle=its.shuffle,
            precision=its.precision,
            class_weights=its.class_weights,
        )
