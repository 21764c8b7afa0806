"""hpsearch's stopping rules as Optuna pruners, for any objective. They use a trial's own history only.

A pruner has no state: it replays the rule over `trial.intermediate_values`, so that it makes the same decision in any
process and after any restart. Steps are the resource spent, counted from 1 (epochs, minibatches); values are losses,
lower is better.

    study = optuna.create_study(pruner=GeometricPatiencePruner(patience=20))
    ...
    trial.report(error, step=epoch)
    if trial.should_prune():
        return best_error  # COMPLETE with its best value; or raise optuna.TrialPruned(), as with any other pruner
"""

from __future__ import annotations

import base64
import math
from abc import abstractmethod
from collections.abc import Iterable
from typing import Final, final

import numpy as np
from numpy.typing import ArrayLike
from optuna.pruners import BasePruner
from optuna.study import Study, StudyDirection
from optuna.trial import BaseTrial, FrozenTrial

from hpsearch.epoch_report import EpochReport, Validation
from hpsearch.errors import InputError
from hpsearch.search.significance import discordant, is_significant_gain
from hpsearch.search.stopping import GeometricPatience, NoImprovementInN, SignificancePatience, StoppingRule

CORRECT_PREFIX: Final = "correct:"  # prefix of the user attributes with packed bits; the step follows
_NUM_IMAGES: Final = "correct_images"


