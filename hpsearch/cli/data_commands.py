"""`hpsearch data fetch|verify NAME`: get the files of a data set, or check those that are here."""

from __future__ import annotations

from typing import Annotated

import typer

from hpsearch.console.notice import print_line, say
from hpsearch.console.progress_view import download_progress
from hpsearch.data.lookup import DataLocations
from hpsearch.data.registry import catalog_names
from hpsearch.errors import DataError

app = typer.Typer(
    help="Fetch and verify data sets.", no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False
)

DatasetName = Annotated[
    str, typer.Argument(metavar="NAME", help=f"One of {', '.join(catalog_names())}.", show_default=False)
]


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
