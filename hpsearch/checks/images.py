"""Checks of the training and validation data: classes, order, values, and whether labels belong to their images.

All of them read arrays that are loaded anyway; together they take a fraction of a second for MNIST.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from hpsearch.checks.finding import DATA, Finding, Verdict, line_for, line_in, searched
from hpsearch.data.example_shape import ExampleShape, is_image, maps_shape
from hpsearch.data.splits import SelectionData, Split
from hpsearch.study.definition import StudyDefinition
from hpsearch.wording import percent

# A z-score beyond this is no accident: p < 1e-15. Data sets are large, and small differences would pass a usual level.
CERTAIN = 8.0
ACCIDENT = 1e-9  # probability below which a class is not missing because there are few images
LARGEST_IMBALANCE = 10.0
LARGEST_SHARE_SHIFT = 0.05
FEWEST_RUNS = 0.8  # of those that a random order would have
LARGEST_VALUE = 10.0  # standardised inputs are rarely larger; grey levels reach 255
SMALLEST_VALUE = 0.02  # of the largest input: levels that were divided by 255 twice reach 0.004
MANY_CONSTANT = 0.95
_TRAIN_PER_VALIDATION = 5  # images: the last sixth of a data set is for validation
_BLOCK = 1024  # images
NEAREST_TRAIN, NEAREST_VALIDATION = 4000, 2000  # images of the label check
_OTHER_VALIDATION = (
    "validation labels that were shuffled or shifted, or images that were prepared in another way: "
    "prepare both parts with the same code"
)
_HARD_TASK = "a task that needs more than distances between images: then this is no fault"
# A mean image that another turn of the images explains so much better is no accident of few images.
LEAST_MISSING, TIMES_MISSING = 0.02, 2.0
LARGEST_GAP = 0.1  # between the simple classifier's accuracies on training and validation images


def check_classes(data: SelectionData, definition: StudyDefinition) -> Iterator[Finding]:
    """Balance of the classes in each part, classes that a part lacks, and the order of the labels."""
    yield _balance(data, definition.data.train_samples)
    yield _order(data.train.labels, data.validation.labels, definition)


def check_values(data: SelectionData) -> Iterator[Finding]:
    """Constant, unscaled and invalid inputs, and validation images that look different from the training images."""
    train, validation = _Values.of(data.train), _Values.of(data.validation)
    yield _range(train, validation)
    yield _likeness(train, validation, data.example_shape)


def check_labels(data: SelectionData) -> Finding:
    """Whether a simple classifier finds the labels of images that it has not seen better than by guessing.

    The better one of two is taken: the nearest mean of a class, and the nearest training image.
    """
    if len(data.train) < 2 * data.num_classes:
        return Finding.skip("labels", DATA, f"only {len(data.train)} training images for {data.num_classes} classes")
    train, validation = thinned(data.train, NEAREST_TRAIN), thinned(data.validation, NEAREST_VALIDATION)
    known, others = _every_other(train)
    share = np.bincount(data.train.labels).max() / len(data.train)
    accuracies = [
        max(np.mean(guess(known, part.floats()) == part.labels) for guess in (_nearest_mean, _nearest_image))
        for part in (others, validation)
    ]
    on_train, on_validation = (float(accuracy) for accuracy in accuracies)
    numbers = {"on_training": on_train, "on_validation": on_validation, "largest_class": float(share)}
    found = (
        f"the nearest image or class mean is right for {percent(on_train, 1)} of other training images and "
        f"{percent(on_validation, 1)} of validation images; the largest class has {percent(share, 1)}"
    )
    look_at: tuple[str, ...] = (_OTHER_VALIDATION,)
    verdict = Verdict.WARNING
    if not _beats(on_train, share, len(others)):
        cause = "labels that were shuffled or shifted against the images: show some images with their labels"
        look_at = (cause, _HARD_TASK)
    elif _beats(on_validation, share, len(validation)) and not _is_far_below(on_validation, on_train, len(validation)):
        verdict, look_at = Verdict.PASSED, ()
    return Finding(
        check="labels",
        subject=DATA,
        verdict=verdict,
        found=found,
        expected="more than the largest class, about equally often in both parts",
        look_at=look_at,
        numbers=numbers,
    )


def _balance(data: SelectionData, train_samples: int | None) -> Finding:
    train, validation = (np.bincount(part.labels, minlength=data.num_classes) for part in (data.train, data.validation))
    numbers = {
        "classes": data.num_classes,
        "training_images": len(data.train),
        "validation_images": len(data.validation),
        "smallest_class": int(train.min()),
        "largest_class": int(train.max()),
    }

    def finding(verdict: Verdict, found: str, look_at: str = "", fix: str = "") -> Finding:
        return Finding(
            check="classes",
            subject=DATA,
            verdict=verdict,
            found=found,
            expected="every class in both parts, in about equal shares",
            look_at=(look_at,) if look_at else (),
            fix=fix,
            numbers=numbers,
        )

    absent = np.flatnonzero((train == 0) & (validation > 0))
    if len(absent):
        cause, fix = "data that is sorted by class, of which the last sixth is for validation: shuffle the files", ""
        if train_samples is not None:
            cause = f"data.train_samples: the first {train_samples:,} images lack the class; take more, or all"
            fix = line_in("data", "train_samples", max(train_samples, _TRAIN_PER_VALIDATION * len(data.validation)))
        largest = max(validation[absent]) / validation.sum()
        by_accident = (1 - largest) ** train.sum()
        verdict = Verdict.FAILED if by_accident < ACCIDENT else Verdict.WARNING
        return finding(verdict, f"no training image of class {_listed(data, absent)}", cause, fix)
    absent = np.flatnonzero((validation == 0) & (train > 0))
    if len(absent):
        cause = "data that is sorted by class, or too few validation images: shuffle the files, or add images"
        return finding(Verdict.WARNING, f"no validation image of class {_listed(data, absent)}", cause)
    unused = np.flatnonzero((validation == 0) & (train == 0))
    if len(unused):
        cause = "labels that begin at 1, or leave numbers out: number the classes from 0"
        return finding(Verdict.WARNING, f"no image at all of class {_listed(data, unused)}", cause)
    shares = train / train.sum(), validation / validation.sum()
    shift = int(np.argmax(np.abs(shares[0] - shares[1])))
    pooled = (train[shift] + validation[shift]) / (train.sum() + validation.sum())
    deviation = math.sqrt(pooled * (1 - pooled) * (1 / train.sum() + 1 / validation.sum()))
    difference = abs(float(shares[0][shift] - shares[1][shift]))
    if difference > LARGEST_SHARE_SHIFT and difference > CERTAIN * deviation:
        of_each = " and ".join(f"{percent(share[shift], 1)}" for share in shares)
        found = f"class {data.class_name(shift)} has {of_each} of the training and validation images"
        cause = "parts that were not drawn alike, such as data that is sorted by class: shuffle the files"
        return finding(Verdict.WARNING, found, cause)
    ratio = train.max() / train.min()
    found = f"{data.num_classes} classes of {train.min():,} to {train.max():,} training images"
    if ratio > LARGEST_IMBALANCE:
        largest_error = percent(1 - shares[0].max(), 1)
        cause = f"the error rate: compare it with {largest_error}, that of always naming the largest class"
        return finding(Verdict.WARNING, found, cause)
    return finding(Verdict.PASSED, found)


def _order(train: NDArray[np.int64], validation: NDArray[np.int64], definition: StudyDefinition) -> Finding:
    """Compare the number of runs of equal labels with that of a random order (Wald and Wolfowitz)."""
    dimension = searched(definition, "shuffle")
    is_shuffled = definition.training.shuffle if dimension is None else all(dimension.values)
    (num_runs, expected, is_sorted), of_validation = _runs(train), _runs(validation)
    verdict = Verdict.WARNING if is_sorted and not is_shuffled else Verdict.PASSED
    found = f"{num_runs:,} runs of equal labels among {len(train):,} training images"
    found += "; each epoch is shuffled" if is_sorted and is_shuffled else ""
    found += "; the validation images are sorted, which does no harm" if of_validation[2] else ""
    cause = "images that are sorted by class, so that each minibatch pulls towards a few: shuffle each epoch"
    return Finding(
        check="order",
        subject=DATA,
        verdict=verdict,
        found=found,
        expected=f"about {expected:,}, as in a random order",
        look_at=(cause,) if is_sorted else (),
        fix=line_for(definition, "training", "shuffle", True) if verdict is Verdict.WARNING else "",
        numbers={"runs": num_runs, "expected_runs": expected, "validation_runs": of_validation[0]},
    )


def _runs(labels: NDArray[np.int64]) -> tuple[int, int, bool]:
    """The number of runs of equal labels, the number in a random order, and whether the labels are sorted."""
    num_runs = 1 + int(np.count_nonzero(np.diff(labels)))
    same = float(np.sum((np.bincount(labels) / len(labels)) ** 2))  # probability that neighbours are alike
    expected = 1 + (len(labels) - 1) * (1 - same)
    deviation = math.sqrt(len(labels) * same * (1 - same)) or 1.0
    return num_runs, round(expected), num_runs < FEWEST_RUNS * expected and expected - num_runs > CERTAIN * deviation


@dataclass(frozen=True, kw_only=True)
class _Values:
    """The inputs of one part: smallest, largest and mean of each, [pixels]; and the standard deviation of all."""

    num_images: int
    smallest: NDArray[np.float32]
    largest: NDArray[np.float32]
    mean: NDArray[np.float64]
    deviation: float

    @classmethod
    def of(cls, part: Split) -> _Values:
        """Read the images once, in blocks that stay in the processor's cache."""
        smallest, largest = part.floats(slice(0, 1))[0].copy(), part.floats(slice(0, 1))[0].copy()
        total, squares = np.zeros(part.images.shape[1]), 0.0
        for start in range(0, len(part), _BLOCK):
            block = part.floats(slice(start, start + _BLOCK))
            np.minimum(smallest, block.min(axis=0), out=smallest)
            np.maximum(largest, block.max(axis=0), out=largest)
            total += block.sum(axis=0)
            squares += float(np.vdot(block, block))
        mean = total / len(part)
        variance = squares / part.images.size - float(mean.mean()) ** 2
        return cls(
            num_images=len(part),
            smallest=smallest,
            largest=largest,
            mean=mean,
            deviation=math.sqrt(max(variance, 0.0)),
        )


