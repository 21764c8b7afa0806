"""The line of a study file that would mend what a check has found: `shuffle = true  # in [training]`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hpsearch.study.definition import StudyDefinition
from hpsearch.study.document import inline_text
from hpsearch.study.space import Dimension


def line_in(section: str, key: str, value: Any) -> str:
    """The line that gives a key of a section this value."""
    return f"{key} = {inline_text(value)}  # in [{section}]"


def line_for(definition: StudyDefinition, section: str, key: str, value: Any, *others: Any) -> str:
    """The line that gives a key of [model] or [training] this value, or these if the study searches it.

    Returns:
        "" if no single line can: the study lists its points.
    """
    if searched(definition, key) is None:
        return line_in(section, key, value)
    return "" if definition.search.strategy == "listed" else line_in("search", key, [value, *others])


def line_for_values(definition: StudyDefinition, section: str, key: str, values: Sequence[Any], otherwise: Any) -> str:
    """As `line_for`, with those of the searched values that remain, or with another one if none does."""
    if searched(definition, key) is None or not values:
        return line_for(definition, section, key, otherwise)
    return line_for(definition, section, key, *values)


def searched(definition: StudyDefinition, key: str) -> Dimension | None:
    """The dimension that searches this key, if there is one."""
    return next((dimension for dimension in definition.search.dimensions if dimension.name == key), None)
