"""The pattern that finds reports in a program's output: what it must be, for study files and for who applies it.

Standard library only, since the process that applies patterns loads nothing else.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_LONGEST_PATTERN: Final = 1000  # characters
STEP_GROUP: Final = "step"
_VALUE_GROUP: Final = "value"


NUMBER: Final = "[0-9.eE+-]+|nan|inf"  # what programs print


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportPattern:
    """A compiled pattern.

    Args:
        value_group: number of the group of the value: `value`, or else the first one that is not the step.
        has_step: whether it has a group `step`; otherwise matches are counted.
    """

    compiled: re.Pattern[str]
    value_group: int
    has_step: bool


def parse_report_pattern(pattern: str) -> ReportPattern:
    """Compile a pattern.

    Raises:
        ValueError: it is too long, not a regular expression, or none of its groups can be the value. The message begins
            with "must".
    """
    if len(pattern) > _LONGEST_PATTERN:
        raise ValueError(f"must have at most {_LONGEST_PATTERN} characters, got {len(pattern)}")
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"must be a regular expression, got {pattern!r:.60}: {error}") from None
    step = compiled.groupindex.get(STEP_GROUP)
    unknown = [name for name in compiled.groupindex if name not in (STEP_GROUP, _VALUE_GROUP)]
    if unknown:
        raise ValueError(f"must name its groups {STEP_GROUP} and {_VALUE_GROUP} if at all, got {unknown[0]!r:.40}")
    others = [group for group in range(1, compiled.groups + 1) if group != step]
    if len(others) > 1 and _VALUE_GROUP not in compiled.groupindex:
        raise ValueError(
            f"must name the group of the value, (?P<value>...), because {len(others)} groups could be it ((?:...) makes"
            f" no group, and (?P<step>...) is the step), got {pattern!r:.60}"
        )
    value = compiled.groupindex.get(_VALUE_GROUP, others[0] if others else None)
    if value is None:
        raise ValueError(f"must have a group with the value, as in val_err=({NUMBER}), got {pattern!r:.60}")
    return ReportPattern(compiled=compiled, value_group=value, has_step=step is not None)