def _range(train: _Values, validation: _Values) -> Finding:
    low = float(min(train.smallest.min(), validation.smallest.min()))
    high = float(max(train.largest.max(), validation.largest.max()))
    is_constant = train.smallest == train.largest
    if train.num_images == 1:
        is_constant &= (validation.smallest == train.smallest) & (validation.largest == train.largest)
    share = float(is_constant.mean())
    numbers = {"smallest": low, "largest": high, "constant_inputs": int(is_constant.sum()), "inputs": len(is_constant)}

    def finding(verdict: Verdict, found: str, look_at: str = "") -> Finding:
        return Finding(
            check="values",
            subject=DATA,
            verdict=verdict,
            found=found,
            expected="finite inputs of about 0 to 1, most of which vary",
            look_at=(look_at,) if look_at else (),
            numbers=numbers,
        )

    if not (math.isfinite(low) and math.isfinite(high)):
        cause = "missing values, or a division by zero: mend the files"
        return finding(Verdict.FAILED, "inputs that are NaN or infinite", cause)
    if share == 1:
        cause = "the loader, which gives every image the same content: mend the files"
        return finding(Verdict.FAILED, "all images are the same", cause)
    values = f"inputs of {low:.3g} to {high:.3g}, {int(is_constant.sum()):,} of {len(is_constant):,} always the same"
    largest = max(abs(low), abs(high))
    if largest > LARGEST_VALUE:
        cause = "inputs that were not scaled, which saturate hidden units: divide them by the largest"
        return finding(Verdict.WARNING, values, cause)
    if largest < SMALLEST_VALUE:
        return finding(Verdict.WARNING, values, "inputs that were scaled twice: scale them once, to 0 to 1")
    if share > MANY_CONSTANT:
        cause = "the loader, as hardly an input varies: look at some images, and mend the files"
        return finding(Verdict.WARNING, values, cause)
    return finding(Verdict.PASSED, values)


