"""A large CSV as data: time and memory of its preparation, and the time to open it afterwards.

    python -m benchmarks.own_tables               # about a minute on two cores
    python -m benchmarks.own_tables --tiny

The file has 20 columns of floats and 10 of text with 20 values each, 2 % of all of them missing, and a target of two
classes. Each measurement is a process of its own: the first reads the file and fills an empty cache, the second opens
the cache. Times are those of `load_selection_data`, and of the whole process with its imports.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv

from benchmarks.measurement import RESULTS, Measurement, machine, print_measurements, run_script, say, write_result

TITLE = "a CSV of a million rows: prepared once, then opened"
NUM_FLOATS, NUM_TEXTS, NUM_VALUES, MISSING = 20, 10, 20, 0.02
_BLOCK_ROWS = 100_000

_LOAD = """
import json, resource, sys, time
started = time.perf_counter()
from pathlib import Path
from hpsearch.data.catalog import load_selection_data
from hpsearch.data.files.lookup import DataLocations
from hpsearch.study.settings import DataSettings
settings = DataSettings(dataset=sys.argv[1], target="target")
stored = json.loads(Path(sys.argv[3]).read_text()) if Path(sys.argv[3]).exists() else None
loading = time.perf_counter()
locations = DataLocations(local=None, cache=Path(sys.argv[2]))
data = load_selection_data(settings, locations=locations, stored=stored)
done = time.perf_counter()
Path(sys.argv[3]).write_text(json.dumps(data.record))
print(json.dumps({
    "load": done - loading, "process": done - started, "rows": len(data.train) + len(data.validation),
    "inputs": data.train.images.shape[1], "bytes": data.train.images.nbytes + data.validation.images.nbytes,
    "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
}))
"""


def write_table(path: Path, num_rows: int) -> None:
    """Write the CSV in blocks, so that this process stays small."""
    generator = np.random.default_rng(0)
    names = [f"value {index}" for index in range(NUM_VALUES)]

    def block(size: int) -> pa.Table:
        columns: dict[str, Any] = {}
        for index in range(NUM_FLOATS):
            values = generator.normal(index, 1 + index, size).round(6)
            columns[f"number {index}"] = pa.array(values, mask=generator.random(size) < MISSING)
        for index in range(NUM_TEXTS):
            codes = pa.array(generator.integers(0, NUM_VALUES, size), mask=generator.random(size) < MISSING)
            columns[f"text {index}"] = pa.DictionaryArray.from_arrays(codes, pa.array(names)).cast(pa.string())
        columns["target"] = pa.array(np.where(generator.random(size) < 0.4, "yes", "no"))
        return pa.table(columns)

    first = block(1).slice(0, 0)
    with pa.csv.CSVWriter(path, first.schema) as writer:
        for start in range(0, num_rows, _BLOCK_ROWS):
            writer.write_table(block(min(_BLOCK_ROWS, num_rows - start)))


def load(path: Path, cache: Path) -> dict[str, float]:
    command = [sys.executable, "-c", _LOAD, str(path), str(cache), str(cache.with_suffix(".json"))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="2,000 rows, one round; a result only with --output")
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    options = parser.parse_args(arguments)
    num_rows, rounds = (2000, 1) if options.tiny else (options.rows, options.rounds)
    before = machine()
    prepared, opened = [], []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        write_table(path, num_rows)
        size = path.stat().st_size
        for index in range(rounds):
            cache = Path(folder) / f"cache-{index}"
            prepared.append(load(path, cache))
            opened.append(load(path, cache))
            say(f"round {index + 1} of {rounds}: {prepared[-1]['load']:.1f} s, then {opened[-1]['load']:.1f} s")
    measurements = [
        Measurement(name="prepared", unit="s", values=tuple(one["load"] for one in prepared)),
        Measurement(name="prepared, whole process", unit="s", values=tuple(one["process"] for one in prepared)),
        Measurement(name="peak memory", unit="GB", values=tuple(one["peak"] / 1e9 for one in prepared)),
        Measurement(name="opened", unit="s", values=tuple(one["load"] for one in opened)),
        Measurement(name="opened, whole process", unit="s", values=tuple(one["process"] for one in opened)),
    ]
    print_measurements(f"{num_rows:,} rows, {size / 1e6:.0f} MB", measurements)
    settings = {"rows": num_rows, "file_bytes": size, "floats": NUM_FLOATS, "texts": NUM_TEXTS, "missing": MISSING}
    output = options.output or (None if options.tiny else RESULTS / "own_tables.json")
    if output is not None:
        details = {"inputs": prepared[0]["inputs"], "array_bytes": prepared[0]["bytes"]}
        write_result(output, title=TITLE, machine=before, settings=settings, measurements=measurements, details=details)


if __name__ == "__main__":
    run_script(main)
