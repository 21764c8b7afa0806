"""Parses JSON text from the database; if another program has damaged it, one line says what and where."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from enum import Enum
from typing import Any

from hpsearch.errors import StorageError

ARTIFACT_RECORD_PREFIX = "artifacts:"  # of the system attributes in which Optuna stores its artifact records
_LARGEST = sys.float_info.max  # NaN is not in this range either
_MOST_SHOWN = 60  # characters of a wrong value


def parse_stored(text: str, what: str, place: str) -> Any:
    """Parse the JSON text.

    Args:
        what: name of the object in messages: `opening 1 of the test set of study 'small'`.
        place: table and column, or key, where the text is stored.
    Raises:
        StorageError: it is not JSON; the message names both.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise damaged(what, place, "it is nested too deeply") from None
    except (ValueError, TypeError) as error:
        raise damaged(what, place, error) from error


def parse_stored_object(text: str, what: str, place: str, keys: Sequence[str] = ()) -> dict[str, Any]:
    """Parse a JSON object that has these keys. Raises the errors of `parse_stored`."""
    found = parse_stored(text, what, place)
    if not isinstance(found, dict):
        raise damaged(what, place, f"it is a {type(found).__name__}, not an object")
    missing = [key for key in keys if key not in found]
    if missing:
        raise damaged(what, place, f"{missing[0]} is missing")
    return found


def parse_stored_texts(text: str, what: str, place: str) -> dict[str, str]:
    """Parse a JSON object all of whose values are strings. Raises the errors of `parse_stored`."""
    found = parse_stored_object(text, what, place)
    for key, value in found.items():
        check_kind(value, Kind.TEXT, what, f"{place}, {key}")
    return found


class Kind(Enum):
    """The kind of a stored value, beyond its JSON type: how messages name it, and the check."""

    NUMBER = ("a finite number", lambda value: type(value) in (int, float) and -_LARGEST <= value <= _LARGEST)
    WHOLE = ("a whole number, 0 or more", lambda value: type(value) is int and 0 <= value < 2**53)
    COUNTS = ("a list of whole numbers", lambda value: isinstance(value, list) and all(type(n) is int for n in value))
    TEXT = ("a text", lambda value: isinstance(value, str))
    FLAG = ("true or false", lambda value: isinstance(value, bool))
    OBJECT = ("an object", lambda value: isinstance(value, dict))


def check_kind(value: Any, kind: Kind, what: str, place: str) -> None:
    """Raise StorageError if a stored value is of another kind; names both places as `parse_stored` does."""
    name, is_kind = kind.value
    if not is_kind(value):
        raise damaged(what, place, f"expected {name}, found {repr(value)[:_MOST_SHOWN]}")


def damaged(what: str, place: str, reason: object) -> StorageError:
    """Return the error to raise if a stored value is not one that hpsearch has written."""
    return StorageError(
        f"{what} cannot be read ({place}): {reason}",
        hint="another program has changed it: restore it from a backup of the database",
    )
