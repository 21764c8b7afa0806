"""Of a pickle only numpy arrays come out; whatever else it asks for is refused, and none of it runs."""

from __future__ import annotations

import base64
import os
import pickle
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hpsearch.data.files.restricted_pickle import DICTIONARIES, ArrayRecord, RefusedPickleError, unpickle_arrays

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)

# Three pairs like mnist.pkl.gz's, by cPickle of Python 2.7.18 with numpy 1.16.6, then zlib and base64:
# images of zeros but for images[i, i] = label / 8 and images[i, 783] = 1; labels 0 and 1, then 2, then 3.
PYTHON_2_PROTOCOL_0 = (
    "eNrt3cFK41AUBuD9eZFkY8lt6zQDoutsurBbQWzsBEFriLdg334yWnQQURgGZoRv8S3C/ZMc7v7nlGW73d31+0l7P2wmd7vbfHM1"
    "DFf7uBw27f32IQ+7Nkef4pCL7fXzeT+Nsqkir4p1Efm8n42PY6qZRrOo55EP8eu87zfRz6NcFT/mRYyvjLExfzxmZ7EqTopYLpfN"
    "UYon4xfXTVWNBxePVQUAAAAAAAAAAAAAAPB/qquzjwKnbggAAAAAAAAAAAAAAPinzYci8rpLUXZv9kt8e9kvkbunbRI39W/bJBZ/"
    "YZtE+uj811i5fG+w+jBYOiy+6I7j7S9rnQ0AAAAAAAAAAAAAAOCLdDi+v1Qlcrd4bUlM/6x4karPmxet5gUAAAAAAAAAAAAAAPBF"
    "mhcpvV+9mH1avch9msbkJ27tg5Q="
)
PYTHON_2_PROTOCOL_2 = (
    "eNrt2TFPwkAYxvHeFQQrA6MfgakTg4NRZy92MNxsaCkpiRR6XoduXQrpt/KbKZQaNJFomP+/ob3k3rxNuj15Shml+XJd+NHKxP4y"
    "f7WLqTHTwnsxcbRK36zJI+tl4jDlpbPDbSaVU2kRbp8zd6SEkk9Dd9POzGyxjr2so+V8rBwldjPdkXK1uA2C4PFjp3kox4b1pLx2"
    "AAAAAOCfyvv2cMe/AAAAAPBXfrBhIpJjoXHRFBpV0tFycdMWGL1TBYYefu0R7duGmx/r+vt1Yt+PJN168jBovklWAQAAAHBOXrls"
    "AkaV9GrdlydCiPdLCHknhAAAAAA4J4RcfQsh7jGEbLOB/wmvJWrJ"
)


def build(record: object) -> np.ndarray:
    assert isinstance(record, ArrayRecord)
    return record.build()


def array_pickle(*, shape: object = (2,), code: object = "f4", dtype_state: object = None, raw: object = None):
    """A pickle of one array, written by hand so that each of its parts can be wrong."""

    class Dtype:
        def __reduce__(self) -> tuple[object, ...]:
            return np.dtype, (code, False, True), dtype_state or (3, "<", None, None, None, -1, -1, 0)

    class Array:
        def __reduce__(self) -> tuple[object, ...]:
            state = (1, shape, Dtype(), False, bytes(8) if raw is None else raw)
            return np.zeros(0).__reduce__()[0], (np.ndarray, (0,), b"b"), state

    return pickle.dumps(Array(), 2)


