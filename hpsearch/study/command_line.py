"""The command of a study whose trials are programs: its placeholders are checked once, then filled in for each trial.

    run = ["{python}", "train.py", "--lr={learning_rate}", "--seed={seed}"]

`{name}` is replaced, `{{` and `}}` are braces. There is no shell and no other syntax. The command is checked when its
study is created (`check_command`), so that a misspelt name is found before the first trial. The values come from
`ProgramCall.values` in worker/programs/program_call.py; the keys of [command] are fields in study/program.py.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Final

from hpsearch import environment as variables
from hpsearch.errors import InputError
from hpsearch.study.messages import shown
from hpsearch.wording import did_you_mean

Value = bool | int | float | str

OWN_PLACEHOLDERS: Final = ("seed", "trial", "attempt", "folder", "parameters", "python")
# A dimension may be called `seed`: its values are then the trials' seeds.
_RESERVED: Final = frozenset(OWN_PLACEHOLDERS) - {"seed"}
LARGEST_ARGUMENT_BYTES: Final = 32 * 4096  # of one argument or variable with its final NUL: MAX_ARG_STRLEN of Linux

_NAME = re.compile(r"[\w.-]+")
_TOKEN = re.compile(r"\{\{|\}\}|\{[^{}]*\}|[{}]|[^{}]+")
_PARAMETER_VARIABLE = re.compile(rf"{variables.PARAMETER_PREFIX}[A-Z0-9_]*")
_PLAIN = re.compile(r"[\w@%+=:./{}-]+", re.ASCII)
_SEED = re.compile(
    rf"(?<!\{{)\{{(seed|parameters)\}}|{variables.SEED}|{variables.PARAMETERS}|{variables.PARAMETER_PREFIX}(SEED)?(?![A-Z0-9_])"
)
_BRACES_HINT = "write {{ and }} for braces"


def placeholders_in(text: str, *, where: str = "argument") -> list[str]:
    """Return the names of the placeholders in the order in which they occur, repeated ones too.

    Args:
        where: name of the text in error messages: `command.run, argument 2`.
    Raises:
        InputError: a lone brace, or braces around something that cannot be a name.
    """
    return [token[1:-1] for token in _tokens(text, where) if _is_placeholder(token)]


def render(text: str, values: Mapping[str, Value], *, where: str = "argument") -> str:
    """Return the text with its placeholders replaced by the values (`as_text`), and its doubled braces by single ones.

    Raises:
        InputError: as `placeholders_in`, or a name that has no value.
    """

    def rendered(token: str) -> str:
        if token in ("{{", "}}"):
            return token[0]
        return as_text(_value_of(token[1:-1], values, text, where)) if _is_placeholder(token) else token

    return "".join(rendered(token) for token in _tokens(text, where))


def render_command(run: Sequence[str], values: Mapping[str, Value]) -> list[str]:
    """Return the arguments of one trial's process.

    Raises:
        InputError: as `render`, or a value makes an argument that no process can be given (NUL, too long).
    """
    return _rendered([(where, text) for where, text in _arguments(run)], values)


def render_environment(environment: Mapping[str, str], values: Mapping[str, Value]) -> dict[str, str]:
    """Return the variables that the study sets for one trial. Raises the errors of `render_command`."""
    return dict(zip(environment, _rendered(list(_settings(environment)), values), strict=True))


def as_text(value: Value) -> str:
    """Format a value so that a program reads exactly this one: `true`, `64`, `0.001`, `1e-05`, `relu`."""
    if isinstance(value, bool):
        return str(value).lower()
    # Not repr(value): that of NumPy's subclass of float is `np.float64(0.1)`.
    return float.__repr__(value) if isinstance(value, float) else str(value)


def as_line(run: Sequence[str]) -> str:
    """Return the arguments as one line for a POSIX shell, in which placeholders stay readable."""
    return " ".join(part if _PLAIN.fullmatch(part) else shlex.quote(part) for part in run)


def parameter_variable(name: str) -> str:
    """Return the environment variable that has a dimension's value: `optimizer.lr` -> HPSEARCH_PARAM_OPTIMIZER_LR."""
    return variables.PARAMETER_PREFIX + re.sub(r"[^A-Z0-9_]", "_", name.upper())


