"""The dimensions in [search] of a study file, and how a parsed file is validated.

`parse_dimension` and `written_dimension` are inverse to each other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any, TypeVar

from pydantic import ValidationError

from hpsearch.errors import InputError
from hpsearch.study.messages import describe_first_error, shown, suggest_names
from hpsearch.study.settings import ASKED_FOR, OPTION_PREFIX, ModelSettings, Settings, TrainingSettings, kernels_text
from hpsearch.study.space import Choice, Dimension, LogGrid, ParameterValue, Range, SearchSettings

S = TypeVar("S", bound=Settings)


_SECTIONS: dict[str, type[Settings]] = {"model": ModelSettings, "training": TrainingSettings}
_NOT_SEARCHABLE = {"options"}  # Optuna cannot store a table as a value
_KERNELS = "kernels"  # nor a pair, so a search uses its text


def validated(kind: type[S], values: Any, *, source: str, section: str = "") -> S:
    """Validate values as a `kind`.

    Raises:
        InputError: names source, key, value and what was expected.
    """
    try:
        return kind.model_validate(values, context=ASKED_FOR)
    except ValidationError as error:
        message, hint = describe_first_error(error, kind, section)
        raise InputError(f"{source}: {message}", hint=hint) from None


def parse_dimension(name: str, spec: Any, sections: Mapping[str, Any], max_values: int, source: str) -> Dimension:
    """Parse one dimension of `[search]`.

    Args:
        sections: section -> key -> value of the study; a dimension's values are validated together with these.
        max_values: maximum number of values.
    Raises:
        InputError: no such key, or values that its section does not accept; names source, key and value.
    """
    section = _searchable_section(name, source)
    is_integer = _is_integer(section, name, sections[section])
    shape = parse_shape(name, spec, section, source)
    try:
        raw = shape.listed(is_integer=is_integer, limit=max_values)
    except ValueError as error:
        raise InputError(f"{source}: search.{name} {error}") from None
    values = _checked_values(name, raw, sections[section], shape, section, source)
    return Dimension.of(shape, name=name, values=values, is_integer=is_integer)


def listed_dimensions(
    points: Sequence[Mapping[str, Any]], sections: Mapping[str, Any], max_points: int, source: str
) -> tuple[Dimension, ...]:
    """The dimensions of listed points: every key that one of the points has, with its values in order.

    Raises:
        InputError: no points, too many, or values that their section does not accept.
    """
    if not points:
        raise InputError(
            f"{source}: search.points is missing: strategy listed needs the points to train",
            hint="points = [{ learning_rate = 0.1 }, { learning_rate = 0.01, seed = 1 }]",
        )
    if len(points) > max_points:
        raise InputError(
            f"{source}: search.points has {len(points):,} points, more than the limit of {max_points:,}",
            hint=f"raise it with --set search.max_points={len(points)}",
        )
    values: dict[str, dict[Any, None]] = {}  # ordered sets
    for number, point in enumerate(points, start=1):
        for name, given in point.items():
            value = kernels_text(given) if name == _KERNELS else given
            if isinstance(value, list | dict):
                raise InputError(f"{source}: search.points: point {number}: {name} must be a plain value")
            values.setdefault(name, {})[value] = None
    place = f"{source}: search.points"
    return tuple(parse_dimension(name, list(v), sections, max_points, place) for name, v in values.items())


def section_of(name: str) -> str | None:
    """The section with the key (or option) that a dimension searches; None if there is none."""
    if name.startswith(OPTION_PREFIX):
        return "model"
    return next((section for section, kind in _SECTIONS.items() if name in kind.model_fields), None)


def with_value(section: Mapping[str, Any], name: str, value: Any) -> dict[str, Any]:
    """A section's values with the value of a searched key replaced."""
    if not name.startswith(OPTION_PREFIX):
        return {**section, name: value}
    return {**section, "options": {**section["options"], name.removeprefix(OPTION_PREFIX): value}}


def value_in(section: Mapping[str, Any], name: str) -> Any:
    """A section's value of a searched key; None for an option that it does not have.

    A dump of the section lacks keys of `Settings.JOINED_LATER` at their default.
    """
    if not name.startswith(OPTION_PREFIX):
        kind = _SECTIONS.get(section_of(name) or "")
        is_default = kind is not None and name in kind.JOINED_LATER and name not in section
        return kind.model_fields[name].get_default() if kind is not None and is_default else section[name]
    return section["options"].get(name.removeprefix(OPTION_PREFIX))


