"""A probe of learning rates in lanes: which decades train, where training diverges, and does the study search there?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hpsearch.checks.finding import Finding, Verdict
from hpsearch.checks.samples import CPU, NEVER, CheckedModel, resident
from hpsearch.data.splits import Split
from hpsearch.study.definition import StudyDefinition
from hpsearch.study.settings import LARGEST
from hpsearch.training.lanes.cohort import Cohort, CohortShape
from hpsearch.wording import value_label

EXPONENTS = tuple(half / 2 for half in range(4, -13, -1))  # 10^2 .. 10^-6 in half decades
NUM_TRAIN, NUM_VALIDATION = 4000, 1000
FEWEST_MINIBATCHES = 20
TRAINS = 0.05  # of the loss of guessing, which must be gained in the short epoch
FAR = 30.0  # a study whose rates are all this much smaller than the best one of the probe hardly trains


@dataclass(frozen=True, kw_only=True)
class _Probed:
    """The rates that train, in rising order, and the best one."""

    trained: list[float]
    best: float
    diverged: list[float]


def check_learning_rates(model: CheckedModel) -> Finding:
    """Train a short epoch with rates from 100 to 1e-6, and compare the useful ones with those of the study."""
    definition = model.definition
    probed, gained = _probe(model)
    rates = searched_rates(definition)
    shown = f"the study has {_range(min(rates), max(rates))}"
    numbers = {f"nll_gain_{value_label(rate)}": gain for rate, gain in gained.items()}
    if probed is None:
        return Finding(
            check="learning rates",
            subject=model.name,
            verdict=Verdict.WARNING,
            found=f"no rate from 1e-6 to 100 lowers the loss by {TRAINS:.0%} in a short epoch; {shown}",
            expected="a rate that trains",
            look_at=("the other findings about this network", "lambda_1 and lambda_2, which may outweigh the loss"),
            numbers=numbers,
        )
    low, high = probed.trained[0], probed.trained[-1]
    found = f"{_range(low, high)} train, {value_label(probed.best)} gains most in a short epoch"
    if probed.diverged:
        found += f", from {value_label(min(probed.diverged))} on training diverges"
    verdict, look_at = Verdict.PASSED, ""
    if min(rates) > high:
        verdict, look_at = Verdict.WARNING, "learning rates that are all too high"
    elif max(rates) * FAR < probed.best:
        verdict, look_at = Verdict.WARNING, "learning rates that are all too low"
    is_searched = any(dimension.name == "learning_rate" for dimension in definition.search.dimensions)
    mended = (
        f"learning_rate = {{ log10 = [{math.floor(math.log10(high))}, {math.floor(math.log10(low))}] }}  # in [search]"
    )
    if not is_searched:
        mended = f"learning_rate = {value_label(probed.best)}  # in [training]"
    return Finding(
        check="learning rates",
        subject=model.name,
        verdict=verdict,
        found=f"{found}; {shown}",
        expected="rates of the study among those that train",
        look_at=(look_at,) if look_at else (),
        mend=mended if verdict is not Verdict.PASSED else "",
        numbers={"lowest": low, "highest": high, "best": probed.best, **numbers},
    )


def searched_rates(definition: StudyDefinition) -> list[float]:
    """The learning rates of the study: the searched values, or its only one."""
    for dimension in definition.search.dimensions:
        if dimension.name == "learning_rate":
            return [float(value) for value in dimension.values]
    return [definition.training.learning_rate]


def _probe(model: CheckedModel) -> tuple[_Probed | None, dict[float, float]]:
    """The probed rates, None if none trains; and the loss that each has gained, of those that stayed finite."""
    train, validation = model.data.train, model.data.validation
    batch_size = min(model.settings.training.batch_size, len(train))
    number = min(len(train), max(NUM_TRAIN, FEWEST_MINIBATCHES * batch_size))
    index = np.sort(np.random.default_rng(0).permutation(len(train))[:number])
    looked_at = Split(images=validation.images[:NUM_VALIDATION], labels=validation.labels[:NUM_VALIDATION])
    data = resident(model.data, index, looked_at)
    rates = [float(f"{10**exponent:.3g}") for exponent in EXPONENTS if 10**exponent <= LARGEST]
    settings = {rate: model.training(learning_rate=rate, schedule="constant", batch_size=batch_size) for rate in rates}
    gained: dict[float, float] = {}
    diverged = []
    # From low to high in groups: the high rates of a large network may take long, and little is lost without them.
    for start in range(0, len(rates), 6):
        model.check_time()
        group = rates[start : start + 6]
        cohort = Cohort(CohortShape.of(settings[group[0]]), data, CPU, NEVER)
        for rate in group:
            cohort.admit(rate, settings[rate])
        guessing = math.log(model.data.num_classes)
        reports = cohort.train_epoch()
        for rate in group:
            nll = reports[rate].validations[-1].nll
            if not math.isfinite(nll) or nll > 2 * guessing:
                diverged.append(rate)
            else:
                gained[rate] = guessing - nll
    good = sorted(rate for rate, gain in gained.items() if gain > TRAINS * math.log(model.data.num_classes))
    if not good:
        return None, gained
    best = max(good, key=lambda rate: gained[rate])
    return _Probed(trained=good, best=best, diverged=[rate for rate in diverged if rate > good[0]]), gained


def _range(low: float, high: float) -> str:
    return value_label(low) if low == high else f"{value_label(low)} to {value_label(high)}"