def names_seed(run: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Return whether the command itself passes on the trial's seed, or mentions the variable that has it."""
    return any(_SEED.search(text) for _, text in (*_arguments(run), *_settings(environment)))


def check_command(
    run: Sequence[str],
    environment: Mapping[str, str],
    dimensions: Collection[str],
    *,
    reads_parameters: bool = False,
) -> None:
    """Check a study's command, before anything is created.

    A dimension counts as used if an argument or a variable contains its placeholder or the name of its variable
    (HPSEARCH_PARAM_WIDTH, as in `["bash", "-c", "train --width $HPSEARCH_PARAM_WIDTH"]`). All of them do with
    `{parameters}`, HPSEARCH_PARAMETERS, or the bare prefix HPSEARCH_PARAM_.

    Args:
        environment: the variables that the study sets; their values may contain placeholders.
        dimensions: names of the searched parameters.
        reads_parameters: the program itself reads all parameters, from its environment or through hpsearch.trial.
    Raises:
        InputError: a command that cannot be started, a placeholder or variable of no dimension, a dimension that is
            used nowhere, or dimensions whose names cannot be told apart.
    """
    if not run or not run[0]:
        raise InputError("command.run is empty", hint='for example run = ["{python}", "train.py"]')
    _check_dimensions(dimensions)
    _check_variable_names(environment)
    texts = [*_arguments(run), *_settings(environment)]
    known = dict.fromkeys([*dimensions, *OWN_PLACEHOLDERS], "")
    used = set(dimensions) if reads_parameters else {"seed"}  # HPSEARCH_SEED has it
    for where, text in texts:
        _check_size(text, where)
        names = placeholders_in(text, where=where)
        for name in names:
            _value_of(name, known, text, where)
        used |= {*names, *_named_by_variables(text, dimensions, where)}
        if "parameters" in names or variables.PARAMETERS in text:
            used |= set(dimensions)
    for name in dimensions:
        if name not in used:
            raise InputError(
                f"search dimension {name!r} is used nowhere in the command",
                hint=f"write {{{name}}} or {parameter_variable(name)} into command.run or command.env, or pass "
                "{parameters}, a JSON file; or set command.reads_parameters = true if the program reads them by itself",
            )


def _tokens(text: str, where: str) -> Iterator[str]:
    """Split the text into plain parts, doubled braces and placeholders, which are checked."""
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token in ("{", "}"):
            raise InputError(f"{where} {shown(text)}: a lone {token}", hint=_BRACES_HINT)
        if _is_placeholder(token) and not _NAME.fullmatch(token[1:-1]):
            raise InputError(f"{where} {shown(text)}: {shown(token)} is no placeholder", hint=_BRACES_HINT)
        yield token


def _is_placeholder(token: str) -> bool:
    return len(token) > 1 and token.startswith("{") and token.endswith("}")


def _value_of(name: str, values: Mapping[str, Value], text: str, where: str) -> Value:
    if name in values:
        return values[name]
    if f"${{{name}}}" in text:
        hint = f"for a variable of a shell, write ${{{{{name}}}}}"
    else:
        hint = "; ".join(filter(None, (did_you_mean(name, [*values]), f"choices: {', '.join(values)}")))
    raise InputError(f"{where} {shown(text)}: unknown placeholder {{{name}}}", hint=hint)


def _rendered(texts: Sequence[tuple[str, str]], values: Mapping[str, Value]) -> list[str]:
    found = []
    for where, text in texts:
        found.append(render(text, values, where=where))
        _check_size(found[-1], where)
    return found


def _arguments(run: Sequence[str]) -> Iterator[tuple[str, str]]:
    return ((f"command.run, argument {number},", text) for number, text in enumerate(run))


def _settings(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    return ((f"command.env.{name}", text) for name, text in environment.items())


def _check_size(text: str, where: str) -> None:
    if "\0" in text:
        raise InputError(f"{where} {shown(text)} contains a NUL character", hint="no process can be given one")
    size = len(text.encode(errors="surrogatepass")) + 1
    if size > LARGEST_ARGUMENT_BYTES:
        raise InputError(
            f"{where} has {size:,} bytes, more than the {LARGEST_ARGUMENT_BYTES:,} that Linux allows",
            hint="put the text into a file and pass its name",
        )


def _check_dimensions(dimensions: Collection[str]) -> None:
    by_variable: dict[str, str] = {}
    for name in dimensions:
        if not _NAME.fullmatch(name):
            raise InputError(
                f"search dimension {name!r} cannot be a placeholder",
                hint="for a command, names have letters, digits, and the characters _ . -",
            )
        if name in _RESERVED:
            raise InputError(f"search dimension {name!r}: {{{name}}} has another meaning", hint="rename the dimension")
        other = by_variable.setdefault(parameter_variable(name), name)
        if other != name:
            raise InputError(
                f"search dimensions {other!r} and {name!r} have the same variable {parameter_variable(name)}",
                hint="rename one of them",
            )


def _check_variable_names(environment: Mapping[str, str]) -> None:
    def refuse(is_wrong: Callable[[str], bool], reason: str, hint: str) -> None:
        for name in filter(is_wrong, environment):
            raise InputError(f"command.env: variable {shown(name)} {reason}", hint=hint)

    refuse(lambda name: not name or "=" in name or "\0" in name, "is not a name", "write NAME = 'value'")
    refuse(lambda name: name.startswith(variables.PREFIX), "is hpsearch's own", "use another name")
    refuse(lambda name: name == "CUDA_VISIBLE_DEVICES", "is set for each trial", "choose GPUs with command.gpus")


def _named_by_variables(text: str, dimensions: Collection[str], where: str) -> set[str]:
    """Return the dimensions whose variables the text mentions."""
    by_variable = {parameter_variable(name): name for name in dimensions}
    found = set(_PARAMETER_VARIABLE.findall(text))
    if variables.PARAMETER_PREFIX in found:
        return set(dimensions)  # as in `env | grep HPSEARCH_PARAM_`
    for variable in sorted(found - by_variable.keys()):
        known = [*by_variable]
        hint = did_you_mean(variable, known) or f"choices: {', '.join(known)}"
        raise InputError(f"{where} {shown(text)}: {variable} belongs to no dimension", hint=hint)
    return {by_variable[variable] for variable in found}
