"""Time and memory: seconds per trial-epoch as measured, the lanes that fit, and from that what the study costs."""

from __future__ import annotations

import time

from hpsearch.checks.finding import Finding, Verdict, line_for, line_in
from hpsearch.checks.samples import CPU, NEVER, CheckedModel
from hpsearch.data.resident import ResidentData
from hpsearch.search.pruners import first_look, is_competitive
from hpsearch.search.stopping import validations_per_epoch
from hpsearch.study.corners import model_settings
from hpsearch.study.definition import StudyDefinition
from hpsearch.training.lanes.cohort import Cohort
from hpsearch.training.lanes.cohort_shape import CohortShape
from hpsearch.training.lanes.device_model import measure_speed
from hpsearch.training.lanes.lane_times import LaneTimes
from hpsearch.wording import counted, format_seconds

MEASURED_SECONDS = 2.0  # about; an epoch is shortened to it
FEWEST_MINIBATCHES = 5
LONG_SECONDS = 7 * 24 * 3600.0
MOST_LANES = 64


def check_cost(model: CheckedModel) -> Finding:
    """Train a part of an epoch with the number of lanes that a worker would begin with, on this machine's CPU."""
    definition, data = model.definition, ResidentData.place(model.data, CPU)
    batch_size = model.settings.training.batch_size
    num_validations = validations_per_epoch(definition.stopping, data.num_minibatches(batch_size))
    prior = measure_speed(CPU).epoch_cost(model.network, data, batch_size, CPU, num_validations)
    num_fitting = model.fitting_lanes(batch_size)
    num_lanes = LaneTimes(prior).choose(max(1, min(MOST_LANES, definition.num_points, num_fitting)))
    per_trial_epoch = _measure(model, data, num_lanes, predicted=num_lanes * prior.seconds(num_lanes))
    num_points, whole = _points_with_this_network(definition)
    least, most = (
        num_points * epochs * per_trial_epoch for epochs in _epochs_per_point(model, data.num_minibatches(batch_size))
    )
    search = definition.search
    if search.budget_epochs is not None:
        most = min(most, search.budget_epochs * per_trial_epoch)
    if search.budget_hours is not None:
        most = min(most, 3600 * search.budget_hours)
    least = min(least, most)
    span = format_seconds(most) if least == most else f"{format_seconds(least)} to {format_seconds(most)}"
    is_long = least > LONG_SECONDS
    found = (
        f"{format_seconds(per_trial_epoch)} per trial and epoch with {counted(num_lanes, 'lane')}; "
        f"{num_points:,.0f} {whole}: {span} with one worker on this machine's CPU; memory for {num_fitting:,} lanes"
    )
    return Finding(
        check="cost",
        subject=model.name,
        verdict=Verdict.WARNING if is_long else Verdict.PASSED,
        found=found,
        expected="less than a week",
        look_at=("the number of points and max_epochs: lower them, or take a GPU or more workers",) if is_long else (),
        fix=_cheaper(definition, num_points * per_trial_epoch) if is_long else "",
        numbers={
            "seconds_per_trial_epoch": per_trial_epoch,
            "lanes": num_lanes,
            "fitting_lanes": num_fitting,
            "least_hours": least / 3600,
            "most_hours": most / 3600,
        },
    )


def _cheaper(definition: StudyDefinition, seconds_per_epoch: float) -> str:
    """The line of the study file with which the points take a week, or the fewest epochs.

    Args:
        seconds_per_epoch: of one epoch of all points.
    """
    if definition.search.strategy == "coarse-to-fine":
        return line_in("search", "budget_hours", LONG_SECONDS / 3600)
    return line_for(definition, "training", "max_epochs", max(1, int(LONG_SECONDS / seconds_per_epoch)))


def _measure(model: CheckedModel, data: ResidentData, num_lanes: int, *, predicted: float) -> float:
    """Seconds of a whole epoch per trial, from a part of the epoch that takes about MEASURED_SECONDS."""
    batch_size = model.settings.training.batch_size
    share = min(1.0, MEASURED_SECONDS / max(predicted, 1e-9))
    num_minibatches = data.num_minibatches(batch_size)
    num_trained = min(num_minibatches, max(FEWEST_MINIBATCHES, round(share * num_minibatches)))
    share = num_trained / num_minibatches
    head = data.head(
        num_train=num_trained * batch_size, num_validation=max(1, round(share * len(data.validation_labels)))
    )
    cohort = Cohort(CohortShape.of(model.settings), head, CPU, NEVER)
    for lane in range(num_lanes):
        cohort.admit(lane, model.settings)
    seconds = []
    for _ in range(2):  # the first one allocates memory
        model.check_time()
        started = time.perf_counter()
        cohort.train_epoch()
        seconds.append(time.perf_counter() - started)
    return min(seconds) / share / num_lanes


def _points_with_this_network(definition: StudyDefinition) -> tuple[float, str]:
    """The number of points that are trained with one of the study's networks, and what to call them."""
    num_points: float = definition.num_points
    words = "points"
    if definition.search.strategy == "coarse-to-fine":
        budget = definition.search.budget_points
        num_points, words = (budget, words) if budget is not None else (num_points, "points of the first round")
    num_networks = len(model_settings(definition))
    return num_points / num_networks, words if num_networks == 1 else f"{words} with this network"


def _epochs_per_point(model: CheckedModel, num_minibatches: int) -> tuple[float, float]:
    """The fewest and the most epochs of a point, as far as pruning and stopping are known in advance."""
    definition, most = model.definition, model.settings.training.max_epochs
    stopping, pruning = definition.stopping, definition.pruning
    least = most
    if stopping.rule == "no-improvement-in-n":
        least = min(most, 1 + stopping.n)
    elif stopping.rule != "none":  # both rules of patience train so many minibatches in any case
        least = min(most, -(-stopping.patience // num_minibatches))
    if is_competitive(pruning):
        least = min(least, first_look(pruning))
    return least, most
