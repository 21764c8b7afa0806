"""How a trial's stored model judges the validation images: which classes it confuses, and where it is surely wrong."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from hpsearch.artifacts.best_parameters import Artifacts
from hpsearch.data.classes import class_name
from hpsearch.data.example_shape import ExampleShape, is_image
from hpsearch.data.splits import SelectionData, Split
from hpsearch.errors import InputError
from hpsearch.results.confusion import confusion_matrix, macro_f1
from hpsearch.results.stored_parameters import check_reproduction, parameters_on, read_parameters
from hpsearch.results.trial_summary import TrialSummary
from hpsearch.store.studies import StoredStudy
from hpsearch.training.evaluation import evaluate_with_probabilities
from hpsearch.training.judge import judge_of
from hpsearch.training.networks.build import build_network
from hpsearch.wording import first_line, percent

_CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True, eq=False)
class WrongImages:
    """Validation images that a model takes for another class, the most confident errors first.

    Args:
        trial: number of the model's trial.
        indexes: [N]: their places among the validation images.
        images: [N, height, width] float32 in [0, 1], or [N, height, width, 3] in colour.
        labels, predicted: [N]: the true class, and the one that the model takes them for.
        probabilities: [N]: of the predicted class.
        class_names: in the order of their numbers; empty: the numbers are the names.
    """

    trial: int
    indexes: NDArray[np.int64]
    images: NDArray[np.float32]
    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def name_of(self, label: int) -> str:
        """The name of a class; its number if it has no other name."""
        return class_name(label, self.class_names)

    @property
    def captions(self) -> list[tuple[str, str]]:
        """Of each image, two lines: `3, taken for 5` and the probability, `98.1 %`."""
        errors = zip(self.labels, self.predicted, self.probabilities, strict=True)
        return [
            (f"{self.name_of(label)}, taken for {self.name_of(predicted)}", percent(share, 1))
            for label, predicted, share in errors
        ]


@dataclass(frozen=True, kw_only=True, eq=False)
class Judgement:
    """One model's probabilities for all validation images.

    Args:
        trial: number of the model's trial.
        part: the validation images, with their labels.
        example_shape: of one image.
        probabilities: [N, classes].
        class_names: in the order of their numbers; empty: the numbers are the names.
    """

    trial: int
    part: Split
    example_shape: ExampleShape
    probabilities: NDArray[np.float64]
    class_names: tuple[str, ...] = ()

    @classmethod
    def of(cls, study: StoredStudy, trial: TrialSummary, artifacts: Artifacts, data: SelectionData) -> Self:
        """Evaluate the stored parameters of a complete trial, in one pass on the CPU: about a second for MNIST.

        Raises:
            ArtifactError: the trial's parameters were not kept, are missing or damaged, or do not reproduce its
                validation error on record.
            InputError: the code of a custom network cannot be imported, or fails; or the target is a number.
        """
        if not data.num_classes:
            raise InputError("a number has no confusion matrix", hint="see the learning curves and the diagnosis")
        metric = study.definition.judged_by
        content = read_parameters(study, trial, artifacts)
        model = study.definition.resolve(trial.parameters).model
        network = build_network(model, data.example_shape, data.num_outputs)
        parameters = parameters_on(_CPU, content, network)
        arrays = data.validation.images, data.validation.labels
        # Prepared data is mapped read-only, which torch warns of; only such arrays are copied.
        images, labels = (torch.from_numpy(np.require(array, requirements=["C", "W"])) for array in arrays)
        try:
            judge = judge_of(metric.name, labels, num_classes=data.num_classes)
            losses, found = evaluate_with_probabilities(network, parameters, images, labels, judge)
        except (RuntimeError, ValueError, TypeError, MemoryError) as error:  # a user's own code may run in there
            raise InputError(
                f"the network of trial {trial.number} fails on the validation images: {first_line(error)}",
                hint="see that the code and the memory are those of the workers",
            ) from error
        check_reproduction(trial, losses, metric=metric)
        return cls(
            trial=trial.number,
            part=data.validation,
            example_shape=data.example_shape,
            probabilities=found.numpy(),
            class_names=data.class_names,
        )

    @property
    def labels(self) -> NDArray[np.int64]:
        """[N]: the true classes."""
        return self.part.labels

    def name_of(self, label: int) -> str:
        """The name of a class; its number if it has no other name."""
        return class_name(label, self.class_names)

    @cached_property
    def predicted(self) -> NDArray[np.int64]:
        """[N]: the most probable class; the first one wins a tie."""
        predicted: NDArray[np.int64] = self.probabilities.argmax(axis=1)
        return predicted

    @cached_property
    def confusion(self) -> NDArray[np.int64]:
        """[classes, classes]: the number of images of the row's class that are taken for the column's class."""
        return confusion_matrix(self.labels, self.predicted, self.probabilities.shape[1])

    @property
    def macro_f1(self) -> float:
        """Macro-F1 on the validation examples."""
        return macro_f1(self.confusion)

    @property
    def class_errors(self) -> list[float | None]:
        """Of each class the fraction of its images that are taken for another class; None: it has no image."""
        counts = self.confusion
        return [float(1 - row[label] / row.sum()) if row.any() else None for label, row in enumerate(counts)]

    @property
    def has_images(self) -> bool:
        """Whether the examples can be shown; rows of a table cannot."""
        return is_image(self.example_shape)

    def most_wrong(self, number: int) -> WrongImages:
        """The `number` misclassified images (or fewer) whose wrong class has the highest probability.

        Raises:
            InputError: the examples are rows of a table.
        """
        if not self.has_images:
            raise InputError("rows of a table cannot be shown as images", hint="see the confusion matrix")
        confidence = self.probabilities.max(axis=1)
        wrong = np.flatnonzero(self.predicted != self.labels)
        chosen = wrong[np.argsort(-confidence[wrong], kind="stable")][:number]
        return WrongImages(
            trial=self.trial,
            indexes=chosen,
            images=self._pictures(chosen),
            labels=self.labels[chosen],
            predicted=self.predicted[chosen],
            probabilities=confidence[chosen],
            class_names=self.class_names,
        )

    def _pictures(self, rows: NDArray[np.intp]) -> NDArray[np.float32]:
        """[N, height, width], or [N, height, width, 3] in colour."""
        images = self.part.floats(rows).reshape(-1, *self.example_shape)
        return np.moveaxis(images, 1, -1) if len(self.example_shape) == 3 else images