def written_dimension(dimension: Dimension) -> dict[str, Any] | list[ParameterValue]:
    """The dimension as in a study file: a list, or a table with `log10` or with `low` and `high`."""
    if grid := dimension.log_grid:
        exponents = [int(e) if e.is_integer() else e for e in grid.log10]
        finer = {"per_decade": grid.per_decade} if grid.per_decade != 1 else {}
        zero = {"zero": True} if grid.zero else {}
        share = {} if grid.zero_share is None else {"zero_share": grid.zero_share}
        whole = {"integer": True} if grid.integer else {}
        return {"log10": exponents, **finer, **zero, **share, **whole}
    if dimension.is_continuous:
        low, high = dimension.values
        return {"low": low, "high": high, **({"log": True} if dimension.is_log else {})}
    return list(dimension.values)


def is_same_place(stored: str, given: str) -> bool:
    """Whether a dataset's absolute path may be the same as a relative path that an older hpsearch stored.

    The folder that a stored relative path refers to is not known; the checksums of the data are compared elsewhere.
    """
    old, new = PurePath(stored), PurePath(given)
    return new.is_absolute() and not old.is_absolute() and new.parts[-len(old.parts) :] == old.parts != ()


def written_dimensions(dimensions: Sequence[Dimension]) -> dict[str, Any]:
    """The dimensions as in a study file, in a form in which TOML preserves their order.

    In TOML the values of a section come before its tables, so a list that follows a table is written as a table.
    """
    written: dict[str, Any] = {}
    for dimension in dimensions:
        spec = written_dimension(dimension)
        follows_table = any(isinstance(other, dict) for other in written.values())
        written[dimension.name] = {"values": spec} if follows_table and isinstance(spec, list) else spec
    return written


def inline_text(value: Any) -> str:
    """A plain value on one line, in TOML syntax: `{ log10 = [-1, -4], zero = true }`."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {inline_text(inner)}" for key, inner in value.items()) + " }"
    return json.dumps(value)


def _searchable_section(name: str, source: str) -> str:
    """The section that has the key `name`.

    Raises:
        InputError: no section has it, or it cannot be searched.
    """
    section = section_of(name)
    if section is not None and name not in _NOT_SEARCHABLE:
        return section
    own = [key for key in SearchSettings.model_fields if key != "dimensions"]
    searchable = [k for kind in _SECTIONS.values() for k in kind.model_fields if k not in _NOT_SEARCHABLE]
    searchable.append(f"{OPTION_PREFIX}NAME")
    reason = "no such key to search" if section is None else "this key cannot be searched"
    raise InputError(f"{source}: search.{name}: {reason}", hint=suggest_names(name, [*own, *searchable]))


def parse_shape(name: str, spec: Any, section: str, source: str) -> LogGrid | Range | Choice:
    """Parse one of the three forms of a dimension, which differ by their keys.

    Args:
        section: where a single value would belong.
    Raises:
        InputError: it is none of them.
    """
    key = f"search.{name}"
    table = {"values": spec} if isinstance(spec, list) else spec
    if isinstance(table, dict):
        if "log10" in table:
            return validated(LogGrid, table, source=source, section=key)
        if "low" in table or "high" in table:
            return validated(Range, table, source=source, section=key)
        if "values" in table:
            return validated(Choice, table, source=source, section=key)
    raise InputError(
        f"{source}: {key} must be a list of values or a table, got {shown(spec)}",
        hint=f"{name} = [...], {{ log10 = [-1, -4] }} or {{ low = ..., high = ... }}; "
        f"a single value belongs under [{section}]",
    )


def _is_integer(section: str, name: str, own: Mapping[str, Any]) -> bool:
    if name.startswith(OPTION_PREFIX):  # only the study's own value shows the type of an option
        default = own["options"].get(name.removeprefix(OPTION_PREFIX))
    else:
        default = _SECTIONS[section].model_fields[name].get_default()
    # training.seed is the only whole number without a default.
    return name == "seed" or (isinstance(default, int) and not isinstance(default, bool))


def _checked_values(
    name: str, raw: Sequence[Any], own: Mapping[str, Any], shape: LogGrid | Range | Choice, section: str, source: str
) -> tuple[ParameterValue, ...]:
    """The values as their section reads them.

    Raises:
        InputError: there are no values, the section does not accept one, or one occurs twice.
    """
    if not raw:
        raise InputError(f"{source}: search.{name} has no values", hint="an empty grid has no points")
    values: dict[ParameterValue, None] = {}  # an ordered set
    for entry in map(kernels_text, raw) if name == _KERNELS else raw:
        settings = validated(_SECTIONS[section], with_value(own, name, entry), source=source, section="search")
        value = kernels_text(
            value_in(settings.model_dump(), name)
        )  # as the section reads it, for example 1 as 1.0 for a rate
        if value in values:
            is_rounded = isinstance(shape, LogGrid)  # in a LogGrid only rounded whole numbers can be equal
            raise InputError(
                f"{source}: search.{name} has the value {value!r} twice",
                hint="lower per_decade or widen log10" if is_rounded else "each point is counted once",
            )
        values[value] = None
    return tuple(values)
