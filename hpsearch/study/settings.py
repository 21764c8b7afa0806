"""The settings of data, model, training, stopping and pruning: what a study file's sections may say.

Values are frozen, validated and hashable. A point of a search is one `TrialSettings`: the study's own values
with the point's put in their place, validated again. This module knows no tensors, no Optuna and no files.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    PlainSerializer,
    ValidationInfo,
)
from pydantic_core import PydanticCustomError


def _refuse_bool(value: object) -> object:
    # bool is an int in Python: `learning_rate = true` would otherwise be read as 1.0.
    if isinstance(value, bool):
        raise ValueError(f"must be a number, got {str(value).lower()}")
    return value


ASKED_FOR: Final = {"is_asked_for": True}  # the context in which what somebody asks for is validated


def _at_most(limit: int) -> AfterValidator:
    """A bound far beyond what anybody means, within what every machine can hold; told only to whoever passes it.

    It is for study files. A stored study was accepted, maybe by a version without this bound, and stays readable.
    """

    def check(value: Any, info: ValidationInfo) -> Any:
        if value > limit and info.context == ASKED_FOR:
            raise ValueError(f"must be at most {limit:,}, got {value:,}")
        return value

    return AfterValidator(check)


MOST = 10**9  # of what is counted: epochs are 32-bit numbers in Optuna's tables
LARGEST = 10**9  # rates and factors: training computes in float32, whose largest number is 3e38
MOST_POINTS = 10**6  # rows of a study
MOST_UNITS = 10**5  # of a layer: 0.3 GB of weights behind MNIST's pixels
MOST_KERNELS = 10**3

Number = Annotated[FiniteFloat, BeforeValidator(_refuse_bool)]
PositiveNumber = Annotated[Number, Field(gt=0), _at_most(LARGEST)]
NonNegativeNumber = Annotated[Number, Field(ge=0), _at_most(LARGEST)]
UnitFraction = Annotated[Number, Field(ge=0, lt=1)]
_Whole = Annotated[int, BeforeValidator(_refuse_bool)]
Count = Annotated[_Whole, Field(ge=1), _at_most(MOST)]
LongCount = Annotated[_Whole, Field(ge=1), _at_most(10**15)]  # of minibatches and bytes: exact as a float, too
PointCount = Annotated[_Whole, Field(ge=1), _at_most(MOST_POINTS)]
Units = Annotated[_Whole, Field(ge=1), _at_most(MOST_UNITS)]
Kernels = Annotated[_Whole, Field(ge=1), _at_most(MOST_KERNELS)]
Seed = Annotated[int, BeforeValidator(_refuse_bool), Field(ge=0, lt=2**63)]

BUILT_IN_FAMILIES: Final = ("logistic", "mlp", "cnn")
CUSTOM_FAMILY: Final = "package.module:factory"  # the form of a family of a user's own, and what stands for all of them
_CUSTOM_FAMILY_RULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
OPTION_PREFIX: Final = "options."  # `options.width` is the dimension that searches the option `width`
_FACTORY_ARGUMENTS = ("image_shape", "num_classes")


def is_custom_family(family: str) -> bool:
    """Whether a `model.family` names a factory of a user's own."""
    return _CUSTOM_FAMILY_RULE.fullmatch(family) is not None


def _check_family(family: object) -> object:
    if isinstance(family, str) and (family in BUILT_IN_FAMILIES or is_custom_family(family)):
        return family
    # The type that a Literal has for what it does not know: the message names the choices.
    choices = [*BUILT_IN_FAMILIES, CUSTOM_FAMILY]
    raise PydanticCustomError("literal_error", "no such family", {"choices": choices})


OptionValue = str | bool | int | float
Options = tuple[tuple[str, OptionValue], ...]


