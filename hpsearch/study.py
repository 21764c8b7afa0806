"""The study definition: one TOML file, parsed, validated, hashed and compared.

It is the first station of the way of the data: study.toml -> StudyDefinition -> points in PostgreSQL. The
definition is stored with the study as canonical JSON: workers need no file, and a changed one is refused.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, ValidationError, model_validator

from hpsearch.errors import InputError
from hpsearch.settings import (
    Count,
    DataSettings,
    ModelSettings,
    PruningSettings,
    Seed,
    Settings,
    StoppingSettings,
    TrainingSettings,
    TrialSettings,
)
from hpsearch.space import (
    Choice,
    Dimension,
    LogGrid,
    ParameterValue,
    Point,
    Range,
    grid_points,
    without_zero_switches,
)
from hpsearch.validation_messages import describe_first_error, shown, suggest_names

Strategy = Literal["grid", "random", "tpe"]

S = TypeVar("S", bound=Settings)

_NAME_RULE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SECTIONS: dict[str, type[Settings]] = {"model": ModelSettings, "training": TrainingSettings}
_NOT_SEARCHABLE = {"kernels"}  # a pair is no value that Optuna can store


def check_study_name(name: str) -> str:
    """Return the name, or raise ValueError with the rule: names become file names, keys and page titles."""
    if not _NAME_RULE.fullmatch(name):
        raise ValueError(
            f"must be 1 to 100 letters, digits, '.', '_' or '-', and begin with a letter or digit, got {shown(name)}"
        )
    return name


class SearchSettings(Settings):
    """[search]: the strategy, and one dimension per searched key.

    Args:
        num_points: how many points random and tpe draw; a grid's number follows from its values.
        max_points: a study of more points than this is refused: most likely a slip.
    """

    strategy: Strategy = "grid"
    num_points: Count | None = None
    max_points: Count = 10_000
    dimensions: tuple[Dimension, ...] = ()


class StudyDefinition(Settings):
    """What a study is: frozen, validated, the same for every worker."""

    name: Annotated[str, AfterValidator(check_study_name)]
    seed: Seed = 0
    data: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()
    training: TrainingSettings = TrainingSettings()
    search: SearchSettings = SearchSettings()
    stopping: StoppingSettings = StoppingSettings()
    pruning: PruningSettings = PruningSettings()

    @model_validator(mode="after")
    def _check_number_of_points(self) -> StudyDefinition:
        search = self.search
        if search.strategy == "grid":
            if search.num_points is not None:
                raise ValueError("search.num_points belongs to random and tpe; a grid has all its points")
            for dimension in search.dimensions:
                if dimension.is_continuous:
                    raise ValueError(
                        f"search.{dimension.name} is a range, which a grid cannot list: "
                        "give values or log10, or take strategy random or tpe"
                    )
        elif search.num_points is None:
            raise ValueError(f"search.num_points is missing: strategy {search.strategy} draws that many")
        elif not search.dimensions:
            raise ValueError(f"search has no dimension for strategy {search.strategy} to draw from")
        if self.num_points > search.max_points:
            raise ValueError(
                f"the {'grid' if search.strategy == 'grid' else 'search'} has {self.num_points:,} points, "
                f"more than the limit of {search.max_points:,}: "
                f"raise it with --set search.max_points={self.num_points}"
            )
        return self

    @property
    def num_points(self) -> int:
        """How many points the study counts, once each."""
        if self.search.strategy == "grid":
            return math.prod(len(dimension.values) for dimension in self.search.dimensions)
        assert self.search.num_points is not None  # checked above
        return self.search.num_points

    @property
    def is_drawn(self) -> bool:
        """True if a sampler gives points their parameters, when they are claimed and not before."""
        return self.search.strategy != "grid"

    def points(self) -> Iterator[dict[str, ParameterValue]]:
        """The points of a grid in order; a model-based strategy's points are empty until a worker asks."""
        if self.search.strategy == "grid":
            return grid_points(self.search.dimensions)
        return ({} for _ in range(self.num_points))

    def resolve(self, parameters: Point) -> TrialSettings:
        """The study's settings with one trial's parameters in their place.

        Args:
            parameters: as Optuna stores them (with `_is_zero` switches).
        """
        values = without_zero_switches(parameters)
        model = {k: v for k, v in values.items() if k in ModelSettings.model_fields}
        training = {k: v for k, v in values.items() if k in TrainingSettings.model_fields}
        assert model.keys() | training.keys() == values.keys(), "a parameter that no setting takes"
        return TrialSettings(
            model=ModelSettings.model_validate({**self.model.model_dump(), **model}),
            training=TrainingSettings.model_validate({**self.training.model_dump(), **training}),
            seed=self.seed,
        )

    def canonical_json(self) -> str:
        """One text per meaning: defaults written out, keys sorted. `from_canonical_json` reads it back."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_canonical_json(cls, text: str) -> StudyDefinition:
        # strict=False: JSON has lists where the sections hold tuples.
        return cls.model_validate_json(text, strict=False)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.canonical_json().encode()).hexdigest()


def load_definition(path: Path, overrides: Sequence[str] = ()) -> StudyDefinition:
    """Read a study file and put `key=value` overrides in place.

    Raises:
        InputError: the file cannot be read, is not TOML, or says something that is not allowed.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such study file", hint="see the studies/ folder for examples") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        hint = "https://toml.io shows the syntax"
        raise InputError(f"{path}: not valid TOML: {error}", hint=hint) from error
    for override in overrides:
        _apply_override(document, override)
    # The value at fault may stand in an override and not in the file.
    return parse_definition(document, source=f"{path} with --set" if overrides else str(path))


