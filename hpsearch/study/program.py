"""[command] and [objective]: trials that are programs of the user's own, and the dimensions that they search.

A program decides what its parameters mean, so a dimension may have any name and is checked against no section. Its
values are what is written: whole numbers stay whole numbers.
"""

from __future__ import annotations

import math
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer

from hpsearch.errors import InputError
from hpsearch.logs import get_logger
from hpsearch.metric import Metric
from hpsearch.study.command_line import as_line, check_command, names_seed
from hpsearch.study.document import parse_shape
from hpsearch.study.report_pattern import parse_report_pattern
from hpsearch.study.settings import (
    Count,
    CountOrNone,
    LongCount,
    NonNegativeNumber,
    PositiveNumber,
    Settings,
    Texts,
)
from hpsearch.study.space import (
    ZERO_SUFFIX,
    Choice,
    Dimension,
    LogGrid,
    ParameterValue,
    Range,
    SearchSettings,
)

_log = get_logger("study")

SEED: Final = "seed"  # the dimension or key of a listed point that is a trial's seed
RESERVED: Final = ("trial", "attempt", "folder", "parameters", "python")  # placeholders that are no dimensions
# Keys that say how programs are run, and change no value.
RUN_TIME_KEYS: Final = (
    *("gpus", "per_gpu", "cpus", "grace_seconds", "max_attempts", "keep_folders", "folder_limit", "pass_environment"),
    "reads_parameters",
)
_NAME_RULE = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
_METRIC_RULE = re.compile(r"[A-Za-z][A-Za-z0-9 ._/@%()-]{0,59}")
_FUNCTION_RULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
_VARIABLE_RULE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def _check_metric(name: str) -> str:
    if not _METRIC_RULE.fullmatch(name):
        raise ValueError(f"must be 1 to 60 letters, digits and . _ / @ % ( ) - and begin with a letter, got {name!r}")
    return name


def _check_function(name: str) -> str:
    if not _FUNCTION_RULE.fullmatch(name):
        raise ValueError(f'must be "package.module:function", got {name!r:.60}')
    return name


def _check_pattern(pattern: str) -> str:
    parse_report_pattern(pattern)
    return pattern


def _check_relative(path: str) -> str:
    if path.startswith("/") or ".." in path.split("/"):
        raise ValueError(f"must be relative to the folder in which a worker was started, got {path!r:.60}")
    return path


Variables = tuple[tuple[str, str], ...]


def _parse_variables(table: object) -> object:
    """A table of variables as pairs sorted by name: hashable, and equal for equivalent tables."""
    if isinstance(table, tuple):
        return table
    if not isinstance(table, Mapping):
        raise ValueError(f"must be a table of names and texts, got {table!r:.60}")
    for name, value in table.items():
        if not isinstance(name, str) or not _VARIABLE_RULE.fullmatch(name) or not isinstance(value, str):
            raise ValueError(f"must hold names of variables and texts, got {name} = {value!r:.60}")
        if name.startswith("HPSEARCH_"):
            raise ValueError(f"must not set variables of hpsearch, got {name}")
    return tuple(sorted(table.items()))


VariableTable = Annotated[
    Variables, BeforeValidator(_parse_variables), PlainSerializer(dict, return_type=dict[str, str])
]
RelativePath = Annotated[str, AfterValidator(_check_relative)]


class ProgramSettings(Settings):
    """What trials that are programs have in common.

    Args:
        metric: the name of the value that the program reports.
        direction: of the search.
        value: what counts for a complete trial: its best reported value or its last one.
        gpus: number of GPUs of a trial; None: one where the machine has any, otherwise none.
        per_gpu: number of trials that share a GPU.
        cpus: number of processor cores of a trial; its OMP_NUM_THREADS.
        max_steps: a trial that has reported this step ends, and is complete.
        cwd: folder in which the program is started, relative to the worker's; None: the worker's own.
        env: variables that the program gets; texts with placeholders.
        files: files whose contents belong to the study: every worker must have the same.
        pass_environment: variables that hpsearch would otherwise keep from the program (AWS_..., PG...).
        timeout_minutes: of one attempt; a trial that has reported is then complete, another one has failed.
        grace_seconds: between SIGTERM and SIGKILL.
        max_attempts: a point is given up after this many attempts that failed.
        keep_folders: "best": folders of counted points are removed, but for the best point's.
        folder_limit: bytes of an attempt's folder that are kept in a bucket.
    """

    metric: Annotated[str, AfterValidator(_check_metric)] = "value"
    direction: Literal["minimize", "maximize"] = "minimize"
    value: Literal["best", "last"] = "best"
    gpus: CountOrNone | None = None
    per_gpu: Count = 1
    cpus: Count = 1
    max_steps: Count | None = None
    cwd: RelativePath | None = None
    env: VariableTable = ()
    files: Annotated[tuple[RelativePath, ...], Field(strict=False)] = ()
    pass_environment: Texts = ()
    timeout_minutes: PositiveNumber | None = None
    grace_seconds: NonNegativeNumber = 5.0
    max_attempts: Count = 3
    keep_folders: Literal["best", "all"] = "best"
    folder_limit: LongCount = 2 * 10**9

    section: ClassVar[str]

    @property
    @abstractmethod
    def line(self) -> str:
        """What is run, on one line."""

    @property
    def counts_matches(self) -> bool:
        """Whether steps are numbers of matches in an attempt's output, which say nothing about an earlier attempt's."""
        return False

    def warn_of_idle_keys(self, source: str) -> None:
        """Warn of keys that are set and have no effect beside another one."""
        if self.gpus == 0 and "per_gpu" in self.model_fields_set:
            _log.warning("%s: %s.per_gpu has no effect: %s.gpus is 0", source, self.section, self.section)

    @property
    def judged_by(self) -> Metric:
        """The metric of the reported values: any finite number, whose loss is the value or its negative."""
        return Metric(name=self.metric, label=self.metric, direction=self.direction, best=0.0, is_reported=True)


