"""Whether a network can learn: its loss before training, its hidden units, a few images overfit, and shuffled labels.

Source: docs/sources.md, section 7.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from hpsearch.checks.finding import Finding, Verdict
from hpsearch.checks.images import thinned
from hpsearch.checks.samples import CPU, NEVER, CheckedModel, distinct_images, resident
from hpsearch.data.splits import Split
from hpsearch.training.lanes.cohort import Cohort, CohortShape
from hpsearch.training.losses import mean_nll
from hpsearch.wording import percent

NUM_SEEDS = 10
EXACTNESS = 1e-6  # nats: of built-in networks, whose softmax layer begins at 0
BELOW, ABOVE, FAR_ABOVE = 0.2, 0.7, 3.0  # nats from ln(classes): of a user's own network
NUM_LOOKED_AT = 256  # images for hidden units and the untrained loss
MANY_DEAD, MANY_SATURATED = 0.5, 0.5
NUM_OVERFIT, FEWEST_OVERFIT = 10, 5
OVERFIT_NLL = 0.01
NEARLY_OVERFIT = 0.5  # of the loss of guessing: below, the network is small, and perhaps nothing is wrong
OVERFIT_STEPS = 500
OVERFIT_RATES = (0.003, 0.0003, 0.03, 0.1)
NUM_SHUFFLES = 5
T_OF_SHUFFLES = 7.17  # of Student's t with 4 degrees of freedom, one-sided, p = 0.001
NUM_SHUFFLED, SHUFFLED_EPOCHS = 1000, 2


def check_untrained(model: CheckedModel) -> Finding:
    """The loss before training must be that of guessing: ln(classes)."""
    guessing = math.log(model.data.num_classes)
    images, labels = _some_training_images(model)
    seeds = range(NUM_SEEDS if model.is_custom else 2)
    losses = []
    for seed in seeds:
        model.check_time()
        parameters = model.network.initial_parameters(seed=seed)
        with torch.no_grad():
            losses.append(float(mean_nll(model.network.logits(parameters, images).double(), labels)))
    low, high = min(losses), max(losses)
    expected = f"{guessing:.4f}, the loss of guessing among {model.data.num_classes} classes"
    verdict, look_at = Verdict.PASSED, ""
    if not all(map(math.isfinite, losses)):
        verdict, look_at = Verdict.FAILED, "initial weights that are too large, or inputs that are not finite"
    elif not model.is_custom:
        if max(abs(loss - guessing) for loss in losses) > EXACTNESS:
            verdict, look_at = Verdict.FAILED, "the initial weights of the softmax layer, which should be 0"
    else:
        expected = f"{guessing - BELOW:.2f} to {guessing + ABOVE:.2f}; guessing has {guessing:.4f}"
        if low < guessing - BELOW:
            verdict, look_at = Verdict.WARNING, "scores that depend on the label, or a bias that names a large class"
        elif high > guessing + ABOVE:
            verdict = Verdict.FAILED if low > guessing + FAR_ABOVE else Verdict.WARNING
            look_at = "initial weights that are too large, or inputs that were not scaled"
    return Finding(
        check="untrained loss",
        subject=model.name,
        verdict=verdict,
        found=f"{low:.6f}" if high - low < 5e-7 else f"{low:.4f} to {high:.4f} over {len(losses)} seeds",
        expected=expected,
        look_at=(look_at,) if look_at else (),
        numbers={"lowest": low, "highest": high, "guessing": guessing},
    )


def check_units(model: CheckedModel) -> Finding:
    """Dead relu units and saturated tanh and sigmoid units before training."""
    images, _ = _some_training_images(model)
    outputs, network = _HiddenOutputs(len(images)), model.network  # which is built with gradients enabled
    parameters = network.initial_parameters(seed=0)
    with torch.no_grad(), outputs:
        network.logits(parameters, images)
    if not outputs.kinds:
        return Finding.skip("hidden units", model.name, "no relu, tanh or sigmoid was seen")
    worst = max(outputs.shares, key=lambda share: share[2])
    shown = "; ".join(
        f"{kind} {number}: {percent(share)} {'dead' if kind == 'relu' else 'saturated'}"
        for kind, number, share in outputs.shares
    )
    kind, number, share = worst
    is_many = share > (MANY_DEAD if kind == "relu" else MANY_SATURATED)
    verdict = Verdict.PASSED if not is_many else Verdict.FAILED if share == 1.0 else Verdict.WARNING
    look_at: tuple[str, ...] = ()
    if is_many and kind == "relu":
        look_at = (f"the biases and initial weights before relu {number}: a dead unit gives 0 for every image",)
    elif is_many:
        look_at = (f"the scale of the inputs and initial weights before {kind} {number}: saturated units hardly learn",)
    return Finding(
        check="hidden units",
        subject=model.name,
        verdict=verdict,
        found=shown,
        expected=f"at most {percent(MANY_DEAD)}",
        look_at=look_at,
        numbers={f"{kind}_{number}": share for kind, number, share in outputs.shares},
    )


def check_overfit(model: CheckedModel) -> Finding:
    """Learn a few images overfit, without regularisation: the loss must nearly vanish."""
    index = distinct_images(model.data.train, NUM_OVERFIT)
    if len(index) < FEWEST_OVERFIT:
        return Finding.skip("overfit", model.name, f"only {len(index)} different training images")
    few = Split(images=model.data.train.images[index], labels=model.data.train.labels[index])
    data = resident(model.data, index, few)
    common = {"optimizer": "adam", "lambda_1": 0.0, "lambda_2": 0.0, "batch_size": len(index), "schedule": "constant"}
    rates = OVERFIT_RATES[: model.fitting_lanes(len(index))]
    settings = [model.training(**common, learning_rate=rate, shuffle=False) for rate in rates]
    cohort = Cohort(CohortShape.of(settings[0]), data, CPU, NEVER)
    for lane, its in enumerate(settings):
        cohort.admit(lane, its)
    lowest, steps = math.inf, 0
    while steps < OVERFIT_STEPS and lowest >= OVERFIT_NLL:
        model.check_time()
        reports = cohort.train_epoch()
        steps += 1
        finite = [r.validations[-1].nll for r in reports.values() if math.isfinite(r.validations[-1].nll)]
        lowest = min([lowest, *finite])
    has_learned, is_nearly = lowest < OVERFIT_NLL, NEARLY_OVERFIT * math.log(model.data.num_classes)
    precision = model.settings.training.precision
    causes = [] if has_learned else _why_not_overfit(lowest, model.data.num_classes)
    if precision == "bfloat16" and not has_learned:
        causes.insert(0, "precision bfloat16, which is too coarse for this network")
    found = f"NLL {lowest:.3g} after {steps} steps of Adam on {len(index)} images"
    return Finding(
        check="overfit",
        subject=model.name,
        verdict=Verdict.PASSED if has_learned else Verdict.WARNING if lowest < is_nearly else Verdict.FAILED,
        found=found if math.isfinite(lowest) else "the loss is never finite",
        expected=f"below {OVERFIT_NLL} within {OVERFIT_STEPS} steps",
        look_at=tuple(causes),
        fix='precision = "float32"  # in [training]' if not has_learned and precision == "bfloat16" else "",
        numbers={"nll": lowest, "steps": steps},
    )


def _why_not_overfit(nll: float, num_classes: int) -> list[str]:
    """The likely causes, the likeliest first, by how far the loss has come."""
    softmax = "scores that went through a softmax already: return them as they are"
    unconnected = "scores that do not depend on the images, or a part of the network that gets no gradient"
    small = "too small a network, or inputs that were not scaled"
    if nll > 0.9 * math.log(num_classes):
        return [unconnected, softmax]
    lowest_of_softmax = math.log(1 + (num_classes - 1) / math.e)  # scores of 1 and 0
    return [softmax, small] if abs(nll - lowest_of_softmax) < 0.05 else [small, unconnected]


def check_shuffled_labels(model: CheckedModel) -> Finding:
    """Trained on shuffled labels, a network must not beat the largest class on validation images.

    A network gives images of one class the same wrong answer, so its accuracy varies more than that of coins. It is
    therefore trained with several shuffles, whose spread decides (a one-sided t-test).
    """
    train, validation = model.data.train, model.data.validation
    if len(train) < 10 * model.data.num_classes:
        return Finding.skip("shuffled labels", model.name, f"only {len(train)} training images")
    looked_at = thinned(validation, NUM_SHUFFLED)
    accuracies = [_accuracy_with_shuffled_labels(model, seed, train, looked_at) for seed in range(NUM_SHUFFLES)]
    share = float(np.bincount(looked_at.labels).max() / len(looked_at))
    mean, deviation = statistics.fmean(accuracies), statistics.stdev(accuracies)
    is_better = mean - share > T_OF_SHUFFLES * max(deviation, 0.01) / math.sqrt(NUM_SHUFFLES)
    return Finding(
        check="shuffled labels",
        subject=model.name,
        verdict=Verdict.FAILED if is_better else Verdict.PASSED,
        found=(
            f"{percent(mean, 1)} of validation images right, over {NUM_SHUFFLES} shuffles; "
            f"the largest class has {percent(share, 1)}"
        ),
        expected="no more than the largest class (p < 0.001)",
        look_at=("labels that reach the network by another way than through training",) if is_better else (),
        numbers={"accuracy": mean, "deviation": deviation, "largest_class": share},
    )


def _accuracy_with_shuffled_labels(model: CheckedModel, seed: int, train: Split, looked_at: Split) -> float:
    random = np.random.default_rng(seed)
    index = random.permutation(len(train))[:NUM_SHUFFLED]
    part = Split(images=train.images[index], labels=random.permutation(train.labels[index]))
    data = resident(replace(model.data, train=part), np.arange(len(index)), looked_at)
    settings = model.training(
        batch_size=min(model.settings.training.batch_size, max(1, len(index) // 10)),
        optimizer="adam",
        learning_rate=0.001,
        schedule="constant",
        shuffle=False,
        seed=seed,  # other initial weights as well: five independent trainings
    )
    model.fitting_lanes(settings.training.batch_size)
    cohort = Cohort(CohortShape.of(settings), data, CPU, NEVER)
    cohort.admit("it", settings)
    accuracy = 0.0
    for _ in range(SHUFFLED_EPOCHS):
        model.check_time()
        accuracy = 1 - cohort.train_epoch()["it"].validations[-1].zero_one
    return accuracy


def _some_training_images(model: CheckedModel) -> tuple[Tensor, Tensor]:
    train = model.data.train
    index = np.unique(np.linspace(0, len(train) - 1, NUM_LOOKED_AT).astype(np.intp))
    return torch.from_numpy(train.images[index]), torch.from_numpy(train.labels[index])


_KINDS: dict[Callable[..., Any], str] = {
    torch.relu: "relu",
    torch.relu_: "relu",
    Tensor.relu: "relu",
    Tensor.relu_: "relu",
    functional.relu: "relu",
    torch.tanh: "tanh",
    Tensor.tanh: "tanh",
    torch.tanh_: "tanh",
    Tensor.tanh_: "tanh",
    functional.tanh: "tanh",
    torch.sigmoid: "sigmoid",
    Tensor.sigmoid: "sigmoid",
    torch.sigmoid_: "sigmoid",
    Tensor.sigmoid_: "sigmoid",
    functional.sigmoid: "sigmoid",
}
_SATURATED_SLOPE = 0.05  # of the derivative at 0


class _HiddenOutputs(TorchFunctionMode):
    """Records, for each non-linearity in the order of its use, the share of dead or saturated outputs."""

    def __init__(self, num_images: int) -> None:
        super().__init__()
        self.shares: list[tuple[str, int, float]] = []  # kind, its number among all, share
        self._num_images = num_images

    @property
    def kinds(self) -> set[str]:
        return {kind for kind, _, _ in self.shares}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        kind = _KINDS.get(func)
        if kind is not None and isinstance(result, Tensor) and result.shape[:1] == (self._num_images,):
            self.shares.append((kind, len(self.shares) + 1, _share(kind, result)))
        return result


def _share(kind: str, outputs: Tensor) -> float:
    """Of relu the units, or feature maps, that are 0 for every image; of the others the outputs with a small slope."""
    with torch.no_grad():
        if kind == "relu":
            by_unit = outputs.transpose(0, 1).flatten(start_dim=1) if outputs.dim() > 1 else outputs.unsqueeze(0)
            return float((by_unit <= 0).all(dim=1).double().mean())
        slope = 1 - outputs.square() if kind == "tanh" else 4 * outputs * (1 - outputs)
        return float((slope < _SATURATED_SLOPE).double().mean())