def parse_definition(document: dict[str, Any], *, source: str) -> StudyDefinition:
    """Turn a parsed TOML document into a definition.

    Args:
        source: what error messages call the document, mostly its path.
    Raises:
        InputError: names source, key, value and what was expected.
    """
    document = dict(document)
    search = document.pop("search", {})
    if not isinstance(search, dict):
        raise InputError(f"{source}: search must be a section, got {shown(search)}", hint="write [search]")
    # The other sections come first: a dimension's values are judged by the section that they will stand in.
    base = _validated(StudyDefinition, {**document, "search": {}}, source=source)
    own = {key: value for key, value in search.items() if key in SearchSettings.model_fields}
    own.pop("dimensions", None)
    settings = _validated(SearchSettings, own, source=source, section="search")
    dimensions = tuple(
        _parse_dimension(name, spec, base, settings.max_points, source)
        for name, spec in search.items()
        if name not in own
    )
    settings = settings.model_copy(update={"dimensions": dimensions})
    return _validated(StudyDefinition, {**document, "search": settings}, source=source)


def describe_differences(stored: StudyDefinition, given: StudyDefinition) -> list[str]:
    """One line per field that differs: `training.max_epochs: 200 in the study, 3 in the file`."""
    old, new = (dict(_flatten(json.loads(d.canonical_json()))) for d in (stored, given))
    return [
        f"{key}: {old.get(key, 'absent')} in the study, {new.get(key, 'absent')} given"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flatten(inner, f"{prefix}.{key}" if prefix else key)
    elif prefix == "search.dimensions":
        for dimension in value:  # keyed by name, so that reordered or added dimensions read well
            for key, inner in dimension.items():
                if key != "name":
                    yield f"search.{dimension['name']}.{key}", json.dumps(inner)
        yield "search (order of the dimensions)", json.dumps([dimension["name"] for dimension in value])
    else:
        yield prefix, json.dumps(value)


def _validated(kind: type[S], values: Any, *, source: str, section: str = "") -> S:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        message, hint = describe_first_error(error, kind, section)
        raise InputError(f"{source}: {message}", hint=hint) from None


def _parse_dimension(name: str, spec: Any, base: StudyDefinition, max_values: int, source: str) -> Dimension:
    section = _section_of(name, source)
    is_integer = _is_integer(section, name)
    shape = _parse_shape(name, spec, section, source)
    try:
        raw = shape.listed(is_integer=is_integer, limit=max_values)
    except ValueError as error:
        raise InputError(f"{source}: search.{name} {error}") from None
    return Dimension(
        name=name,
        values=_checked_values(name, raw, base, section, source),
        is_integer=is_integer,
        is_continuous=isinstance(shape, Range),
        is_log=isinstance(shape, LogGrid) or (isinstance(shape, Range) and shape.log),
        has_zero=isinstance(shape, LogGrid) and shape.zero,
    )


def _section_of(name: str, source: str) -> str:
    """The section whose key `name` is, if it can be searched."""
    section = next((s for s, kind in _SECTIONS.items() if name in kind.model_fields), None)
    if section is not None and name not in _NOT_SEARCHABLE:
        return section
    own = [key for key in SearchSettings.model_fields if key != "dimensions"]
    searchable = [k for kind in _SECTIONS.values() for k in kind.model_fields if k not in _NOT_SEARCHABLE]
    reason = "no such key to search" if section is None else "this key cannot be searched"
    raise InputError(f"{source}: search.{name}: {reason}", hint=suggest_names(name, [*own, *searchable]))


def _parse_shape(name: str, spec: Any, section: str, source: str) -> LogGrid | Range | Choice:
    """Tell the three ways to describe a dimension apart by their keys."""
    key = f"search.{name}"
    table = {"values": spec} if isinstance(spec, list) else spec
    if isinstance(table, dict):
        if "log10" in table:
            return _validated(LogGrid, table, source=source, section=key)
        if "low" in table or "high" in table:
            return _validated(Range, table, source=source, section=key)
        if "values" in table:
            return _validated(Choice, table, source=source, section=key)
    raise InputError(
        f"{source}: {key} must be a list of values or a table, got {shown(spec)}",
        hint=f"{name} = [...], {{ log10 = [-1, -4] }} or {{ low = ..., high = ... }}; "
        f"a single value belongs under [{section}]",
    )


def _is_integer(section: str, name: str) -> bool:
    default = _SECTIONS[section].model_fields[name].get_default()
    # training.seed is the one whole number without a default of its own.
    return name == "seed" or (isinstance(default, int) and not isinstance(default, bool))


def _checked_values(
    name: str, raw: Sequence[Any], base: StudyDefinition, section: str, source: str
) -> tuple[ParameterValue, ...]:
    """Every value must be one that its section takes, and none may stand twice."""
    if not raw:
        raise InputError(f"{source}: search.{name} has no values", hint="an empty grid has no points")
    values: dict[ParameterValue, None] = {}  # an ordered set
    own = getattr(base, section).model_dump()
    for entry in raw:
        settings = _validated(_SECTIONS[section], {**own, name: entry}, source=source, section="search")
        value = getattr(settings, name)  # as the section reads it: 1 becomes 1.0 for a rate
        if value in values:
            raise InputError(
                f"{source}: search.{name} has the value {value!r} twice", hint="each point is counted once"
            )
        values[value] = None
    return tuple(values)


def _apply_override(document: dict[str, Any], override: str) -> None:
    """Put `section.key=value` into the document; the value is read as TOML, or as a bare word."""
    key, separator, text = override.partition("=")
    path = key.strip().split(".")
    if not separator or not all(path):
        raise InputError(f"--set {override}: must be KEY=VALUE", hint="--set training.max_epochs=3")
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        parsed = {}
    # `--set data.dataset=digits` needs no quotes; more keys than one come of a line break in the text.
    value = parsed["value"] if len(parsed) == 1 else text.strip()
    for section in path[:-1]:
        document = document.setdefault(section, {})
        if not isinstance(document, dict):
            raise InputError(f"--set {override}: {section} is a value, not a section")
    document[path[-1]] = value
