"""docs/faults.md names every row of the fault table and the very tests that hold it."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def test_every_row_of_the_fault_table_names_its_tests_and_every_test_has_a_row() -> None:
    rows = re.findall(r"^\| (\d+) \|.*\| (.*) \|$", (ROOT / "docs" / "faults.md").read_text(), flags=re.MULTILINE)
    numbers = [int(number) for number, _ in rows]
    assert numbers == sorted(set(numbers))
    documented = [(int(number), name) for number, names in rows for name in re.findall(r"`(\w+)`", names)]
    files = [
        *sorted(HERE.glob("test_rows_*.py")),
        HERE / "test_programs_27_unruly.py",
    ]  # other programs: rows of networks
    sources = "".join(path.read_text() for path in files)
    tests = [(int(number), name) for name, number in re.findall(r"^def (test_row_(\d+)_\w+)", sources, re.MULTILINE)]
    assert documented == sorted(tests, key=lambda test: test[0])
