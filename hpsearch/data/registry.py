"""Resolve the `dataset` key of a study file to a data set in one of the forms."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

from hpsearch.data.forms.digits import BundledDigits
from hpsearch.data.forms.form import DataForm
from hpsearch.data.forms.idx_files import IdxFolder, PublishedData
from hpsearch.data.forms.pickled import PickledFile
from hpsearch.errors import DataError, InputError
from hpsearch.study.definition import StudyDefinition
from hpsearch.wording import did_you_mean

FORMS: Final[tuple[type[DataForm], ...]] = (PublishedData, BundledDigits, IdxFolder, PickledFile)


def catalog_names() -> tuple[str, ...]:
    """The data sets that are referred to by name."""
    return tuple(name for form in FORMS for name in form.named())


def with_absolute_dataset(definition: StudyDefinition) -> StudyDefinition:
    """Return the definition with an absolute path to existing data, because workers may start in another folder."""
    dataset = definition.data.dataset
    if dataset in catalog_names() or not dataset.strip():
        return definition
    with contextlib.suppress(OSError, RuntimeError, ValueError):  # resolve_dataset reports these errors
        path = Path(dataset).expanduser()
        if path.exists():
            data = definition.data.model_copy(update={"dataset": str(path.absolute())})
            return definition.model_copy(update={"data": data})
    return definition


def resolve_dataset(dataset: str) -> DataForm:
    """Resolve `dataset`: a name in the catalogue, otherwise a path (relative to the working directory).

    Raises:
        InputError: neither a name in the catalogue nor a path, or a file of another kind.
        DataError: the path does not exist, or may not be accessed.
    """
    for form in FORMS:
        if (named := form.named().get(dataset)) is not None:
            return named
    if not dataset.strip():  # Path("") would be the working directory
        raise unknown_dataset(dataset)
    try:
        path = Path(dataset).expanduser()
        is_there = path.exists()
        found = next((found for form in FORMS if (found := form.at(path)) is not None), None) if is_there else None
    except PermissionError as error:
        raise DataError(
            f"data.dataset: {dataset!r} cannot be accessed: {error.strerror}", hint="check the path and its permissions"
        ) from error
    except (OSError, RuntimeError) as error:  # too long for a path, or "~" of an unknown user
        raise unknown_dataset(dataset) from error
    if found is not None:
        return found
    endings = tuple(ending for form in FORMS for ending in form.endings)
    if is_there:
        raise InputError(
            f"data.dataset: {dataset!r} is a file of an unknown kind, expected a name that ends in {endings[0]}",
            hint="for IDX files give the folder that contains them",
        )
    if "/" in dataset or dataset.endswith(endings):
        raise DataError(f"data.dataset: no file or folder {dataset!r}", hint=f"expected {_choices()}")
    raise unknown_dataset(dataset)


def unknown_dataset(dataset: str) -> InputError:
    """The error for a name that is not in the catalogue."""
    meant = did_you_mean(dataset.lower(), catalog_names())
    hint = f"{f'{meant} ' if meant else ''}expected {_choices()}"
    return InputError(f"data.dataset: unknown data set {dataset!r}", hint=hint)


def _choices() -> str:
    paths = ", or ".join(form.path_description for form in FORMS if form.path_description)
    return f"{', '.join(catalog_names())}, {paths}"