class CommandSettings(ProgramSettings):
    """[command]: a program that is started with each point's values.

    Args:
        run: the program and its arguments, with placeholders such as `{learning_rate}`; no shell reads them.
        pattern: a regular expression whose first group is a value in the program's output; None: the program reports by
            `hpsearch.trial` or writes JSON lines.
        reads_parameters: the program reads all parameters by itself, by `hpsearch.trial` or from its environment, so
            that they need no placeholders.
    """

    section: ClassVar[str] = "command"

    run: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
    pattern: Annotated[str, AfterValidator(_check_pattern)] | None = None
    reads_parameters: bool = False

    @property
    def line(self) -> str:
        return as_line(self.run)

    @property
    def counts_matches(self) -> bool:
        return self.pattern is not None and not parse_report_pattern(self.pattern).has_step

    @property
    def takes_seed(self) -> bool:
        """Whether the command itself takes its trial's seed; otherwise the program may ask hpsearch.trial.seed()."""
        return self.reads_parameters or names_seed(self.run, dict(self.env))


class ObjectiveSettings(ProgramSettings):
    """[objective]: an Optuna objective, which is called with each trial.

    What it returns is the trial's value, whatever it has reported: `value` matters only for trials that hpsearch ends.
    Optuna counts steps from 0, hpsearch from 1: `max_steps` is a number of steps.

    Args:
        function: "package.module:function"; the module is imported from the worker's folder, or is installed.
    """

    section: ClassVar[str] = "objective"

    function: Annotated[str, AfterValidator(_check_function)]

    @property
    def line(self) -> str:
        return self.function


def joined(specs: Mapping[str, Any], parameters: Any, source: str) -> dict[str, Any]:
    """The dimensions that stand in [search] itself and those of [search.parameters].

    Raises:
        InputError: `parameters` is no table, or a dimension is given twice.
    """
    if not isinstance(parameters, Mapping):
        raise InputError(f"{source}: search.parameters must be a table of dimensions", hint="write [search.parameters]")
    for name in parameters:
        if name in specs:
            raise InputError(f"{source}: [search] gives {name} twice", hint="write it under [search.parameters] alone")
    return {**specs, **parameters}


def check_arguments(program: ProgramSettings, dimensions: Sequence[str], source: str) -> None:
    """Raises InputError: a placeholder names nothing, or a dimension is used nowhere (`command_line`)."""
    run: Sequence[str] = ("{python}",)
    reads_all = True
    if isinstance(program, CommandSettings):
        run, reads_all = program.run, program.reads_parameters
    try:
        check_command(run, dict(program.env), dimensions, reads_parameters=reads_all)
    except InputError as error:
        message = str(error).replace("command.env", f"{program.section}.env")
        raise InputError(f"{source}: {message}", hint=error.hint) from None


def check_dimension_name(name: str, source: str, *, is_open: bool = False) -> None:
    """Raises InputError: a program's dimension cannot have this name.

    Args:
        is_open: an objective's, which names its parameters as it likes: no placeholder stands for them.
    """
    if is_open and not name.endswith(ZERO_SUFFIX):
        return
    if name in RESERVED:
        raise InputError(
            f"{source}: search.parameters.{name}: hpsearch itself gives programs a value of this name",
            hint=f"choose another name; taken are {', '.join(RESERVED)}",
        )
    if not _NAME_RULE.fullmatch(name) or name.endswith(ZERO_SUFFIX):
        raise InputError(
            f"{source}: search.parameters: a name must be 1 to 64 letters, digits, _ . or -, begin with a letter or _ "
            f"and not end in {ZERO_SUFFIX}, got {name!r:.80}",
            hint='learning_rate = { log10 = [-1, -4] }, "optimizer.name" = ["sgd", "adam"]',
        )


