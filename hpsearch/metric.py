"""The metric that a study is judged by: the validation zero-one loss, stored as a fraction and shown in percent.

Messages, tables and plots take its name, direction and format from here.
"""

from __future__ import annotations

from typing import Final, Literal

NAME = "validation error"
TEST_NAME = "test error"
DIRECTION: Final[Literal["minimize"]] = "minimize"


def in_percent(fraction: float) -> float:
    """Return the fraction in percent, rounded to 4 decimal places, which is finer than one image in 10,000."""
    return round(100.0 * fraction, 4)


def error_text(fraction: float | None, deviation: float | None = None) -> str:
    """Return an error as text: `8.20 %`, with a standard deviation `8.20 % +- 0.42`; `-` if there is none."""
    if fraction is None:
        return "-"
    return f"{_rounded(fraction)} %" + ("" if deviation is None else f" +- {_rounded(deviation)}")


def interval_text(interval: tuple[float, float]) -> str:
    """Return an interval of errors as text: `5.43 to 12.21 %`."""
    return f"{_rounded(interval[0])} to {_rounded(interval[1])} %"


def _rounded(fraction: float) -> str:
    return f"{fraction:.2%}".removesuffix("%")