class Calls:
    """Pickles as a call of any function with any arguments."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize("text", [PYTHON_2_PROTOCOL_0, PYTHON_2_PROTOCOL_2])
def test_pickles_of_python_2_are_read(text: str) -> None:
    parts = unpickle_arrays(zlib.decompress(base64.b64decode(text)))
    assert isinstance(parts, tuple)
    label = 0
    for images_record, labels_record in parts:
        images, labels = build(images_record), build(labels_record)
        expected = np.zeros((len(labels), 784), dtype=np.float32)
        expected[:, 783] = 1
        for row in range(len(labels)):
            expected[row, row] = (label + row) / 8
        np.testing.assert_array_equal(images, expected)
        np.testing.assert_array_equal(labels, label + np.arange(len(labels)))
        assert (images.dtype, labels.dtype) == (np.float32, np.int64)
        label += len(labels)
    assert label == 4


numbers = st.sampled_from(["<f4", ">f4", "<f8", "|u1", "<i4", ">i8"]).map(np.dtype)
any_array = numbers.flatmap(lambda dtype: arrays(dtype, st.tuples(st.integers(1, 4), st.integers(1, 5))))


@given(array=any_array, protocol=st.sampled_from(PROTOCOLS), is_fortran=st.booleans())
def test_an_array_comes_back_as_it_was_pickled(array: np.ndarray, protocol: int, is_fortran: bool) -> None:
    array = np.asarray(array, order="F" if is_fortran else "C")
    for pickled in (array, array[0]):
        back = build(unpickle_arrays(pickle.dumps(pickled, protocol)))
        assert back.dtype == pickled.dtype
        np.testing.assert_array_equal(back, pickled)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_tuples_and_lists_keep_their_form(protocol: int) -> None:
    array = np.arange(3.0)
    back = unpickle_arrays(pickle.dumps([(array, array), [array]], protocol))
    assert isinstance(back, list)
    (first, second), (third,) = back
    assert first is second  # one array, mentioned twice
    np.testing.assert_array_equal(build(third), array)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_command_is_refused_by_its_name_and_does_not_run(tmp_path: Path, protocol: int) -> None:
    witness = tmp_path / "witness"
    content = pickle.dumps((np.zeros(2), Calls(os.mkdir, str(witness))), protocol)
    with pytest.raises(RefusedPickleError, match=r"the name '(posix|os)\.mkdir'"):
        unpickle_arrays(content)
    assert not witness.exists()
    pickle.loads(content)  # what it would have done
    assert witness.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("builtins", "eval"),
        ("__builtin__", "eval"),
        ("builtins", "getattr"),
        ("builtins", "bytes"),
        ("subprocess", "Popen"),
        ("numpy", "load"),
        ("numpy", "ndarray.tofile"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy.core.multiarray", "fromfile"),
        ("numpy._core.numeric", "fromfunction"),
        ("_codecs", "lookup"),
        ("codecs", "encode"),
        ("hpsearch.data.files.restricted_pickle", "unpickle_arrays"),
        ("copyreg", "_reconstructor"),
        ("", ""),
    ],
)
@pytest.mark.parametrize("is_stack_global", [True, False])
def test_a_name_that_no_array_needs_is_refused(module: str, name: str, is_stack_global: bool) -> None:
    if is_stack_global:
        texts = (bytes([0x8C, len(text)]) + text.encode() for text in (module, name))
        content = b"\x80\x04" + b"".join(texts) + b"\x93)R."
    else:
        content = f"c{module}\n{name}\n)R.".encode()
    with pytest.raises(RefusedPickleError, match=f"the name '{module}.{name}'"):
        unpickle_arrays(content)


def test_arrays_of_objects_and_structured_arrays_are_refused() -> None:
    with pytest.raises(RefusedPickleError, match="number type 'O8'"):
        unpickle_arrays(pickle.dumps(np.array(["x", None])))
    with pytest.raises(RefusedPickleError, match="number type 'V8'"):
        unpickle_arrays(pickle.dumps(np.zeros(2, dtype=[("a", "f4"), ("b", "i4")])))
    with pytest.raises(RefusedPickleError, match="structured number type"):
        unpickle_arrays(array_pickle(dtype_state=(3, "|", None, ("a",), (), 8, 1, 0)))


@pytest.mark.parametrize("code", ["f2", "c8", "U4", "M8", "O", "f4,O", 4, None, ("f4",)])
def test_other_number_types_are_refused(code: object) -> None:
    with pytest.raises(RefusedPickleError, match="number type"):
        unpickle_arrays(array_pickle(code=code))


@pytest.mark.parametrize("order", ["x", "", None, ["<"]])
def test_other_byte_orders_are_refused(order: object) -> None:
    with pytest.raises(RefusedPickleError, match="a number type of state"):
        unpickle_arrays(array_pickle(dtype_state=(3, order, None, None, None, -1, -1, 0)))


@pytest.mark.parametrize("function", [np.ndarray, np.zeros(0).__reduce__()[0]])
def test_a_call_that_would_allocate_a_terabyte_allocates_nothing(function: Callable[..., object]) -> None:
    shape = (10**12,)
    arguments = (shape,) if function is np.ndarray else (np.ndarray, shape, b"b")
    tracemalloc.start()
    try:
        with pytest.raises(RefusedPickleError, match=r"1000000000000"):
            unpickle_arrays(pickle.dumps(Calls(function, *arguments)))
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "shape",
    [(3,), (10**12,), (2**64, 2**64), (-2,), (-1, -2), (True, 2), ("2",), [2], 2, None, (1, 1, 2), ()],
)
def test_a_shape_that_does_not_fit_the_bytes_is_refused(shape: object) -> None:
    record = unpickle_arrays(array_pickle(shape=shape))
    with pytest.raises(RefusedPickleError, match="an array of shape"):
        build(record)


@pytest.mark.parametrize("raw", [bytes(7), bytes(9), "", "\0" * 7, [1, 2], 8])
def test_bytes_that_do_not_fit_the_shape_are_refused(raw: object) -> None:
    assert build(unpickle_arrays(array_pickle())).shape == (2,)  # with eight bytes it is an array
    record = unpickle_arrays(array_pickle(raw=raw))
    with pytest.raises(RefusedPickleError, match="an array"):
        build(record)


def test_an_array_whose_state_is_missing_or_none_is_refused() -> None:
    reconstruct = np.zeros(0).__reduce__()[0]
    with pytest.raises(RefusedPickleError, match="an array without shape, type and bytes"):
        build(unpickle_arrays(pickle.dumps(Calls(reconstruct, np.ndarray, (0,), b"b"))))
    content = pickle.dumps(Calls(reconstruct, np.ndarray, (0,), b"b"))
    with pytest.raises(RefusedPickleError, match="an array without shape, type and bytes"):
        unpickle_arrays(content[:-1] + b"Nb.")


@pytest.mark.parametrize("arguments", [(), (np.ndarray,), (np.ndarray, (0,), b"b", 1), (1, (0,), b"b")])
def test_an_admitted_function_with_other_arguments_is_refused(arguments: tuple[object, ...]) -> None:
    with pytest.raises(RefusedPickleError, match="numpy's _reconstruct with"):
        unpickle_arrays(pickle.dumps(Calls(np.zeros(0).__reduce__()[0], *arguments)))


def test_codecs_encode_makes_bytes_of_latin_1_and_nothing_else() -> None:
    assert unpickle_arrays(b"c_codecs\nencode\n(U\x01aU\x06latin1tR.") == b"a"
    for arguments in (b"U\x01aU\x05rot13", b"U\x01aU\x03hex", b"K\x05U\x06latin1", b"U\x01a"):
        with pytest.raises(RefusedPickleError, match=r"_codecs\.encode"):
            unpickle_arrays(b"c_codecs\nencode\n(" + arguments + b"tR.")


@pytest.mark.parametrize("name", ["numpy\nndarray", "numpy\ndtype", "_codecs\nencode"])
def test_nothing_can_be_set_on_an_admitted_name(name: str) -> None:
    with pytest.raises(RefusedPickleError, match="a change of"):
        unpickle_arrays(f"c{name}\n".encode() + b"(K\x01tb.")


@pytest.mark.parametrize(
    ("opcode", "content"),
    [
        ("INST", b"(S'id'\nios\nsystem\n."),
        ("OBJ", b"(cnumpy\nndarray\nK\x01o."),
        ("NEWOBJ", b"cnumpy\nndarray\n)\x81."),
        ("NEWOBJ_EX", b"cnumpy\nndarray\n))\x92."),
        ("EXT1", b"\x82\x01."),
        ("PERSID", b"Pid\n."),
        ("BINPERSID", b"K\x01Q."),
        ("EMPTY_DICT", b"}."),
        ("EMPTY_SET", b"\x8f."),
        ("NEXT_BUFFER", b"\x97."),
        ("LONG4", b"\x8b\x01\x00\x00\x00\x01."),
    ],
)
def test_opcodes_that_arrays_do_not_need_are_refused(opcode: str, content: bytes) -> None:
    with pytest.raises(RefusedPickleError, match=rf"the opcode {opcode}$"):
        unpickle_arrays(content)


@pytest.mark.parametrize(
    "content",
    [
        b"K\x01r" + struct.pack("<I", 2**31 - 1) + b"0.",  # memo: the C unpickler would allocate 34 GB
        b"\x96" + struct.pack("<Q", 2**27) + b"abc.",  # a bytearray: Python's own handler allocates it
        b"\x96" + struct.pack("<Q", 2**62) + b"abc.",
        b"B" + struct.pack("<I", 2**31) + b"abc.",
        b"\x8e" + struct.pack("<Q", 2**62) + b"abc.",
        b"\x95" + struct.pack("<Q", 2**62) + b"abc.",  # a frame
    ],
)
def test_a_claimed_size_allocates_nothing(content: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(RefusedPickleError, match=r"damaged|the opcode POP"):
            unpickle_arrays(content)
        assert tracemalloc.get_traced_memory()[1] < 10**6
    finally:
        tracemalloc.stop()


def test_a_flood_of_opcodes_is_stopped() -> None:
    with pytest.raises(RefusedPickleError, match="more than 10000 opcodes"):
        unpickle_arrays(b"(" * 10_001)


def test_tuples_that_double_a_hundred_times_are_refused_at_once() -> None:
    """By reference they are small; a full repr, comparison or hash of them would never end."""
    doubling = b"(K\x01K\x02t" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(100))
    reconstruct = b"cnumpy.core.multiarray\n_reconstruct\n"
    for content in (
        reconstruct + doubling + b"R.",
        reconstruct + b"(cnumpy\nndarray\n" + doubling + b"U\x01btR.",
        b"cnumpy\ndtype\n(" + doubling + b"K\x00K\x01tR.",
        b"cnumpy\ndtype\n(U\x02f4K\x00K\x01tR(K\x03" + doubling + b"NNNtb.",
    ):
        with pytest.raises(RefusedPickleError, match=r"with|number type"):
            unpickle_arrays(content)


def test_a_pickle_cut_short_anywhere_is_refused() -> None:
    content = pickle.dumps((np.zeros(3), np.ones(2)), 4)
    for length in range(len(content)):
        with pytest.raises(RefusedPickleError, match="damaged"):
            unpickle_arrays(content[:length])


@given(content=st.binary(max_size=60), start=st.sampled_from([b"", b"\x80\x02", b"cnumpy\ndtype\n", b"(K\x01"]))
def test_any_bytes_are_refused_or_plain_values(content: bytes, start: bytes) -> None:
    try:
        value = unpickle_arrays(start + content)
    except RefusedPickleError:
        return
    assert type(value).__module__ in ("builtins", "hpsearch.data.files.restricted_pickle")


# Dictionaries, for CIFAR


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_dictionaries_of_arrays_numbers_and_text_are_read_by_their_own_rules(protocol: int) -> None:
    document = {b"data": np.arange(6, dtype=np.uint8).reshape(2, 3), "labels": [3, 70_000], b"names": [b"cat", "dog"]}
    found = unpickle_arrays(pickle.dumps(document, protocol), DICTIONARIES)
    assert isinstance(found, dict)
    np.testing.assert_array_equal(build(found.pop(b"data")), document.pop(b"data"))
    assert found == document


def test_the_strict_rules_refuse_dictionaries() -> None:
    with pytest.raises(RefusedPickleError, match="the opcode EMPTY_DICT"):
        unpickle_arrays(pickle.dumps({"a": 1}, 2))


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps({1: 2}, 2),  # numbers of one hash make a dictionary slow
        pickle.dumps({("a",): 2}, 2),
        b"}(X\x01\x00\x00\x00aK\x01K\x02K\x03u.",
        b"]X\x01\x00\x00\x00aK\x01s.",  # set on a list
        b"cnumpy\ndtype\nX\x01\x00\x00\x00aK\x01s.",  # set on a name
        b"(K\x01K\x02d.",
    ],
)
def test_other_keys_and_things_to_set_them_on_are_refused(content: bytes) -> None:
    with pytest.raises(RefusedPickleError, match="a dictionary whose keys are not text"):
        unpickle_arrays(content, DICTIONARIES)


def test_a_dictionary_of_many_keys_is_refused() -> None:
    with pytest.raises(RefusedPickleError, match="a dictionary of more than 100 keys"):
        unpickle_arrays(pickle.dumps({str(number): 0 for number in range(101)}, 2), DICTIONARIES)


def test_the_rules_of_dictionaries_have_a_bound_of_their_own_and_no_new_names() -> None:
    many = b"](" + b"K\x01" * DICTIONARIES.max_opcodes + b"e."
    with pytest.raises(RefusedPickleError, match="more than 400000 opcodes"):
        unpickle_arrays(many, DICTIONARIES)
    for content in (pickle.dumps({"a": Calls(os.system, "true")}, 2), pickle.dumps({"a": {1, 2}}, 4)):
        with pytest.raises(RefusedPickleError):
            unpickle_arrays(content, DICTIONARIES)
