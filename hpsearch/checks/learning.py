"""Whether a network can learn: its loss before training, its hidden units, a few images overfit, and shuffled labels.

Source: docs/sources.md, section 7.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from hpsearch.checks.finding import Finding, Verdict, line_for, line_for_values, searched
from hpsearch.checks.images import thinned
from hpsearch.checks.samples import CPU, NEVER, CheckedModel, distinct_images, resident
from hpsearch.data.splits import Split
from hpsearch.training.diagnosis.hidden_units import HiddenUnits
from hpsearch.training.lanes.cohort import Cohort
from hpsearch.training.lanes.cohort_shape import CohortShape
from hpsearch.training.losses import guessing_loss, loss_name, mean_loss
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
_TOO_SMALL = "too small a network, or inputs that were not scaled: give it more units"
NUM_SHUFFLES = 5
T_OF_SHUFFLES = 7.17  # of Student's t with 4 degrees of freedom, one-sided, p = 0.001
NUM_SHUFFLED, SHUFFLED_EPOCHS = 1000, 2


def check_untrained(model: CheckedModel) -> Finding:
    """The loss before training must be that of guessing: ln(classes), or the mean square of the target."""
    images, labels = _some_training_images(model)
    guessing = math.log(model.data.num_classes) if model.data.num_classes else float(labels.double().square().mean())
    seeds = range(NUM_SEEDS if model.is_custom else 2)
    losses = []
    for seed in seeds:
        model.check_time()
        parameters = model.network.initial_parameters(seed=seed)
        with torch.no_grad():
            losses.append(float(mean_loss(model.network.logits(parameters, images).double(), labels)))
    low, high = min(losses), max(losses)
    what = f"guessing among {model.data.num_classes} classes" if model.data.num_classes else "the target's mean"
    expected = f"{guessing:.4f}, the loss of {what}"
    verdict, look_at = Verdict.PASSED, ""
    if not all(map(math.isfinite, losses)):
        verdict = Verdict.FAILED
        look_at = "initial weights that are too large, or inputs that are not finite: make both about 1 or less"
    elif not model.is_custom:
        if max(abs(loss - guessing) for loss in losses) > EXACTNESS:
            verdict = Verdict.FAILED
            look_at = "the initial weights of the softmax layer, which should be 0: report this as a fault of hpsearch"
    else:
        expected = f"{guessing - BELOW:.2f} to {guessing + ABOVE:.2f}; guessing has {guessing:.4f}"
        if low < guessing - BELOW:
            verdict = Verdict.WARNING
            look_at = "scores that depend on the label, or a bias that names a large class: begin with a bias of 0"
        elif high > guessing + ABOVE:
            verdict = Verdict.FAILED if low > guessing + FAR_ABOVE else Verdict.WARNING
            look_at = "initial weights that are too large, or inputs that were not scaled: make the scores about 0"
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
    units, network = HiddenUnits(len(images)), model.network  # which is built with gradients enabled
    parameters = network.initial_parameters(seed=0)
    with torch.no_grad(), units:
        network.logits(parameters, images)
    shares = [(kind, number, float(share)) for number, (kind, share) in enumerate(units.shares, start=1)]
    if not shares:
        return Finding.skip("hidden units", model.name, "no relu, tanh or sigmoid was seen")
    worst = max(shares, key=lambda share: share[2])
    shown = "; ".join(
        f"{kind} {number}: {percent(share)} {'dead' if kind == 'relu' else 'saturated'}"
        for kind, number, share in shares
    )
    kind, number, share = worst
    is_many = share > (MANY_DEAD if kind == "relu" else MANY_SATURATED)
    verdict = Verdict.PASSED if not is_many else Verdict.FAILED if share == 1.0 else Verdict.WARNING
    look_at: tuple[str, ...] = ()
    if is_many and kind == "relu":
        cause = f"the biases and initial weights before relu {number}, as a dead unit gives 0 for every image"
        look_at = (f"{cause}: make the biases 0, and the weights about 1 / sqrt(inputs)",)
    elif is_many:
        cause = f"the scale of the inputs and initial weights before {kind} {number}, as saturated units hardly learn"
        look_at = (f"{cause}: make both smaller",)
    return Finding(
        check="hidden units",
        subject=model.name,
        verdict=verdict,
        found=shown,
        expected=f"at most {percent(MANY_DEAD)}",
        look_at=look_at,
        fix=_other_units(model, kind) if is_many else "",
        numbers={f"{kind}_{number}": share for kind, number, share in shares},
    )


def _other_units(model: CheckedModel, kind: str) -> str:
    """The line of the study file that gives a built-in network other hidden units, or smaller initial weights."""
    if model.is_custom:
        return ""
    if kind != "relu" and model.settings.model.initialization != "lecun":
        return line_for(model.definition, "model", "initialization", "lecun")
    return line_for(model.definition, "model", "activation", "tanh" if kind == "relu" else "relu")


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
    has_learned, is_nearly = lowest < OVERFIT_NLL, NEARLY_OVERFIT * guessing_loss(model.data.num_classes)
    precision = model.settings.training.precision
    causes = [] if has_learned else _why_not_overfit(lowest, model.data.num_classes)
    if precision == "bfloat16" and not has_learned:
        causes.insert(0, "precision bfloat16, which is too coarse for this network: take float32")
    found = f"{loss_name(model.data.num_classes)} {lowest:.3g} after {steps} steps of Adam on {len(index)} images"
    return Finding(
        check="overfit",
        subject=model.name,
        verdict=Verdict.PASSED if has_learned else Verdict.WARNING if lowest < is_nearly else Verdict.FAILED,
        found=found if math.isfinite(lowest) else "the loss is never finite",
        expected=f"below {OVERFIT_NLL} within {OVERFIT_STEPS} steps",
        look_at=tuple(causes),
        fix="" if has_learned else _to_overfit(model, causes[0]),
        numbers={"nll": lowest, "steps": steps},
    )


def _to_overfit(model: CheckedModel, cause: str) -> str:
    """The line of the study file against the likeliest cause, if one is."""
    definition, its = model.definition, model.settings
    if its.training.precision == "bfloat16":
        return line_for(definition, "training", "precision", "float32")
    if model.is_custom or its.model.family == "logistic" or cause != _TOO_SMALL:
        return ""
    width, dimension = its.model.hidden_units, searched(definition, "hidden_units")
    wider = [value for value in dimension.values if int(value) > width] if dimension else []
    return line_for_values(definition, "model", "hidden_units", wider, 4 * width)


def _why_not_overfit(nll: float, num_classes: int) -> list[str]:
    """The likely causes, the likeliest first, by how far the loss has come."""
    softmax = "scores that went through a softmax already: return them as they are"
    unconnected = (
        "scores that do not depend on the images, or a part of the network that gets no gradient: "
        "see that every layer is used, and none is detached"
    )
    if not num_classes:
        return [unconnected, _TOO_SMALL] if nll > 0.9 else [_TOO_SMALL, unconnected]
    if nll > 0.9 * math.log(num_classes):
        return [unconnected, softmax]
    lowest_of_softmax = math.log(1 + (num_classes - 1) / math.e)  # scores of 1 and 0
    return [softmax, _TOO_SMALL] if abs(nll - lowest_of_softmax) < 0.05 else [_TOO_SMALL, unconnected]


def check_shuffled_labels(model: CheckedModel) -> Finding:
    """Trained on shuffled labels, a network must not beat the largest class on validation images.

    A network gives images of one class the same wrong answer, so its accuracy varies more than that of coins. It is
    therefore trained with several shuffles, whose spread decides (a one-sided t-test).
    """
    train, validation = model.data.train, model.data.validation
    if not model.data.num_classes:
        return Finding.skip("shuffled labels", model.name, "the target is a number")
    if len(train) < 10 * model.data.num_classes:
        return Finding.skip("shuffled labels", model.name, f"only {len(train)} training images")
    looked_at = thinned(validation, NUM_SHUFFLED)
    accuracies = [_accuracy_with_shuffled_labels(model, seed, train, looked_at) for seed in range(NUM_SHUFFLES)]
    share = float(np.bincount(looked_at.labels).max() / len(looked_at))
    mean, deviation = statistics.fmean(accuracies), statistics.stdev(accuracies)
    cause = "labels that reach the network by another way than through training: find it in the network's code"
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
        look_at=(cause,) if is_better else (),
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
        accuracy = 1 - cohort.train_epoch()["it"].validations[-1].loss
    return accuracy


def _some_training_images(model: CheckedModel) -> tuple[Tensor, Tensor]:
    train = model.data.train
    index = np.unique(np.linspace(0, len(train) - 1, NUM_LOOKED_AT).astype(np.intp))
    return torch.from_numpy(train.floats(index)), torch.from_numpy(train.labels[index])
