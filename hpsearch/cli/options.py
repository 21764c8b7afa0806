"""Options that several commands share, each with its environment variable.

A command imports what takes time (torch, Optuna, SQLAlchemy) inside its function, after its input has been checked, so
that errors in the input and `--help` appear at once.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hpsearch import environment
from hpsearch.cli.seconds import MOST_SECONDS, check_seconds
from hpsearch.dashboard.hosts import host_of
from hpsearch.errors import InputError
from hpsearch.logs import take_over_logger
from hpsearch.results.selection import Selection
from hpsearch.worker.options import (
    DEFAULT_CHECKPOINT_SECONDS,
    DEFAULT_STALL_SECONDS,
    MetricsAddress,
    WorkerOptions,
    parse_lanes,
)

if TYPE_CHECKING:
    from hpsearch.store.connection.database import Database

StudyFile = Annotated[Path, typer.Argument(metavar="STUDY.toml", help="The study file.", show_default=False)]
StudyName = Annotated[str, typer.Argument(metavar="STUDY", help="The study's name.", show_default=False)]
OptionalStudyName = Annotated[
    str | None, typer.Argument(metavar="[STUDY]", help="The study's name; all studies if left out.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a value of the study file; may be repeated."),
]
Checks = Annotated[bool, typer.Option("--check/--no-check", help="Look at the data before the study is created.")]
Storage = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        envvar=environment.STORAGE,
        show_default="an embedded PostgreSQL, started when needed",
        help="URL of the study database: postgresql://USER:PASSWORD@HOST:5432/DATABASE. The password can also be read "
        f"from the file that {environment.STORAGE_PASSWORD_FILE} names.",
    ),
]
Point = Annotated[
    Selection | None,
    typer.Option(
        show_default="confirmed once a confirmation is finished, else best",
        help="The best point of the search, or the one that `hpsearch confirm` chose.",
    ),
]
Device = Annotated[
    str, typer.Option(metavar="auto|cpu|cuda:N", envvar=environment.DEVICE, help="The device to train on.")
]
WaitForGpu = Annotated[
    bool,
    typer.Option(
        "--wait-for-gpu/--no-wait-for-gpu",
        envvar=environment.WAIT_FOR_GPU,
        help="If all GPUs are taken, wait until one is free, or end with exit code 3.",
    ),
]
ShareGpu = Annotated[
    bool,
    typer.Option(
        "--share-gpu",
        envvar=environment.SHARE_GPU,
        help="Share the GPU with other workers that were started with this option.",
    ),
]
Commands = Annotated[
    bool,
    typer.Option(
        "--commands",
        help="Run the program of a study whose trials are programs; it has your rights. Or set HPSEARCH_COMMANDS=1.",
    ),
]
Lanes = Annotated[
    str,
    typer.Option(
        metavar="N|auto",
        envvar=environment.LANES,
        help="Number of trials that a worker trains at once; auto: the fastest number, learned in training.",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=256,
        envvar=environment.WORKERS,
        show_default="one per GPU, or one",
        help="Number of worker processes.",
    ),
]
On = Annotated[
    str | None,
    typer.Option(
        "--on",
        metavar="ray|ray://HOST:PORT",
        envvar=environment.ON,
        show_default="this machine",
        help="Run the workers on a Ray cluster: the one that RAY_ADDRESS names or this machine belongs to, or another.",
    ),
]
Artifacts = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER|s3://BUCKET/PREFIX",
        envvar=environment.ARTIFACTS,
        show_default="a folder in hpsearch's home",
        help="Where best parameters and checkpoints are stored.",
    ),
]
Metrics = Annotated[
    str | None,
    typer.Option(
        metavar="[HOST:]PORT",
        envvar=environment.METRICS,
        show_default="not served",
        help="Serve /metrics (Prometheus) and /healthz at this address; without HOST, for this machine only. Port 0 "
        "takes a free port. Each further local worker takes the next port.",
    ),
]
CheckpointSeconds = Annotated[
    float,
    typer.Option(
        metavar="SECONDS",
        min=0.0,
        max=MOST_SECONDS,
        callback=check_seconds,
        envvar=environment.CHECKPOINT_SECONDS,
        help="Time between two checkpoints of all lanes; 0: only when the worker is stopped.",
    ),
]
StallSeconds = Annotated[
    float,
    typer.Option(
        metavar="SECONDS",
        min=1.0,
        max=MOST_SECONDS,
        callback=check_seconds,
        envvar=environment.STALL_SECONDS,
        help="A worker that finishes no minibatch in this time ends, because its device or network hangs; other "
        "workers take over its points.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print a JSON document on stdout.")]


@contextlib.contextmanager
def open_storage(url: str | None) -> Iterator[Database]:
    """Open the database with this URL, or the embedded one, which runs as long as it has users."""
    from hpsearch.store.connection import database
    from hpsearch.store.connection.answer_limit import limit_answers

    take_over_logger("optuna")
    limit_answers()
    with database.open_storage(url) as opened:
        yield opened


def with_worker_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of a worker, in place of its parameter `worker`, which receives their value."""
    own, shared = (inspect.signature(function, eval_str=True) for function in (command, _worker_options))

    @functools.wraps(command)
    def call(**arguments: Any) -> None:
        worker = _worker_options(**{name: arguments.pop(name) for name in shared.parameters})
        command(worker=worker, **arguments)

    parameters = [
        parameter
        for name, one in own.parameters.items()
        for parameter in (shared.parameters.values() if name == "worker" else (one,))
    ]
    call.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


def _worker_options(
    *,
    device: Device = "auto",
    lanes: Lanes = "auto",
    artifacts: Artifacts = None,
    wait_for_gpu: WaitForGpu = True,
    share_gpu: ShareGpu = False,
    checkpoint_seconds: CheckpointSeconds = DEFAULT_CHECKPOINT_SECONDS,
    stall_seconds: StallSeconds = DEFAULT_STALL_SECONDS,
    metrics: Metrics = None,
) -> WorkerOptions:
    return WorkerOptions(
        device=device,
        lanes=parse_lanes(lanes),
        artifacts=artifacts,
        waits_for_gpu=wait_for_gpu,
        shares_gpu=share_gpu,
        checkpoint_seconds=checkpoint_seconds,
        stall_seconds=stall_seconds,
        metrics=MetricsAddress.parse(metrics) if metrics else None,
    )


def parse_hosts(texts: Iterable[str]) -> frozenset[str]:
    """Return names and addresses as `canonical_host` writes them; each text has one or several, separated by commas.

    Raises:
        InputError: one of them is neither a name nor an address.
    """
    hosts = set()
    for text in (part.strip() for given in texts for part in given.split(",") if part.strip()):
        host = host_of(f"[{text}]" if text.count(":") > 1 and not text.startswith("[") else text)
        if host is None or "*" in host:
            raise InputError(
                f"--allowed-host must be a name or an address, got {text!r}",
                hint="as browsers show it, without http://, for example search.example.org",
            )
        hosts.add(host)
    return frozenset(hosts)
