"""`hpsearch health`: the health check of a worker's container. It imports nothing that takes time."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hpsearch import environment
from hpsearch.cli.seconds import check_seconds
from hpsearch.console.notice import show_line
from hpsearch.errors import InputError
from hpsearch.worker.health.life_sign import check_life_sign


def health(
    life_sign: Annotated[
        Path | None,
        typer.Option(metavar="FILE", envvar=environment.LIFE_SIGN, help="Where the worker writes its life sign."),
    ] = None,
    max_age: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            min=0.0,
            callback=check_seconds,
            show_default="what the worker allows itself, 600 or ten of its epochs",
            help=f"How old it may be. {environment.LIFE_SIGN_MAX_AGE} tells the worker what to allow itself.",
        ),
    ] = None,
) -> None:
    """Say whether the worker of this container is at work: exit code 0, or 1 when its life sign is old or missing.

    Its age counts from the last epoch (or part of one), look around, or beginning of a wait.
    """
    if life_sign is None:
        raise InputError(
            "which life sign? the worker writes none unless it is told where",
            hint=f"set {environment.LIFE_SIGN} to a file, for the worker and for its health check",
        )
    show_line(check_life_sign(life_sign.expanduser(), max_age_seconds=max_age).describe())
