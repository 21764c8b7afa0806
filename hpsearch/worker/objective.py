"""A study as a plain Optuna objective, for users who call `study.optimize` themselves.

The Optuna study has its own sampler, pruner and storage; hpsearch adds only user attributes to its trials. A trial
equals a worker's trial of the same point: same curve, same end, same attributes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

import optuna
import torch

from hpsearch.data.catalog import load_selection_data
from hpsearch.data.files.lookup import DataLocations
from hpsearch.data.resident import ResidentData
from hpsearch.device.devices import VisibleDevices, describe_device, make_current, use_full_float32, wanted_gpus
from hpsearch.epoch_report import EpochReport
from hpsearch.errors import InputError
from hpsearch.metric import Metric
from hpsearch.store.claims.claim import Claim, Outcome, Result
from hpsearch.study.definition import StudyDefinition
from hpsearch.study.own_networks import require_own_networks
from hpsearch.training.lanes.cohort import Cohort
from hpsearch.worker.cohorts import Cohorts
from hpsearch.worker.lanes.trial import TrialInTraining
from hpsearch.worker.name import worker_name
from hpsearch.worker.preparation import check_points


class Objective:
    """Trains one trial per call, in a single lane, and returns its best value of the study's metric.

    The data is read once, when the objective is created; any number of threads may call it (`n_jobs`). On a GPU they
    take turns, epoch by epoch. `search.strategy`, the number of points and `pruning` of the definition have no effect:
    the Optuna study decides about them.

    Args:
        device: `auto`, `cpu`, `cuda` or `cuda:N`. The GPU is not reserved: workers may use it at the same time.
    Raises:
        InputError: a point cannot be trained on this data, there is no such device, or trials are programs.
        DataError: the data is missing or damaged.
        DeviceError: the requested GPU does not exist.
    """

    def __init__(self, definition: StudyDefinition, *, device: str = "auto") -> None:
        require_own_networks(
            definition, "there is no objective to train", "hpsearch.run starts the programs and judges their reports"
        )
        self._asked = device
        gpus = wanted_gpus(device, VisibleDevices.detect())
        self.definition = definition
        self.device = gpus[0].device if gpus else torch.device("cpu")
        self._selection = load_selection_data(definition.data, locations=DataLocations.from_environment())
        check_points(definition, self._selection)
        use_full_float32()
        self._origin = {"worker": worker_name(), "device": describe_device(self.device)}
        self._of_thread = threading.local()
        self._turn = threading.Lock()  # on a GPU, one thread at a time captures and replays graphs

    def __reduce__(self) -> tuple[Callable[..., Objective], tuple[StudyDefinition]]:
        """For joblib and multiprocessing: the process that receives the objective reads the data itself."""
        return partial(Objective, device=self._asked), (self.definition,)

    def __call__(self, trial: optuna.Trial) -> float:
        """Train one trial and report every epoch, as steps 1, 2, ...

        Raises:
            optuna.TrialPruned: the study's pruner gives it up, or it diverged: Optuna receives only finite values, and
                a diverged trial has no valid best value (docs/decisions/0003).
        """
        self._check_direction(trial)
        parameters = self.definition.draw(trial)
        settings = self.definition.resolve(parameters)
        build_cohort, metric = partial(Cohort, is_diagnosed=True), self.definition.judged_by
        cohorts = Cohorts(self.definition.stopping, self._data(), self.device, build_cohort, metric)
        # FixedTrial has no id but its number, and nothing is stored here.
        number = trial.number
        claim = Claim(trial_id=number, number=number, point=number, attempt=1, parameters=parameters)
        rule, num_classes = cohorts.stopping_rule(settings), cohorts.num_classes
        lane = TrialInTraining(claim=claim, settings=settings, rule=rule, num_classes=num_classes, metric=metric)
        cohort = cohorts.open(settings)
        cohort.admit(number, settings)
        while True:
            report = self._train_epoch(cohort, number)
            decision = lane.take_in(report, num_lanes=1)
            if not report.has_diverged:
                trial.report(metric.value_of(report.best.loss), report.epoch)
            if decision is None and trial.should_prune():
                decision = lane.pruned_by(type(trial.study.pruner).__name__)
            if decision is not None:
                if lane.is_undiagnosed:
                    for diagnosis in cohort.diagnose([number]).values():
                        lane.note_diagnosis(diagnosis)
                return _end(trial, lane.result(decision, self._origin), metric)

    def _check_direction(self, trial: optuna.Trial) -> None:
        """Raise InputError if the Optuna study would look for the worst values."""
        study, metric = getattr(trial, "study", None), self.definition.judged_by  # a FixedTrial has no study
        if study is not None and study.direction.name.lower() != metric.direction:
            raise InputError(
                f"metric {metric.name} is to be {metric.direction}d, but the Optuna study {study.study_name!r} has "
                f"direction {study.direction.name.lower()}",
                hint=f'optuna.create_study(direction="{metric.direction}")',
            )

    def _data(self) -> ResidentData:
        """Return this thread's data, because its buffers serve one epoch at a time.

        On the CPU all threads share the memory of the images.
        """
        if not hasattr(self._of_thread, "data"):
            make_current(self.device)
            bound = self.definition.data.max_resident_bytes
            self._of_thread.data = ResidentData.place(self._selection, self.device, max_resident_bytes=bound)
        data: ResidentData = self._of_thread.data
        return data

    def _train_epoch(self, cohort: Cohort, key: int) -> EpochReport:
        if self.device.type == "cpu":
            return cohort.train_epoch()[key]
        with self._turn:
            return cohort.train_epoch()[key]


def _end(trial: optuna.Trial, result: Result, metric: Metric) -> float:
    for name, value in result.attributes.items():
        trial.set_user_attr(name, value)
    if result.outcome is Outcome.PRUNED or result.loss is None:
        raise optuna.TrialPruned(str(result.attributes["stop_detail"]))
    return metric.value_of(result.loss)
