"""Study files: TOML with overrides, parsed into a `StudyDefinition`, or refused in one line.

Dimensions are parsed after the other sections, because their values are validated as part of a section.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpsearch.errors import InputError
from hpsearch.study.conditions import check_effects, warn_of_idle_program_keys, warn_of_small_budget
from hpsearch.study.definition import NOT_OF_PROGRAMS, PROGRAMS, StudyDefinition
from hpsearch.study.document import (
    apply_override,
    check_document,
    flat_search,
    parse_dimension,
    parse_toml,
    validated,
)
from hpsearch.study.listed_points import with_listed_points
from hpsearch.study.messages import shown
from hpsearch.study.program import check_arguments, joined, listed_free_points, parse_free_dimension
from hpsearch.study.space import SearchSettings


def load_definition(path: Path, overrides: Sequence[str] = ()) -> StudyDefinition:
    """Read a study file and apply `key=value` overrides.

    Raises:
        InputError: the file cannot be read, is not TOML, or is not a valid definition.
    """
    try:
        document = parse_toml(path.read_text(encoding="utf-8-sig"), str(path))
    except FileNotFoundError:
        raise InputError(f"{path}: no such study file", hint="see the studies/ folder for examples") from None
    except OSError as error:
        hint = "name a TOML file that you may read"
        raise InputError(f"{path}: cannot be read: {error.strerror}", hint=hint) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8", hint="save the file as UTF-8") from error
    for override in overrides:
        apply_override(document, override)
    # The wrong value may be in an override instead of in the file.
    return parse_definition(document, source=f"{path} with --set" if overrides else str(path))


def parse_definition(document: dict[str, Any], *, source: str) -> StudyDefinition:
    """Turn a parsed TOML document into a definition.

    Args:
        source: name of the document in error messages, usually its path.
    Raises:
        InputError: names source, key, value and what was expected.
    """
    check_document(document, source)
    document = _with_program(dict(document), source)
    search = document.pop("search", {})
    if not isinstance(search, dict):
        raise InputError(f"{source}: search must be a section, got {shown(search)}", hint="write [search]")
    is_program = any(document.get(name) is not None for name in PROGRAMS)
    search = dict(search) if is_program else flat_search(search, source)
    is_open = document.get("objective") is not None
    parameters = search.pop("parameters", {}) if is_program else {}
    # Validate the other sections first: a dimension's values are validated as part of their section.
    # An objective has no dimensions, which the default strategy would ask for.
    no_search = {"strategy": "random", "num_points": 1} if is_open else {}
    base = validated(StudyDefinition, {**document, "search": no_search}, source=source)
    own = {key: value for key, value in search.items() if key in SearchSettings.model_fields}
    own.pop("dimensions", None)
    settings = validated(SearchSettings, own, source=source, section="search")
    sections = base.model_dump()
    specs = {name: spec for name, spec in search.items() if name not in own}
    if is_program:
        specs = joined(specs, parameters, source)
        settings = _with_free_dimensions(settings, specs, base.seed, source, is_open=is_open)
    elif settings.strategy == "listed":
        settings = with_listed_points(settings, specs, sections, source)
    else:
        dimensions = (parse_dimension(n, spec, sections, settings.max_points, source) for n, spec in specs.items())
        settings = settings.model_copy(update={"dimensions": tuple(dimensions)})
    if is_program:
        warn_of_idle_program_keys(sections, _set_keys(document), source)
    else:
        check_effects(sections, settings, _set_keys(document), source)
    warn_of_small_budget(settings, {} if is_program else sections, source)
    definition = validated(StudyDefinition, {**document, "search": settings}, source=source)
    if definition.program is not None:
        definition.program.warn_of_idle_keys(source)
        names = [] if is_open else [dimension.name for dimension in settings.dimensions]
        check_arguments(definition.program, names, source)
    return definition


def _with_program(document: dict[str, Any], source: str) -> dict[str, Any]:
    """The document with its section of a program validated; without such a section, the document.

    Raises:
        InputError: it has two of [model], [command] and [objective], a section that belongs to hpsearch's own networks,
            or an invalid value.
    """
    programs = [name for name in PROGRAMS if name in document]
    if not programs:
        return document
    name = programs[0]
    if len(programs) > 1:
        raise InputError(f"{source}: [command] and [objective] exclude each other", hint="a study has one of them")
    for other, why in NOT_OF_PROGRAMS.items():
        if other in document:
            hint = f"remove {other}" if other != "metric" else f"write it under [{name}]"
            raise InputError(f"{source}: {other} cannot be combined with [{name}]: {why}", hint=hint)
    section = validated(PROGRAMS[name], document[name], source=source, section=name)
    stopping = document.get("stopping", {})
    if isinstance(stopping, dict) and "rule" not in stopping:
        stopping = {**stopping, "rule": "none"}  # the default counts minibatches
    return {**document, name: section, "stopping": stopping}


def _with_free_dimensions(
    settings: SearchSettings, specs: dict[str, Any], seed: int, source: str, *, is_open: bool
) -> SearchSettings:
    if settings.strategy == "listed":
        return listed_free_points(settings, specs, seed, source, is_open=is_open)
    dimensions = [parse_free_dimension(name, spec, settings.max_points, source) for name, spec in specs.items()]
    return settings.model_copy(update={"dimensions": tuple(dimensions)})


def _set_keys(document: dict[str, Any]) -> set[str]:
    """The keys that the document itself sets, as `section.key`."""
    return {f"{section}.{key}" for section, content in document.items() if isinstance(content, dict) for key in content}
