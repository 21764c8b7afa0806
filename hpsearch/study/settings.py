"""The settings of data, model, training, stopping and pruning: the sections of a study file.

Values are frozen, validated and hashable. A point of a search gives one `TrialSettings`: the study's own values with
the point's values in their place, validated again. This module uses no tensors, no Optuna and no files.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    model_serializer,
)
from pydantic_core import PydanticCustomError

from hpsearch.study.registry import ACTIVATIONS, FAMILIES, OPTIMIZERS, PRUNERS, SCHEDULES, STOPPING_RULES


def _refuse_bool(value: object) -> object:
    # bool is an int in Python: `learning_rate = true` would otherwise be read as 1.0.
    if isinstance(value, bool):
        raise ValueError(f"must be a number, got {str(value).lower()}")
    return value


ASKED_FOR: Final = {"is_asked_for": True}  # the validation context for new requests, as opposed to stored studies


def _at_most(limit: int) -> AfterValidator:
    """An upper bound far above sensible values, but below what machines can represent.

    It is checked for study files only. A stored study was accepted before, perhaps by a version without this bound, and
    must remain readable.
    """

    def check(value: Any, info: ValidationInfo) -> Any:
        if value > limit and info.context == ASKED_FOR:
            raise ValueError(f"must be at most {limit:,}, got {value:,}")
        return value

    return AfterValidator(check)


MOST = 10**9  # for counts: epochs are 32-bit numbers in Optuna's tables
LARGEST = 10**9  # for rates and factors: training computes in float32, whose largest number is 3e38
MOST_POINTS = 10**6  # rows of a study
MOST_UNITS = 10**5  # of a layer: 0.3 GB of weights for MNIST's pixels
MOST_KERNELS = 10**3

Number = Annotated[FiniteFloat, BeforeValidator(_refuse_bool)]
PositiveNumber = Annotated[Number, Field(gt=0), _at_most(LARGEST)]
NonNegativeNumber = Annotated[Number, Field(ge=0), _at_most(LARGEST)]
UnitFraction = Annotated[Number, Field(ge=0, lt=1)]
_Whole = Annotated[int, BeforeValidator(_refuse_bool)]
Count = Annotated[_Whole, Field(ge=1), _at_most(MOST)]
LongCount = Annotated[_Whole, Field(ge=1), _at_most(10**15)]  # for minibatches and bytes: also exact as a float
PointCount = Annotated[_Whole, Field(ge=1), _at_most(MOST_POINTS)]
ImageSide = Annotated[_Whole, Field(ge=1), _at_most(4096)]
Share = Annotated[float, Field(gt=0, lt=1)]
CountOrNone = Annotated[_Whole, Field(ge=0), _at_most(MOST)]
Texts = Annotated[tuple[str, ...], Field(strict=False)]
Units = Annotated[_Whole, Field(ge=1), _at_most(MOST_UNITS)]
Kernels = Annotated[_Whole, Field(ge=1), _at_most(MOST_KERNELS)]
Seed = Annotated[int, BeforeValidator(_refuse_bool), Field(ge=0, lt=2**63)]

_CUSTOM_FAMILY_RULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
OPTION_PREFIX: Final = "options."  # `options.width` is the dimension that searches the option `width`
_FACTORY_ARGUMENTS = ("image_shape", "num_classes")


def is_custom_family(family: str) -> bool:
    """Whether a `model.family` names a user's own factory."""
    return _CUSTOM_FAMILY_RULE.fullmatch(family) is not None


def named_in(table: Collection[str], is_another: Callable[[str], bool] = lambda name: False) -> BeforeValidator:
    """Accept the names in the table, and those that `is_another` accepts."""

    def check(name: object) -> object:
        if isinstance(name, str) and (name in table or is_another(name)):
            return name
        # The error type of a Literal, so that the message lists the choices.
        raise PydanticCustomError("literal_error", "no such name", {"choices": list(table)})

    return BeforeValidator(check)


OptionValue = str | bool | int | float
Options = tuple[tuple[str, OptionValue], ...]


def _parse_options(table: object) -> object:
    """A table as pairs sorted by name: hashable, and equal for equivalent tables."""
    if isinstance(table, tuple):
        return table  # parsed already
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
    """A pair of numbers, given as a pair or as text in the form that a search uses: "20x50"."""
    match = _KERNELS_RULE.fullmatch(kernels) if isinstance(kernels, str) else None
    if match:
        return int(match[1]), int(match[2])
    return tuple(kernels) if isinstance(kernels, list) else kernels  # a list comes from the JSON of a checkpoint


def kernels_text(kernels: Any) -> Any:
    """A pair of LeNet's feature maps as text, the form that a search uses: `20x50`. Other values are unchanged."""
    is_pair = isinstance(kernels, list | tuple) and len(kernels) == 2
    return "x".join(map(str, kernels)) if is_pair else kernels


