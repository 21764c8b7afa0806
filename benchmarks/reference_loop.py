"""The readable training loop of one trial: minibatch steps, validation, best parameters, stopping.

Tests and gpu.py compare `hpsearch.training.lanes` with this loop: lanes must give the same curves, only faster. It is
not in the package, which trains in lanes only; it takes networks, optimizers' numbers and schedules from there.
Source: docs/sources.md, sections 3 to 5.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpsearch.data.resident import ResidentData, as_inputs
from hpsearch.epoch_report import EpochReport, Validation
from hpsearch.study.settings import TrainingSettings, TrialSettings
from hpsearch.training.class_weights import class_weights_of
from hpsearch.training.correct_images import ReferenceTest, gained_and_lost
from hpsearch.training.evaluation import evaluate
from hpsearch.training.losses import lanes_first, mean_loss
from hpsearch.training.minibatches import is_validation_due, minibatch_order
from hpsearch.training.networks.build import build_network
from hpsearch.training.networks.network import Network
from hpsearch.training.optimizers import Optimizer, Rates, build_optimizer
from hpsearch.training.precision import computing, multiplying
from hpsearch.training.schedules import build_schedule
from hpsearch.training.tensors import Tensors


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """A finished trial.

    Args:
        reports: one per epoch; only the last can have diverged.
        best: the best validation of the whole trial; None if no validation was finite.
        best_parameters: the parameters at the best validation, by name; empty if there is none.
        best_correct: which validation images were classified correctly then, [N]; [0] if there is no best.
    """

    reports: tuple[EpochReport, ...]
    best: Validation | None
    best_parameters: dict[str, np.ndarray]
    best_correct: NDArray[np.bool_]


@dataclass(kw_only=True)
class _Trial:
    """The state of a trial in training."""

    network: Network
    optimizer: Optimizer
    parameters: dict[str, Tensor]
    state: dict[str, Tensor]
    iteration: int = 0
    best: Validation | None = None
    best_parameters: dict[str, np.ndarray] = field(default_factory=dict)
    best_correct: Tensor | None = None
    reference_test: ReferenceTest | None = None
    reference: Tensor | None = None  # which images are correct; None before the first finite validation

    def validate(self, data: ResidentData) -> Validation:
        """Validate, and keep a deep copy of the parameters if they are the best so far.

        A validation that is not finite is never the best.
        """
        validation, correct = validate(self.network, self.parameters, data, iteration=self.iteration)
        if self.reference_test is not None:
            validation = self._compared(validation, correct, self.reference_test)
        if validation.is_finite and validation.is_better_than(self.best):
            self.best = validation
            self.best_parameters = {name: value.cpu().numpy().copy() for name, value in self.parameters.items()}
            self.best_correct = correct
        return validation

    def _compared(self, validation: Validation, correct: Tensor, test: ReferenceTest) -> Validation:
        """Count images gained and lost. A new best that is significantly better becomes the reference."""
        reference = torch.zeros_like(correct) if self.reference is None else self.reference
        gained, lost = (int(count) for count in gained_and_lost(correct, reference))
        is_new_best = validation.is_finite and (self.best is None or validation.loss < self.best.loss)
        if is_new_best and (self.best is None or gained >= test.critical_gains[gained + lost]):
            self.reference = correct
        return replace(validation, gained=gained, lost=lost)


def train_trial(
    settings: TrialSettings,
    data: ResidentData,
    *,
    device: torch.device,
    validations_every: int,
    should_stop: Callable[[EpochReport], bool],
    reference_test: ReferenceTest | None = None,
    dtype: torch.dtype = torch.float32,
) -> TrialResult:
    """Train one trial until `should_stop` says so, its epochs or its schedule are exhausted, or it diverges.

    Args:
        validations_every: minibatches between two validations within an epoch; each epoch also ends with one.
        should_stop: called after every epoch; True ends the trial.
        reference_test: compare validations with a reference, image by image; None: no comparison.
        dtype: type of parameters and activations.
    Raises:
        InputError: the batch size does not fit the training set, or the images are too small for the network.
    """
    training = settings.training
    data.num_minibatches(training.batch_size)  # refuses a batch size that does not fit, before any work
    network = build_network(settings.model, data.example_shape, data.num_outputs)
    optimizer = build_optimizer(training.optimizer)
    schedule = build_schedule(training)
    parameters = network.initial_parameters(seed=settings.training_seed, dtype=dtype, device=device)
    trial = _Trial(
        network=network,
        optimizer=optimizer,
        parameters=parameters,
        state=optimizer.initial_state(parameters),
        reference_test=reference_test,
    )
    reports = []
    for epoch in range(1, training.max_epochs + 1):
        started = time.perf_counter()
        learning_rate = schedule.learning_rate
        rates = rates_of(training, learning_rate, device)
        train_nll, validations = _train_epoch(trial, settings, data, epoch, rates, validations_every)
        schedule.finish_epoch(min(validation.loss for validation in validations))
        report = EpochReport(
            epoch=epoch,
            validations=tuple(validations),
            train_nll=train_nll,
            learning_rate=learning_rate,
            seconds=time.perf_counter() - started,
            is_schedule_exhausted=schedule.is_exhausted,
        )
        reports.append(report)
        if report.has_diverged or report.is_schedule_exhausted or should_stop(report):
            break
    correct = torch.zeros(0, dtype=torch.bool) if trial.best_correct is None else trial.best_correct
    return TrialResult(
        reports=tuple(reports),
        best=trial.best,
        best_parameters=trial.best_parameters,
        best_correct=correct.cpu().numpy(),
    )


def _train_epoch(
    trial: _Trial, settings: TrialSettings, data: ResidentData, epoch: int, rates: Rates, validations_every: int
) -> tuple[float, list[Validation]]:
    """Train one epoch; returns the mean training NLL and the validations of the epoch."""
    training, network, parameters = settings.training, trial.network, trial.parameters
    num_minibatches = data.num_minibatches(training.batch_size)
    dtype = parameters[network.weight_names[0]].dtype
    order = minibatch_order(settings.training_seed, epoch, data.num_train) if training.shuffle else None

    class_weights = class_weights_of(training.class_weights, data.class_counts)
    if class_weights is not None:
        class_weights = class_weights.to(parameters[network.weight_names[0]].device)
    total_nll, validations = 0.0, []
    batches = minibatches(data, training.batch_size, dtype=dtype, order=order)
    for minibatch, (images, labels) in enumerate(batches, start=1):
        # Forward: the loss of this minibatch with the current parameters.
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        with multiplying(training.precision, images.device), computing(training.precision, images.device):
            logits = network.logits(parameters, images).to(dtype)
        nll = mean_loss(logits, labels)
        minimised = nll if class_weights is None else mean_loss(logits, labels, class_weights)
        weights = [parameters[name] for name in network.weight_names]
        loss = regularised_loss(minimised, weights, lambda_1=training.lambda_1, lambda_2=training.lambda_2)

        # Backward: the gradient of the loss, and one optimizer step.
        with multiplying(training.precision, images.device):
            gradients = torch.autograd.grad(loss, list(parameters.values()))
        for parameter in parameters.values():
            parameter.requires_grad_(False)
        update_(trial.optimizer, parameters, dict(zip(parameters, gradients, strict=True)), trial.state, rates)

        trial.iteration += 1
        total_nll += nll.item()
        if is_validation_due(minibatch, num_minibatches=num_minibatches, validations_every=validations_every):
            validations.append(trial.validate(data))
    return total_nll / num_minibatches, validations


def minibatches(
    data: ResidentData, batch_size: int, *, dtype: torch.dtype, order: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """An epoch's minibatches: images [B, pixels] and labels [B], each valid until the next one is requested.

    Args:
        order: [num_train] int64 on the host (`minibatch_order`); None is the file's order.
    Source: docs/sources.md, section 1 (a minibatch is the slice x[i*B:(i+1)*B]).
    """
    for images, labels in data.chunks(batch_size, order):
        for start in range(0, len(labels), batch_size):
            rows = slice(start, start + batch_size)
            yield as_inputs(images[rows], dtype), labels[rows]


def validate(network: Network, parameters: Tensors, data: ResidentData, *, iteration: int) -> tuple[Validation, Tensor]:
    """Losses of one trial on the whole validation set; and which images are right, bool [N], on the device.

    Args:
        iteration: minibatches that the trial has trained on so far.
    """
    losses = evaluate(network, parameters, data.validation_images, data.validation_labels)
    return Validation(iteration=iteration, loss=losses.loss, nll=losses.nll), losses.record


def l1_norm(weights: Iterable[Tensor]) -> Tensor:
    """sum |w| over all weights of one trial."""
    return torch.stack([weight.abs().sum() for weight in weights]).sum()


def squared_l2_norm(weights: Iterable[Tensor]) -> Tensor:
    """sum w^2 over all weights of one trial."""
    return torch.stack([weight.square().sum() for weight in weights]).sum()


def regularised_loss(nll: Tensor, weights: Sequence[Tensor], *, lambda_1: float, lambda_2: float) -> Tensor:
    """nll + lambda_1 * sum |w| + lambda_2 * sum w^2: the loss that one trial's training minimises.

    A term whose lambda is 0 is not computed. The gradient of the L2 term is 2 * lambda_2 * w, so lambda_2 corresponds
    to half the "weight decay" coefficient of other programs.
    Source: docs/sources.md, section 3.
    """
    loss = nll
    if lambda_1 > 0:
        loss = loss + lambda_1 * l1_norm(weights)
    if lambda_2 > 0:
        loss = loss + lambda_2 * squared_l2_norm(weights)
    return loss


def rates_of(training: TrainingSettings, learning_rate: float, device: torch.device) -> Rates:
    """The rates of one trial, 0-d."""
    names = ("momentum", "beta_1", "beta_2", "epsilon")
    numbers = {"learning_rate": learning_rate, **{name: getattr(training, name) for name in names}}
    return Rates(**{name: torch.tensor(value, dtype=torch.float64, device=device) for name, value in numbers.items()})


@torch.no_grad()
def update_(optimizer: Optimizer, parameters: Tensors, gradients: Tensors, state: Tensors, rates: Rates) -> None:
    """Make one step with given gradients. Modifies `parameters` and `state`."""
    targets = optimizer.targets_(parameters, state, rates)
    scale = optimizer.gradient_scale(rates)
    for name, target in targets.items():
        target.addcmul_(gradients[name], lanes_first(scale, target))
    optimizer.finish_(parameters, state, rates, targets)
