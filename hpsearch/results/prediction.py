"""Predictions of a study's chosen model for new rows or images, from the database and the artifacts alone.

The preparation is that of the study's record; the data set itself is not needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hpsearch.artifacts.best_parameters import Artifacts
from hpsearch.data.example_shape import ExampleShape, is_image, shape_text
from hpsearch.data.tables.frame import columns_of
from hpsearch.data.tables.preparation import Preparation
from hpsearch.errors import InputError
from hpsearch.results.choice import ChosenPoint
from hpsearch.results.stored_parameters import parameters_on, read_parameters
from hpsearch.training.networks.build import build_network
from hpsearch.training.tensor_file import load_arrays

_CPU = torch.device("cpu")
_SLICE_ROWS = 2**14
_BUILT_IN = ("logistic", "mlp", "cnn")


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """A chosen model with the preparation of its data.

    Args:
        content: of the trial's parameter file.
    """

    chosen: ChosenPoint
    content: bytes

    @classmethod
    def of(cls, chosen: ChosenPoint, artifacts: Artifacts) -> Predictor:
        """Raises ArtifactError if the parameters are missing or damaged."""
        return cls(chosen=chosen, content=read_parameters(chosen.study, chosen.trial, artifacts))

    def predict(self, examples: Any) -> NDArray[Any]:
        """The class, or in regression the value in the target's unit, of each row or image, [N].

        Classes are as in the target's column: text, whole numbers or truth values; numbers for data without names.

        Args:
            examples: of a table a pandas.DataFrame, a pyarrow.Table, a dict of columns or a list of dicts; otherwise
                an array [N, rows, columns] or [N, rows, columns, 3] of uint8, or of floats in 0..1.
        Raises:
            InputError: columns are missing or of a wrong kind, or images have another shape than in training.
        """
        if self._is_regression:
            standardised = self._scores(self._inputs(examples))[:, 0]
            return standardised * float(self._target["deviation"]) + float(self._target["mean"])
        probable: NDArray[np.int64] = self.predict_proba(examples).argmax(axis=1)
        classes = self._named_classes
        return probable if classes is None else np.array(classes)[probable]

    def predict_proba(self, examples: Any) -> NDArray[np.float64]:
        """The probability of each class, [N, classes], in the order of `classes`.

        Raises:
            InputError: as `predict`, or the study is for regression.
        """
        if self._is_regression:
            raise InputError(
                f"study {self.chosen.study.name!r} is for regression, which has no probabilities", hint="use predict"
            )
        scores = torch.from_numpy(self._scores(self._inputs(examples)))
        found: NDArray[np.float64] = scores.softmax(dim=-1).numpy()
        return found

    @property
    def classes(self) -> tuple[Any, ...]:
        """The classes in the order of `predict_proba`; empty in regression."""
        if self._is_regression:
            return ()
        return tuple(self._named_classes or range(self._num_outputs))

    @property
    def _record(self) -> Mapping[str, Any]:
        return self.chosen.study.data_record

    @property
    def _target(self) -> Mapping[str, Any]:
        target: Mapping[str, Any] = self._record.get("target") or {}
        return target

    @property
    def _named_classes(self) -> list[Any] | None:
        """The classes on record: of a table's target, or of a folder of images."""
        classes: list[Any] | None = self._target.get("classes") or self._record.get("classes")
        return classes

    @property
    def _is_regression(self) -> bool:
        return self._target.get("task") == "regression"

    @cached_property
    def _num_outputs(self) -> int:
        if self._is_regression:
            return 1
        if self._named_classes is not None:
            return len(self._named_classes)
        arrays, _ = load_arrays(self.content)
        model = self.chosen.study.definition.resolve(self.chosen.trial.parameters).model
        if model.family not in _BUILT_IN or "output.bias" not in arrays:
            raise InputError(
                f"study {self.chosen.study.name!r} has no record of its classes, which a network of one's own needs",
                hint="load its parameters with best_parameters, and predict with the network itself",
            )
        return int(arrays["output.bias"].size)

    def _inputs(self, examples: Any) -> _Inputs:
        preparation = self._record.get("preparation") or {}
        if "features" in preparation:
            known = Preparation.from_json(preparation)
            flat = known.apply(columns_of(examples, known.kinds))
            return _Inputs(flat=flat, shape=(flat.shape[1],))
        images = (self._record.get("images") or self._record).get("shape")
        shape = preparation.get("shape", images)
        if shape is not None and not is_image(tuple(shape)):
            return _rows(examples, tuple(shape))
        return _images(examples, shape)

    def _network_for(self, inputs: _Inputs) -> tuple[Any, Any]:
        model = self.chosen.study.definition.resolve(self.chosen.trial.parameters).model
        network = build_network(model, inputs.shape, self._num_outputs)
        return network, parameters_on(_CPU, self.content, network)

    @torch.no_grad()
    def _scores(self, inputs: _Inputs) -> NDArray[np.float64]:
        """The network's outputs, [N, outputs]; in float32, distinct scores may become a tie in a softmax."""
        network, parameters = self._network_for(inputs)
        scores = [np.empty((0, self._num_outputs))]
        for start in range(0, len(inputs.flat), _SLICE_ROWS):
            some = torch.from_numpy(inputs.flat[start : start + _SLICE_ROWS])
            scores.append(network.logits(parameters, some).double().numpy())
        return np.concatenate(scores)


@dataclass(frozen=True, kw_only=True)
class _Inputs:
    """Inputs of a network.

    Args:
        flat: [N, inputs] float32.
        shape: of one example.
    """

    flat: NDArray[np.float32]
    shape: ExampleShape


def _rows(examples: Any, shape: ExampleShape) -> _Inputs:
    """Rows of numbers [N, features], as arrays of one's own have them."""
    array = np.asarray(examples)
    if array.ndim != 2 or array.shape[1:] != shape or array.dtype.kind not in "buif":
        raise InputError(
            f"rows to predict must be numbers [N, {shape[0]}], got {array.dtype} {list(array.shape)}",
            hint="one row needs a first axis of length 1: row[None]",
        )
    return _Inputs(flat=np.ascontiguousarray(array, dtype=np.float32), shape=shape)


def _images(examples: Any, shape: Any) -> _Inputs:
    """Grey images [N, rows, columns], or [N, rows, columns, 3] in colour, channel by channel."""
    array = np.asarray(examples)
    if array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[3] != 3):
        raise InputError(
            f"images to predict must be an array [N, rows, columns] or [N, rows, columns, 3], got {list(array.shape)}",
            hint="one image needs a first axis of length 1: image[None]",
        )
    if array.dtype.kind == "f":
        if array.size and not (array.min() >= 0 and array.max() <= 1):  # also true for NaN
            raise InputError(
                f"images of floats must be in 0..1, got {array.min():g} .. {array.max():g}",
                hint="divide grey levels by 255, or pass them as uint8",
            )
        pixels = array.astype(np.float32)
    elif array.dtype == np.uint8:
        pixels = array.astype(np.float32) / np.float32(255)
    else:
        raise InputError(f"images must be of uint8 or floats in 0..1, got {array.dtype}", hint="array.astype('uint8')")
    if pixels.ndim == 4:
        pixels = pixels.transpose(0, 3, 1, 2)
    found = tuple(pixels.shape[1:])
    if shape is not None and found != tuple(shape):
        raise InputError(
            f"images to predict are {shape_text(found)}, those of training {shape_text(tuple(shape))}",
            hint="resize them as the training images were",
        )
    return _Inputs(flat=np.ascontiguousarray(pixels.reshape(len(pixels), -1)), shape=found)
