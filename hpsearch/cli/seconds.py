"""Numbers of seconds on the command line; apart from the other options, which import what the health check need not."""

from __future__ import annotations

import math

import typer

MOST_SECONDS = 1e9  # what a system call can wait for, and more than anybody means


def check_seconds(seconds: float | None) -> float | None:
    """Refuse NaN, which is neither below a bound nor above it."""
    if seconds is not None and math.isnan(seconds):
        raise typer.BadParameter("nan is no number of seconds")
    return seconds
