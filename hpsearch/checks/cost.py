"""Time and memory: seconds per trial-epoch as measured, the lanes that fit, and from that what the study costs."""

from __future__ import annotations

import time

from hpsearch.checks.finding import Finding, Verdict
from hpsearch.checks.samples import CPU, NEVER, CheckedModel
from hpsearch.data.resident import ResidentData
from hpsearch.search.pruners import is_competitive
from hpsearch.study.definition import StudyDefinition
from hpsearch.training.device_memory import memory_of
from hpsearch.training.lanes.cohort import Cohort, CohortShape
from hpsearch.training.lanes.device_model import bytes_per_lane, measure_speed
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
    prior = measure_speed(CPU).epoch_cost(model.network, data, batch_size, CPU)
    num_fitting = int(memory_of(CPU).available() // bytes_per_lane(model.network, batch_size))
    num_points = definition.num_points
    if definition.search.strategy == "coarse-to-fine" and definition.search.budget_points is not None:
        num_points = definition.search.budget_points
    if num_fitting < 1:
        return Finding.skip("cost", model.name, "there is no memory for one lane")
    num_lanes = LaneTimes(prior).choose(min(MOST_LANES, num_points, num_fitting))
    per_trial_epoch = _measure(model, data, num_lanes, predicted=num_lanes * prior.seconds(num_lanes))
    least_epochs, most_epochs = _epochs_per_point(definition)
    most = num_points * most_epochs * per_trial_epoch
    least = num_points * least_epochs * per_trial_epoch
    span = format_seconds(most) if least_epochs == most_epochs else f"{format_seconds(least)} to {format_seconds(most)}"
    rounds = ""
    if definition.search.strategy == "coarse-to-fine" and definition.search.budget_points is None:
        rounds = " for the first round"
    found = (
        f"{format_seconds(per_trial_epoch)} per trial and epoch with {counted(num_lanes, 'lane')}; "
        f"{num_points:,} points: {span}{rounds} with one worker on this machine's CPU; memory for {num_fitting:,} lanes"
    )
    return Finding(
        check="cost",
        subject=model.name,
        verdict=Verdict.WARNING if least > LONG_SECONDS else Verdict.PASSED,
        found=found,
        expected="less than a week",
        look_at=("the number of points, max_epochs, and a GPU or more workers",) if least > LONG_SECONDS else (),
        numbers={
            "seconds_per_trial_epoch": per_trial_epoch,
            "lanes": num_lanes,
            "fitting_lanes": num_fitting,
            "least_hours": least / 3600,
            "most_hours": most / 3600,
        },
    )


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


def _epochs_per_point(definition: StudyDefinition) -> tuple[float, float]:
    """The fewest and the most epochs of a point, as far as pruning and stopping are known in advance."""
    most = definition.training.max_epochs
    least = most
    if definition.stopping.rule != "none":
        least = 1
    if is_competitive(definition.pruning):
        least = min(least, max(1, definition.pruning.warmup_epochs, definition.pruning.min_epochs))
    return least, most
