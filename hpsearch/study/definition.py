"""The study definition: one TOML file, parsed, validated, hashed and compared.

This is the first step of the data flow: study.toml -> StudyDefinition -> points in PostgreSQL. The definition is
stored with the study as canonical JSON, so that workers need no file. A changed file is compared with the stored
definition (`change`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import AfterValidator, ValidationError, model_validator

from hpsearch.errors import InputError
from hpsearch.logs import get_logger
from hpsearch.study.conditions import (
    active_dimensions,
    check_effects,
    effective_points,
    idle_keys,
    num_effective_points,
    without_idle,
)
from hpsearch.study.document import (
    apply_override,
    check_document,
    flat_search,
    parse_dimension,
    parse_toml,
    section_of,
    validated,
    with_value,
    written_dimension,
)
from hpsearch.study.listed_points import values_left_to_study, with_listed_points
from hpsearch.study.messages import shown
from hpsearch.study.registry import STRATEGIES, choices_by_key
from hpsearch.study.settings import (
    DataSettings,
    ModelSettings,
    PruningSettings,
    Seed,
    Settings,
    StoppingSettings,
    TrainingSettings,
    TrialSettings,
)
from hpsearch.study.space import (
    Dimension,
    KeptParameters,
    ParameterValue,
    Point,
    SearchSettings,
    Suggester,
    with_zero_switches,
    without_zero_switches,
)

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

_log = get_logger("study")
_NAME_RULE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


_OWN_KEYS: Final = choices_by_key(STRATEGIES)  # keys of [search] that only some strategies have


def check_study_name(name: str) -> str:
    """Validate and return the name; names become file names, keys and page titles.

    Raises:
        ValueError: the name breaks the rule, which the message states.
    """
    if not _NAME_RULE.fullmatch(name):
        raise ValueError(
            "must be 1 to 100 letters (a-z, A-Z), digits, '.', '_' or '-', and begin with a letter or digit, "
            f"got {shown(name)}"
        )
    return name


class StudyDefinition(Settings):
    """The definition of a study: frozen, validated, and the same for every worker.

    Args:
        keep_parameters: the trials whose best parameters are stored as artifacts: "best": each trial that may be the
            study's best when it ends; "all": all complete trials.
    """

    name: Annotated[str, AfterValidator(check_study_name)]
    seed: Seed = 0
    data: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()
    training: TrainingSettings = TrainingSettings()
    search: SearchSettings = SearchSettings()
    stopping: StoppingSettings = StoppingSettings()
    pruning: PruningSettings = PruningSettings()
    keep_parameters: KeptParameters = "best"

    @model_validator(mode="after")
    def _check_number_of_points(self) -> StudyDefinition:
        search = self.search
        _check_own_keys(search)
        for dimension in search.dimensions:
            if not search.is_drawn and dimension.log_grid and dimension.log_grid.zero_share is not None:
                raise ValueError(f"search.{dimension.name}: zero_share belongs to strategies that draw")
        if search.strategy == "grid":
            for dimension in search.dimensions:
                if dimension.is_continuous:
                    raise ValueError(
                        f"search.{dimension.name} is a range, which a grid cannot list: "
                        "give values or log10, or take strategy coarse-to-fine or random"
                    )
        elif search.is_drawn and search.num_points is None:
            raise ValueError(f"search.num_points is missing: strategy {search.strategy} draws that many")
        elif not search.dimensions:
            what = "draw from" if search.is_drawn else "look at"
            raise ValueError(f"search has no dimension for strategy {search.strategy} to {what}")
        if self.num_points > search.max_points:
            raise ValueError(
                f"the {'grid' if search.strategy == 'grid' else 'search'} has {self.num_points:,} points, "
                f"more than the limit of {search.max_points:,}: "
                f"raise it with --set search.max_points={self.num_points}"
            )
        return self

    @property
    def num_points(self) -> int:
        """The number of points at the start: all points, except for coarse-to-fine, which adds rounds."""
        if self.search.num_points is not None:
            return self.search.num_points
        if self.search.strategy == "listed":
            return len(self.search.points)
        return num_effective_points(self.search.dimensions, self._sections)

    @property
    def is_drawn(self) -> bool:
        """True if a sampler draws the parameters of a point when the point is claimed."""
        return self.search.is_drawn

    @property
    def keeps_all_parameters(self) -> bool:
        """True if the best parameters of every complete trial are kept, not only of trials that may be the best."""
        return self.keep_parameters == "all"

    @property
    def _sections(self) -> dict[str, dict[str, Any]]:
        return {"model": self.model.model_dump(), "training": self.training.model_dump()}

    def points(self) -> Iterator[dict[str, ParameterValue]]:
        """The points that are known from the start, in order, without keys that have no effect in them.

        With a strategy that draws, points are empty until a worker claims them.

        Raises:
            ValueError: the strategy is coarse-to-fine, which has rounds (search/narrowing).
        """
        match self.search.strategy:
            case "grid":
                return effective_points(self.search.dimensions, self._sections)
            case "listed":
                return (dict(point) for point in self.search.points)
            case "coarse-to-fine":
                raise ValueError("coarse-to-fine has rounds, and no list of points")
        return ({} for _ in range(self.num_points))

    def reduce(self, point: Point) -> dict[str, ParameterValue]:
        """The point without the keys that have no effect in it, such as `momentum` with plain SGD."""
        return without_idle(point, self._sections)

    def left_to_study(self, point: Point) -> dict[str, ParameterValue]:
        """The searched keys that a listed point does not name, with the study's own values."""
        if self.search.strategy != "listed":
            return {}
        return values_left_to_study(point, self.search.dimensions, {**self._sections, "seed": self.seed})

    def draw(self, trial: Suggester) -> dict[str, ParameterValue]:
        """Let a trial's sampler choose the values of all dimensions that have an effect in it."""
        point: dict[str, ParameterValue] = {}
        for dimension in active_dimensions(self.search.dimensions, self._sections, point):
            point[dimension.name] = dimension.suggest(trial)
        return point

    def is_admissible(self, point: Point) -> bool:
        """Whether the settings accept these values; a growing grid may reach an invalid value, such as momentum 1."""
        try:
            self.resolve(point)
        except ValidationError:
            return False
        return True

    def parameters(self, point: Point) -> dict[str, ParameterValue]:
        """A point of `points`, or of a round, as Optuna parameters; `distributions` has the same names."""
        if self.search.strategy == "coarse-to-fine":
            return with_zero_switches(point, self.search.dimensions)
        return dict(point)

    def distributions(self) -> dict[str, BaseDistribution]:
        """Optuna distributions of the parameters, for strategies that do not draw."""
        if self.search.strategy != "coarse-to-fine":
            return {d.name: d.grid_distribution() for d in self.search.dimensions}
        return {n: dist for d in self.search.dimensions for n, dist in d.narrowed_distributions().items()}

    def resolve(self, parameters: Point) -> TrialSettings:
        """The study's settings with the parameters of one trial.

        Args:
            parameters: as Optuna stores them (with `_is_zero` switches).
        Raises:
            ValidationError: the settings do not accept a value.
        """
        sections = self._sections
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
        """The definition as the content of a study file; `parse_definition` reads it back as the same definition.

        Defaults are included, except for keys that have no effect.
        """
        sections = self.model_dump(mode="json")
        idle = idle_keys(sections, self.search)
        document = {
            section: _without_absent(content, section, idle) if isinstance(content, dict) else content
            for section, content in sections.items()
        }
        search = document["search"]
        del search["dimensions"]
        for name, strategies in _OWN_KEYS.items():
            if self.search.strategy not in strategies:
                search.pop(name, None)
        if self.search.strategy != "listed":
            search.update(_written_dimensions(self.search.dimensions))
        return document

    def told_like(self, other: StudyDefinition) -> StudyDefinition:
        """This definition with the order of dimensions and the dataset path of another definition.

        Neither is part of a study's identity, but the order of dimensions determines the order of points, so a study
        keeps its original order. Keys that the other definition lacks come last.
        """
        places = {dimension.name: place for place, dimension in enumerate(other.search.dimensions)}
        in_order = sorted(self.search.dimensions, key=lambda dimension: places.get(dimension.name, len(places)))
        search = self.search.model_copy(update={"dimensions": tuple(in_order)})
        update: dict[str, Any] = {"search": search}
        if is_same_place(other.data.dataset, self.data.dataset):
            update["data"] = self.data.model_copy(update={"dataset": other.data.dataset})
        return self.model_copy(update=update)

    def canonical_json(self) -> str:
        """A canonical text: defaults included, keys sorted. `from_canonical_json` reads it back."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_canonical_json(cls, text: str) -> StudyDefinition:
        # strict=False: JSON has lists where the sections have tuples.
        return cls.model_validate_json(text, strict=False)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.canonical_json().encode()).hexdigest()

    @property
    def value_sha256(self) -> str:
        """SHA-256 of everything that a trial's value depends on besides its point.

        Unlike the search, it must not change during the life of a study.
        """
        meaning = self.model_dump(mode="json", exclude={"name", "search", "keep_parameters"})
        return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()


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


def _check_own_keys(search: SearchSettings) -> None:
    for name, strategies in _OWN_KEYS.items():
        value, default = getattr(search, name), SearchSettings.model_fields[name].get_default()
        if search.strategy not in strategies and value != default:
            raise ValueError(
                f"search.{name} belongs to strategy {', '.join(strategies)}, not to {search.strategy}"
                + ("; a grid has all its points" if search.strategy == "grid" and name == "num_points" else "")
            )


def parse_definition(document: dict[str, Any], *, source: str) -> StudyDefinition:
    """Turn a parsed TOML document into a definition.

    Args:
        source: name of the document in error messages, usually its path.
    Raises:
        InputError: names source, key, value and what was expected.
    """
    check_document(document, source)
    document = dict(document)
    search = document.pop("search", {})
    if not isinstance(search, dict):
        raise InputError(f"{source}: search must be a section, got {shown(search)}", hint="write [search]")
    search = flat_search(search, source)
    # Validate the other sections first: a dimension's values are validated as part of their section.
    base = validated(StudyDefinition, {**document, "search": {}}, source=source)
    own = {key: value for key, value in search.items() if key in SearchSettings.model_fields}
    own.pop("dimensions", None)
    settings = validated(SearchSettings, own, source=source, section="search")
    sections = base.model_dump()
    specs = {name: spec for name, spec in search.items() if name not in own}
    if settings.strategy == "listed":
        settings = with_listed_points(settings, specs, sections, source)
    else:
        dimensions = (parse_dimension(n, spec, sections, settings.max_points, source) for n, spec in specs.items())
        settings = settings.model_copy(update={"dimensions": tuple(dimensions)})
    check_effects(sections, settings, _set_keys(document), source)
    _warn_of_small_budget(settings, sections, source)
    return validated(StudyDefinition, {**document, "search": settings}, source=source)


def _warn_of_small_budget(search: SearchSettings, sections: Mapping[str, Any], source: str) -> None:
    budget = search.budget_points
    if search.strategy == "coarse-to-fine" and budget is not None:
        num_points = num_effective_points(search.dimensions, sections)
        if budget < num_points:
            _log.warning(
                "%s: search.budget_points = %d is less than the %d points of the grid that the search begins with: "
                "only a part of them will be trained",
                *(source, budget, num_points),
            )


def is_same_place(stored: str, given: str) -> bool:
    """Whether a dataset's absolute path may be the same as a relative path that an older hpsearch stored.

    The folder that a stored relative path refers to is not known; the checksums of the data are compared elsewhere.
    """
    old, new = PurePath(stored), PurePath(given)
    return new.is_absolute() and not old.is_absolute() and new.parts[-len(old.parts) :] == old.parts != ()


def _written_dimensions(dimensions: Sequence[Dimension]) -> dict[str, Any]:
    """The dimensions as in a study file, in a form in which TOML preserves their order.

    In TOML the values of a section come before its tables, so a list that follows a table is written as a table.
    """
    written: dict[str, Any] = {}
    for dimension in dimensions:
        spec = written_dimension(dimension)
        follows_table = any(isinstance(other, dict) for other in written.values())
        written[dimension.name] = {"values": spec} if follows_table and isinstance(spec, list) else spec
    return written


def _set_keys(document: dict[str, Any]) -> set[str]:
    """The keys that the document itself sets, as `section.key`."""
    return {f"{section}.{key}" for section, content in document.items() if isinstance(content, dict) for key in content}


def _without_absent(content: dict[str, Any], section: str, idle: Collection[str]) -> dict[str, Any]:
    """A section without nulls, which TOML lacks, and without defaults that have no effect."""
    kind = StudyDefinition.model_fields[section].annotation
    assert isinstance(kind, type)
    assert issubclass(kind, Settings)
    defaults = kind().model_dump(mode="json")
    return {
        key: value
        for key, value in content.items()
        if value is not None and not (f"{section}.{key}" in idle and value == defaults[key])
    }
