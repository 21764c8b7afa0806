"""Options that several commands share, each with its environment variable, and what they stand for."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer

from hpsearch.errors import InputError
from hpsearch.service.database import Database, open_database
from hpsearch.service.embedded import EmbeddedPostgres
from hpsearch.service.home import artifact_folder
from hpsearch.service.lane_choice import MAX_LANES

StudyFile = Annotated[Path, typer.Argument(metavar="STUDY.toml", help="The study file.", show_default=False)]
StudyName = Annotated[str, typer.Argument(metavar="STUDY", help="The study's name.", show_default=False)]
OptionalStudyName = Annotated[
    str | None, typer.Argument(metavar="[STUDY]", help="The study's name; all studies if left out.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a value of the study file; may be repeated."),
]
Storage = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        envvar="HPSEARCH_STORAGE",
        show_default="a private PostgreSQL that starts by itself",
        help="The study database, postgresql://USER:PASSWORD@HOST:5432/DATABASE.",
    ),
]
Device = Annotated[str, typer.Option(metavar="auto|cpu|cuda:N", envvar="HPSEARCH_DEVICE", help="What to train on.")]
Lanes = Annotated[
    str,
    typer.Option(
        metavar="N|auto",
        envvar="HPSEARCH_LANES",
        help="Trials trained at once by one worker; auto: as many as pay, measured on the device and remembered.",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=256,
        envvar="HPSEARCH_WORKERS",
        show_default="one per GPU, or one",
        help="Local worker processes.",
    ),
]
Artifacts = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        envvar="HPSEARCH_ARTIFACTS",
        show_default="a folder in hpsearch's home",
        help="Where best parameters are kept.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


@contextlib.contextmanager
def open_storage(url: str | None) -> Iterator[Database]:
    """The database that was named, or the embedded one; the latter runs as long as somebody uses it."""
    with contextlib.ExitStack() as stack:
        if url is None:
            url = stack.enter_context(EmbeddedPostgres.start()).url
        database = open_database(url)
        stack.callback(database.close)
        yield database


def artifacts_in(folder: Path | None) -> Path:
    """The folder that was named, or the default one, as an absolute path."""
    return folder.expanduser().absolute() if folder else artifact_folder()


def parse_lanes(text: str) -> int | None:
    """`8` or `auto` (None)."""
    if text == "auto":
        return None
    if text.isdecimal() and 1 <= int(text) <= MAX_LANES:
        return int(text)
    raise InputError(f"--lanes must be auto or a whole number from 1 to {MAX_LANES}, got {text!r}")


def default_num_workers(device: str) -> int:
    """One per visible GPU, or one."""
    if device in ("auto", "cuda") and torch.cuda.is_available():
        return max(1, torch.cuda.device_count())
    return 1


def threads_per_worker(num_workers: int) -> int:
    """CPU threads for each of several local workers: OMP_NUM_THREADS if it is set, or the usable cores shared out."""
    named = os.environ.get("OMP_NUM_THREADS", "")
    if named.isdecimal() and int(named) > 0:
        return int(named)
    return max(1, len(os.sched_getaffinity(0)) // num_workers)