def parse_free_dimension(name: str, spec: Any, max_values: int, source: str, *, is_open: bool = False) -> Dimension:
    """Parse one dimension of a program: a list, `{ log10 = ... }` or `{ low = ..., high = ... }`.

    Args:
        max_values: maximum number of values.
        is_open: see `check_dimension_name`.
    Raises:
        InputError: names source, key and value.
    """
    check_dimension_name(name, source, is_open=is_open)
    shape = parse_shape(name, spec, "the command itself", source)
    is_integer = _is_integer(shape, spec)
    try:
        raw = shape.listed(is_integer=is_integer, limit=max_values)
    except ValueError as error:
        raise InputError(f"{source}: search.{name} {error}") from None
    values = _plain_values(name, raw, source) if isinstance(shape, Choice) else tuple(raw)
    if not values:
        raise InputError(f"{source}: search.{name} has no values", hint="an empty grid has no points")
    twice = next((value for place, value in enumerate(values) if _is_in(value, values[:place])), None)
    if twice is not None:
        raise InputError(f"{source}: search.{name} has the value {twice!r} twice", hint="each point is counted once")
    if name == SEED and not all(isinstance(value, int) and not isinstance(value, bool) for value in values):
        raise InputError(f"{source}: search.{SEED} must hold whole numbers: programs take it as their seed")
    is_whole = is_integer or all(isinstance(value, int) and not isinstance(value, bool) for value in values)
    return Dimension.of(shape, name=name, values=values, is_integer=is_whole)


def _is_integer(shape: LogGrid | Range | Choice, spec: Any) -> bool:
    """Whether a range or a grid is of whole numbers: `integer = true`, or both ends are written without a point."""
    if isinstance(shape, LogGrid):
        return shape.integer
    return isinstance(shape, Range) and all(isinstance(spec[end], int) for end in ("low", "high"))


def _plain_values(name: str, raw: Sequence[Any], source: str) -> tuple[ParameterValue, ...]:
    """Plain values; numbers become floats if one of them is.

    Raises:
        InputError: a value is a table, a list, or not finite.
    """
    for value in raw:
        if not isinstance(value, str | bool | int | float) or (isinstance(value, float) and not math.isfinite(value)):
            raise InputError(f"{source}: search.{name} must hold texts, truth values or numbers, got {value!r:.60}")
    are_numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in raw)
    if are_numbers and any(isinstance(value, float) for value in raw):
        return tuple(float(value) for value in raw)
    return tuple(raw)


def _is_in(value: ParameterValue, others: Sequence[ParameterValue]) -> bool:
    return any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in others)


def listed_free_points(
    settings: SearchSettings, others: Mapping[str, Any], seed: int, source: str, *, is_open: bool = False
) -> SearchSettings:
    """The settings of strategy `listed` with its dimensions: every point must have the same keys, but for `seed`.

    Args:
        is_open: the points are an objective's, which may ask for other parameters in each of them.
    Raises:
        InputError: there are no points, one lacks a key, or two are the same.
    """
    if others:
        raise InputError(
            f"{source}: search.{next(iter(others))} cannot be combined with strategy listed",
            hint="put the key into the points, or use strategy grid",
        )
    if not settings.points:
        raise InputError(
            f"{source}: search.points is missing: strategy listed needs the points to train",
            hint="points = [{ learning_rate = 0.1 }, { learning_rate = 0.01, seed = 1 }]",
        )
    names = dict.fromkeys(name for point in settings.points for name, _ in point)
    numbers: dict[tuple[Any, ...], int] = {}
    for number, point in enumerate(settings.points, start=1):
        lacking = [name for name in names if name not in dict(point) and name != "seed"]
        if lacking and not is_open:
            raise InputError(f"{source}: search.points: point {number} lacks {lacking[0]}, which other points have")
        meaning = tuple(sorted({"seed": seed, **dict(point)}.items()))
        first = numbers.setdefault(meaning, number)
        if first != number:
            raise InputError(
                f"{source}: search.points: point {number} is equivalent to point {first}",
                hint="each point is counted once; a different seed makes a different point",
            )
    place = f"{source}: search.points"
    values = {name: list(dict.fromkeys(v for p in settings.points for n, v in p if n == name)) for name in names}
    dimensions = tuple(
        parse_free_dimension(name, its, len(its), place, is_open=is_open) for name, its in values.items()
    )
    return settings.model_copy(update={"dimensions": dimensions})