def _parse_options(table: object) -> object:
    """A table's pairs in the order of their names: hashable, and two tables that say the same are equal."""
    if isinstance(table, tuple):
        return table  # read before
    if not isinstance(table, Mapping):
        raise ValueError(f"must be a table of plain values, got {table!r:.60}")
    for name, value in table.items():
        if not name.isidentifier() or name in _FACTORY_ARGUMENTS:
            reserved = " and ".join(_FACTORY_ARGUMENTS)
            raise ValueError(f"must have names of Python arguments other than {reserved}, got {name!r:.60}")
        if not isinstance(value, str | bool | int | float) or (isinstance(value, float) and not math.isfinite(value)):
            raise ValueError(f"must hold strings, truth values and finite numbers, got {name} = {value!r:.60}")
    return tuple(sorted(table.items()))


_KERNELS_RULE = re.compile(r"([0-9]{1,9})x([0-9]{1,9})")


def _parse_kernels(kernels: object) -> object:
    """A pair, or the text of one as a search has it: "20x50"."""
    match = _KERNELS_RULE.fullmatch(kernels) if isinstance(kernels, str) else None
    if match:
        return int(match[1]), int(match[2])
    return tuple(kernels) if isinstance(kernels, list) else kernels  # a list, where a checkpoint's JSON is read


def kernels_text(kernels: Any) -> Any:
    """A pair of LeNet's feature maps as a search has it, `20x50`; whatever is no pair stays as it is."""
    is_pair = isinstance(kernels, list | tuple) and len(kernels) == 2
    return "x".join(map(str, kernels)) if is_pair else kernels


Family = Annotated[str, BeforeValidator(_check_family)]
OptionTable = Annotated[
    Options, BeforeValidator(_parse_options), PlainSerializer(dict, return_type=dict[str, OptionValue])
]
Activation = Literal["tanh", "sigmoid", "relu"]
Initialization = Literal["glorot", "lecun"]
Optimizer = Literal["sgd", "momentum", "adam"]
Precision = Literal["float32", "tf32", "bfloat16"]
ScheduleName = Literal["constant", "inverse-time", "halving", "step", "plateau", "exponential"]
StoppingRule = Literal["geometric-patience", "significance", "no-improvement-in-n", "none"]
PrunerName = Literal["none", "median", "percentile", "successive-halving", "hyperband"]


