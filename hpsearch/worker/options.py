"""The options of a worker in one value: from the command line through the launcher to the worker's process.

Imports nothing heavy, because the command line parses the options before it knows whether they will be used.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from hpsearch import environment
from hpsearch.errors import InputError

MAX_LANES = 512
DEFAULT_CHECKPOINT_SECONDS = 60.0
DEFAULT_STALL_SECONDS = 600.0
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class MetricsAddress:
    """Where metrics are served. Port 0 takes a free port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> MetricsAddress:
        """Parse `9100`, `0.0.0.0:9100` or `[::]:9100`; without a host, only this machine is served.

        Raises:
            InputError: it is none of these.
        """
        host, colon, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]") if colon else LOOPBACK
        is_port = port.isascii() and port.isdecimal() and len(port) < 10 and int(port) <= 65535
        if not host or not host.isascii() or not is_port:
            raise InputError(
                f"--metrics must be [HOST:]PORT with a port from 0 to 65535, got {text!r:.60}",
                hint=f"9100 serves only this machine, 0.0.0.0:9100 also others; or set {environment.METRICS}",
            )
        return cls(host=host, port=int(port))

    def of_worker(self, index: int) -> MetricsAddress:
        """Return the address of one of several workers on this machine: port + index, so that each has its own port.

        Raises:
            InputError: there is no such port.
        """
        if self.port == 0:
            return self
        if self.port + index > 65535:
            raise InputError(f"--metrics {self}: worker {index} would need port {self.port + index}")
        return replace(self, port=self.port + index)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """The options of a worker; the defaults are those of the command line.

    Args:
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        lanes: number of trials trained at once; None: learned.
        artifacts: a folder or bucket; None: the default folder.
        waits_for_gpu: a worker that finds every GPU taken waits until one is free.
        shares_gpu: workers may share a GPU.
        checkpoint_seconds: between two checkpoints of all lanes; 0: only when the worker is stopped.
        stall_seconds: after this time without a minibatch, the device counts as hung, and the worker ends.
        commands: run the programs of studies whose trials are programs.
        metrics: where the first worker serves its metrics, if anywhere; each further worker uses the next port.
    """

    device: str = "auto"
    lanes: int | None = None
    artifacts: str | None = None
    waits_for_gpu: bool = True
    shares_gpu: bool = False
    checkpoint_seconds: float = DEFAULT_CHECKPOINT_SECONDS
    stall_seconds: float = DEFAULT_STALL_SECONDS
    commands: bool = False
    metrics: MetricsAddress | None = None

    @property
    def lanes_text(self) -> str:
        """The value of `--lanes`."""
        return "auto" if self.lanes is None else str(self.lanes)

    def as_arguments(self) -> list[str]:
        """Return the arguments of `hpsearch worker`, without artifacts and metrics, which differ between workers."""
        return [
            *("--device", self.device, "--lanes", self.lanes_text),
            *([] if self.waits_for_gpu else ["--no-wait-for-gpu"]),
            *(["--share-gpu"] if self.shares_gpu else []),
            *(["--commands"] if self.commands else []),
            f"--checkpoint-seconds={self.checkpoint_seconds:g}",
            f"--stall-seconds={self.stall_seconds:g}",
        ]


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """What a worker's process tells its worker, beside objects.

    Args:
        name: name of the worker in trials and logs.
        num_siblings: number of workers that were started together, including this one; they share the points.
        poll_seconds: how often an idle worker looks for points that other workers dropped.
        checkpoint_seconds: between two checkpoints of all lanes; 0 takes only the last one, when the worker is stopped.
    """

    name: str
    num_siblings: int = 1
    poll_seconds: float = 1.0
    checkpoint_seconds: float = DEFAULT_CHECKPOINT_SECONDS


def parse_lanes(text: str) -> int | None:
    """Parse `8`, or `auto` (None). Raises InputError."""
    if text == "auto":
        return None
    if text.isdecimal() and len(text) < 10 and 1 <= int(text) <= MAX_LANES:
        return int(text)
    raise InputError(f"--lanes must be auto or a whole number from 1 to {MAX_LANES}, got {text!r:.60}")
