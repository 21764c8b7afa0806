"""Common wording of values, names and errors in messages, tables and reports."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime


def first_line(error: object) -> str:
    """Return the first line of an error's text, or the name of its type if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def did_you_mean(name: str, known: Sequence[str]) -> str | None:
    """Return `did you mean "learning_rate"?`, or None if no known name is similar."""
    similar = difflib.get_close_matches(name, known, n=1)
    return f'did you mean "{similar[0]}"?' if similar else None


def value_label(value: bool | int | float | str | None, digits: int = 4) -> str:
    """Format a parameter as in a study file: 0.1, 1e-5, tanh, true; with `digits` significant digits; None as -."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, float):
        return str(value)
    mantissa, _, exponent = f"{value:.{digits}g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def parameters_label(parameters: Mapping[str, bool | int | float | str]) -> str:
    """Format a point: `learning_rate 0.1, lambda_2 1e-5`."""
    return ", ".join(f"{name} {value_label(value)}" for name, value in parameters.items()) or "the only point"


def printable(text: str) -> str:
    """Replace control characters, in text from the environment or from files of other programs."""
    return "".join(character if character.isprintable() else "?" for character in text)


def counted(number: int, noun: str) -> str:
    """Return `1 point`, `3 points`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def percent(fraction: float, digits: int = 0) -> str:
    """Return `98.6 %`."""
    return f"{100 * fraction:.{digits}f} %"


def megabytes(num_bytes: int) -> str:
    """Return `12.3 MB`."""
    return f"{num_bytes / 1e6:,.1f} MB"


def times(number: int) -> str:
    """Return `once`, `3 times`."""
    return "once" if number == 1 else f"{number} times"


def format_time(moment: datetime) -> str:
    """Format a timezone-aware time in UTC, to the second: 2026-11-21T07:05:00Z."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def format_seconds(seconds: float) -> str:
    """Format a duration: `3.2 s`, `42 s`, `3 min 20 s`, `2 h 5 min`."""
    minutes, whole = divmod(round(seconds), 60)
    if not minutes:
        return f"{seconds:.2g} s"
    return f"{minutes} min {whole} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
