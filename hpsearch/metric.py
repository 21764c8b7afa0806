"""The metrics that a study can be judged by: name, direction, unit, and the loss that all comparisons use.

A metric's value is what Optuna, tables, plots and JSON show, in its own unit and direction. Its loss is what hpsearch
compares: lower is better for every metric. Shares (errors) are stored as fractions and shown in percent.
`critical_t` is for intervals of a mean over seeds or groups.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final, Literal

Direction = Literal["minimize", "maximize"]


class Task(StrEnum):
    """What a data set's target is."""

    CLASSIFICATION = "classification"
    REGRESSION = "regression"


class PairedTest(StrEnum):
    """How two trials are compared on the same validation examples."""

    MCNEMAR = "McNemar"  # exact, on the examples that only one of them classifies correctly
    SIGN_FLIP = "sign-flip"  # on the differences of the examples' parts of the loss


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric.

    Args:
        name: in study files.
        label: without the part of the data on which it is measured.
        is_share: a fraction of the examples, shown in percent.
        test: how two trials are compared.
        most_classes: the largest number of classes that it is defined for; None: any.
        best: of a metric to be maximized: the value whose loss is 0.
        is_reported: a program reports the values; any finite number may be one.
    """

    name: str
    label: str
    task: Task = Task.CLASSIFICATION
    direction: Direction = "minimize"
    is_share: bool = False
    test: PairedTest = PairedTest.SIGN_FLIP
    most_classes: int | None = None
    best: float = 1.0
    is_reported: bool = False

    @property
    def is_bounded(self) -> bool:
        """Whether its loss is at most 1."""
        return self.is_share or self.most_classes is not None

    @property
    def validation_label(self) -> str:
        if self.is_reported:
            return self.label
        return f"validation {self.label}"

    @property
    def test_label(self) -> str:
        return f"test {self.label}"

    @property
    def axis_title(self) -> str:
        """Title of an axis with validation values."""
        return self.validation_label + (" (%)" if self.is_share else "")

    @property
    def training_loss(self) -> str | None:
        """What training minimises: the name of the column `validation_nll`; None: a program does not tell."""
        if self.is_reported:
            return None
        return "NLL" if self.task is Task.CLASSIFICATION else "MSE"

    @property
    def step(self) -> str:
        """What a trial is measured after: an epoch, or a step of a program."""
        return "step" if self.is_reported else "epoch"

    @property
    def best_word(self) -> str:
        return "lowest" if self.direction == "minimize" else "highest"

    @property
    def hover(self) -> str:
        """A plot's format of a value, after its axis: `%{y` + hover."""
        return ":.2f} %" if self.is_share else ":.5g}"

    @property
    def sign(self) -> int:
        """1 if lower values are better, -1 if higher ones are: values times this are in the order of the losses."""
        return 1 if self.direction == "minimize" else -1

    def value_of(self, loss: float) -> float:
        """The value that a loss stands for."""
        return loss if self.direction == "minimize" else self.best - loss

    def loss_of(self, value: float) -> float:
        """The loss of a value: the value itself, or its distance from the best one."""
        return value if self.direction == "minimize" else self.best - value

    def interval_of(self, losses: tuple[float, float]) -> tuple[float, float]:
        """The interval of values that an interval of losses stands for: [low, high]."""
        most = 1.0 if self.is_bounded else math.inf
        low, high = sorted(self.value_of(min(loss, most)) for loss in losses)
        return low, high

    def shown(self, value: float) -> float:
        """A value as plots show it: shares in percent, rounded to 4 decimal places (finer than one of 10,000)."""
        return round(100.0 * value, 4) if self.is_share else value

    def text(self, value: float | None, deviation: float | None = None) -> str:
        """A value as text: `8.20 %` or `0.9312`, with a standard deviation `8.20 % +- 0.42`; `-` if there is none."""
        if value is None:
            return "-"
        number, *others = self._rounded(value, *(() if deviation is None else (deviation,)))
        return number + (" %" if self.is_share else "") + "".join(f" +- {other}" for other in others)

    def interval_text(self, interval: tuple[float, float]) -> str:
        """An interval of values as text: `5.43 to 12.21 %`."""
        return " to ".join(self._rounded(*interval)) + (" %" if self.is_share else "")

    def loss_text(self, loss: float, deviation: float | None = None) -> str:
        """The value that a loss stands for, as text."""
        return self.text(self.value_of(loss), deviation)

    def _rounded(self, *values: float) -> list[str]:
        """Shares in percent with two decimal places; other values with four digits of the largest one."""
        if self.is_share:
            return [f"{value:.2%}".removesuffix("%") for value in values]
        largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
        places = 3 - math.floor(math.log10(largest)) if largest > 0 else 3
        if not -3 <= places <= 8:
            return [f"{value:.4g}" for value in values]
        return [f"{value:,.{max(0, places)}f}" for value in values]


ZERO_ONE: Final = Metric(name="zero-one", label="error", is_share=True, test=PairedTest.MCNEMAR)
_ALL: Final = (
    ZERO_ONE,
    Metric(name="balanced-error", label="balanced error", is_share=True),
    Metric(name="nll", label="NLL"),
    Metric(name="auc", label="AUC", direction="maximize", most_classes=2),
    Metric(name="rmse", label="RMSE", task=Task.REGRESSION),
    Metric(name="mae", label="MAE", task=Task.REGRESSION),
    Metric(name="r2", label="R2", task=Task.REGRESSION, direction="maximize"),
)
METRICS: Final[Mapping[str, Metric]] = MappingProxyType({metric.name: metric for metric in _ALL})
ONLY_SHOWN: Final = MappingProxyType({"macro-f1": "balanced-error"})  # with the metric to take instead


def critical_t(freedom: int, confidence: float = 0.95) -> float:
    """The two-sided critical value of Student's t: how many standard errors an interval reaches from a mean.

    Args:
        freedom: degrees of freedom, at least 1.
        confidence: in (0, 1).
    """
    from scipy.special import stdtrit  # takes half a second to load

    return float(stdtrit(freedom, 0.5 + confidence / 2))
