"""What all benchmarks share: interleaved rounds, ratios with their spread, tables, and results as JSON.

A machine that others use too drifts by a factor within minutes. So whatever is compared is run in turns, one round
after the other, and a ratio is taken within each round; the table shows the median of these ratios, and how far they
lie apart.
"""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from scipy.special import stdtrit

from hpsearch.atomic_file import write_file
from hpsearch.errors import ArtifactError, HpsearchError
from hpsearch.store.studies import current_versions
from hpsearch.wording import format_time

RESULTS = Path(__file__).parent / "results"
_REPOSITORY = Path(__file__).parents[1]
_NOT_A_TERMINAL_WIDTH = 140
# What decides how fast float32 and bfloat16 arithmetic can be.
_TELLING_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16", "neon", "sve")
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "OMP_PROC_BIND", "MKL_NUM_THREADS", "KMP_BLOCKTIME")


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One quantity, measured once per round.

    Args:
        values: finite, in the order of the rounds, at least one.
        unit: "s", "x" for a ratio, "trial-epochs/s", ...
        at_least: the goal that the median is held against; None: there is none.
    """

    name: str
    unit: str
    values: tuple[float, ...]
    at_least: float | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """(max - min) / median: 0.1 is 10 percent between the lowest and the highest round."""
        return (max(self.values) - min(self.values)) / self.median if self.median else 0.0

    @property
    def is_reached(self) -> bool | None:
        """Whether the goal is met; None without one."""
        return None if self.at_least is None else self.median >= self.at_least

    def as_json(self) -> dict[str, Any]:
        goal = {} if self.at_least is None else {"at_least": self.at_least, "is_reached": self.is_reached}
        return {
            "name": self.name,
            "unit": self.unit,
            "median": self.median,
            "min": min(self.values),
            "max": max(self.values),
            "spread": self.spread,
            "n": len(self.values),
            **goal,
            "values": list(self.values),
        }


def interleave(
    contenders: Mapping[str, Callable[[], float]],
    rounds: int,
    *,
    warm_ups: int = 1,
    on_round: Callable[[int], None] | None = None,
) -> dict[str, list[float]]:
    """Run all contenders in turns and collect what they return: one value each per round.

    The order turns by one place each round, so that nobody always comes after the same neighbour.

    Args:
        contenders: name -> a call that does the work and returns its seconds (or a rate).
        warm_ups: rounds before the first that counts.
        on_round: told the number of each round that counts (from 1) when it has ended.
    """
    names = list(contenders)
    values: dict[str, list[float]] = {name: [] for name in names}
    for index in range(-warm_ups, rounds):
        shift = index % len(names)
        for name in names[shift:] + names[:shift]:
            value = contenders[name]()
            if index >= 0:
                values[name].append(value)
        if on_round is not None and index >= 0:
            on_round(index + 1)
    return values


def ratio(
    name: str, of: Sequence[float], over: Sequence[float], *, at_least: float | None = None, unit: str = "x"
) -> Measurement:
    """of / over, round by round: `ratio("lanes over eager", of=eager_seconds, over=lane_seconds)`."""
    values = tuple(a / b for a, b in zip(of, over, strict=True))
    return Measurement(name=name, unit=unit, values=values, at_least=at_least)


def mean_and_interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and half the width of its 95 % interval (Student's t); 0 for a single value."""
    if len(values) < 2:
        return statistics.mean(values), 0.0
    quantile = float(stdtrit(len(values) - 1, 0.975))
    return statistics.mean(values), quantile * statistics.stdev(values) / math.sqrt(len(values))


def machine(device: torch.device | None = None) -> dict[str, Any]:
    """What a result depends on besides the code: processor, device, versions, date, commit, load.

    Args:
        device: also describe this CUDA device.
    """
    described: dict[str, Any] = {
        "date": format_time(datetime.now(UTC)),
        "commit": _commit(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_average": [round(load, 2) for load in os.getloadavg()],  # 1, 5, 15 minutes: was the machine idle?
        "system": f"{platform.system()} {platform.machine()}",
        "versions": current_versions(),
        "torch_threads": torch.get_num_threads(),
        "thread_settings": {name: os.environ[name] for name in _THREAD_VARIABLES if name in os.environ},
    }
    if device is not None and device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        described["device"] = {
            "name": properties.name,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "multiprocessors": properties.multi_processor_count,
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        }
    return described


def write_result(
    path: Path,
    *,
    title: str,
    machine: Mapping[str, Any],
    settings: Mapping[str, Any],
    measurements: Iterable[Measurement] = (),
    details: Mapping[str, Any] | None = None,
) -> None:
    """Write one benchmark's result as JSON, whole or not at all; NaN is refused.

    Args:
        machine: from `machine()`, taken before the work: afterwards the load is the benchmark's own.
        settings: what was run: sizes, rounds, options.
        details: whatever else belongs to it, plain values.
    Raises:
        ArtifactError: the file cannot be written.
    """
    document = {
        "benchmark": path.stem,
        "title": title,
        "machine": dict(machine),
        "settings": dict(settings),
        "measurements": [measurement.as_json() for measurement in measurements],
        "details": dict(details or {}),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(f"cannot make the folder {path.parent}: {error.strerror}") from error
    # Where somebody keeps this repository says nothing about a result.
    text = json.dumps(document, indent=2, allow_nan=False).replace(f"{_REPOSITORY}/", "")
    write_file(path, text + "\n")
    say(f"wrote {path}")


def print_measurements(title: str, measurements: Iterable[Measurement]) -> None:
    """A table of measurements: median, range, spread, n, and the goal where there is one."""
    rows = []
    for one in measurements:
        goal = "" if one.at_least is None else f"at least {one.at_least:g}: {'yes' if one.is_reached else 'NO'}"
        numbers = [f"{number:.4g}" for number in (one.median, min(one.values), max(one.values))]
        rows.append([one.name, one.unit, *numbers, f"{one.spread:.0%}", str(len(one.values)), goal])
    print_table(title, ["", "unit", "median", "min", "max", "spread", "n", "goal"], rows)


def print_table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on stdout, the first column left-aligned; plain lines where stdout is not a terminal."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_NOT_A_TERMINAL_WIDTH)
    table = Table(title=escape(title), title_justify="left", box=None, pad_edge=False)
    for index, name in enumerate(header):
        table.add_column(escape(name), justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)
    console.print()


def say(message: str) -> None:
    """Progress, on stderr: stdout has the tables."""
    print(message, file=sys.stderr, flush=True)


def run_script(main: Callable[[], None]) -> None:
    """Run a benchmark's main function; errors of ours become one line, a hint and their exit code."""
    try:
        main()
    except HpsearchError as error:
        say(f"error: {error}")
        if error.hint:
            say(f"hint: {error.hint}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


def _processor() -> str:
    """Model and the instructions that matter: `AMD EPYC (avx2 avx512f avx512_bf16)`."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    telling = " ".join(flag for flag in _TELLING_FLAGS if flag in flags)
    return f"{fields.get('model name', platform.machine())} ({telling})"


def _commit() -> str | None:
    """The commit of the working copy, with "+changes" if the code differs from it; None outside of a checkout."""
    # Optional locks are for commands that may write; a benchmark only looks.
    git = ["git", "--no-optional-locks", "-C", str(_REPOSITORY)]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        # Results of other benchmarks change no measurement.
        code = ["--", "hpsearch", "benchmarks", ":!benchmarks/results"]
        changes = subprocess.run([*git, "status", "--porcelain", *code], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+changes" if changes.stdout.strip() else "")
