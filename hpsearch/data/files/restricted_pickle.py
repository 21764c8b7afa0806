"""A restricted unpickler: it only records the numpy arrays in a pickle and refuses everything else.

A pickle is a program. Its names are looked up in a fixed table (`_ADMITTED_NAMES`) of objects that only record the
arguments that numpy would have received; opcodes that arrays do not need are refused. `ArrayRecord.build` then checks
the record and makes a numpy array of it. `forms/pickled` reads mnist.pkl.gz with this module, and `forms/cifar` the
batches of CIFAR, which are dictionaries and have rules of their own.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

_DTYPE_CODES = frozenset({"f4", "f8", "u1", "i4", "i8"})
_BYTE_ORDERS = frozenset("<>|=")
# fmt: off
_ADMITTED_OPCODES = frozenset({
    "PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE",
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
    "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "LIST", "APPEND", "APPENDS",
    "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET",
    "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD",
})
_DICT_OPCODES = frozenset({"EMPTY_DICT", "DICT", "SETITEM", "SETITEMS"})
# fmt: on
_MAX_KEYS = 100  # of one dictionary; CIFAR's have five


@dataclass(frozen=True, kw_only=True, slots=True)
class PickleRules:
    """What a pickle may contain besides numpy arrays, tuples, lists, numbers and text.

    Args:
        opcodes: names of the admitted opcodes (`pickletools.opcodes`).
        max_opcodes: a gigabyte of small opcodes would exhaust memory.
    """

    opcodes: frozenset[str]
    max_opcodes: int


ARRAYS_ONLY = PickleRules(opcodes=_ADMITTED_OPCODES, max_opcodes=10_000)  # three pairs of arrays need two hundred
# CIFAR's batches have two numbers and a file name, which are four opcodes, for each of at most 50,000 images.
DICTIONARIES = PickleRules(opcodes=_ADMITTED_OPCODES | _DICT_OPCODES, max_opcodes=400_000)


class RefusedPickleError(Exception):
    """The pickle contains something other than numpy arrays, or is damaged. The message says what."""


class ArrayRecord:
    """The record of one array in a pickle. `raw` is its bytes, or from Python 2 a str of them (Latin-1)."""

    __slots__ = ("dtype", "is_fortran", "raw", "shape")

    def __init__(self) -> None:
        self.dtype: DtypeRecord | None = None
        self.shape: object = None
        self.is_fortran: object = False
        self.raw: object = None

    def __setstate__(self, state: object) -> None:
        # (version, shape, dtype, is_fortran, raw) of numpy.ndarray.__setstate__
        if not (isinstance(state, tuple) and len(state) == 5 and isinstance(state[2], DtypeRecord)):
            raise RefusedPickleError("an array without shape, type and bytes")
        _, self.shape, self.dtype, self.is_fortran, self.raw = state

    def build(self) -> NDArray[Any]:
        """Make the array: read-only, with the byte order of the pickle.

        Raises:
            RefusedPickleError: shape, type and bytes are missing or inconsistent.
        """
        raw = self.raw.encode("latin-1") if isinstance(self.raw, str) else self.raw
        shape = self.shape
        if self.dtype is None or not isinstance(raw, bytes | bytearray):
            raise RefusedPickleError("an array without shape, type and bytes")
        if not (isinstance(shape, tuple) and len(shape) <= 2 and all(type(size) is int and size > 0 for size in shape)):
            raise RefusedPickleError(f"an array of shape {_shorten(shape)}")
        dtype = self.dtype.build()
        expected_bytes = math.prod(shape) * dtype.itemsize
        if len(raw) != expected_bytes:
            raise RefusedPickleError(
                f"an array of shape {_shorten(shape)} and type {dtype.str}: expected {expected_bytes} bytes, "
                f"found {len(raw)}"
            )
        return np.frombuffer(raw, dtype=dtype).reshape(shape, order="F" if self.is_fortran else "C")


class DtypeRecord:
    """The record of a number type in a pickle."""

    __slots__ = ("byte_order", "code")

    def __init__(self, code: str) -> None:
        self.code = code
        self.byte_order = "<" if code != "u1" else "|"

    def __setstate__(self, state: Any) -> None:
        # (version, byte order, subarray, names, fields, ...) of numpy.dtype.__setstate__
        order = state[1] if isinstance(state, tuple) and len(state) >= 5 else None
        if not (isinstance(order, str) and order in _BYTE_ORDERS):
            raise RefusedPickleError(f"a number type of state {_shorten(state)}")
        if any(part is not None for part in state[2:5]):
            raise RefusedPickleError("a structured number type")
        self.byte_order = order

    def build(self) -> np.dtype[Any]:
        return np.dtype(self.byte_order + self.code)


class _Admitted:
    """A placeholder for a name that a pickle may use. It can be called, but its state cannot be set."""

    __slots__ = ("_call", "_name")

    def __init__(self, name: str, call: Callable[..., object] | None = None) -> None:
        self._name = name
        self._call = call

    def __call__(self, *arguments: object) -> object:
        try:
            if self._call is not None:
                return self._call(*arguments)
        except TypeError:  # the wrong number of arguments
            pass
        raise RefusedPickleError(f"a call of {self._name} with {_shorten(arguments)}")

    def __setstate__(self, state: object) -> None:
        raise RefusedPickleError(f"a change of {self._name}")


def _reconstruct(subtype: object, shape: object, typecode: object, /) -> ArrayRecord:
    # numpy always requests an empty array of bytes here and sets its state later.
    if subtype is not _NDARRAY or shape != (0,) or typecode not in ("b", b"b"):
        raise RefusedPickleError(f"numpy's _reconstruct with shape {_shorten(shape)}")
    return ArrayRecord()


def _make_dtype(code: object, _align: object, _copy: object, /) -> DtypeRecord:
    if not isinstance(code, str) or code not in _DTYPE_CODES:
        raise RefusedPickleError(f"an array of number type {_shorten(code)}")
    return DtypeRecord(code)


def _from_buffer(raw: object, dtype: object, shape: object, order: object, /) -> ArrayRecord:
    record = ArrayRecord()
    record.__setstate__((1, shape, dtype, order == "F", raw))
    return record


def _encode(text: object, encoding: object, /) -> bytes:
    # Python 3 writes bytes in this form in protocols 0 to 2.
    if not isinstance(text, str) or encoding != "latin1":
        raise RefusedPickleError(f"_codecs.encode to {_shorten(encoding)}")
    return text.encode("latin-1")


_NDARRAY = _Admitted("numpy.ndarray")
_RECONSTRUCT = _Admitted("numpy's _reconstruct", _reconstruct)
_FROM_BUFFER = _Admitted("numpy's _frombuffer", _from_buffer)
_ADMITTED_NAMES: Mapping[tuple[str, str], _Admitted] = MappingProxyType(
    {
        ("numpy", "ndarray"): _NDARRAY,
        ("numpy", "dtype"): _Admitted("numpy.dtype", _make_dtype),
        ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
        ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,  # since numpy 2
        ("numpy.core.numeric", "_frombuffer"): _FROM_BUFFER,  # pickle protocol 5
        ("numpy._core.numeric", "_frombuffer"): _FROM_BUFFER,
        ("_codecs", "encode"): _Admitted("_codecs.encode", _encode),
    }
)


def unpickle_arrays(content: bytes, rules: PickleRules = ARRAYS_ONLY) -> object:
    """Read a pickle of tuples and lists of numpy arrays, of any protocol, from Python 2 or 3.

    Args:
        rules: `DICTIONARIES` also admits dictionaries whose keys are text or bytes.
    Returns:
        The same tuples, lists and dictionaries with an `ArrayRecord` in place of each array.
    Raises:
        RefusedPickleError: the pickle contains anything else. Nothing in it has been imported or called.
    """
    try:
        return _InertUnpickler(content, rules).load()
    except RefusedPickleError:
        raise
    # A damaged or hostile pickle can raise any exception, according to the documentation of the pickle module.
    except Exception as error:
        raise RefusedPickleError(f"damaged or no pickle at all ({type(error).__name__}: {str(error)[:80]})") from error


def _load_bytearray(unpickler: Any) -> None:
    # Python's own handler allocates the length that the pickle claims before it reads the bytes.
    unpickler.append(unpickler.read(int.from_bytes(unpickler.read(8), "little")))


def _load_dict(unpickler: Any) -> None:
    items = unpickler.pop_mark()
    unpickler.append({})
    _set_items(unpickler, items)


def _load_setitem(unpickler: Any) -> None:
    value, key = unpickler.stack.pop(), unpickler.stack.pop()
    _set_items(unpickler, [key, value])


def _load_setitems(unpickler: Any) -> None:
    _set_items(unpickler, unpickler.pop_mark())


def _set_items(unpickler: Any, items: list[object]) -> None:
    """Set keys and values in turn in the dictionary on the stack. Many keys could be made to have one hash."""
    target = unpickler.stack[-1]
    if type(target) is not dict or not all(type(key) in (str, bytes) for key in items[::2]):
        raise RefusedPickleError("a dictionary whose keys are not text")
    target.update(zip(items[::2], items[1::2], strict=True))
    if len(target) > _MAX_KEYS:
        raise RefusedPickleError(f"a dictionary of more than {_MAX_KEYS} keys")


_OPCODE_NAMES: Mapping[int, str] = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
_HANDLERS: Mapping[int, Callable[[Any], None]] = {
    **pickle._Unpickler.dispatch,
    pickle.BYTEARRAY8[0]: _load_bytearray,
    pickle.DICT[0]: _load_dict,
    pickle.SETITEM[0]: _load_setitem,
    pickle.SETITEMS[0]: _load_setitems,
}


class _AdmittedHandlers(dict[int, Callable[[Any], None]]):
    """The handlers of the admitted opcodes. The unpickler looks one up for each opcode of the pickle."""

    def __init__(self, rules: PickleRules) -> None:
        super().__init__({code: _HANDLERS[code] for code in _HANDLERS if _OPCODE_NAMES[code] in rules.opcodes})
        self._max_opcodes = rules.max_opcodes
        self._num_opcodes = 0

    def __getitem__(self, code: int) -> Callable[[Any], None]:
        self._num_opcodes += 1
        if self._num_opcodes > self._max_opcodes:
            raise RefusedPickleError(f"more than {self._max_opcodes} opcodes")
        return super().__getitem__(code)

    def __missing__(self, code: int) -> NoReturn:
        raise RefusedPickleError(f"the opcode {_OPCODE_NAMES[code]}")


# The Python implementation of the unpickler, not the one in C: a single hostile index (LONG_BINPUT) makes the memo of
# the C implementation allocate 34 GB. Speed does not matter: there are few opcodes, and one has all bytes of an array.
class _InertUnpickler(pickle._Unpickler):
    def __init__(self, content: bytes, rules: PickleRules) -> None:
        # Latin-1 preserves the bytes of Python 2 strings.
        super().__init__(io.BytesIO(content), fix_imports=False, encoding="latin-1")
        self.dispatch = _AdmittedHandlers(rules)  # type: ignore[misc]  # of this pickle only, for it counts

    def find_class(self, module: str, name: str) -> object:
        try:
            return _ADMITTED_NAMES[module, name]
        except KeyError:
            raise RefusedPickleError(f"the name {_shorten(module + '.' + name)}") from None


class _ShortRepr(reprlib.Repr):
    """A repr of bounded depth and length: the full repr of a few shared nested tuples can exhaust memory."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 2
        self.maxstring = 80

    def repr_bytes(self, value: bytes, _level: int) -> str:
        return repr(value[: self.maxstring])


def _shorten(value: object) -> str:
    return _ShortRepr().repr(value)
