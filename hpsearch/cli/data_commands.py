"""`hpsearch data fetch|verify NAME`, `describe`, `cache`: get the files of a data set, check them, look at the data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from hpsearch.cli import options
from hpsearch.console.notice import print_line, say
from hpsearch.console.progress_view import download_progress
from hpsearch.console.screen import write_document
from hpsearch.data.dataset_path import load_study_file
from hpsearch.data.example_shape import is_image
from hpsearch.data.files.lookup import DataLocations
from hpsearch.data.registry import catalog_names
from hpsearch.errors import DataError, InputError
from hpsearch.study.definition import StudyDefinition
from hpsearch.study.own_networks import require_own_networks
from hpsearch.study.study_file import apply_override, parse_definition
from hpsearch.wording import counted, format_time, megabytes, printable

app = typer.Typer(
    help="Fetch, verify and describe data sets.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

DatasetName = Annotated[
    str, typer.Argument(metavar="NAME", help=f"One of {', '.join(catalog_names())}.", show_default=False)
]
Source = Annotated[
    str,
    typer.Argument(
        metavar="STUDY.toml|DATASET", help="A study file, or a data set's name or path.", show_default=False
    ),
]
Sheet = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE.png", help="Write a contact sheet of the training images."),
]

Clear = Annotated[bool, typer.Option("--clear", help="Remove what no process has open; print what was removed.")]


@app.command()
def fetch(name: DatasetName) -> None:
    """Download what is missing of a data set into the cache, verified; HPSEARCH_DATA may name a local folder."""
    from hpsearch.data.catalog import fetch_dataset

    with download_progress() as progress:
        paths = fetch_dataset(name, DataLocations.from_environment(progress))
    for path in paths:
        print_line(str(path))
    if not paths:
        say(f"{name} comes with scikit-learn: nothing to fetch")


@app.command()
def verify(name: DatasetName) -> None:
    """Check every file of a data set against its published checksum."""
    from hpsearch.data.catalog import verify_dataset

    checks = verify_dataset(name, DataLocations.from_environment())
    for check in checks:
        print_line(f"{check.state.value:22} {check.file_name:28} {check.path or ''}")
    problems = [check.problem for check in checks if not check.is_usable]
    if problems:
        more = f" (and {len(problems) - 1} more files)" if len(problems) > 1 else ""
        raise DataError(
            f"{problems[0]}{more}",
            hint=f"hpsearch data fetch {name}, or HPSEARCH_DATA=FOLDER with the files",
        )


@app.command()
def describe(
    source: Source,
    overrides: options.Overrides = None,
    output: Sheet = None,
    as_json: options.AsJson = False,
) -> None:
    """Describe the data of a study: shapes, classes, parts, memory, and what would be trained.

    The test part is not read. Nothing is trained.
    """
    definition = _definition_of(source, overrides or [])

    from hpsearch.checks.description import describe_data
    from hpsearch.console.contact_sheet import write_contact_sheet
    from hpsearch.console.data_view import print_description
    from hpsearch.data.catalog import load_selection_data

    with download_progress() as progress:
        data = load_selection_data(definition.data, locations=DataLocations.from_environment(progress))
    if output is not None:
        if not is_image(data.example_shape):
            raise InputError(f"{data.name} has no images, so that there is no contact sheet", hint="leave out --output")
        write_contact_sheet(data, output)
    description = describe_data(data)
    if as_json:
        write_document(json.dumps(description.as_json(), indent=2) + "\n")
    else:
        print_description(description, data)
    if output is not None:
        say(f"contact sheet: {output}")


@app.command()
def cache(clear: Clear = False, as_json: options.AsJson = False) -> None:
    """List the prepared data in the cache: size, last use, and what it was made of; or remove it.

    Prepared data is made again from its source when it is needed. What a process on this machine has open stays.
    """
    from hpsearch.data.prepared_cache import cache_entries, remove_unused

    folder = DataLocations.from_environment().cache
    entries = cache_entries(folder)
    if clear:
        entries = remove_unused(entries)
        left = cache_entries(folder)
        freed = sum(entry.num_bytes for entry in entries)
        say(f"removed {counted(len(entries), 'folder')} of prepared data, {megabytes(freed)}")
        if left:
            say(f"{counted(len(left), 'folder')} stayed: a process has the data open")
    if as_json:
        write_document(json.dumps([entry.as_json() for entry in entries], indent=2) + "\n")
        return
    for entry in entries:
        files = "" if entry.num_files < 2 else f" ({entry.num_files:,} files)"
        state = "open" if entry.is_open else ""
        source = printable(entry.source or f"{entry.folder.name}, of an older version")
        print_line(f"{megabytes(entry.num_bytes):>14}  {format_time(entry.used_at)}  {state:4}  {source}{files}")
    if not entries and not clear:
        say(f"no prepared data in {folder}")


def _definition_of(source: str, overrides: list[str]) -> StudyDefinition:
    """The definition in a study file, or one with this data set and nothing to search."""
    if source.endswith(".toml"):
        definition = load_study_file(Path(source), overrides)
        require_own_networks(definition, f"{source}: there is no data to describe", "name a data set, or its path")
        return definition
    document = {"name": "describe", "data": {"dataset": source}, "search": {"learning_rate": [0.1]}}
    for override in overrides:
        apply_override(document, override)
    return parse_definition(document, source="--set" if overrides else "the data set")