_TURNS: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "transposed": np.transpose,
    "mirrored left to right": np.fliplr,
    "mirrored top to bottom": np.flipud,
    "turned by 180 degrees": lambda image: image[::-1, ::-1],
    "inverted": np.negative,
}


def _likeness(train: _Values, validation: _Values, example_shape: ExampleShape) -> Finding:
    """Compare the mean image, brightness and contrast of the two parts."""
    means = [_seen(values.mean, example_shape) for values in (train, validation)]
    as_it_is = _correlation(*means)
    turned = {
        name: _correlation(means[0], turn(means[1]))
        for name, turn in _TURNS.items()
        if turn(means[1]).shape == means[0].shape and is_image(example_shape)
    }
    best = max(turned, key=lambda name: turned[name], default="")
    deviations = [train.deviation, validation.deviation]
    shift = abs(float(means[0].mean() - means[1].mean()))
    ratio = max(deviations) / max(min(deviations), 1e-12)
    verdict, look_at = Verdict.PASSED, ""
    missing, missing_turned = 1 - as_it_is, 1 - turned.get(best, as_it_is)
    if missing > LEAST_MISSING and missing > TIMES_MISSING * missing_turned:
        verdict, look_at = Verdict.WARNING, f"validation images that are {best}: prepare both parts with the same code"
    elif ratio > 2 or shift > 0.5 * deviations[0]:
        verdict, look_at = Verdict.WARNING, "validation images that were scaled in another way: scale both parts alike"
    return Finding(
        check="likeness",
        subject=DATA,
        verdict=verdict,
        found=(
            f"the mean images of training and validation correlate with {as_it_is:.3f}; "
            f"standard deviations {deviations[0]:.3g} and {deviations[1]:.3g}"
        ),
        expected="nearly 1, and equal deviations",
        look_at=(look_at,) if look_at else (),
        numbers={"correlation": as_it_is, **{f"correlation_{n.replace(' ', '_')}": c for n, c in turned.items()}},
    )


