"""The size of the package's rooms: a reader finds the place in a folder by its names, and reads a module at once."""

import re
from pathlib import Path

import hpsearch

PACKAGE = Path(hpsearch.__file__).parent
ROOT = PACKAGE.parent
MOST_MODULES, MOST_LINES = 16, 400


def test_no_folder_has_more_than_16_modules_and_no_module_more_than_400_lines() -> None:
    files = [file for file in PACKAGE.rglob("*.py") if not file.name.startswith("__")]
    assert len(files) > 300
    num_modules = {folder: sum(file.parent == folder for file in files) for folder in {file.parent for file in files}}
    assert {str(folder): number for folder, number in num_modules.items() if number > MOST_MODULES} == {}
    num_lines = {str(file): len(file.read_text(encoding="utf-8").splitlines()) for file in files}
    assert {file: number for file, number in num_lines.items() if number > MOST_LINES} == {}


# Files of others in our texts: examples of a user's own, and other programs'.
OTHERS = ("benchmarks", "docker", "tests")
FOREIGN = {"random.py", "types.py", "mine.py", "networks.py", "script.py", "a.py", "train.py"}
FOREIGN |= {"torchvision/datasets/cifar.py", "mnist.py", "torch/version.py", "version.py"}


def test_a_module_that_a_text_names_exists() -> None:
    files = {
        f"/{file.relative_to(ROOT)}"
        for folder in (PACKAGE, *(ROOT / name for name in OTHERS))
        for file in folder.rglob("*.py")
    }
    folders = {file.rpartition("/")[0] for file in files}
    rooms = {folder.name for folder in PACKAGE.rglob("*") if folder.is_dir()}
    unknown = set()
    for file in (*PACKAGE.rglob("*.py"), *ROOT.glob("docs/*.md"), ROOT / "CONTRIBUTING.md"):
        text = file.read_text(encoding="utf-8")
        for name in re.findall(r"(?<![\w/.{}-])(?:[a-z_]+/)*[a-z_0-9]+\.py\b", text) if file.suffix == ".py" else ():
            if name not in FOREIGN and not any(known.endswith(f"/{name}") for known in files):
                unknown.add((file.name, name))
        for name in re.findall(r"`((?:[a-z_0-9]+/)+[a-z_0-9]+)`", text):
            is_known = any(known.endswith((f"/{name}.py", f"/{name}")) for known in files | folders)
            if name.partition("/")[0] in rooms and not is_known:
                unknown.add((file.name, name))
    assert unknown == set()


def test_the_docstring_of_a_folder_names_what_is_there() -> None:
    """A module or a folder here or above, or what a module of this folder defines."""
    unknown = set()
    for init in PACKAGE.rglob("__init__.py"):
        texts = [file.read_text(encoding="utf-8") for file in init.parent.glob("*.py")]
        defined = {name for text in texts for name in re.findall(r"^(?:def|class) (\w+)", text, re.MULTILINE)}
        documented = init.read_text(encoding="utf-8").split('"""')[1]
        for name in set(re.findall(r"`([a-z_]\w*)/?`", documented)) - defined:
            places = [place for folder in init.parents for place in (folder / name, folder / f"{name}.py")]
            if not any(place.exists() for place in places):
                unknown.add((str(init.parent.relative_to(PACKAGE)), name))
    assert unknown == set()
