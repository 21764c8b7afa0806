"""A probe of learning rates in lanes: which decades train, where training diverges, and does the study search there?"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from hpsearch.checks.finding import Finding, Verdict, line_for, line_in, searched
from hpsearch.checks.images import thinned
from hpsearch.checks.samples import CPU, NEVER, CheckedModel, OutOfTimeError, resident
from hpsearch.data.resident import ResidentData
from hpsearch.study.definition import StudyDefinition
from hpsearch.study.space import rounded
from hpsearch.training.lanes.cohort import Cohort
from hpsearch.training.lanes.cohort_shape import CohortShape
from hpsearch.training.lanes.device_model import flops_per_image
from hpsearch.training.losses import guessing_loss
from hpsearch.wording import percent, value_label

EXPONENTS = tuple(range(2, -7, -1))  # 100 .. 1e-6; half decades only beside the best one
NUM_TRAIN, NUM_VALIDATION = 4000, 1000
MOST_FLOPS = 4e11  # of the whole probe, about: a few seconds
FEWEST_MINIBATCHES = 10
DIVERGED = 2.0  # times the loss of guessing
TRAINS = 0.05  # of the loss of guessing, which must be gained in the short epoch
FAR, NEAR = 10.0, 10**0.5  # how far below and above the rates that train a rate may be: long trainings need lower ones


def check_learning_rates(model: CheckedModel) -> Finding:
    """Train a short epoch with rates from 100 to 1e-6, and compare the useful ones with those of the study."""
    definition = model.definition
    gained = _probe(model)
    rates = searched_rates(definition)
    shown = f"the study has {_range(min(rates), max(rates))}"
    numbers = {f"nll_gain_{value_label(rate)}": gain for rate, gain in gained.items()}
    trained = _that_train(model, gained)
    if not trained:
        penalty = _outweighing_penalty(model)
        return Finding(
            check="learning rates",
            subject=model.name,
            verdict=Verdict.WARNING,
            found=f"no rate from 1e-6 to 100 lowers the loss by {percent(TRAINS)} in a short epoch; {shown}",
            expected="a rate that trains",
            look_at=_why_nothing_trains(penalty),
            fix=line_for(definition, "training", penalty, 0.0) if penalty else "",
            numbers=numbers,
        )
    low, high, best = trained[0], trained[-1], max(trained, key=lambda rate: gained[rate])
    diverged = [rate for rate, gain in gained.items() if gain == -math.inf and rate > high]
    found = f"{_range(low, high)} train, {value_label(best)} gains most in a short epoch"
    if diverged:
        found += f", from {value_label(min(diverged))} on training diverges"
    dimension = searched(definition, "learning_rate")
    useful = low / FAR, high * NEAR
    if dimension is not None and dimension.is_continuous:
        is_covered = min(rates) <= useful[1] and max(rates) >= useful[0]
    else:
        is_covered = any(useful[0] <= rate <= useful[1] for rate in rates)
    verdict, look_at = Verdict.PASSED, ""
    if not is_covered:
        verdict, look_at = Verdict.WARNING, "learning rates that are too low or too high, and none between"
        if min(rates) > useful[1]:
            look_at = "learning rates that are all too high"
        elif max(rates) < useful[0]:
            look_at = "learning rates that are all too low"
        look_at += f": search from {_range(low, high)}"
    mended = line_for(definition, "training", "learning_rate", best)
    if dimension is not None and mended:
        exponents = [math.floor(math.log10(rate)) for rate in (high, low)]
        mended = line_in("search", "learning_rate", {"log10": exponents})
    return Finding(
        check="learning rates",
        subject=model.name,
        verdict=verdict,
        found=f"{found}; {shown}",
        expected="rates of the study among those that train",
        look_at=(look_at,) if look_at else (),
        fix=mended if verdict is not Verdict.PASSED else "",
        numbers={"lowest": low, "highest": high, "best": best, **numbers},
    )


def _that_train(model: CheckedModel, gained: Mapping[float, float]) -> list[float]:
    """The rates that lower the loss enough, in order."""
    return sorted(rate for rate, gain in gained.items() if gain > TRAINS * guessing_loss(model.data.num_classes))


def _outweighing_penalty(model: CheckedModel) -> str:
    """The larger one of lambda_1 and lambda_2 if some rate trains without both; "" if none does, or time is over."""
    its = model.settings.training
    if its.lambda_1 == its.lambda_2 == 0:
        return ""
    try:
        if not _that_train(model, _probe(model, lambda_1=0.0, lambda_2=0.0)):
            return ""
    except OutOfTimeError:
        return ""
    return "lambda_1" if its.lambda_1 > its.lambda_2 else "lambda_2"


def _why_nothing_trains(penalty: str) -> tuple[str, ...]:
    others = "the other findings about this network and the data: mend what they name first"
    return (f"{penalty}, which outweighs the loss: lower it", others) if penalty else (others,)


def searched_rates(definition: StudyDefinition) -> list[float]:
    """The learning rates of the study: the searched values, or its only one."""
    for dimension in definition.search.dimensions:
        if dimension.name == "learning_rate":
            return [float(value) for value in dimension.values]
    return [definition.training.learning_rate]


def _probe(model: CheckedModel, **changes: float) -> dict[float, float]:
    """The loss that each rate has gained over guessing; -inf if it diverged.

    Args:
        changes: other values in [training].
    """
    train, validation = model.data.train, model.data.validation
    batch_size = min(model.settings.training.batch_size, len(train))
    affordable = int(MOST_FLOPS / (3 * len(EXPONENTS) * flops_per_image(model.network)))
    number = min(len(train), max(FEWEST_MINIBATCHES * batch_size, min(NUM_TRAIN, affordable)))
    index = np.sort(np.random.default_rng(0).permutation(len(train))[:number])
    looked_at = thinned(validation, NUM_VALIDATION)
    data = resident(model.data, index, looked_at)
    gained: dict[float, float] = {}
    _train(model, data, [10.0**exponent for exponent in EXPONENTS], batch_size, gained, changes)
    if gained:
        best = max(gained, key=lambda rate: gained[rate])
        _train(model, data, [rounded(best * 10**step) for step in (-0.5, 0.5)], batch_size, gained, changes)
    return gained


def _train(
    model: CheckedModel,
    data: ResidentData,
    rates: list[float],
    batch_size: int,
    gained: dict[float, float],
    changes: Mapping[str, float],
) -> None:
    """Train with each rate, and add the loss that it has gained over guessing; -inf if it diverged."""
    guessing = guessing_loss(model.data.num_classes)
    common = {**changes, "schedule": "constant", "batch_size": batch_size}
    settings = {rate: model.training(**common, learning_rate=rate) for rate in rates}
    num_epochs = -(-FEWEST_MINIBATCHES // data.num_minibatches(batch_size))
    most = model.fitting_lanes(batch_size)
    for start in range(0, len(rates), most):
        group = rates[start : start + most]
        cohort = Cohort(CohortShape.of(settings[group[0]]), data, CPU, NEVER)
        for rate in group:
            cohort.admit(rate, settings[rate])
        for _ in range(num_epochs):
            model.check_time()
            reports = cohort.train_epoch()
        for rate in group:
            nll = reports[rate].validations[-1].nll
            gained[rate] = guessing - nll if nll < DIVERGED * guessing else -math.inf


def _range(low: float, high: float) -> str:
    return value_label(low) if low == high else f"{value_label(low)} to {value_label(high)}"