OptionTable = Annotated[
    Options, BeforeValidator(_parse_options), PlainSerializer(dict, return_type=dict[str, OptionValue])
]
Initialization = Literal["glorot", "lecun"]
Precision = Literal["float32", "tf32", "bfloat16"]
ClassWeights = Literal["none", "balanced"] | tuple[PositiveNumber, ...]


def _parse_class_weights(weights: object) -> object:
    if weights in ("none", "balanced"):
        return weights
    if isinstance(weights, list | tuple) and weights and all(map(_is_weight, weights)):
        return tuple(weights)
    raise ValueError(f'must be "none", "balanced" or a list of one positive number for each class, got {weights!r:.60}')


def _is_weight(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= LARGEST


class Settings(BaseModel):
    """Base of all sections: unknown keys are errors, values are frozen and never coerced from strings.

    Args:
        JOINED_LATER: keys that a section has had only since there were studies. At its default such a key is in no
            stored text and no hash, so that a study from before the key keeps both and goes on.
    """

    JOINED_LATER: ClassVar[frozenset[str]] = frozenset()

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @model_serializer(mode="wrap")
    def _without_unused_later_keys(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = handler(self)
        unused = {k for k in self.JOINED_LATER if getattr(self, k) == type(self).model_fields[k].get_default()}
        return {key: value for key, value in fields.items() if key not in unused}


class DataSettings(Settings):
    """[data]: which examples, how they are split and prepared, and how they are stored on the device.

    Args:
        dataset: a name of the catalogue, or the path of data in one of the forms of `data.registry`.
        train_samples: number of training images to use, from the first; for first experiments on a subset
            (docs/sources.md, section 6).
        max_resident_bytes: training tensors larger than this stay on the host and are copied to the device in chunks.
        validation, test: the part that hpsearch sets aside: a fraction, a number of examples, or a file; None: one
            seventh of all examples for the test, one sixth of the others for validation. `test = 0`: no test part.
        split_seed: determines the split and the order of examples.
        group: column of a table: rows with the same value are kept on one side of each split.
        image_size: rows and columns to which images of a folder are resized; None: all must have one size.
        task: what the target is; None: numbers with more than 20 distinct values, or fractions, are for regression.
        target: column of a table.
        features, exclude: columns that are inputs, or are not; None: all that are numbers, truth values or categories.
        separator, decimal, encoding, missing: how a text table is written; None: they are found out (UTF-8).
    """

    JOINED_LATER = frozenset(
        {
            "validation",
            "test",
            "split_seed",
            "group",
            "image_size",
            "task",
            "target",
            "features",
            "exclude",
            "separator",
            "decimal",
            "encoding",
            "missing",
        }
    )

    dataset: str = "mnist"
    train_samples: Count | None = None
    max_resident_bytes: LongCount | None = None
    validation: Share | Count | str | None = None
    test: Share | CountOrNone | str | None = None
    split_seed: Seed = 0
    group: str | None = None
    image_size: Annotated[tuple[ImageSide, ImageSide], Field(strict=False)] | None = None
    task: Literal["classification", "regression"] | None = None
    target: str | None = None
    features: Texts | None = None
    exclude: Texts | None = None
    separator: Annotated[str, Field(min_length=1, max_length=1)] | None = None
    decimal: Literal[".", ","] | None = None
    encoding: str | None = None
    missing: Texts | None = None


class ModelSettings(Settings):
    """[model]: the network. `hidden_units` is the width of the MLP's hidden layer and of LeNet's dense layer.

    `kernels` are LeNet's feature maps in its two convolutions. `initialization` "glorot" scales initial
    weights by fan-in and fan-out (4 times as large for sigmoid); "lecun" is the older rule, uniform in
    -1/sqrt(n_in) .. 1/sqrt(n_in). `options` are keyword arguments of a custom family's factory: a table in
    the file, pairs sorted by name here.
    Source: docs/sources.md, section 2.
    """

    family: Annotated[str, named_in(FAMILIES, is_custom_family)] = "mlp"
    hidden_units: Units = 500
    kernels: Annotated[tuple[Kernels, Kernels], Field(strict=False), BeforeValidator(_parse_kernels)] = (20, 50)
    activation: Annotated[str, named_in(ACTIVATIONS)] = "tanh"
    initialization: Initialization = "glorot"
    options: OptionTable = ()


class TrainingSettings(Settings):
    """[training]: optimizer, learning rate and its schedule, regularisation, batch size, length.

    Args:
        seed: determines the initial weights and, with `shuffle`, the order of images; None: the study's seed.
        lambda_1, lambda_2: factors of sum |W| and sum W^2 over weights (not biases).
        precision: precision of matrix products and convolutions in training: their inputs are rounded to `tf32` (10
            bits of mantissa; CUDA only, float32 elsewhere) or `bfloat16` (7 bits). Weights, losses and validations
            are always float32.
        shuffle: use a new order of images in each epoch (from the seed); otherwise file order.
        class_weights: of the examples in the loss: `balanced`: so that all classes have the same sum; or a list, in the
            order of the classes, of which only the ratios matter (`training.class_weights`).
        schedule_decay: `inverse-time`: eta0 / (1 + decay * epoch).
        schedule_factor: `step`, `plateau`, `halving`, `exponential`: the factor by which the rate is multiplied.
            None: 0.5 (0.95 for `exponential`).
        schedule_every: `step`: epochs between two steps.
        schedule_target: `step`: the constant rate after the first step, used instead of the factor. It never raises
            the rate: a lower initial rate is kept.
        schedule_patience: `plateau`, `halving`: epochs in a row without a new best before the rate falls.
        schedule_stop_ratio: `halving`: the trial ends when the rate would fall below eta0 / ratio.
    Source: docs/sources.md, sections 3 and 4.
    """

    JOINED_LATER = frozenset({"class_weights"})

    batch_size: Count = 20
    max_epochs: Count = 200
    optimizer: Annotated[str, named_in(OPTIMIZERS)] = "sgd"
    learning_rate: PositiveNumber = 0.01
    lambda_1: NonNegativeNumber = 0.0
    lambda_2: NonNegativeNumber = 0.0
    momentum: UnitFraction = 0.9
    beta_1: UnitFraction = 0.9
    beta_2: UnitFraction = 0.999
    epsilon: PositiveNumber = 1e-8
    schedule: Annotated[str, named_in(SCHEDULES)] = "constant"
    schedule_decay: PositiveNumber = 0.001
    schedule_factor: Annotated[Number, Field(gt=0, lt=1)] | None = None
    schedule_every: Count = 10
    schedule_target: PositiveNumber | None = None
    schedule_patience: Count = 10
    schedule_stop_ratio: Annotated[Number, Field(gt=1), _at_most(LARGEST)] = 1024.0
    shuffle: bool = False
    precision: Precision = "float32"
    seed: Seed | None = None
    class_weights: Annotated[ClassWeights, BeforeValidator(_parse_class_weights)] = "none"


class StoppingSettings(Settings):
    """[stopping]: the rule that ends a trial by its own history (it is then COMPLETE with its best value).

    Args:
        patience: `geometric-patience`, `significance`: minibatches that are trained in any case (5000 to 10,000 in the
            source).
        patience_increase: a significant new best lets the trial run to this multiple of the minibatches so far.
        improvement_threshold: `geometric-patience`: a new best is significant below this fraction of the old best.
        significance_level: `significance`: a new best is significant if an exact one-sided McNemar test against the
            last significant best, on the same validation images, gives a p-value of at most this.
        n: `no-improvement-in-n`: epochs in a row without a new best (10, 20 or 30 in the source).
    Source: docs/sources.md, section 5.
    """

    rule: Annotated[str, named_in(STOPPING_RULES)] = "geometric-patience"
    patience: LongCount = 10_000
    patience_increase: Annotated[Number, Field(ge=1), _at_most(LARGEST)] = 2.0
    improvement_threshold: Annotated[Number, Field(gt=0, le=1)] = 0.995
    significance_level: Annotated[Number, Field(gt=0, lt=1)] = 0.05
    n: Count = 10


class PruningSettings(Settings):
    """[pruning]: the pruner, which ends a trial because others are better (it is then PRUNED).

    Args:
        warmup_epochs: epochs in which no trial is pruned (median, percentile).
        startup_trials: number of complete trials before pruning begins (median, percentile).
        percentile: `percentile`: keep a trial whose best value is in this top percentile of the others.
        min_epochs: `successive-halving`, `hyperband`: the epoch of the first rung.
        reduction_factor: `successive-halving`, `hyperband`: one trial in this many continues at each rung.
    """

    pruner: Annotated[str, named_in(PRUNERS)] = "none"
    warmup_epochs: Annotated[_Whole, Field(ge=0), _at_most(MOST)] = 0
    startup_trials: Annotated[_Whole, Field(ge=0), _at_most(MOST)] = 5
    percentile: Annotated[Number, Field(ge=0, le=100)] = 25.0
    min_epochs: Count = 1
    reduction_factor: Annotated[_Whole, Field(ge=2), _at_most(MOST)] = 3


class TrialSettings(Settings):
    """Everything that one trial's training depends on besides the data: the study's settings with the trial's point.

    Args:
        seed: the study's seed.
    """

    model: ModelSettings
    training: TrainingSettings
    seed: Seed = 0

    @property
    def training_seed(self) -> int:
        """The seed of all random numbers in training: the initial weights and, if shuffled, the order of images."""
        return self.seed if self.training.seed is None else self.training.seed
