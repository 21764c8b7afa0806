"""A checkpoint's file gives back every bit, or is refused in one line: cut, changed, hostile, of another version."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load

from hpsearch.epoch_report import Validation
from hpsearch.errors import ArtifactError
from hpsearch.study.settings import ModelSettings, TrainingSettings, TrialSettings
from hpsearch.training.lanes.checkpoint import TrialCheckpoint, TrialProgress
from hpsearch.training.schedules import ScheduleState
from hpsearch.training.tensor_file import checksum, save_arrays

SMALL = TrialCheckpoint(
    progress=TrialProgress(
        settings=TrialSettings(model=ModelSettings(), training=TrainingSettings()),
        num_train=200,
        validations_every=4,
        num_epochs=2,
        schedule=ScheduleState(num_epochs=2),
        best=Validation(iteration=3, loss=0.5, nll=1.0),
    ),
    arrays={"parameters/a": np.arange(3, dtype=np.float32)},
    extra={"rule": {"n": 3}},
)


def assert_same(one: TrialCheckpoint, other: TrialCheckpoint) -> None:
    assert repr(one.progress) == repr(other.progress)  # 0.0 and -0.0 are equal otherwise
    assert one.extra == other.extra
    for arrays, others in ((one.arrays, other.arrays), (one.extra_arrays, other.extra_arrays)):
        assert arrays.keys() == others.keys()
        for name, array in arrays.items():
            its = others[name]
            assert (array.shape, array.dtype, array.tobytes()) == (its.shape, its.dtype, its.tobytes())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
fractions = st.floats(0, 1)
finite = st.floats(allow_nan=False, allow_infinity=False)


@given(
    best=st.none() | st.builds(Validation, iteration=st.integers(1, 60), loss=fractions, nll=finite),
    stale=st.none() | fractions,
    rate=st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    seed=st.integers(0, 2**63 - 1),
    numbers=st.lists(st.floats(width=32)),
    extra=st.dictionaries(st.text(), json_values),
)
def test_a_file_gives_back_every_bit(
    best: Validation | None, stale: float | None, rate: float, seed: int, numbers: list[float], extra: dict[str, Any]
) -> None:
    model = ModelSettings(family="package.module:factory", options={"width": 3, "name": "\u2713"})
    checkpoint = TrialCheckpoint(
        progress=TrialProgress(
            settings=TrialSettings(model=model, training=TrainingSettings(learning_rate=rate), seed=seed),
            num_train=200,
            validations_every=4,
            num_epochs=6,
            schedule=ScheduleState(num_epochs=6, best_loss=stale, num_stale_epochs=2, num_falls=1),
            best=best,
        ),
        arrays={
            "parameters/a.weight": np.asfortranarray(np.array([numbers, numbers], np.float32)),
            "optimizer/num_steps": np.array(rate),
        },
        extra=extra,
    )
    again = TrialCheckpoint.from_bytes(checkpoint.to_bytes())

    assert_same(again, checkpoint)


def test_what_is_no_json_cannot_travel_along() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        replace(SMALL, extra={"best": math.inf}).to_bytes()
    with pytest.raises(TypeError, match="not JSON serializable"):
        replace(SMALL, extra={"best": np.zeros(3)}).to_bytes()


def test_arrays_of_the_caller_come_back_apart_from_those_of_the_training() -> None:
    filters = {"filters": np.arange(6, dtype=np.int8).reshape(2, 3)}
    checkpoint = replace(SMALL, extra_arrays=filters)
    assert checkpoint.num_bytes == SMALL.num_bytes + 6
    again = TrialCheckpoint.from_bytes(checkpoint.to_bytes())
    assert_same(again, checkpoint)
    assert again.arrays.keys() == SMALL.arrays.keys()


def test_any_safetensors_reader_reads_it() -> None:
    content = SMALL.to_bytes()

    assert load(content)["parameters/a"].tolist() == [0, 1, 2]
    assert SMALL.num_bytes == 12
    assert len(content) < 12 + 2500


def test_no_part_of_a_file_and_no_changed_one_is_taken_for_it() -> None:
    content = SMALL.to_bytes()
    damaged = [content[:length] for length in range(len(content))] + [content + b"\0"]
    for position, value in enumerate(content):
        damaged += [content[:position] + bytes([value ^ flip]) + content[position + 1 :] for flip in (0x01, 0x20, 0x80)]

    for one in damaged:
        with pytest.raises(ArtifactError, match="the checkpoint of a trial cannot be read: "):
            TrialCheckpoint.from_bytes(one)


def header(metadata: object, tensors: object = None) -> bytes:
    text = json.dumps({"__metadata__": metadata} | (tensors or {})).encode()
    return len(text).to_bytes(8, "little") + text


HOSTILE = {
    "nothing": b"",
    "a page": b"<!DOCTYPE html><html><body>503 Service Unavailable</body></html>",
    "a pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
    "a huge header": (2**63).to_bytes(8, "little") + b"{}",
    "no metadata": header(None),
    "a number for metadata": header({"checkpoint_version": 1}),
    "a deep header": (10**5 + 8).to_bytes(8, "little") + b'{"a":' + b"[" * 10**5,
    "an unknown type of numbers": header(
        {"checkpoint_version": "2"}, {"a": {"dtype": "BF16", "shape": [0], "data_offsets": [0, 0]}}
    ),
    "a huge array": header(
        {"checkpoint_version": "2"}, {"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 0]}}
    ),
    "a model": save_arrays({"hidden.weight": np.zeros(3)}, {"zero_one": "0.5"}),
    "another version": header({"checkpoint_version": "1", "state": "{}", "crc32": "0"}),
    "no state": header({"checkpoint_version": "1", "crc32": "00000000"}),
    "a surrogate": header({"checkpoint_version": "1", "crc32": "00000000", "state": "\ud800"}),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_what_is_no_checkpoint_is_refused(content: bytes) -> None:
    with pytest.raises(ArtifactError) as caught:
        TrialCheckpoint.from_bytes(content)

    assert re.fullmatch(r"the checkpoint of a trial cannot be read: [^\n]+", str(caught.value))
    assert "start the trial again" in str(caught.value.hint)


def test_the_version_is_told_before_anything_else_is_looked_at() -> None:
    with pytest.raises(ArtifactError, match="its version is '1', expected '2'"):
        TrialCheckpoint.from_bytes(HOSTILE["another version"])


def forged(state: str) -> bytes:
    """A file with a right checksum."""
    arrays = dict(SMALL.arrays)
    return save_arrays(arrays, {"checkpoint_version": "2", "state": state, "crc32": checksum(state, arrays)})


def state_of(content: bytes) -> dict[str, Any]:
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    state: dict[str, Any] = json.loads(header["__metadata__"]["state"])
    return state


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda state: state.update(num_epochs=3), "3 epochs, but 2 of the schedule"),
        (lambda state: state.update(num_epochs="2"), "progress.num_epochs: .*integer"),
        (lambda state: state["best"].update(iteration=21), "minibatch 21 of 20"),
        (lambda state: state["best"].update(loss=1.5), "a best validation of 1.5"),
        (lambda state: state["best"].update(nll=math.inf), "its state has Infinity in it"),
        (lambda state: state["best"].update(nll=math.nan), "its state has NaN in it"),
        (lambda state: state["schedule"].update(best_zero_one=1.5), "a schedule's best validation of 1.5"),
        (lambda state: state["schedule"].update(num_stale_epochs=9), "9 stale epochs"),
        (lambda state: state.pop("schedule"), "progress.schedule: Field required"),
        (lambda state: state["settings"]["training"].update(learning_rate=-1), "learning_rate: .*greater than 0"),
        (lambda state: state["settings"]["training"].update(colour="red"), "colour: Extra inputs"),
    ],
)
def test_a_state_that_no_trial_can_have_is_refused(change: Callable[[dict[str, Any]], object], what: str) -> None:
    state = state_of(SMALL.to_bytes())
    assert_same(TrialCheckpoint.from_bytes(forged(json.dumps(state))), SMALL)
    change(state["progress"])
    with pytest.raises(ArtifactError, match=f"cannot be read: .*{what}"):
        TrialCheckpoint.from_bytes(forged(json.dumps(state)))


@pytest.mark.parametrize(
    "state", ["", "null", "[]", "{", '{"extra":' + "[" * 10**5, '{"extra": 1' + "0" * 10**5 + "}", '{"extra": 1e999}']
)
def test_a_state_that_is_none_is_refused(state: str) -> None:
    with pytest.raises(ArtifactError, match="cannot be read: "):
        TrialCheckpoint.from_bytes(forged(state))
