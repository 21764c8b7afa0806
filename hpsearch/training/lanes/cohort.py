"""Cohorts: many trials as lanes of one batched computation that start, end and are refilled independently.

The worker admits trials into a cohort, trains it epoch by epoch, and releases a trial when it decides to end it.
Each lane computes what the training loop of benchmarks/reference_loop.py computes for one trial.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpsearch.data.resident import ResidentData
from hpsearch.epoch_report import Diagnosis, EpochReport, Validation
from hpsearch.study.settings import ModelSettings, TrialSettings
from hpsearch.training.class_weights import class_weights_of
from hpsearch.training.correct_images import ReferenceTest
from hpsearch.training.evaluation import validate_lanes
from hpsearch.training.filter_series import FilterCopy
from hpsearch.training.judge import JudgeOf, ZeroOne
from hpsearch.training.lanes.busy_lane import BusyLane, EpochPlan, minibatch_orders
from hpsearch.training.lanes.capture import LaneStep, captured_validation, drop_graphs, num_cold_runs
from hpsearch.training.lanes.checkpoint import (
    CudaToHost,
    PendingCheckpoint,
    TrialCheckpoint,
    TrialProgress,
    copy_to_host,
)
from hpsearch.training.lanes.cohort_shape import CohortShape
from hpsearch.training.lanes.lane_diagnosis import LaneDiagnoser, diagnosis_of
from hpsearch.training.lanes.stack import LaneKind, LaneStack, TrialTensors
from hpsearch.training.lanes.steps import build_step
from hpsearch.training.minibatches import lane_stretches
from hpsearch.training.networks.activations import lane_activation
from hpsearch.training.networks.build import build_network
from hpsearch.training.networks.dense import DenseNetwork
from hpsearch.training.networks.first_layer import copy_filters
from hpsearch.training.networks.network import Network
from hpsearch.training.networks.padding import PADDED_FAMILIES, fit
from hpsearch.training.optimizers import build_optimizer
from hpsearch.training.pulse import Pulse
from hpsearch.training.schedules import build_schedule


class Cohort:
    """Lanes that share a `CohortShape` and train on the same data.

    A trial's curve depends on its settings and the data, not on its lane or its neighbours: bit for bit where a GEMM
    gives the same bits for every number of lanes, all lanes are of one kind and a lane's units fill whole vectors;
    otherwise up to the order of float32 sums and the last bit of a tanh (tests state the tolerance). Which numbers
    TF32 and bfloat16 round never depends on another lane. A lane that diverges does not affect the others.

    Args:
        validations_every: minibatches between two validations within an epoch; each epoch also ends with one.
        reference_test: compare validations with a reference, image by image; None if the stopping rule does not need
            the comparison.
        judge: makes the judge of the validation labels; None: zero-one.
        is_diagnosed: measure the state of each lane's network after those epochs in which that is due.
        dtype: type of parameters and activations; tests use float64.
        pulse: counts progress within an epoch for a watching thread; None: progress is not watched.
    Raises:
        InputError: the batch size or the class weights do not fit the training set, or the images are too small for
            the network.
    """

    is_warm = True  # the last epoch captured no graph, nor warmed up for one: the next one takes as long

    def __init__(
        self,
        shape: CohortShape,
        data: ResidentData,
        device: torch.device,
        validations_every: int,
        reference_test: ReferenceTest | None = None,
        *,
        judge: JudgeOf | None = None,
        is_diagnosed: bool = False,
        dtype: torch.dtype = torch.float32,
        pulse: Pulse | None = None,
    ) -> None:
        self.shape = shape
        self._data = data
        self._device = device
        self._dtype = dtype
        self._beat = (lambda: None) if pulse is None else pulse.beat  # marks that nobody counts would stay
        self._validations_every = validations_every
        self._significance_level = None if reference_test is None else reference_test.level
        num_minibatches = data.num_minibatches(shape.batch_size)
        self._plan = EpochPlan.of(num_minibatches, validations_every, is_compared=reference_test is not None)
        labels = data.validation_labels
        self._judge = ZeroOne(labels=labels, num_classes=data.num_classes) if judge is None else judge(labels)
        weights = class_weights_of(shape.class_weights, data.class_counts)
        self._class_weights = None if weights is None else weights.to(device)
        self._diagnoser = LaneDiagnoser.of(data, shape.batch_size, dtype, self._class_weights) if is_diagnosed else None
        self._networks: dict[ModelSettings, Network] = {}
        self._network = self._network_of(shape.model)
        self._step = self._build_step()
        self._captured_validation = captured_validation(device)
        self._stack = LaneStack(
            device=device,
            num_recorded=self._judge.num_recorded,
            record_type=self._judge.record_type,
            critical_gains=None if reference_test is None else reference_test.table(device),
        )
        self._lanes: list[BusyLane | None] = []  # None: free until a trial is admitted or an epoch begins

    @property
    def keys(self) -> tuple[Hashable, ...]:
        """The keys of the trials in lanes, in the order of the lanes."""
        return tuple(lane.key for lane in self._busy)

    @property
    def _busy(self) -> list[BusyLane]:
        return [lane for lane in self._lanes if lane is not None]

    def admit(self, key: Hashable, settings: TrialSettings, checkpoint: TrialCheckpoint | None = None) -> None:
        """Put a trial into a lane, fresh or from a checkpoint. Its next epoch is part of the next `train_epoch`.

        When memory runs out, the trials that are in lanes train on as if nothing had happened.

        From a checkpoint the trial's curve, parameters and best parameters continue as if it had not been interrupted:
        bit for bit on the same kind of device with the same other lanes, and otherwise up to rounding.

        Raises:
            ArtifactError: the checkpoint does not belong to this trial; the cohort is unchanged.
            ValueError: the trial is already in a lane, or has another shape than this cohort.
            RuntimeError: by torch, when memory runs out (`device_memory.is_out_of_memory`).
        """
        self._take_lanes([self._prepare(key, settings, checkpoint)])

    def admit_all(self, trials: Mapping[Hashable, TrialSettings]) -> None:
        """Put fresh trials into lanes, as `admit` does, by key. The lanes are copied once, however many they are.

        Raises:
            ValueError: as `admit`; the cohort is unchanged.
            RuntimeError: as `admit`; trials that found lanes which were free already may be in them (`keys`).
        """
        if trials:
            self._take_lanes([self._prepare(key, settings) for key, settings in trials.items()])

    def _prepare(
        self, key: Hashable, settings: TrialSettings, checkpoint: TrialCheckpoint | None = None
    ) -> tuple[BusyLane, TrialTensors]:
        """Return a trial as it enters its lane, and its tensors in its own widths."""
        if key in self.keys:
            raise ValueError(f"trial {key!r} is in a lane already")
        if CohortShape.of(settings) != self.shape:
            raise ValueError(f"trial {key!r} has another shape than this cohort: {CohortShape.of(settings)}")
        network = self._network_of(settings.model)
        newcomer = BusyLane(key=key, settings=settings, schedule=build_schedule(settings.training), network=network)
        tensors = self._fresh_tensors(newcomer)
        if checkpoint is not None:
            checkpoint.check_is_of(self._progress(newcomer))
            tensors = checkpoint.tensors(like=tensors)
            newcomer.go_on_from(checkpoint.progress)
        return newcomer, tensors

    def _fresh_tensors(self, lane: BusyLane) -> TrialTensors:
        """The tensors of a trial before its first minibatch, in its own widths."""
        seed = lane.settings.training_seed
        parameters = lane.network.initial_parameters(seed=seed, dtype=self._dtype, device=self._device)
        state = build_optimizer(lane.settings.training.optimizer).initial_state(parameters)
        return TrialTensors.fresh(parameters, state, self._stack.fresh_records())

    def _take_lanes(self, trials: Sequence[tuple[BusyLane, TrialTensors]]) -> None:
        """Put trials into free lanes of their kinds, or into new ones."""
        self._use_width([*self._busy, *(newcomer for newcomer, _ in trials)], can_shrink=False)
        width = {"hidden_units": self._network.model.hidden_units}
        models = [newcomer.settings.model.model_copy(update=width) for newcomer, _ in trials]
        fitted = [(it, its.fit(self._network_of(model))) for (it, its), model in zip(trials, models, strict=True)]
        new: list[tuple[BusyLane, TrialTensors]] = []  # those for which no lane of their kind is free
        for newcomer, tensors in fitted:
            kind, lanes = LaneKind.of(newcomer.settings), zip(self._lanes, self._stack.kinds, strict=True)
            lane = next((i for i, (busy, its) in enumerate(lanes) if busy is None and its == kind), None)
            if lane is None:
                new.append((newcomer, tensors))
            else:
                self._stack.replace(lane, tensors.parameters, tensors.optimizer_state)
                self._lanes[lane] = newcomer
        if new:
            drop_graphs(self._step, self._captured_validation)
        inserted = self._stack.insert([(LaneKind.of(it.settings), tensors) for it, tensors in new])
        for lane, newcomer in sorted(zip(inserted, (it for it, _ in new), strict=True), key=itemgetter(0)):
            self._lanes.insert(lane, newcomer)
        for newcomer, tensors in fitted:
            if (best := newcomer.best) is not None:
                self._stack.set_best(self._index(newcomer.key), tensors, loss=best.loss, nll=best.nll)

    def release(self, key: Hashable) -> None:
        """Remove a trial. The next admitted trial can take its lane; a lane still free when an epoch starts is removed.

        Raises:
            KeyError: the trial is in no lane.
        """
        self._lanes[self._index(key)] = None

    def best(self, key: Hashable) -> Validation | None:
        """The trial's best validation so far; None before the first finite one.

        Raises:
            KeyError: the trial is in no lane.
        """
        return self._lane(key).best

    def best_parameters(self, key: Hashable) -> dict[str, np.ndarray]:
        """A deep copy of the trial's parameters at its best validation so far.

        Raises:
            KeyError: the trial is in no lane, or has no finite validation yet.
        """
        lane = self._index_with_best(key)
        stacked = {name: value[lane] for name, value in self._stack.best_parameters.items()}
        return {name: value.cpu().numpy().copy() for name, value in fit(stacked, self._lane(key).network).items()}

    def best_record(self, key: Hashable) -> NDArray[np.bool_] | NDArray[np.float32]:
        """What the judge keeps of the validation examples at the trial's best validation, [N]: a copy.

        Raises:
            KeyError: the trial is in no lane, or has no finite validation yet.
        """
        record: NDArray[Any] = self._stack.records["best"][self._index_with_best(key)].cpu().numpy().copy()
        return record

    def first_filters(self, keys: Iterable[Hashable]) -> dict[Hashable, FilterCopy]:
        """Copies of the first-layer filters of these trials as of now, as far as `copy_filters` has any."""
        lanes = {self._index(key): self._lane(key) for key in keys}
        copies = copy_filters(self._stack.parameters, ((index, lane.network) for index, lane in lanes.items()))
        return {lanes[index].key: copy for index, copy in copies.items()}

    def checkpoint(self, keys: Iterable[Hashable]) -> PendingCheckpoint:
        """Copy the state of these trials between two epochs, on the device, without a host sync.

        Training can continue while another thread fetches the copy, and its results are the same bit for bit. Until
        it is released the copy takes as much device memory as its lanes: 2 times their parameters with SGD (parameters
        and best parameters), 3 times with momentum, 4 times with Adam, in the widths of the cohort.

        Raises:
            KeyError: a trial is in no lane.
            RuntimeError: by torch, when memory runs out (`device_memory.is_out_of_memory`); training can continue.
        """
        lanes = {key: self._index(key) for key in keys}
        copies = self._stack.copied(list(lanes.values()))
        trials = {
            key: (self._progress(self._lane(key)), self._lane(key).network, copy)
            for key, copy in zip(lanes, copies, strict=True)
        }
        # Created after the copies: it waits for the work that is queued when it is created.
        to_host = CudaToHost(self._device) if self._device.type == "cuda" else copy_to_host
        return PendingCheckpoint(trials=trials, to_host=to_host)

    def train_epoch(self) -> dict[Hashable, EpochReport]:
        """Train every lane for one epoch. Lanes may be at different epochs of their trials.

        Returns:
            One report per trial, by key. The report of a diverged trial says so; the trial keeps its lane, without
            affecting others, until it is released.
        """
        self._close_gaps()
        lanes = self._busy
        if not lanes:
            return {}
        self._use_width(lanes)
        self._use_activations()
        started, num_cold = time.perf_counter(), num_cold_runs(self._step, self._captured_validation)
        learning_rates = [lane.schedule.learning_rate for lane in lanes]
        self._stack.set_rates([lane.settings.training for lane in lanes], learning_rates)
        train_nll, validations = self._train_epoch_on_device()
        # The epoch's only host sync: [1 + 2 * validations, L] numbers, or 4 per validation with a reference; and those
        # of the diagnosis, if one is due.
        rows = torch.cat([train_nll.unsqueeze(0), *validations, *self._diagnose_due(lanes)]).cpu().tolist()
        seconds = (time.perf_counter() - started) / len(lanes)
        self.is_warm = num_cold_runs(self._step, self._captured_validation) == num_cold
        return {
            lane.key: lane.finish_epoch(self._plan, column, learning_rate, seconds)
            for lane, column, learning_rate in zip(lanes, zip(*rows, strict=True), learning_rates, strict=True)
        }

    def diagnose(self, keys: Iterable[Hashable]) -> dict[Hashable, Diagnosis]:
        """Look at the state of these trials' networks after the last epoch. One host sync; none without keys.

        Returns:
            By key; without the trials of which no number is finite, and empty if the cohort is not diagnosed.
        """
        asked = set(keys)
        if self._diagnoser is None or not asked:
            return {}
        networks = [None if lane is None or lane.key not in asked else lane.network for lane in self._lanes]
        columns = self._diagnoser.measure(self._stack, networks).t().cpu().tolist()
        busy = [(lane, column) for lane, column in zip(self._lanes, columns, strict=True) if lane is not None]
        found = {lane.key: diagnosis_of(lane.network, column) for lane, column in busy if lane.key in asked}
        return {key: diagnosis for key, diagnosis in found.items() if diagnosis is not None}

    def _diagnose_due(self, lanes: Sequence[BusyLane]) -> list[Tensor]:
        if self._diagnoser is None:
            return []
        due = [self._diagnoser.is_due(lane.num_epochs + 1, lane.settings) for lane in lanes]
        networks = [lane.network if is_due else None for lane, is_due in zip(lanes, due, strict=True)]
        return [self._diagnoser.measure(self._stack, networks)]

    def _close_gaps(self) -> None:
        """Remove the free lanes, so that they cost no time in this epoch."""
        if free := [lane for lane, busy in enumerate(self._lanes) if busy is None]:
            drop_graphs(self._step, self._captured_validation)
            self._stack.remove(free)
            self._lanes = list(self._busy)

    def _network_of(self, model: ModelSettings) -> Network:
        if model not in self._networks:
            self._networks[model] = build_network(model, self._data.example_shape, self._data.num_outputs)
        return self._networks[model]

    def _build_step(self) -> LaneStep:
        shape = self.shape
        return build_step(self._network, self._device, shape.precision, shape.shuffle, self._beat, self._class_weights)

    def _use_width(self, lanes: Sequence[BusyLane], *, can_shrink: bool = True) -> None:
        """Resize the stack to the width of the widest of these lanes' networks."""
        if self.shape.model.family not in PADDED_FAMILIES or not lanes:
            return
        widest = max((lane.network for lane in lanes), key=lambda network: network.model.hidden_units)
        current = self._network.model.hidden_units if self._stack.num_lanes else 0
        needed = widest.model.hidden_units
        if needed > current or (can_shrink and needed < current):
            drop_graphs(self._step, self._captured_validation)
            self._stack.resize(widest, grows=needed > current)
            self._network = widest
            self._step = self._build_step()

    def _use_activations(self) -> None:
        """Give the lanes' network the activation of every lane."""
        if isinstance(self._network, DenseNetwork) and self._lanes:
            activation = lane_activation([kind.activation for kind in self._stack.kinds])
            if activation != self._network.activation:
                self._network = replace(self._network, activation=activation)
                self._step = self._build_step()

    def _train_epoch_on_device(self) -> tuple[Tensor, list[Tensor]]:
        """Mean training loss [L] of the epoch, and the result of `_validate` for each validation."""
        total_nll = torch.zeros(len(self._lanes), dtype=torch.float64, device=self._device)
        validations = []
        for images, labels, minibatch in self._stretches():
            total_nll += self._step.train(self._stack, images, labels, self.shape.batch_size)
            if minibatch in self._plan.due:
                validations.append(self._validate())
        return total_nll / self._plan.num_minibatches, validations

    def _validate(self) -> Tensor:
        """Validate every lane and keep each lane's best parameters, without a host sync.

        Returns:
            The loss and the NLL, [2, L] float64; with a reference also the images gained and lost, [4, L].
        """

        def validate() -> Tensor:
            parameters, judge = self._stack.parameters, self._judge
            loss, nll, record = validate_lanes(self._network, parameters, self._data, judge, self._beat)
            compared = self._stack.keep_best(loss, nll, record)
            return torch.stack([loss, nll, *compared])

        return validate() if self._captured_validation is None else self._captured_validation(self._stack, validate)

    def _stretches(self) -> Iterator[tuple[Tensor, Tensor, int]]:
        """The epoch's stretches of minibatches (`lane_stretches`).

        Lanes share each minibatch if the images are not shuffled, or if all lanes have the same seed and epoch.
        """
        orders = minibatch_orders(self._busy, self._data.num_train) if self.shape.shuffle else None
        return lane_stretches(self._data, self.shape.batch_size, dtype=self._dtype, ends=self._plan.due, orders=orders)

    def _progress(self, lane: BusyLane) -> TrialProgress:
        return lane.progress(
            num_train=self._data.num_train,
            metric=self._judge.metric,
            validations_every=self._validations_every,
            significance_level=self._significance_level,
        )

    def _lane(self, key: Hashable) -> BusyLane:
        lane = self._lanes[self._index(key)]
        assert lane is not None
        return lane

    def _index_with_best(self, key: Hashable) -> int:
        if self._lane(key).best is None:
            raise KeyError(f"trial {key!r} has no finite validation yet")
        return self._index(key)

    def _index(self, key: Hashable) -> int:
        for lane, busy in enumerate(self._lanes):
            if busy is not None and busy.key == key:
                return lane
        raise KeyError(f"trial {key!r} is in no lane")
