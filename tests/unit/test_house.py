"""The size of the package's rooms: a reader finds the place in a folder by its names, and reads a module at once."""

from pathlib import Path

import hpsearch

PACKAGE = Path(hpsearch.__file__).parent
MOST_MODULES, MOST_LINES = 16, 400


def test_no_folder_has_more_than_16_modules_and_no_module_more_than_400_lines() -> None:
    files = [file for file in PACKAGE.rglob("*.py") if not file.name.startswith("__")]
    assert len(files) > 300
    num_modules = {folder: sum(file.parent == folder for file in files) for folder in {file.parent for file in files}}
    assert {str(folder): number for folder, number in num_modules.items() if number > MOST_MODULES} == {}
    num_lines = {str(file): len(file.read_text(encoding="utf-8").splitlines()) for file in files}
    assert {file: number for file, number in num_lines.items() if number > MOST_LINES} == {}
