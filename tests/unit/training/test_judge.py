"""Judges: the losses of metrics are those of scikit-learn, and the examples' parts say how sure they are."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn.metrics
import torch
from hypothesis import given
from hypothesis import strategies as st

from hpsearch.errors import InputError
from hpsearch.metric import METRICS, PairedTest, Task
from hpsearch.training.evaluation import normal_interval
from hpsearch.training.judge import MOST_RECORDED, Judge, check_judgeable, check_metric, judge_of

DEVIATION = 3.0


def planted(metric: str, num_examples: int, seed: int, *, num_lanes: int = 3) -> tuple[Judge, torch.Tensor]:
    """A judge, and outputs of some lanes that know a little; with ties and, in classification, an unused class."""
    generator = torch.Generator().manual_seed(seed)
    if METRICS[metric].task is Task.REGRESSION:
        labels = torch.randn(num_examples, generator=generator)
        noise = torch.randn(num_lanes, num_examples, 1, generator=generator)
        return judge_of(metric, labels, num_classes=0, deviation=DEVIATION), 0.5 * labels.unsqueeze(-1) + noise
    num_classes = METRICS[metric].most_classes or 4
    used = num_classes if num_classes == 2 else num_classes - 1
    labels = torch.cat([torch.arange(used), torch.randint(used, (num_examples - used,), generator=generator)])
    outputs = torch.randint(-3, 4, (num_lanes, num_examples, num_classes), generator=generator).float()
    outputs[..., torch.arange(num_examples), labels] += 1
    return judge_of(metric, labels, num_classes=num_classes), outputs


def expected_value(metric: str, labels: np.ndarray, outputs: np.ndarray) -> float:
    """Scikit-learn's value for one lane."""
    match metric:
        case "zero-one":
            return float(1 - sklearn.metrics.accuracy_score(labels, outputs.argmax(axis=1)))
        case "balanced-error":
            with np.errstate(all="ignore"):
                return float(
                    1
                    - sklearn.metrics.recall_score(
                        labels, outputs.argmax(axis=1), labels=np.unique(labels), average="macro"
                    )
                )
        case "nll":
            shares = torch.from_numpy(outputs).double().softmax(dim=1).numpy()
            return float(sklearn.metrics.log_loss(labels, shares, labels=range(outputs.shape[1])))
        case "auc":
            return float(sklearn.metrics.roc_auc_score(labels, outputs[:, 1] - outputs[:, 0]))
        case "rmse":
            return float(DEVIATION * sklearn.metrics.root_mean_squared_error(labels, outputs[:, 0]))
        case "mae":
            return float(DEVIATION * sklearn.metrics.mean_absolute_error(labels, outputs[:, 0]))
    return float(sklearn.metrics.r2_score(labels, outputs[:, 0]))


@pytest.mark.parametrize("metric", METRICS)
@given(num_examples=st.integers(20, 200), seed=st.integers(0, 1000))
def test_values_are_those_of_scikit_learn_and_parts_have_the_loss_as_their_mean(
    metric: str, num_examples: int, seed: int
) -> None:
    judge, outputs = planted(metric, num_examples, seed)
    examples = judge.examples(outputs, judge.labels)
    losses = judge.loss(examples)
    assert judge.metric == metric
    for lane, loss in enumerate(losses.tolist()):
        value = METRICS[metric].value_of(loss)
        assert value == pytest.approx(
            expected_value(metric, judge.labels.numpy(), outputs[lane].numpy()), rel=1e-5, abs=1e-6
        )
        assert METRICS[metric].loss_of(value) == pytest.approx(loss, abs=1e-12)
    parts = judge.parts(examples, losses)
    torch.testing.assert_close(parts.mean(dim=1), losses.double())
    record = judge.record(examples, losses)
    assert (record.dtype == torch.bool) == (METRICS[metric].test is PairedTest.MCNEMAR)
    assert record.shape == (len(losses), judge.num_recorded)


@pytest.mark.parametrize("metric", METRICS)
def test_slices_give_the_same_numbers_as_the_whole(metric: str) -> None:
    judge, outputs = planted(metric, 120, 0)
    whole = judge.examples(outputs, judge.labels)
    rows = [judge.examples(outputs[:, at : at + 50], judge.labels[at : at + 50]) for at in (0, 50, 100)]
    assert torch.equal(torch.cat(rows, dim=1), whole)


@pytest.mark.parametrize("metric", METRICS)
def test_the_interval_is_as_wide_as_other_examples_make_it(metric: str) -> None:
    """Against the standard deviation of the loss over 400 resamples of the examples."""
    judge, outputs = planted(metric, 400, 1, num_lanes=1)
    examples = judge.examples(outputs, judge.labels)
    low, high = normal_interval(judge.parts(examples, judge.loss(examples)))
    generator = torch.Generator().manual_seed(2)
    losses = []
    for _ in range(400):
        rows = torch.randint(400, (400,), generator=generator)
        again = judge_of(metric, judge.labels[rows], num_classes=judge.num_classes, deviation=judge.deviation)
        losses.append(float(again.loss(again.examples(outputs[:, rows], again.labels))))
    assert (high - low) / 2 == pytest.approx(1.96 * np.std(losses), rel=0.25)


@pytest.mark.parametrize("metric", ["mae", "rmse", "nll", "auc", "balanced-error"])
def test_of_many_examples_some_are_recorded_and_their_mean_is_still_the_loss(metric: str) -> None:
    judge, outputs = planted(metric, MOST_RECORDED + 5000, 3, num_lanes=2)
    examples = judge.examples(outputs, judge.labels)
    losses = judge.loss(examples)
    record = judge.record(examples, losses)
    assert record.shape == (2, MOST_RECORDED)
    torch.testing.assert_close(record.double().mean(dim=1), losses.double(), rtol=1e-4, atol=1e-6)
    again = judge_of(metric, judge.labels, num_classes=judge.num_classes, deviation=judge.deviation)
    assert torch.equal(again.record(examples, losses), record)


@pytest.mark.parametrize(("metric", "label"), [("auc", 1), ("r2", 0.5)])
def test_a_metric_that_the_validation_part_does_not_define_is_refused(metric: str, label: float) -> None:
    check_judgeable(metric, np.array([label, label + 1]))
    check_judgeable("nll", np.full(3, label))
    with pytest.raises(InputError, match=f"metric {metric} is not defined on the validation part"):
        check_judgeable(metric, np.full(3, label))


def test_an_interval_that_is_not_known_is_none() -> None:
    for parts in ([0.5], [0.5, 0.5, 0.5], [0.1, np.nan]):
        assert normal_interval(torch.tensor([parts])) is None
    assert METRICS["auc"].interval_of((0.0, 1.5)) == (0.0, 1.0)
    assert METRICS["r2"].interval_of((0.5, 1.5)) == (-0.5, 0.5)


@pytest.mark.parametrize(
    ("metric", "num_classes", "what"),
    [
        ("rmse", 10, "metric rmse is for regression, but the target has 10 classes"),
        ("zero-one", 0, "metric zero-one is for classification, but the target is a number"),
        ("auc", 3, "metric auc is defined for 2 classes, but there are 3"),
    ],
)
def test_a_metric_that_does_not_suit_the_target_is_refused_with_those_that_do(
    metric: str, num_classes: int, what: str
) -> None:
    with pytest.raises(InputError, match=what) as caught:
        check_metric(metric, num_classes)
    assert "metric = '" in str(caught.value.hint)
    assert f"'{metric}'" not in str(caught.value.hint)
