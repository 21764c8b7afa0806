"""A probe of learning rates in lanes: which decades train, where training diverges, and does the study search there?"""

from __future__ import annotations

import math

import numpy as np

from hpsearch.checks.finding import Finding, Verdict
from hpsearch.checks.samples import CPU, NEVER, CheckedModel, resident
from hpsearch.data.resident import ResidentData
from hpsearch.data.splits import Split
from hpsearch.study.definition import StudyDefinition
from hpsearch.study.space import rounded
from hpsearch.training.lanes.cohort import Cohort, CohortShape
from hpsearch.training.lanes.device_model import flops_per_image
from hpsearch.wording import value_label

EXPONENTS = tuple(range(2, -7, -1))  # 100 .. 1e-6; half decades only beside the best one
NUM_TRAIN, NUM_VALIDATION = 4000, 1000
MOST_FLOPS = 4e11  # of the whole probe, about: a few seconds
FEWEST_MINIBATCHES = 10
DIVERGED = 2.0  # times the loss of guessing
TRAINS = 0.05  # of the loss of guessing, which must be gained in the short epoch
FAR = 30.0  # a study whose rates are all this much smaller than the best one of the probe hardly trains


def check_learning_rates(model: CheckedModel) -> Finding:
    """Train a short epoch with rates from 100 to 1e-6, and compare the useful ones with those of the study."""
    definition = model.definition
    gained = _probe(model)
    rates = searched_rates(definition)
    shown = f"the study has {_range(min(rates), max(rates))}"
    numbers = {f"nll_gain_{value_label(rate)}": gain for rate, gain in gained.items()}
    trained = sorted(rate for rate, gain in gained.items() if gain > TRAINS * math.log(model.data.num_classes))
    if not trained:
        return Finding(
            check="learning rates",
            subject=model.name,
            verdict=Verdict.WARNING,
            found=f"no rate from 1e-6 to 100 lowers the loss by {TRAINS:.0%} in a short epoch; {shown}",
            expected="a rate that trains",
            look_at=("lambda_1 and lambda_2, which may outweigh the loss", "the other findings about this network"),
            numbers=numbers,
        )
    low, high, best = trained[0], trained[-1], max(trained, key=lambda rate: gained[rate])
    diverged = [rate for rate, gain in gained.items() if gain == -math.inf and rate > high]
    found = f"{_range(low, high)} train, {value_label(best)} gains most in a short epoch"
    if diverged:
        found += f", from {value_label(min(diverged))} on training diverges"
    verdict, look_at = Verdict.PASSED, ""
    if min(rates) > high:
        verdict, look_at = Verdict.WARNING, "learning rates that are all too high"
    elif max(rates) * FAR < best:
        verdict, look_at = Verdict.WARNING, "learning rates that are all too low"
    is_searched = any(dimension.name == "learning_rate" for dimension in definition.search.dimensions)
    mended = (
        f"learning_rate = {{ log10 = [{math.floor(math.log10(high))}, {math.floor(math.log10(low))}] }}  # in [search]"
    )
    if not is_searched:
        mended = f"learning_rate = {value_label(best)}  # in [training]"
    return Finding(
        check="learning rates",
        subject=model.name,
        verdict=verdict,
        found=f"{found}; {shown}",
        expected="rates of the study among those that train",
        look_at=(look_at,) if look_at else (),
        mend=mended if verdict is not Verdict.PASSED else "",
        numbers={"lowest": low, "highest": high, "best": best, **numbers},
    )


def searched_rates(definition: StudyDefinition) -> list[float]:
    """The learning rates of the study: the searched values, or its only one."""
    for dimension in definition.search.dimensions:
        if dimension.name == "learning_rate":
            return [float(value) for value in dimension.values]
    return [definition.training.learning_rate]


def _probe(model: CheckedModel) -> dict[float, float]:
    """The loss that each rate has gained over guessing; -inf if it diverged."""
    train, validation = model.data.train, model.data.validation
    batch_size = min(model.settings.training.batch_size, len(train))
    affordable = int(MOST_FLOPS / (3 * len(EXPONENTS) * flops_per_image(model.network)))
    number = min(len(train), max(FEWEST_MINIBATCHES * batch_size, min(NUM_TRAIN, affordable)))
    index = np.sort(np.random.default_rng(0).permutation(len(train))[:number])
    looked_at = Split(images=validation.images[:NUM_VALIDATION], labels=validation.labels[:NUM_VALIDATION])
    data = resident(model.data, index, looked_at)
    gained: dict[float, float] = {}
    _train(model, data, [10.0**exponent for exponent in EXPONENTS], batch_size, gained)
    if gained:
        best = max(gained, key=lambda rate: gained[rate])
        _train(model, data, [rounded(best * 10**step) for step in (-0.5, 0.5)], batch_size, gained)
    return gained


def _train(
    model: CheckedModel, data: ResidentData, rates: list[float], batch_size: int, gained: dict[float, float]
) -> None:
    """Train an epoch with each rate, and add the loss that it has gained over guessing; -inf if it diverged."""
    model.check_time()
    settings = {rate: model.training(learning_rate=rate, schedule="constant", batch_size=batch_size) for rate in rates}
    cohort = Cohort(CohortShape.of(settings[rates[0]]), data, CPU, NEVER)
    for rate in rates:
        cohort.admit(rate, settings[rate])
    guessing = math.log(model.data.num_classes)
    for rate, report in zip(rates, cohort.train_epoch().values(), strict=True):
        nll = report.validations[-1].nll
        gained[rate] = guessing - nll if nll < DIVERGED * guessing else -math.inf


def _range(low: float, high: float) -> str:
    return value_label(low) if low == high else f"{value_label(low)} to {value_label(high)}"