class Settings(BaseModel):
    """Base of all sections: unknown keys are errors, values are frozen and never coerced from strings."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class DataSettings(Settings):
    """[data]: which images, and how they are held on the device.

    Args:
        dataset: a name of the catalogue, a folder of IDX files, or the path of an mnist.pkl.gz.
        train_samples: use only the first so many training images (FAU: first experiments on a subset).
        max_resident_bytes: training tensors larger than this stay on the host and visit the device in chunks.
    """

    dataset: str = "mnist"
    train_samples: Count | None = None
    max_resident_bytes: LongCount | None = None


class ModelSettings(Settings):
    """[model]: the network. `hidden_units` is the width of the MLP's hidden layer and of LeNet's dense layer.

    `kernels` are LeNet's feature maps in its two convolutions. `initialization` "glorot" scales initial
    weights by fan-in and fan-out (4 times that for sigmoid); "lecun" is the older rule, uniform in
    -1/sqrt(n_in) .. 1/sqrt(n_in). `options` are keyword arguments of a custom family's factory; a table in
    the file, pairs sorted by name here.
    Source: REFERENCE section 2.
    """

    family: Family = "mlp"
    hidden_units: Units = 500
    kernels: Annotated[tuple[Kernels, Kernels], Field(strict=False), BeforeValidator(_parse_kernels)] = (20, 50)
    activation: Activation = "tanh"
    initialization: Initialization = "glorot"
    options: OptionTable = ()


class TrainingSettings(Settings):
    """[training]: optimiser, learning rate and its schedule, regularisation, batch size, length.

    Args:
        seed: draws the initial weights and, with `shuffle`, the orders of images; None stands for the study's seed.
        lambda_1, lambda_2: factors of sum |W| and sum W^2 over weights (not biases).
        precision: of matrix products and convolutions in training: what goes into them is rounded to `tf32` (10
            bits of mantissa; CUDA only, float32 elsewhere) or `bfloat16` (7 bits). Weights, losses and validations
            are float32 in any case.
        shuffle: visit the images in a fresh order each epoch (from the seed), else in file order.
        schedule_decay: `inverse-time`: eta0 / (1 + decay * epoch).
        schedule_factor: `step`, `plateau`, `halving`, `exponential`: what the rate is multiplied with.
            None stands for 0.5 (0.95 for `exponential`).
        schedule_every: `step`: epochs between two steps.
        schedule_target: `step`: the constant rate that holds after the first step, in place of the factor.
            It never raises the rate: a lower start stays.
        schedule_patience: `plateau`, `halving`: epochs in a row without a new best before the rate falls.
        schedule_stop_ratio: `halving`: the trial ends when the rate would fall below eta0 / ratio.
    Source: REFERENCE sections 3 and 4.
    """

    batch_size: Count = 20
    max_epochs: Count = 200
    optimizer: Optimizer = "sgd"
    learning_rate: PositiveNumber = 0.01
    lambda_1: NonNegativeNumber = 0.0
    lambda_2: NonNegativeNumber = 0.0
    momentum: UnitFraction = 0.9
    beta_1: UnitFraction = 0.9
    beta_2: UnitFraction = 0.999
    epsilon: PositiveNumber = 1e-8
    schedule: ScheduleName = "constant"
    schedule_decay: PositiveNumber = 0.001
    schedule_factor: Annotated[Number, Field(gt=0, lt=1)] | None = None
    schedule_every: Count = 10
    schedule_target: PositiveNumber | None = None
    schedule_patience: Count = 10
    schedule_stop_ratio: Annotated[Number, Field(gt=1), _at_most(LARGEST)] = 1024.0
    shuffle: bool = False
    precision: Precision = "float32"
    seed: Seed | None = None


class StoppingSettings(Settings):
    """[stopping]: when a trial ends of its own accord (it is then COMPLETE with its best value).

    Args:
        patience: `geometric-patience`, `significance`: minibatches that are trained in any case (DLT: 5000 to
            10,000).
        patience_increase: a significant new best lets the trial run to so many times the minibatches so far.
        improvement_threshold: `geometric-patience`: a new best is significant below this fraction of the old one.
        significance_level: `significance`: a new best is significant if an exact one-sided McNemar test against the
            last significant one, on the same validation images, gives a p-value of at most this.
        n: `no-improvement-in-n`: epochs in a row without a new best (KZL: 10, 20, 30).
    """

    rule: StoppingRule = "geometric-patience"
    patience: LongCount = 10_000
    patience_increase: Annotated[Number, Field(ge=1), _at_most(LARGEST)] = 2.0
    improvement_threshold: Annotated[Number, Field(gt=0, le=1)] = 0.995
    significance_level: Annotated[Number, Field(gt=0, lt=1)] = 0.05
    n: Count = 10


class PruningSettings(Settings):
    """[pruning]: when a trial is given up because others are better (it is then PRUNED).

    Args:
        warmup_epochs: epochs in which no trial is pruned (median, percentile).
        startup_trials: complete trials before pruning begins (median, percentile).
        percentile: `percentile`: keep a trial whose best value is in this top percentile of the others.
        min_epochs: `successive-halving`, `hyperband`: epochs before the first rung.
        reduction_factor: `successive-halving`, `hyperband`: one in so many goes on at each rung.
    """

    pruner: PrunerName = "none"
    warmup_epochs: Annotated[_Whole, Field(ge=0), _at_most(MOST)] = 0
    startup_trials: Annotated[_Whole, Field(ge=0), _at_most(MOST)] = 5
    percentile: Annotated[Number, Field(ge=0, le=100)] = 25.0
    min_epochs: Count = 1
    reduction_factor: Annotated[_Whole, Field(ge=2), _at_most(MOST)] = 3


class TrialSettings(Settings):
    """Everything that one trial's training depends on besides the data: its point, resolved.

    Args:
        seed: the study's.
    """

    model: ModelSettings
    training: TrainingSettings
    seed: Seed = 0

    @property
    def training_seed(self) -> int:
        """Draws all that is drawn in the training: the initial weights and, when shuffled, the orders of images."""
        return self.seed if self.training.seed is None else self.training.seed