def _seen(example: NDArray[np.float64], shape: ExampleShape) -> NDArray[np.float64]:
    """An image in grey, [rows, columns]; a row of a table as [1, features]."""
    return example.reshape(maps_shape(shape)).mean(axis=0) if is_image(shape) else example[np.newaxis]


def _correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    one, other = one - one.mean(), other - other.mean()
    scale = math.sqrt(float((one * one).sum() * (other * other).sum()))
    return float((one * other).sum()) / scale if scale else 1.0


def _nearest_mean(known: Split, images: NDArray[np.float32]) -> NDArray[np.int64]:
    classes = np.unique(known.labels)
    means = np.stack([known.floats()[known.labels == label].mean(axis=0) for label in classes])
    guessed: NDArray[np.int64] = classes[_nearest(means, images)]
    return guessed


def _nearest_image(known: Split, images: NDArray[np.float32]) -> NDArray[np.int64]:
    return known.labels[_nearest(known.floats(), images)]


def _nearest(known: NDArray[np.float32], images: NDArray[np.float32]) -> NDArray[np.intp]:
    """Index of the nearest known image for each image, by Euclidean distance."""
    squares = np.einsum("ij,ij->i", known, known)
    nearest: NDArray[np.intp] = np.argmin(squares - 2 * (images @ known.T), axis=1)
    return nearest


def _beats(accuracy: float, share: float, num_images: int) -> bool:
    """Whether an accuracy is above the share of the largest class, with p < 0.001 (one-sided)."""
    deviation = math.sqrt(share * (1 - share) / num_images)
    return accuracy > share + NormalDist().inv_cdf(0.999) * deviation


def _is_far_below(accuracy: float, other: float, num_images: int) -> bool:
    """Whether an accuracy is so much lower that neither chance nor a harder sample explains it."""
    deviation = math.sqrt(max(other * (1 - other), 0.01) / num_images)
    return other - accuracy > LARGEST_GAP + 3 * deviation


def thinned(part: Split, most: int) -> Split:
    """At most this many images, evenly spaced, as floats."""
    index = np.unique(np.linspace(0, len(part) - 1, min(most, len(part))).astype(np.intp))
    return Split(images=part.floats(index), labels=part.labels[index])


def _every_other(part: Split) -> tuple[Split, Split]:
    one, other = (Split(images=part.floats()[start::2], labels=part.labels[start::2]) for start in (0, 1))
    return one, other


def _listed(data: SelectionData, classes: NDArray[np.intp], most: int = 5) -> str:
    named = ", ".join(data.class_name(int(label)) for label in classes[:most])
    return named + (f" and {len(classes) - most} more" if len(classes) > most else "")
