"""Pydantic's errors in our words: the key, the rule, the value found, and what may have been meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any, get_args

import annotated_types
from pydantic import BaseModel, ValidationError


def suggest_names(name: str, known: Sequence[str]) -> str:
    """`did you mean "learning_rate"?`, or the whole list where nothing is near."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f'did you mean "{near[0]}"?' if near else "known: " + ", ".join(known)


def describe_first_error(error: ValidationError, kind: type[BaseModel], section: str) -> tuple[str, str | None]:
    """Return a one-line message and a hint for the first of the errors.

    Args:
        kind: the model that was validated; its fields tell rules and names.
        section: the dotted prefix of the keys, as the user wrote them.
    """
    details = error.errors()
    first = details[0]
    location = [str(part) for part in first["loc"]]
    key = ".".join([*([section] if section else []), *location])
    message, hint = _describe(first, kind, location, key)
    if len(details) > 1:
        hint = f"{hint + '; ' if hint else ''}{len(details) - 1} more like this in the same file"
    return message, hint


def _describe(detail: Any, kind: type[BaseModel], location: list[str], key: str) -> tuple[str, str | None]:
    given = _shown(detail["input"])
    match detail["type"]:
        case "extra_forbidden":
            owner = _model_at(kind, location[:-1])
            return f"unknown key {key}", suggest_names(location[-1], list(owner.model_fields))
        case "missing":
            return f"{key} is missing", None
        case "literal_error":
            choices = _literal_choices(_annotation_at(kind, location))
            near = difflib.get_close_matches(str(detail["input"]), choices, n=1)
            hint = f'did you mean "{near[0]}"?' if near else None
            return f"{key} must be one of {', '.join(choices)}, got {given}", hint
        case "value_error":
            text = str(detail["ctx"]["error"])
            return (f"{key} {text}" if text.startswith("must") else f"{key}: {text}" if key else text), None
        case "too_short" | "too_long" | "missing_argument":
            return f"{key} must have {_length_rule(detail)} values, got {given}", None
    rule = _number_rule(_annotation_at(kind, location))
    return (f"{key} must be {rule}, got {given}" if rule else f"{key}: {detail['msg']}, got {given}"), None


def _shown(value: Any) -> str:
    text = repr(value) if not isinstance(value, bool) else str(value).lower()
    return text if len(text) <= 60 else text[:57] + "..."


def _length_rule(detail: Any) -> str:
    return str(detail["ctx"].get("min_length", detail["ctx"].get("max_length")))


def _model_at(kind: type[BaseModel], location: Iterable[str]) -> type[BaseModel]:
    for part in location:
        inner = kind.model_fields[part].annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            kind = inner
    return kind


def _annotation_at(kind: type[BaseModel], location: list[str]) -> Any:
    """The annotation of the field at `location`, with its constraints; None where it is no field."""
    owner = _model_at(kind, [part for part in location[:-1] if not part.isdigit()][:1])
    name = next((part for part in reversed(location) if part in owner.model_fields), None)
    if name is None:
        return None
    field = owner.model_fields[name]
    return (field.annotation, *field.metadata)


def _flat(annotation: Any) -> list[Any]:
    """The annotation and everything inside it: unions, Annotated metadata, tuples."""
    parts = list(annotation) if isinstance(annotation, tuple) else list(get_args(annotation))
    return [annotation, *(inner for part in parts for inner in _flat(part))]


def _literal_choices(annotation: Any) -> list[str]:
    return [part for part in _flat(annotation) if isinstance(part, str)]


def _number_rule(annotation: Any) -> str | None:
    """`finite and > 0`, `a whole number >= 1`, ... from the field's own constraints."""
    parts = _flat(annotation)
    # FieldInfo (from Field(...) inside a nested Annotated) keeps its constraints in .metadata.
    parts += [inner for part in parts for inner in getattr(part, "metadata", ())]
    limits = [
        f"{sign} {getattr(part, attribute):g}"
        for constraint, attribute, sign in (
            (annotated_types.Gt, "gt", ">"),
            (annotated_types.Ge, "ge", ">="),
            (annotated_types.Lt, "lt", "<"),
            (annotated_types.Le, "le", "<="),
        )
        for part in parts
        if isinstance(part, constraint)
    ]
    if float in parts:
        return " and ".join(["finite", *limits])
    if int in parts:
        return " ".join(["a whole number", " and ".join(limits)]).rstrip()
    if bool in parts:
        return "true or false"
    if str in parts:
        return "a string"
    return None
