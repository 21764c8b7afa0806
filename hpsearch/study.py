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
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, model_validator

from hpsearch.effects import check_effects, idle_keys
from hpsearch.errors import InputError
from hpsearch.settings import (
    DataSettings,
    ModelSettings,
    PruningSettings,
    Seed,
    Settings,
    StoppingSettings,
    TrainingSettings,
    TrialSettings,
)
from hpsearch.space import ParameterValue, Point, SearchSettings, grid_points, without_zero_switches
from hpsearch.study_document import (
    apply_override,
    flat_search,
    inline_text,
    parse_dimension,
    section_of,
    validated,
    with_value,
    written_dimension,
)
from hpsearch.validation_messages import shown

_NAME_RULE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def check_study_name(name: str) -> str:
    """Return the name, or raise ValueError with the rule: names become file names, keys and page titles."""
    if not _NAME_RULE.fullmatch(name):
        raise ValueError(
            f"must be 1 to 100 letters, digits, '.', '_' or '-', and begin with a letter or digit, got {shown(name)}"
        )
    return name


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
        sections = {"model": self.model.model_dump(), "training": self.training.model_dump()}
        for name, value in without_zero_switches(parameters).items():
            section = section_of(name)
            assert section is not None, "a parameter that no setting takes"
            sections[section] = with_value(sections[section], name, value)
        return TrialSettings(
            model=ModelSettings.model_validate(sections["model"]),
            training=TrainingSettings.model_validate(sections["training"]),
            seed=self.seed,
        )

    def document(self) -> dict[str, Any]:
        """The study file that says this: `parse_definition` reads it back as the same definition.

        Defaults are written out, except where the key has no effect.
        """
        sections = self.model_dump(mode="json")
        idle = idle_keys(sections, self.search)
        document = {
            section: _without_absent(content, section, idle) if isinstance(content, dict) else content
            for section, content in sections.items()
        }
        del document["search"]["dimensions"]
        document["search"].update({d.name: written_dimension(d) for d in self.search.dimensions})
        return document

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
        apply_override(document, override)
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
    search = flat_search(search, source)
    # The other sections come first: a dimension's values are judged by the section that they will stand in.
    base = validated(StudyDefinition, {**document, "search": {}}, source=source)
    own = {key: value for key, value in search.items() if key in SearchSettings.model_fields}
    own.pop("dimensions", None)
    settings = validated(SearchSettings, own, source=source, section="search")
    sections = base.model_dump()
    dimensions = tuple(
        parse_dimension(name, spec, sections, settings.max_points, source)
        for name, spec in search.items()
        if name not in own
    )
    settings = settings.model_copy(update={"dimensions": dimensions})
    check_effects(sections, settings, _set_keys(document), source)
    return validated(StudyDefinition, {**document, "search": settings}, source=source)


def describe_differences(stored: StudyDefinition, given: StudyDefinition) -> list[str]:
    """One line per field that differs: `training.max_epochs: 200 in the study, 3 in the file`."""
    old, new = (dict(_lines(definition)) for definition in (stored, given))
    return [
        f"{key}: {old.get(key, 'absent')} in the study, {new.get(key, 'absent')} given"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def _lines(definition: StudyDefinition) -> Iterator[tuple[str, str]]:
    """Every field with its value, dimensions as they are written."""
    for section, content in definition.model_dump(mode="json").items():
        if not isinstance(content, dict):
            yield section, inline_text(content)
            continue
        for key, value in content.items():
            if key != "dimensions":
                yield f"{section}.{key}", inline_text(value)
    dimensions = definition.search.dimensions
    for dimension in dimensions:
        yield f"search.{dimension.name}", inline_text(written_dimension(dimension))
    yield "search (order of the dimensions)", inline_text([dimension.name for dimension in dimensions])


def _set_keys(document: dict[str, Any]) -> set[str]:
    """`section.key` of all that the document itself says."""
    return {f"{section}.{key}" for section, content in document.items() if isinstance(content, dict) for key in content}


def _without_absent(content: dict[str, Any], section: str, idle: Collection[str]) -> dict[str, Any]:
    """A section without nulls, which TOML has not, and without defaults that have no effect."""
    kind = StudyDefinition.model_fields[section].annotation
    assert isinstance(kind, type)
    assert issubclass(kind, Settings)
    defaults = kind().model_dump(mode="json")
    return {
        key: value
        for key, value in content.items()
        if value is not None and not (f"{section}.{key}" in idle and value == defaults[key])
    }
