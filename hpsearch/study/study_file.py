"""Study files: TOML with overrides, parsed into a `StudyDefinition`, or refused in one line.

Overrides (`--set`) are applied to the parsed TOML before it is validated. Dimensions are parsed after the other
sections, because their values are validated as part of a section.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hpsearch.errors import InputError
from hpsearch.study.conditions import check_effects, warn_of_idle_program_keys, warn_of_small_budget
from hpsearch.study.definition import NOT_OF_PROGRAMS, PROGRAMS, StudyDefinition
from hpsearch.study.document import parse_dimension, validated
from hpsearch.study.listed_points import with_listed_points
from hpsearch.study.messages import shown
from hpsearch.study.program import check_arguments, joined, listed_free_points, parse_free_dimension
from hpsearch.study.settings import OPTION_PREFIX
from hpsearch.study.space import SearchSettings

_DEEPEST = 16
_TOO_DEEP = f"nested too deeply: {_DEEPEST} levels at most"
_WHOLE_NUMBERS = "whole numbers have at most 64 bits (-2^63 to 2^63 - 1)"
_NO_TEXT = re.compile("[\x00\ud800-\udfff]")
_STRING_KEYS = {"name", "data.dataset"}  # `--set name=5` means the string "5"


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
    keys = {f"{name}.{key}" for name, content in document.items() if isinstance(content, dict) for key in content}
    if is_program:
        warn_of_idle_program_keys(sections, keys, source)
    else:
        check_effects(sections, settings, keys, source)
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


def parse_toml(text: str, source: str) -> dict[str, Any]:
    """Parse TOML.

    Raises:
        InputError: names the source and the place of the error.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{source}: not valid TOML: {error}", hint="https://toml.io shows the syntax") from error
    except RecursionError:
        raise InputError(f"{source}: {_TOO_DEEP}", hint="a study file needs four levels") from None
    except ValueError:  # Python's limit on the digits of an int
        raise InputError(f"{source}: a number of more than 4,300 digits: {_WHOLE_NUMBERS}") from None


def check_document(document: Mapping[str, Any], source: str) -> None:
    """Refuse what later stages cannot represent: deep nesting, integers of more than 64 bits, invalid Unicode.

    Raises:
        InputError: names the key.
    """
    left: list[tuple[tuple[str, ...], Any]] = [((), document)]
    while left:
        path, value = left.pop()
        key = ".".join(path[:_DEEPEST])
        if len(path) > _DEEPEST:
            raise InputError(f"{source}: {key}: {_TOO_DEEP}", hint="a study file needs four levels")
        if isinstance(value, Mapping):
            left += [((*path, str(name)), inner) for name, inner in value.items()]
        elif isinstance(value, list | tuple):
            left += [((*path, str(place)), inner) for place, inner in enumerate(value)]
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise InputError(f"{source}: {key}: {_WHOLE_NUMBERS}, got one with {value.bit_length():,} bits")
        for text in (value, *path[-1:]):
            if isinstance(text, str) and _NO_TEXT.search(text) and path != ("name",):  # the name has its own rule
                raise InputError(f"{source}: {key!a}: text must be Unicode without NUL, got {text!a:.60}")


def flat_search(search: Mapping[str, Any], source: str) -> dict[str, Any]:
    """`[search]` with one entry per dimension: TOML parses `options.width = [...]` as a nested table.

    Raises:
        InputError: an option is given twice.
    """
    options = search.get("options")
    if not isinstance(options, dict):
        return dict(search)
    flat: dict[str, Any] = {}
    for name, spec in search.items():
        entries = {OPTION_PREFIX + option: inner for option, inner in options.items()}
        flat.update(entries if name == "options" else {name: spec})
    if len(flat) < len(search) - 1 + len(options):
        raise InputError(f"{source}: [search] sets an option twice", hint="write options.NAME once")
    return flat


def apply_override(document: dict[str, Any], override: str) -> None:
    """Apply `section.key=value` to the document. The value is read as TOML, otherwise as a string.

    Raises:
        InputError: the override is not KEY=VALUE, or its section is a value.
    """
    key, separator, text = override.partition("=")
    path = key.strip().split(".")
    if not separator or not all(path):
        raise InputError(f"--set {override}: must be KEY=VALUE", hint="--set training.max_epochs=3")
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        parsed = {}
    except (ValueError, RecursionError):
        parsed = parse_toml(f"value = {text}", f"--set {override:.60}")  # raises an InputError
    # `--set data.dataset=digits` needs no quotes. A line break in the text can give more than one key.
    value = parsed["value"] if len(parsed) == 1 else text.strip()
    if ".".join(path) in _STRING_KEYS and not isinstance(value, str):
        value = text.strip()
    for section in path[:-1]:
        document = document.setdefault(section, {})
        if not isinstance(document, dict):
            raise InputError(f"--set {override}: {section} is a value, not a section")
    document[path[-1]] = value
