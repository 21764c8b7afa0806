"""The study definition: one TOML file, parsed, validated, hashed and compared.

This is the first step of the data flow: study.toml -> StudyDefinition -> points in PostgreSQL. The definition is
stored with the study as canonical JSON, so that workers need no file. A changed file is compared with the stored
definition (`change`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, ValidationInfo, model_validator

from hpsearch.metric import METRICS, ONLY_SHOWN, ZERO_ONE, Metric
from hpsearch.study.conditions import (
    active_dimensions,
    effective_points,
    idle_keys,
    num_effective_points,
    without_idle,
)
from hpsearch.study.consistency import (
    OWN_KEYS,
    check_num_points,
    check_own_keys,
    check_program,
    check_search,
    check_stopping,
)
from hpsearch.study.document import (
    is_same_place,
    section_of,
    with_value,
    written_dimensions,
)
from hpsearch.study.listed_points import values_left_to_study
from hpsearch.study.messages import shown
from hpsearch.study.program import (
    RUN_TIME_KEYS,
    CommandSettings,
    ObjectiveSettings,
    ProgramSettings,
)
from hpsearch.study.settings import (
    ASKED_FOR,
    MOST,
    Count,
    DataSettings,
    LongCount,
    ModelSettings,
    PruningSettings,
    Seed,
    Settings,
    StoppingSettings,
    TrainingSettings,
    TrialSettings,
    named_in,
)
from hpsearch.study.space import (
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

_NAME_RULE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


# Keys that say what is kept of trials, and change no value.
KEPT: Final = ("keep_parameters", "keep_every", "keep_end_states", "keep_end_bytes")
BEST_WITH_PICTURES: Final = 5  # trials whose whole models are kept for pictures
PROGRAMS: Final[dict[str, type[ProgramSettings]]] = {"command": CommandSettings, "objective": ObjectiveSettings}
# Why a study of a program has no such section or key.
NOT_OF_PROGRAMS: Final = {
    "model": "the program brings its own model",
    "data": "the program reads its own data",
    "training": "the program trains by itself: what it needs to know are parameters of its command",
    "metric": "the program's metric has its place beside the program",
    **dict.fromkeys(("keep_parameters", "keep_every", "keep_end_states", "keep_end_bytes"), "of own networks"),
}


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


def _refuse_only_shown(name: object) -> object:
    if isinstance(name, str) and name in ONLY_SHOWN:
        raise ValueError(
            f"must have a test for paired comparisons, which {name} has not: it is no mean over examples; take "
            f"{ONLY_SHOWN[name]}, which also counts all classes alike; {name} is shown by hpsearch test"
        )
    return name


class StudyDefinition(Settings):
    """The definition of a study: frozen, validated, and the same for every worker.

    Args:
        metric: by which trials are judged (`metric.METRICS`).
        command, objective: trials are programs; `data`, `model` and `training` are then not used.
        keep_parameters: the trials whose best parameters are stored as artifacts: "best": each trial that may be the
            study's best when it ends; "all": all complete trials.
        keep_every: epochs between two copies of a trial's first-layer filters, of which pictures are made; None: none
            is kept.
        keep_end_states: number of the best trials ended by max_epochs whose last state is kept, so that they can go on
            with more epochs; other trials then begin anew.
        keep_end_bytes: limit on the size of these states.
    """

    JOINED_LATER = frozenset({"metric", "keep_every", "keep_end_states", "keep_end_bytes", *PROGRAMS})

    name: Annotated[str, AfterValidator(check_study_name)]
    seed: Seed = 0
    metric: Annotated[str, named_in(METRICS), BeforeValidator(_refuse_only_shown)] = ZERO_ONE.name
    data: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()
    training: TrainingSettings = TrainingSettings()
    search: SearchSettings = SearchSettings()
    stopping: StoppingSettings = StoppingSettings()
    pruning: PruningSettings = PruningSettings()
    command: CommandSettings | None = None
    objective: ObjectiveSettings | None = None
    keep_parameters: KeptParameters = "best"
    keep_every: Count | None = None
    keep_end_states: Annotated[int, Field(ge=0, le=10**6)] = 20
    keep_end_bytes: LongCount = 2 * 2**30

    @property
    def program(self) -> ProgramSettings | None:
        """What trials run, if they are programs; None: hpsearch trains its own networks."""
        return self.command or self.objective

    @property
    def consent(self) -> str | None:
        """A hash of what a worker runs: consent to one program is no consent to another. None: no program is run.

        It covers the texts that are put into the command; numbers can do no more harm than the command does with them.
        """
        if self.program is None:
            return None
        texts = [[d.name, [value for value in d.values if isinstance(value, str)]] for d in self.search.dimensions]
        harmless = set(RUN_TIME_KEYS) - {"pass_environment"}
        what = [self.program.section, self.program.model_dump(mode="json", exclude=harmless), sorted(texts)]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

    @property
    def is_program(self) -> bool:
        return self.program is not None

    @property
    def judged_by(self) -> Metric:
        return METRICS[self.metric] if self.program is None else self.program.judged_by

    @property
    def dataset(self) -> str | None:
        """The data that trials are trained on; None: a program reads its own."""
        return self.data.dataset if self.program is None else None

    @property
    def step_limit(self) -> int | None:
        """The last epoch of a trial, or of a program the last step; None: there is none."""
        return self.training.max_epochs if self.program is None else self.program.max_steps

    @property
    def max_steps(self) -> int:
        """`step_limit` as a number."""
        return self.step_limit or MOST

    @model_validator(mode="after")
    def _check_consistency(self, info: ValidationInfo) -> StudyDefinition:
        group = self.data.group if info.context == ASKED_FOR else None
        check_stopping(self.stopping, self.judged_by, self.metric, group)
        check_own_keys(self.search)
        if self.program is not None:
            check_program(self.program, self.search, self.stopping, self.pruning)
        check_search(self.search, has_dimensions=self.objective is None)
        check_num_points(self.search, self.num_points)
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
    def num_best_kept(self) -> int:
        """How many of the best complete trials keep their parameters."""
        return 1 if self.keep_every is None else BEST_WITH_PICTURES

    @property
    def _sections(self) -> dict[str, dict[str, Any]]:
        """The sections whose keys can be searched; none if trials are programs."""
        if self.is_program:
            return {}
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
        if self.is_program:
            is_searched = any(dimension.name == "seed" for dimension in self.search.dimensions)
            return {"seed": self.seed} if is_searched and "seed" not in point else {}
        return values_left_to_study(point, self.search.dimensions, {**self._sections, "seed": self.seed})

    def draw(self, trial: Suggester) -> dict[str, ParameterValue]:
        """Let a trial's sampler choose the values of all dimensions that have an effect in it."""
        point: dict[str, ParameterValue] = {}
        for dimension in active_dimensions(self.search.dimensions, self._sections, point):
            point[dimension.name] = dimension.suggest(trial)
        return point

    def is_admissible(self, point: Point) -> bool:
        """Whether the settings accept these values; a growing grid may reach an invalid value, such as momentum 1."""
        if self.is_program:
            return True
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
        assert not self.is_program, "a program has no settings of a network"
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
        for name in NOT_OF_PROGRAMS if self.is_program else ():
            sections.pop(name, None)
        sections = {name: content for name, content in sections.items() if content is not None}
        document = {
            section: _without_absent(content, section, idle) if isinstance(content, dict) else content
            for section, content in sections.items()
        }
        search = document["search"]
        del search["dimensions"]
        for name, strategies in OWN_KEYS.items():
            if self.search.strategy not in strategies:
                search.pop(name, None)
        if self.search.strategy != "listed" and self.search.dimensions:
            written = written_dimensions(self.search.dimensions)
            search.update({"parameters": written} if self.is_program else written)
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
    def is_continuable(self) -> bool:
        """Whether trials that max_epochs ended can go on with more epochs (`change`)."""
        is_searched = any(dimension.name == "max_epochs" for dimension in self.search.dimensions)
        return not self.is_program and self.pruning.pruner != "hyperband" and not is_searched

    def with_max_epochs(self, max_epochs: int) -> StudyDefinition:
        """This definition with another number of epochs."""
        return self.model_copy(update={"training": self.training.model_copy(update={"max_epochs": max_epochs})})

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.canonical_json().encode()).hexdigest()

    @property
    def value_sha256(self) -> str:
        """SHA-256 of everything that a trial's value depends on besides its point.

        Unlike the search, it does not change during the life of a study, except for its number of epochs
        (`StoredStudy.value_sha256`).
        """
        left_out: dict[str, Any] = dict.fromkeys(("name", "search", *KEPT), True)
        if self.program is not None:
            left_out[self.program.section] = set(RUN_TIME_KEYS)
        meaning = self.model_dump(mode="json", exclude=left_out)
        return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()


def _without_absent(content: dict[str, Any], section: str, idle: Collection[str]) -> dict[str, Any]:
    """A section without nulls, which TOML lacks, and without defaults that have no effect."""
    if section in PROGRAMS:
        return {key: value for key, value in content.items() if value not in (None, [], {})}
    kind = StudyDefinition.model_fields[section].annotation
    assert isinstance(kind, type)
    assert issubclass(kind, Settings)
    defaults = kind().model_dump(mode="json")
    return {
        key: value
        for key, value in content.items()
        if value is not None and not (f"{section}.{key}" in idle and value == defaults[key])
    }
