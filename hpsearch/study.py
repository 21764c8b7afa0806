"""The study definition: one TOML file, parsed, validated, hashed and compared.

It is the first station of the way of the data: study.toml -> StudyDefinition -> points in PostgreSQL. The definition
is stored with the study as canonical JSON, so that workers need no file and a changed definition is refused.
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

from pydantic import AfterValidator, Field, ValidationError, model_validator

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
from hpsearch.validation_messages import describe_first_error, suggest_names

Strategy = Literal["grid", "random", "tpe"]

S = TypeVar("S", bound=Settings)

_NAME_RULE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SECTIONS: dict[str, type[Settings]] = {"model": ModelSettings, "training": TrainingSettings}
_NOT_SEARCHABLE = {"kernels"}  # a pair is no value that Optuna can store


def check_study_name(name: str) -> str:
    """Return the name, or raise ValueError with the rule: names become file names, lock keys and page titles."""
    if not _NAME_RULE.fullmatch(name):
        shown = name if len(name) <= 40 else name[:37] + "..."
        raise ValueError(
            "must be 1 to 100 letters, digits, '.', '_' or '-', and begin with a letter or digit, "
            f"got {shown!r}"
        )
    return name


class SearchSettings(Settings):
    """[search]: the strategy, and one dimension per searched key.

    Args:
        num_points: how many points random and tpe draw; a grid's number follows from its values.
        max_points: a grid larger than this is refused: most likely a slip.
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
            if self.num_points > search.max_points:
                raise ValueError(
                    f"the grid has {self.num_points:,} points, more than the limit of {search.max_points:,}: "
                    f"raise it with --set search.max_points={self.num_points}"
                )
        elif search.num_points is None:
            raise ValueError(f"search.num_points is missing: strategy {search.strategy} draws that many")
        elif not search.dimensions:
            raise ValueError(f"search has no dimension for strategy {search.strategy} to draw from")
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
        """True if points get their parameters from a sampler when they are claimed, not when they are created."""
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
        raise InputError(f"{path}: not valid TOML: {error}", hint="https://toml.io shows the syntax") from error
    for override in overrides:
        _apply_override(document, override)
    return parse_definition(document, source=str(path))


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
        raise InputError(f"{source}: search must be a section, got {search!r}", hint="write [search]")
    # The other sections come first: a dimension's values are judged by the section that they will stand in.
    base = _validated(StudyDefinition, {**document, "search": {}}, source=source)
    own = {key: value for key, value in search.items() if key in SearchSettings.model_fields}
    own.pop("dimensions", None)
    dimensions = tuple(
        _parse_dimension(name, spec, base, source) for name, spec in search.items() if name not in own
    )
    settings = _validated(SearchSettings, {**own, "dimensions": dimensions}, source=source, section="search")
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


def _parse_dimension(name: str, spec: Any, base: StudyDefinition, source: str) -> Dimension:
    section = next((s for s, kind in _SECTIONS.items() if name in kind.model_fields), None)
    if section is None or name in _NOT_SEARCHABLE:
        known = [key for kind in _SECTIONS.values() for key in kind.model_fields if key not in _NOT_SEARCHABLE]
        raise InputError(
            f"{source}: search.{name}: no such key to search"
            if section is None
            else f"{source}: search.{name}: this key cannot be searched",
            hint=suggest_names(name, [*SearchSettings.model_fields, *known]),
        )
    key = f"search.{name}"
    is_integer = _is_integer(section, name)
    shape: LogGrid | Range | Choice
    if isinstance(spec, dict) and "log10" in spec:
        shape = _validated(LogGrid, spec, source=source, section=key)
        raw: Sequence[Any] = shape.numbers(is_integer=is_integer)
    elif isinstance(spec, dict) and ("low" in spec or "high" in spec):
        shape = _validated(Range, spec, source=source, section=key)
        raw = [round(v) if is_integer else v for v in (shape.low, shape.high)]
    else:
        spec = {"values": spec} if isinstance(spec, list) else spec
        if not isinstance(spec, dict):
            raise InputError(
                f"{source}: {key} must be a list of values or a table, got {spec!r}",
                hint=f"{name} = [...], {{ log10 = [-1, -4] }} or {{ low = ..., high = ... }}; "
                f"a single value belongs under [{section}]",
            )
        shape = _validated(Choice, {**spec, "values": tuple(spec.get("values", ()))}, source=source, section=key)
        raw = shape.values
    values = _checked_values(name, raw, base, section, source)
    return Dimension(
        name=name,
        values=values,
        is_integer=is_integer,
        is_continuous=isinstance(shape, Range),
        is_log=isinstance(shape, LogGrid) or (isinstance(shape, Range) and shape.log),
        has_zero=isinstance(shape, LogGrid) and shape.zero,
    )


def _is_integer(section: str, name: str) -> bool:
    return isinstance(_SECTIONS[section].model_fields[name].get_default(), int) and not isinstance(
        _SECTIONS[section].model_fields[name].get_default(), bool
    ) or name == "seed"


def _checked_values(
    name: str, raw: Sequence[Any], base: StudyDefinition, section: str, source: str
) -> tuple[ParameterValue, ...]:
    """Every value must be one that its section takes, and none may stand twice."""
    if not raw:
        raise InputError(f"{source}: search.{name} has no values", hint="an empty grid has no points")
    values: list[ParameterValue] = []
    own = getattr(base, section).model_dump()
    for value in raw:
        settings = _validated(_SECTIONS[section], {**own, name: value}, source=source, section="search")
        value = getattr(settings, name)  # as the section reads it: 1 becomes 1.0 for a rate
        if value in values:
            raise InputError(
                f"{source}: search.{name} has the value {value!r} twice", hint="each point is counted once"
            )
        values.append(value)
    return tuple(values)


def _apply_override(document: dict[str, Any], override: str) -> None:
    """Put `section.key=value` into the document; the value is read as TOML, or as a bare word."""
    key, separator, text = override.partition("=")
    path = key.strip().split(".")
    if not separator or not all(path):
        raise InputError(f"--set {override}: must be KEY=VALUE", hint="--set training.max_epochs=3")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # `--set data.dataset=digits` needs no quotes
    for section in path[:-1]:
        document = document.setdefault(section, {})
        if not isinstance(document, dict):
            raise InputError(f"--set {override}: {section} is a value, not a section")
    document[path[-1]] = value
