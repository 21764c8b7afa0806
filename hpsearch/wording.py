"""Common wording of values, names and errors in messages, tables and reports."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def first_line(error: object) -> str:
    """Return the first line of an error's text, or the name of its type if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def did_you_mean(name: str, known: Sequence[str]) -> str | None:
    """Return `did you mean "learning_rate"?`, or None if no known name is similar."""
    similar = difflib.get_close_matches(name, known, n=1)
    return f'did you mean "{similar[0]}"?' if similar else None


def value_label(value: bool | int | float | str | None, digits: int = 4) -> str:
    """Format a parameter as in a study file: 0.1, 1e-5, tanh, true; with `digits` significant digits."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, float):
        return str(value)
    mantissa, _, exponent = f"{value:.{digits}g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa
