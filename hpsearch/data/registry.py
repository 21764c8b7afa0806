"""`FORMS`, the table of the forms of data, and the look-up of a study file's `dataset` in it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

from hpsearch.data.files.named_path import find_path, local_folder
from hpsearch.data.forms.array_file import ArrayFile
from hpsearch.data.forms.bundled import PREFIX, BundledTable, SmallDigits
from hpsearch.data.forms.cifar import CifarFiles, PublishedCifar
from hpsearch.data.forms.digits import BundledDigits
from hpsearch.data.forms.form import COMMON_KEYS, DataForm
from hpsearch.data.forms.idx_files import Emnist, IdxArchive, IdxFolder, PublishedData
from hpsearch.data.forms.image_folder import ImageFolder
from hpsearch.data.forms.loader_function import LoaderFunction
from hpsearch.data.forms.pickled import PickledFile
from hpsearch.data.forms.table_file import SavedFolder, TableFile
from hpsearch.errors import DataError, InputError
from hpsearch.study.definition import StudyDefinition
from hpsearch.study.settings import DataSettings
from hpsearch.wording import did_you_mean

FORMS: Final[tuple[type[DataForm], ...]] = (
    PublishedData,
    Emnist,
    PublishedCifar,
    BundledDigits,
    BundledTable,
    SmallDigits,
    CifarFiles,
    TableFile,
    SavedFolder,
    IdxFolder,
    IdxArchive,
    ImageFolder,
    ArrayFile,
    PickledFile,
    LoaderFunction,
)


def catalog_names() -> tuple[str, ...]:
    """The data sets that are referred to by name."""
    return tuple(name for form in FORMS for name in form.named())


def named_form(name: str) -> DataForm:
    """The data set of the catalogue with this name. Raises InputError if there is none."""
    for form in FORMS:
        if (named := form.named().get(name)) is not None:
            return named
    raise unknown_dataset(name)


def with_absolute_dataset(definition: StudyDefinition) -> StudyDefinition:
    """Return the definition with an absolute path to existing data, because workers may start in another folder."""
    dataset = definition.data.dataset
    if dataset in catalog_names() or not dataset.strip() or any(form.called(dataset) for form in FORMS):
        return definition
    with contextlib.suppress(OSError, RuntimeError, ValueError):  # resolve_dataset reports these errors
        if Path(dataset).is_absolute():
            return definition
        path = find_path(dataset, local_folder()).path
        if path is not None:
            data = definition.data.model_copy(update={"dataset": str(path.absolute())})
            return definition.model_copy(update={"data": data})
    return definition


def form_of(settings: DataSettings, local: Path | None) -> DataForm:
    """The data set that [data] names.

    Args:
        local: HPSEARCH_DATA, where a path is looked for, too (`dataset_path`).
    Raises:
        InputError: as `resolve_dataset`, or a key that has no effect on this data set.
        DataError: as `resolve_dataset`.
    """
    form = resolve_dataset(settings.dataset, local)
    allowed = COMMON_KEYS | form.keys
    for key, value in settings:
        if key not in allowed and value != DataSettings.model_fields[key].get_default():
            taken_by = [other.path_description for other in FORMS if key in other.keys and other.path_description]
            hint = f"leave it out: {key} is for {', '.join(taken_by)}"
            raise InputError(f"data.{key} has no effect on {settings.dataset!r}", hint=hint)
    return form


def resolve_dataset(dataset: str, local: Path | None) -> DataForm:
    """Resolve `dataset`: a name in the catalogue, otherwise a loader function or a path.

    Args:
        local: as for `form_of`.

    Raises:
        InputError: neither a name in the catalogue nor a path, or a file of another kind.
        DataError: the path does not exist, or may not be accessed.
    """
    if dataset in catalog_names():
        return named_form(dataset)
    # "sklearn:name" has the form of a loader's name, too; Path("") would be the working directory.
    if dataset.startswith(PREFIX) or not dataset.strip():
        raise unknown_dataset(dataset)
    for form in FORMS:
        if (found := form.called(dataset)) is not None:
            return found
    try:
        places = find_path(dataset, local)
        path = places.path
        found = None if path is None else next((found for form in FORMS if (found := form.at(path)) is not None), None)
    except PermissionError as error:
        raise DataError(
            f"data.dataset: {dataset!r} cannot be accessed: {error.strerror}", hint="check the path and its permissions"
        ) from error
    except (OSError, RuntimeError, ValueError) as error:  # too long for a path, or "~" of an unknown user
        raise unknown_dataset(dataset) from error
    if found is not None:
        return found
    endings = tuple(ending for form in FORMS for ending in form.endings)
    if path is not None and path.is_dir():
        looked_for = [form.looked_for for form in FORMS if form.looked_for]
        raise DataError(
            f"data.dataset: {dataset!r} is a folder without data of a known form",
            hint=f"looked for {'; '.join(looked_for)}",
        )
    if path is not None:
        raise InputError(
            f"data.dataset: {dataset!r} is a file of an unknown kind, expected a name that ends in "
            + ", ".join(endings),
            hint="for IDX files give the folder that contains them",
        )
    if "/" in dataset or dataset.endswith(endings):
        looked_at = ", ".join(places.looked_at)
        raise DataError(
            f"data.dataset: no file or folder {dataset!r} (looked at: {looked_at})", hint=f"expected {_choices()}"
        )
    raise unknown_dataset(dataset)


def unknown_dataset(dataset: str) -> InputError:
    """The error for a name that is not in the catalogue."""
    meant, expected = did_you_mean(dataset.lower(), catalog_names()), _choices()
    if dataset.startswith(PREFIX):
        names = [name.removeprefix(PREFIX) for name in catalog_names() if name.startswith(PREFIX)]
        # Without the prefix, which would make all names similar.
        meant = did_you_mean(dataset.removeprefix(PREFIX).lower(), names)
        expected = f"{PREFIX} and one of {', '.join(names)}"
    hint = f"{f'{meant} ' if meant else ''}expected {expected}"
    return InputError(f"data.dataset: unknown data set {dataset!r}", hint=hint)


def _choices() -> str:
    paths = ", or ".join(form.path_description for form in FORMS if form.path_description)
    return f"{', '.join(catalog_names())}, {paths}"
