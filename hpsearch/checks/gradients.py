"""The gradients of the lanes' own step against central differences of the loss.

The step's gradient is (W before - W after) / rate of one plain SGD step in float64. The loss is computed here once
more, from the network's scores alone, so that a fault of the step or of the loss shows.
Source: docs/sources.md, section 7.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hpsearch.checks.finding import Finding, Verdict
from hpsearch.checks.samples import CheckedModel, distinct_images, lane_step
from hpsearch.study.settings import TrialSettings
from hpsearch.training.networks.network import Network
from hpsearch.training.tensors import Tensors

NUM_IMAGES = 6
NUM_LANES = 2  # a fault between lanes does not show with one
NOISE = 0.1  # standard deviation, added to the initial parameters: a softmax layer that begins at 0 hides everything
STEP = 1e-5  # of a difference: smaller ones lose digits, larger ones meet more kinks
ROUNDING = 1e-15  # relative, of a loss that is a sum of many float64 numbers
RATE = 1e-3
NUM_COORDINATES = 4  # of each parameter tensor, and in addition one random direction
MOST_PLACES = 500
NUM_TRAINED_STEPS = 20
LEAST_LAMBDA = 1e-3  # of both penalties, so that they are checked if the study has none
LARGEST_ERROR = 1e-5
SURELY_WRONG = 1e-2
TINY_ERROR = 1e-9
# Derivatives far below a tensor's largest are compared with a part of it: a difference of two losses cannot show them.
NEGLIGIBLE = 1e-3
SMALLEST_SCALE = 1e-5


@dataclass(kw_only=True)
class _Errors:
    """Relative errors of one stage.

    Args:
        stage: "initial", "regularised" or "trained".
        num_kinks: derivatives that were left out, because the loss has a kink there.
    """

    stage: str
    by_parameter: dict[str, float] = field(default_factory=dict)
    num_compared: int = 0
    num_kinks: int = 0

    @property
    def largest(self) -> float:
        return max(self.by_parameter.values(), default=0.0)

    @property
    def worst(self) -> str:
        return max(self.by_parameter, key=lambda name: self.by_parameter[name], default="")


def check_gradients(model: CheckedModel) -> Finding:
    """Compare derivatives at the initial parameters, without and with regularisation, and after a short training."""
    network = model.network
    index = distinct_images(model.data.train, NUM_IMAGES)
    images = torch.from_numpy(model.data.train.floats(index)).double()
    labels = torch.from_numpy(model.data.train.labels[index])
    generator = torch.Generator().manual_seed(0)
    common = {"optimizer": "sgd", "schedule": "constant", "precision": "float32"}
    lambdas = {name: max(getattr(model.settings.training, name), LEAST_LAMBDA) for name in ("lambda_1", "lambda_2")}
    plain = model.training(**common, lambda_1=0.0, lambda_2=0.0)
    regularised = model.training(**common, **lambdas)
    # L1 takes weights to 0, where it has a kink.
    trained_without_l1 = model.training(**common, lambda_1=0.0, lambda_2=lambdas["lambda_2"])
    parameters = [_near_initial(network, lane, generator) for lane in range(NUM_LANES)]
    try:
        network.logits(parameters[0], images)
    except Exception as error:  # of a user's network
        if not model.is_custom or "dtype" not in str(error):
            raise
        return Finding.skip(
            "gradients", model.name, f"the network needs float32: {type(error).__name__}: {error}"[:200]
        )
    trained = parameters
    stages = []
    for stage, settings in (
        ("initial", plain),
        ("regularised", regularised),
        ("trained", trained_without_l1),
    ):
        model.check_time()
        if stage == "trained":
            for _ in range(NUM_TRAINED_STEPS):
                rate = min(0.05, model.settings.training.learning_rate)
                its = [settings] * NUM_LANES
                trained = lane_step(network, its, trained, images, labels, rate, model.class_weights)
        stages.append(_compare(model, stage, settings, trained, images, labels, generator))
    return _finding(model, stages)


def _near_initial(network: Network, seed: int, generator: torch.Generator) -> dict[str, Tensor]:
    initial = network.initial_parameters(seed=seed, dtype=torch.float64)
    noise = {name: torch.randn(v.shape, generator=generator, dtype=torch.float64) for name, v in initial.items()}
    return {name: value + NOISE * noise[name] for name, value in initial.items()}


def _compare(
    model: CheckedModel,
    stage: str,
    settings: TrialSettings,
    parameters: list[dict[str, Tensor]],
    images: Tensor,
    labels: Tensor,
    generator: torch.Generator,
) -> _Errors:
    network, errors = model.network, _Errors(stage=stage)
    weights = model.class_weights
    after = lane_step(network, [settings] * len(parameters), parameters, images, labels, RATE, weights)
    for before, moved in zip(parameters, after, strict=True):
        values = {name: value.clone() for name, value in before.items()}

        def loss(values: Tensors = values) -> float:
            return _loss(network, values, settings, images, labels, weights)

        for name, value in values.items():
            model.check_time()
            gradient = (before[name] - moved[name]) / RATE
            pairs = _derivatives(value, gradient, loss, generator, errors)
            noise = ROUNDING * abs(loss()) / STEP
            scale = max((abs(number) for pair in pairs for number in pair), default=0.0)
            for analytic, numeric in pairs:
                size = max(abs(analytic), abs(numeric), NEGLIGIBLE * scale, SMALLEST_SCALE)
                difference = abs(analytic - numeric)
                error = math.inf if math.isnan(difference) else max(0.0, difference - noise) / size
                errors.by_parameter[name] = max(errors.by_parameter.get(name, 0.0), error)
                errors.num_compared += 1
    return errors


def _derivatives(
    value: Tensor, gradient: Tensor, loss: Callable[[], float], generator: torch.Generator, errors: _Errors
) -> list[tuple[float, float]]:
    """Analytic and numeric derivatives of the loss in some directions of one parameter, which is restored."""
    pairs = []
    directions = [_unit(value, int(place)) for place in _coordinates(gradient, generator)]
    directions.append(_sparse_direction(value, generator))
    kept = value.clone()
    middle = loss()
    for direction in directions:
        ends = []
        for sign in (1.0, -1.0):
            value.copy_(kept).add_(direction, alpha=sign * STEP)
            ends.append(loss())
        value.copy_(kept)
        numeric = (ends[0] - ends[1]) / (2 * STEP)
        analytic = float((gradient * direction).sum())
        # On both sides of a kink of relu, of max-pooling or of L1 the slopes differ.
        bend = abs(ends[0] - 2 * middle + ends[1]) / STEP
        if bend > 1e-3 * max(abs(numeric), abs(analytic), 1e-3):
            errors.num_kinks += 1
        else:
            pairs.append((analytic, numeric))
    return pairs


def _coordinates(gradient: Tensor, generator: torch.Generator) -> list[int]:
    """Places with the largest derivatives, and as many random ones: a part that gets no gradient has none large."""
    flat = gradient.abs().flatten()
    half = min(NUM_COORDINATES // 2, len(flat))
    largest = torch.topk(flat, half).indices.tolist()
    others = torch.randint(len(flat), (NUM_COORDINATES - half,), generator=generator).tolist()
    return [*dict.fromkeys([*largest, *others])]


def _sparse_direction(value: Tensor, generator: torch.Generator) -> Tensor:
    """A random direction of length 1 in some places: with many, some weight is near a kink of L1."""
    direction = torch.zeros(value.shape, dtype=value.dtype)  # contiguous, whatever the value's strides
    places = torch.randperm(value.numel(), generator=generator)[:MOST_PLACES]
    random = torch.randn(len(places), generator=generator, dtype=value.dtype)
    direction.view(-1)[places] = random / random.norm()
    return direction


def _unit(value: Tensor, place: int) -> Tensor:
    direction = torch.zeros(value.shape, dtype=value.dtype)
    direction.view(-1)[place] = 1.0
    return direction


@torch.no_grad()
def _loss(
    network: Network,
    parameters: Tensors,
    settings: TrialSettings,
    images: Tensor,
    labels: Tensor,
    class_weights: Tensor | None,
) -> float:
    """Mean weighted NLL, with lambda_1 sum |W| + lambda_2 sum W^2 over tensors of two or more dimensions: no biases."""
    scores = network.logits(parameters, images)
    if labels.is_floating_point():
        loss = (scores.squeeze(1) - labels).square().sum() / len(labels)
    else:
        chosen = scores.gather(1, labels.unsqueeze(1)).squeeze(1)
        losses = torch.logsumexp(scores, dim=1) - chosen
        loss = (losses if class_weights is None else class_weights[labels] * losses).sum() / len(labels)
    its = settings.training
    for value in parameters.values():
        if value.dim() >= 2:
            loss = loss + its.lambda_1 * value.abs().sum() + its.lambda_2 * value.square().sum()
    return float(loss)


def _finding(model: CheckedModel, stages: list[_Errors]) -> Finding:
    worst = max(stages, key=lambda stage: stage.largest)
    verdict = Verdict.PASSED
    if worst.largest > LARGEST_ERROR:
        verdict = Verdict.FAILED if worst.largest > SURELY_WRONG else Verdict.WARNING
    num_compared, num_kinks = sum(s.num_compared for s in stages), sum(s.num_kinks for s in stages)
    found = f"largest relative error {worst.largest:.1e} ({worst.worst}, {worst.stage}) of {num_compared} derivatives"
    if worst.largest < TINY_ERROR:
        found = f"relative errors below {TINY_ERROR:.0e} of {num_compared} derivatives"
    if num_kinks:
        found += f"; {num_kinks} at kinks left out"
    look_at: tuple[str, ...] = ()
    if verdict is not Verdict.PASSED:
        look_at = (_likely_cause(stages, worst, is_custom=model.is_custom),)
    if not num_compared:
        return Finding.skip("gradients", model.name, "all derivatives that were looked at lie at kinks")
    numbers = {f"error_{stage.stage}": stage.largest for stage in stages}
    return Finding(
        check="gradients",
        subject=model.name,
        verdict=verdict,
        found=found,
        expected=f"below {LARGEST_ERROR:.0e}",
        look_at=look_at,
        numbers={**numbers, "compared": num_compared, "kinks": num_kinks},
    )


def _likely_cause(stages: list[_Errors], worst: _Errors, *, is_custom: bool) -> str:
    """What is wrong, and what to do about it."""
    report = "report this as a fault of hpsearch"
    initial = stages[0]
    if initial.largest <= LARGEST_ERROR and worst.stage == "regularised":
        return f"the regularisation of {worst.worst}: {report}; lambda_1 = 0 and lambda_2 = 0 avoid it"
    if initial.largest <= LARGEST_ERROR:
        cause, remedy = "what training changes", "let forward depend on the parameters and images alone"
        return f"{cause}: {remedy if is_custom else report}"
    wrong = [name for name, error in initial.by_parameter.items() if error > LARGEST_ERROR]
    if len(wrong) == len(initial.by_parameter):
        cause = "the loss, or what the network does to its scores, as every parameter's gradient is wrong"
        return f"{cause}: {'look at the last layers first' if is_custom else report}"
    cause = (
        f"what the network does with {', '.join(wrong[:3])}, such as a detached value, an operation without a "
        "derivative, or a backward pass of its own"
    )
    return f"{cause}: {'leave these out, one after another' if is_custom else report}"
