"""Cohorts: many trials as lanes of one batched computation that start, end and are refilled independently.

The worker admits trials into a cohort, trains it epoch by epoch, and releases a trial when it decides to end it.
Each lane computes what the training loop of benchmarks/reference_loop.py computes for one trial.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpsearch.data.resident import ResidentData
from hpsearch.epoch_report import EpochReport, Validation
from hpsearch.study.settings import ModelSettings, Precision, TrialSettings
from hpsearch.training.correct_images import ReferenceTest
from hpsearch.training.evaluation import validate_lanes, validation_of
from hpsearch.training.lanes.capture import CapturedValidation, CudaCapture, LaneStep
from hpsearch.training.lanes.checkpoint import (
    CudaToHost,
    PendingCheckpoint,
    TrialCheckpoint,
    TrialProgress,
    copy_to_host,
)
from hpsearch.training.lanes.stack import LaneKind, LaneStack, TrialTensors
from hpsearch.training.lanes.steps import build_step
from hpsearch.training.minibatches import is_validation_due, lane_stretches, minibatch_order
from hpsearch.training.networks.activations import lane_activation
from hpsearch.training.networks.build import build_network
from hpsearch.training.networks.dense import DenseNetwork
from hpsearch.training.networks.network import Network
from hpsearch.training.networks.padding import PADDED_FAMILIES, cohort_model, fit
from hpsearch.training.optimizers import build_optimizer
from hpsearch.training.pulse import Pulse
from hpsearch.training.schedules import LearningRateSchedule, build_schedule


@dataclass(frozen=True, kw_only=True, slots=True)
class CohortShape:
    """The settings that trials must share to train in one cohort.

    Optimizers, rates, lambdas, schedules and seeds may differ, and so may the activation of an MLP. Hidden layers may
    differ in width within a class (`padding`); `model` then has the largest width of the class.
    """

    model: ModelSettings
    batch_size: int
    shuffle: bool
    precision: Precision

    @classmethod
    def of(cls, settings: TrialSettings) -> CohortShape:
        model, its = cohort_model(settings.model), settings.training
        return cls(model=model, batch_size=its.batch_size, shuffle=its.shuffle, precision=its.precision)


@dataclass(kw_only=True, slots=True)
class _Lane:
    """The host-side state of one busy lane. Its tensors are in the stack, at the same index."""

    key: Hashable
    settings: TrialSettings
    schedule: LearningRateSchedule
    network: Network  # the trial's own network; the cohort's may be wider
    num_epochs: int = 0
    best: Validation | None = None

    def go_on_from(self, progress: TrialProgress) -> None:
        self.schedule = build_schedule(self.settings.training, progress.schedule)
        self.num_epochs = progress.num_epochs
        self.best = progress.best


class Cohort:
    """Lanes that share a `CohortShape` and train on the same data.

    A trial's curve depends on its settings and the data, not on its lane or its neighbours: bit for bit where a GEMM
    gives the same bits for every number of lanes and all lanes are of one kind, otherwise up to the order of float32
    sums (tests state the tolerance). Which numbers TF32 and bfloat16 round never depends on another lane. A lane that
    diverges does not affect the others.

    Args:
        validations_every: minibatches between two validations within an epoch; each epoch also ends with one.
        reference_test: compare validations with a reference, image by image; None if the stopping rule does not need
            the comparison.
        dtype: type of parameters and activations; tests use float64.
        pulse: counts progress within an epoch for a watching thread; None: progress is not watched.
    Raises:
        InputError: the batch size does not fit the training set, or the images are too small for the network.
    """

    def __init__(
        self,
        shape: CohortShape,
        data: ResidentData,
        device: torch.device,
        validations_every: int,
        reference_test: ReferenceTest | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        pulse: Pulse | None = None,
    ) -> None:
        if validations_every < 1:
            raise ValueError(f"validations_every must be at least 1, got {validations_every}")
        self.shape = shape
        self._data = data
        self._device = device
        self._dtype = dtype
        self._beat = Pulse(device).beat if pulse is None else pulse.beat
        self._validations_every = validations_every
        self._significance_level = None if reference_test is None else reference_test.level
        self._num_minibatches = data.num_minibatches(shape.batch_size)
        self._due = tuple(m for m in range(1, self._num_minibatches + 1) if self._is_validation_due(m))
        self._networks: dict[ModelSettings, Network] = {}
        self._network = self._network_of(shape.model)
        self._step = self._build_step()
        self._captured_validation = CapturedValidation(capture=CudaCapture(device)) if device.type == "cuda" else None
        self._stack = LaneStack(
            device=device,
            num_images=len(data.validation_labels),
            critical_gains=None if reference_test is None else reference_test.table(device),
        )
        self._lanes: list[_Lane | None] = []  # None: free until a trial is admitted or an epoch begins

    @property
    def keys(self) -> tuple[Hashable, ...]:
        """The keys of the trials in lanes, in the order of the lanes."""
        return tuple(lane.key for lane in self._busy)

    @property
    def _busy(self) -> list[_Lane]:
        return [lane for lane in self._lanes if lane is not None]

    def admit(self, key: Hashable, settings: TrialSettings, checkpoint: TrialCheckpoint | None = None) -> None:
        """Put a trial into a lane, fresh or from a checkpoint. Its next epoch is part of the next `train_epoch`.

        From a checkpoint the trial's curve, parameters and best parameters continue as if it had not been interrupted:
        bit for bit on the same kind of device with the same other lanes, and otherwise up to rounding.

        Raises:
            ArtifactError: the checkpoint does not belong to this trial; the cohort is unchanged.
            ValueError: the trial is already in a lane, or has another shape than this cohort.
        """
        if key in self.keys:
            raise ValueError(f"trial {key!r} is in a lane already")
        if CohortShape.of(settings) != self.shape:
            raise ValueError(f"trial {key!r} has another shape than this cohort: {CohortShape.of(settings)}")
        network = self._network_of(settings.model)
        newcomer = _Lane(key=key, settings=settings, schedule=build_schedule(settings.training), network=network)
        tensors = self._fresh_tensors(newcomer)
        if checkpoint is not None:
            checkpoint.check_is_of(self._progress(newcomer))
            tensors = checkpoint.tensors(like=tensors)
            newcomer.go_on_from(checkpoint.progress)
        self._use_width([*self._busy, newcomer], can_shrink=False)
        width = {"hidden_units": self._network.model.hidden_units}
        self._take_lane(newcomer, tensors.fit(self._network_of(settings.model.model_copy(update=width))))

    def _fresh_tensors(self, lane: _Lane) -> TrialTensors:
        """The tensors of a trial before its first minibatch, in its own widths."""
        seed = lane.settings.training_seed
        parameters = lane.network.initial_parameters(seed=seed, dtype=self._dtype, device=self._device)
        state = build_optimizer(lane.settings.training.optimizer).initial_state(parameters)
        correct = self._stack.fresh_correct()
        return TrialTensors(parameters=parameters, optimizer_state=state, best_parameters=parameters, correct=correct)

    def _take_lane(self, newcomer: _Lane, tensors: TrialTensors) -> None:
        """Put a trial into a free lane of its kind, or into a new one."""
        kind = LaneKind.of(newcomer.settings)
        for lane, busy in enumerate(self._lanes):
            if busy is None and self._stack.kinds[lane] == kind:
                self._stack.replace(lane, tensors.parameters, tensors.optimizer_state)
                self._lanes[lane] = newcomer
                break
        else:
            lane = self._stack.insert(kind, tensors.parameters, tensors.optimizer_state)
            self._lanes.insert(lane, newcomer)
        if (best := newcomer.best) is not None:
            self._stack.set_best(lane, tensors, zero_one=best.zero_one, nll=best.nll)

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

    def best_correct(self, key: Hashable) -> NDArray[np.bool_]:
        """Which validation images the trial's best parameters classify correctly, [N]: a copy.

        Raises:
            KeyError: the trial is in no lane, or has no finite validation yet.
        """
        correct: NDArray[np.bool_] = self._stack.correct["best"][self._index_with_best(key)].cpu().numpy().copy()
        return correct

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
        started = time.perf_counter()
        learning_rates = [lane.schedule.learning_rate for lane in lanes]
        self._stack.set_rates([lane.settings.training for lane in lanes], learning_rates)
        train_nll, validations = self._train_epoch_on_device()
        # The epoch's only host sync: [1 + 2 * validations, L] numbers, or 4 per validation with a reference.
        rows = torch.cat([train_nll.unsqueeze(0), *validations]).cpu().tolist()
        seconds = (time.perf_counter() - started) / len(lanes)
        return {
            lane.key: self._report(lane, column, learning_rate, seconds)
            for lane, column, learning_rate in zip(lanes, zip(*rows, strict=True), learning_rates, strict=True)
        }

    def _close_gaps(self) -> None:
        """Remove the free lanes, so that they cost no time in this epoch."""
        for lane in reversed(range(len(self._lanes))):
            if self._lanes[lane] is None:
                del self._lanes[lane]
                self._stack.remove(lane)

    def _network_of(self, model: ModelSettings) -> Network:
        if model not in self._networks:
            self._networks[model] = build_network(model, self._data.image_shape, self._data.num_classes)
        return self._networks[model]

    def _build_step(self) -> LaneStep:
        shape = self.shape
        return build_step(self._network, self._device, shape.precision, shape.shuffle, self._beat)

    def _use_width(self, lanes: Sequence[_Lane], *, can_shrink: bool = True) -> None:
        """Resize the stack to the width of the widest of these lanes' networks."""
        if self.shape.model.family not in PADDED_FAMILIES or not lanes:
            return
        widest = max((lane.network for lane in lanes), key=lambda network: network.model.hidden_units)
        current = self._network.model.hidden_units if self._stack.num_lanes else 0
        needed = widest.model.hidden_units
        if needed > current or (can_shrink and needed < current):
            self._network = widest
            self._stack.resize(widest)
            self._step = self._build_step()

    def _use_activations(self) -> None:
        """Give the lanes' network the activation of every lane."""
        if isinstance(self._network, DenseNetwork) and self._lanes:
            activation = lane_activation([kind.activation for kind in self._stack.kinds])
            if activation != self._network.activation:
                self._network = replace(self._network, activation=activation)
                self._step = self._build_step()

    def _train_epoch_on_device(self) -> tuple[Tensor, list[Tensor]]:
        """Mean training NLL [L] of the epoch, and the result of `_validate` for each validation."""
        total_nll = torch.zeros(len(self._lanes), dtype=torch.float64, device=self._device)
        validations = []
        for images, labels, minibatch in self._stretches():
            total_nll += self._step.train(self._stack, images, labels, self.shape.batch_size)
            if self._is_validation_due(minibatch):
                validations.append(self._validate())
        return total_nll / self._num_minibatches, validations

    def _validate(self) -> Tensor:
        """Validate every lane and keep each lane's best parameters, without a host sync.

        Returns:
            Zero-one loss and NLL, [2, L] float64; with a reference also the images gained and lost, [4, L].
        """

        def validate() -> Tensor:
            zero_one, nll, correct = validate_lanes(self._network, self._stack.parameters, self._data, self._beat)
            compared = self._stack.keep_best(zero_one, nll, correct)
            return torch.stack([zero_one, nll, *compared])

        return validate() if self._captured_validation is None else self._captured_validation(self._stack, validate)

    def _stretches(self) -> Iterator[tuple[Tensor, Tensor, int]]:
        """The epoch's stretches of minibatches (`lane_stretches`).

        Lanes share each minibatch if the images are not shuffled, or if all lanes have the same seed and epoch.
        """
        orders = None
        if self.shape.shuffle:
            epochs = [(lane.settings.training_seed, lane.num_epochs + 1) for lane in self._busy]
            distinct = {epoch: minibatch_order(*epoch, self._data.num_train) for epoch in epochs}
            orders = list(distinct.values()) if len(distinct) == 1 else [distinct[epoch] for epoch in epochs]
        return lane_stretches(self._data, self.shape.batch_size, dtype=self._dtype, ends=self._due, orders=orders)

    def _is_validation_due(self, minibatch: int) -> bool:
        return is_validation_due(
            minibatch, num_minibatches=self._num_minibatches, validations_every=self._validations_every
        )

    def _report(self, lane: _Lane, numbers: tuple[float, ...], learning_rate: float, seconds: float) -> EpochReport:
        """Update one lane's host-side state after an epoch and report the epoch.

        Args:
            numbers: training NLL, then the numbers of each validation as `_validate` returns them.
        """
        offset = lane.num_epochs * self._num_minibatches
        width = (len(numbers) - 1) // len(self._due)
        rows = [numbers[start : start + width] for start in range(1, len(numbers), width)]
        validations = tuple(
            validation_of(offset + minibatch, *row) for minibatch, row in zip(self._due, rows, strict=True)
        )
        for validation in validations:
            if validation.is_finite and validation.is_better_than(lane.best):
                lane.best = validation
        lane.num_epochs += 1
        lane.schedule.finish_epoch(min(validation.zero_one for validation in validations))
        return EpochReport(
            epoch=lane.num_epochs,
            validations=validations,
            train_nll=numbers[0],
            learning_rate=learning_rate,
            seconds=seconds,
            is_schedule_exhausted=lane.schedule.is_exhausted,
        )

    def _progress(self, lane: _Lane) -> TrialProgress:
        return TrialProgress(
            settings=lane.settings,
            num_train=self._data.num_train,
            validations_every=self._validations_every,
            significance_level=self._significance_level,
            num_epochs=lane.num_epochs,
            schedule=lane.schedule.state,
            best=lane.best,
        )

    def _lane(self, key: Hashable) -> _Lane:
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
