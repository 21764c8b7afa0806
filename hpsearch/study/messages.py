"""Error messages from Pydantic's errors: the key, the rule, the value found, and a suggestion."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, get_args, get_origin

import annotated_types
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from hpsearch.wording import did_you_mean


def suggest_names(name: str, known: Sequence[str]) -> str:
    """`did you mean "learning_rate"?`, or the whole list if no name is similar."""
    return did_you_mean(name, known) or "known: " + ", ".join(known)


def shown(value: Any) -> str:
    """A value for a message, on one line and shortened."""
    try:
        text = repr(value) if not isinstance(value, bool) else str(value).lower()
    except (ValueError, RecursionError):  # too many digits, or tables that are nested too deeply
        text = "a number of very many digits" if isinstance(value, int) else f"a {type(value).__name__} without end"
    return text if len(text) <= 60 else text[:57] + "..."


def describe_first_error(error: ValidationError, kind: type[BaseModel], section: str) -> tuple[str, str | None]:
    """A one-line message and a hint for the first of the errors.

    Args:
        kind: the model that was validated; its fields give rules and names.
        section: the dotted prefix of the keys, as the user wrote them.
    """
    details = error.errors()
    message, hint = _describe(details[0], kind, section)
    if len(details) > 1:
        hint = f"{hint + '; ' if hint else ''}and {len(details) - 1} more in the same file"
    return message, hint


def _describe(detail: Any, kind: type[BaseModel], section: str) -> tuple[str, str | None]:
    location = [str(part) for part in detail["loc"]]
    key = ".".join([*([section] if section else []), *location])
    given = shown(detail["input"])
    match detail["type"]:
        case "extra_forbidden":
            return f"unknown key {key}", _suggest_key(kind, location)
        case "missing" if location[-1].isdigit():  # a list that is too short: the error is at the missing index
            key = key.rpartition(".")[0]
            return f"{key} {_tuple_rule(kind, location)}, got {given}", _tell_default(kind, location)
        case "tuple_type" | "too_long":
            return f"{key} {_tuple_rule(kind, location)}, got {given}", _tell_default(kind, location)
        case "missing":
            return f"{key} is missing", f"add {location[-1]} = ..."
        case "model_type":
            return f"{key} must be a section, got {given}", f"write [{key}]"
        case "literal_error":
            # `settings.named_in` gives the choices; a Literal does not.
            choices = detail["ctx"].get("choices") or _literal_choices(_annotation_at(kind, location))
            hint = did_you_mean(str(detail["input"]), choices) or _tell_default(kind, location)
            return f"{key} must be one of {', '.join(choices)}, got {given}", hint
        case "value_error":
            text = str(detail["ctx"]["error"])
            return (f"{key} {text}" if text.startswith("must") else f"{key}: {text}" if key else text), None
    rule = _value_rule(_annotation_at(kind, location))
    message = f"{key} must be {rule}, got {given}" if rule else f"{key}: {detail['msg']}, got {given}"
    return message, _suggest_plain(detail["input"]) or _tell_default(kind, location)


def _suggest_key(kind: type[BaseModel], location: list[str]) -> str:
    """A suggestion for an unknown key: the same name in another section, or a similar name in this one."""
    name = location[-1]
    elsewhere = [
        f"{section}.{name}"
        for section in kind.model_fields
        if (inner := _model_at(kind, [section])) is not kind and name in inner.model_fields
    ]
    if elsewhere:
        return f'did you mean "{elsewhere[0]}"?'
    return suggest_names(name, list(_model_at(kind, location[:-1]).model_fields))


def _suggest_plain(given: object) -> str | None:
    """A hint if a number or a truth value is in quotes, which makes it a string in TOML."""
    if not isinstance(given, str):
        return None
    try:
        float(given)
    except ValueError:
        return "write it without quotes" if given in ("true", "false") else None
    return "write it without quotes"


def _tell_default(kind: type[BaseModel], location: list[str]) -> str | None:
    field = _field_at(kind, location)
    default = None if field is None else field.get_default()
    if default is None or default is PydanticUndefined:
        return None
    return f"the default is {shown(list(default) if isinstance(default, tuple) else default)}"


def _tuple_rule(kind: type[BaseModel], location: list[str]) -> str:
    """`must be a list of 2 values`, or `must be a list of values` if any length is allowed."""
    kinds = [part for part in _flat(_annotation_at(kind, location)) if get_origin(part) is tuple]
    lengths = [len(get_args(part)) for part in kinds if Ellipsis not in get_args(part)]
    return f"must be a list of {lengths[0]} values" if lengths else "must be a list of values"


def _model_at(kind: type[BaseModel], location: Iterable[str]) -> type[BaseModel]:
    for part in location:
        inner = kind.model_fields[part].annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            kind = inner
    return kind


def _field_at(kind: type[BaseModel], location: list[str]) -> FieldInfo | None:
    """The field at `location`, or the field that contains it (`kernels.1`); None if there is none."""
    owner = _model_at(kind, [part for part in location[:-1] if not part.isdigit()][:1])
    name = next((part for part in reversed(location) if part in owner.model_fields), None)
    return None if name is None else owner.model_fields[name]


def _annotation_at(kind: type[BaseModel], location: list[str]) -> Any:
    """The annotation of the field at `location`, with its constraints."""
    field = _field_at(kind, location)
    return None if field is None else (field.annotation, *field.metadata)


def _flat(annotation: Any) -> list[Any]:
    """The annotation and everything inside it: unions, Annotated metadata, tuples."""
    parts = list(annotation) if isinstance(annotation, tuple) else list(get_args(annotation))
    return [annotation, *(inner for part in parts for inner in _flat(part))]


def _literal_choices(annotation: Any) -> list[str]:
    return [part for part in _flat(annotation) if isinstance(part, str)]


def _value_rule(annotation: Any) -> str | None:
    """`finite and > 0`, `a whole number >= 1`, ... from the field's own constraints."""
    parts = _flat(annotation)
    # FieldInfo (from Field(...) inside a nested Annotated) keeps its constraints in .metadata.
    parts += [inner for part in parts for inner in getattr(part, "metadata", ())]
    limits: dict[str, None] = {  # an ordered set: a pair of numbers has each of its limits twice
        f"{sign} {_plain(getattr(part, attribute))}": None
        for constraint, attribute, sign in (
            (annotated_types.Gt, "gt", ">"),
            (annotated_types.Ge, "ge", ">="),
            (annotated_types.Lt, "lt", "<"),
            (annotated_types.Le, "le", "<="),
        )
        for part in parts
        if isinstance(part, constraint)
    }
    if float in parts:
        return " and ".join(["finite", *limits])
    if int in parts:
        return " ".join(["a whole number", " and ".join(limits)]).rstrip()
    if bool in parts:
        return "true or false"
    if str in parts:
        return "a string"
    return None


def _plain(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:g}"