class _ReplayedRule(BasePruner):
    """A pruner that replays a stopping rule over all reports of a trial."""

    @abstractmethod
    def _fresh_rule(self) -> StoppingRule:
        """The rule before the first report."""

    def _validations(self, trial: FrozenTrial) -> Iterable[Validation]:
        """The trial's reports as validations, in order of their steps."""
        reports = sorted(trial.intermediate_values.items())
        offset = _offset(reports[0][0]) if reports else 0
        return (Validation(iteration=step + offset, loss=value, nll=0.0) for step, value in reports)

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether the rule ends the trial at this report or an earlier one; a value that is not finite also ends it.

        Raises:
            InputError: the study maximises.
        """
        if study.direction is not StudyDirection.MINIMIZE:
            raise InputError(
                f"{type(self).__name__} expects losses, lower being better: the study {study.study_name} maximises",
                hint="report the error rate instead of the accuracy, and create the study with direction minimize; for "
                "metrics auc and r2 take one of Optuna's pruners",
            )
        if any(not math.isfinite(value) for value in trial.intermediate_values.values()):
            return True
        rule = self._fresh_rule()
        return any(rule.observe(_report_of(validation)) is not None for validation in self._validations(trial))


@final
class GeometricPatiencePruner(_ReplayedRule):
    """Geometric patience: a new best below `threshold` times the old best extends the trial.

    The trial may then run to `increase` times the steps so far.

    Args:
        patience: number of steps that every trial may take.
        increase: at least 1.
        threshold: in (0, 1]; values must not be negative, since the threshold is a fraction of them.
    Source: docs/sources.md, section 5; see `stopping.GeometricPatience`.
    """

    def __init__(self, *, patience: float, increase: float = 2.0, threshold: float = 0.995) -> None:
        _check(patience > 0, "patience", "more than 0", patience)
        _check(increase >= 1, "increase", "at least 1", increase)
        _check(0 < threshold <= 1, "threshold", "in (0, 1]", threshold)
        self._patience, self._increase, self._threshold = patience, increase, threshold

    def _fresh_rule(self) -> StoppingRule:
        return GeometricPatience(
            patience=self._patience, increase=self._increase, threshold=self._threshold, validations_every=1
        )


@final
class NoImprovementPruner(_ReplayedRule):
    """Ends a trial after n reports in a row without a new best; a tie is not a new best.

    Source: docs/sources.md, section 5; see `stopping.NoImprovementInN`.
    """

    def __init__(self, n: int = 10) -> None:
        _check(n >= 1, "n", "at least 1", n)
        self._n = n

    def _fresh_rule(self) -> StoppingRule:
        return NoImprovementInN(n=self._n)


@final
class SignificancePatiencePruner(_ReplayedRule):
    """Patience that grows only when a new best is significantly better on the same images, by an exact McNemar test.

    The objective must call `report_correctness` with each `trial.report`. A new best is a report with fewer wrong
    images than all reports before it.

    Args:
        patience, increase: as for `GeometricPatiencePruner`.
        level: significance level, one-sided.
    Raises:
        InputError: `prune` is called before the trial's first step has its correct images.
    Source: see `stopping.SignificancePatience`.
    """

    def __init__(self, *, patience: float, increase: float = 2.0, level: float = 0.05) -> None:
        _check(patience > 0, "patience", "more than 0", patience)
        _check(increase >= 1, "increase", "at least 1", increase)
        _check(0 < level < 1, "level", "in (0, 1)", level)
        self._patience, self._increase, self._level = patience, increase, level

    def _fresh_rule(self) -> StoppingRule:
        return SignificancePatience(
            patience=self._patience, increase=self._increase, level=self._level, validations_every=1
        )

    def _validations(self, trial: FrozenTrial) -> Iterable[Validation]:
        bits = _decoded(trial.user_attrs)
        steps = sorted({*bits, *trial.intermediate_values})
        if steps and (not bits or min(bits) > steps[0]):
            raise InputError(
                f"trial {trial.number} has reported step {steps[0]} without its correct images",
                hint="call report_correctness(trial, step, correct) with each trial.report, before trial.should_prune",
            )
        return self._compared(steps, bits, trial.user_attrs[_NUM_IMAGES] if steps else 0)

    def _compared(self, steps: list[int], bits: dict[int, bytes], num_images: int) -> Iterable[Validation]:
        """Compare each new best with the last significantly better one, as `Cohort` does for lanes."""
        reference = best = None
        offset = _offset(steps[0]) if steps else 0
        for step in steps:
            gained, lost, loss = 0, 0, math.inf  # a step without bits is not a new best
            if step in bits:
                gained, lost = discordant(bits[step], reference or bytes(len(bits[step])))
                loss = _num_wrong(bits[step], num_images) / num_images
                if best is None or (loss < best and is_significant_gain(gained, lost, self._level)):
                    reference = bits[step]
                best = loss if best is None else min(best, loss)
            yield Validation(iteration=step + offset, loss=loss, nll=0.0, gained=gained, lost=lost)


def report_correctness(trial: BaseTrial, step: int, correct: ArrayLike) -> None:
    """Report to `SignificancePatiencePruner` which validation images the trial classifies correctly at this step.

    They are stored in a user attribute of the trial, as packed bits in base64 (1.7 KB for 10,000 images), and only if
    fewer images are wrong than at all earlier steps, since no other step can be a new best.

    Args:
        step: the step of the corresponding `trial.report`; steps must be reported in order.
        correct: [N], True where the prediction is right; the same images in the same order at every step.
    Raises:
        InputError: no images, or another number of images than before.
    """
    array = np.asarray(correct, dtype=bool)
    if array.ndim != 1 or not array.size:
        raise InputError(f"correct must hold one truth value per image, got an array of shape {array.shape}")
    attributes = trial.user_attrs
    num_images = attributes.get(_NUM_IMAGES, len(array))
    if num_images != len(array):
        raise InputError(f"correct has {len(array)} images at step {step}, and had {num_images} before")
    earlier = _decoded(attributes)
    packed = np.packbits(array).tobytes()
    fewest = min((_num_wrong(bits, num_images) for bits in earlier.values()), default=num_images + 1)
    if step in earlier or _num_wrong(packed, num_images) >= fewest:
        return
    if not earlier:
        trial.set_user_attr(_NUM_IMAGES, num_images)
    trial.set_user_attr(f"{CORRECT_PREFIX}{step}", base64.b64encode(packed).decode("ascii"))


def _decoded(attributes: dict[str, object]) -> dict[int, bytes]:
    """Step -> packed bits."""
    return {
        int(key.removeprefix(CORRECT_PREFIX)): base64.b64decode(str(value))
        for key, value in attributes.items()
        if key.startswith(CORRECT_PREFIX)
    }


def _num_wrong(packed: bytes, num_images: int) -> int:
    return num_images - int.from_bytes(packed, "big").bit_count()


def _offset(first_step: int) -> int:
    """What to add to steps: patience counts steps from 1, but many programs count them from 0."""
    return 1 if first_step == 0 else 0


def _report_of(validation: Validation) -> EpochReport:
    return EpochReport(
        epoch=validation.iteration, validations=(validation,), train_nll=0.0, learning_rate=0.0, seconds=0.0
    )


def _check(is_good: bool, name: str, expected: str, value: float) -> None:
    if not is_good:
        raise InputError(f"{name} must be {expected}, got {value!r}")
