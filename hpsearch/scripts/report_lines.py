"""From the bytes that a script writes to lines, and from lines to reports.

`streams` feeds it with what comes over a FIFO (lines of JSON, see `hpsearch.trial`); the process of `pattern_process`
uses it for what a script prints. Besides the standard library it loads only what needs nothing else, for that process.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from hpsearch.errors import InputError
from hpsearch.study.report_pattern import NUMBER, STEP_GROUP, ReportPattern, parse_report_pattern

LONGEST_LINE: Final = 64 * 1024  # bytes
LONGEST_PATTERN_LINE: Final = 4096  # bytes
LARGEST_STEP: Final = 2**31 - 1  # what the study database stores

_SHOWN: Final = 200  # characters of a malformed line

# OSC and the other strings up to BEL or ST; CSI; all other sequences. Each part ends at the next escape character, so
# the search takes linear time.
_ESCAPE = re.compile(
    r"\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)"
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|\x1b[ -/]*[0-~]?"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """The value of the study's metric after a step.

    Args:
        step: >= 1.
        value: may be NaN or infinite.
        more: what else the script has reported, as JSON values.
    """

    step: int
    value: float
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def has_diverged(self) -> bool:
        return not math.isfinite(self.value)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """A script waits for the verdict on its reports up to this step."""

    step: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Malformed:
    """A line that is no report; `text` is its beginning."""

    text: str


class LineSplitter:
    """Splits a stream of bytes into lines, which end at \\n, \\r\\n or \\r (progress bars).

    How the stream is cut into chunks makes no difference. Empty lines are left out; the rest of a longer line is
    dropped.

    Args:
        max_bytes: of one line, without its end.
    """

    def __init__(self, max_bytes: int = LONGEST_LINE) -> None:
        self._max_bytes = max_bytes
        self._begun = b""  # of the line whose end has not come yet

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the lines that end in this chunk."""
        lines = chunk.splitlines()
        if not lines:
            return []
        lines[0] = self._begun + lines[0][: self._max_bytes - len(self._begun)]
        is_last_complete = chunk.endswith((b"\n", b"\r"))
        self._begun = b"" if is_last_complete else lines.pop()[: self._max_bytes]
        return [line[: self._max_bytes] for line in lines if line]

    def finish(self) -> list[bytes]:
        """Return what has come of a last line without an end."""
        begun, self._begun = self._begun, b""
        return [begun] if begun else []


def text_of_line(line: bytes) -> str:
    """Decode a line as UTF-8, with U+FFFD for what is none, and without terminal escapes."""
    text = line.decode("utf-8", errors="replace")
    return _ESCAPE.sub("", text) if "\x1b" in text or "\x9b" in text else text


def parse_report_line(line: bytes) -> Report | Ask | Malformed:
    """Read one line that a script has written to its FIFO."""
    text = text_of_line(line)
    if not text.lstrip().startswith("{"):  # told apart without an exception: a script may write plain text without end
        return Malformed(text=text[:_SHOWN])
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return _malformed(line)
    if "step" not in document and _is_step(document.get("ask")):
        return Ask(step=document["ask"])
    step, value = document.pop("step", None), _number(document.pop("value", None))
    if not _is_step(step) or value is None:
        return _malformed(line)
    return Report(step=step, value=value, more=document)


def check_pattern(pattern: str) -> ReportPattern:
    """Compile a pattern for reports in a script's output.

    Raises:
        InputError: see `parse_report_pattern`.
    """
    try:
        return parse_report_pattern(pattern)
    except ValueError as error:
        raise InputError(f"the pattern {error}", hint=f'for example "val_err=({NUMBER})"') from error


class PatternMatcher:
    """Reads reports from the lines of one attempt's output. One match per line is a report.

    A group named `step` is the step; without one the matches are counted: 1, 2, 3. A group named `value`, or else the
    first group that is not the step, is the value.

    Args:
        num_matches: the matches in earlier lines.
    Raises:
        InputError: see `check_pattern`.
    """

    def __init__(self, pattern: str, *, num_matches: int = 0) -> None:
        self._pattern = check_pattern(pattern)
        self.num_matches = num_matches

    def read(self, line: bytes) -> Report | Malformed | None:
        """Return None if the line is empty, too long or does not match."""
        if not line or len(line) > LONGEST_PATTERN_LINE:
            return None
        match = self._pattern.compiled.search(text_of_line(line))
        if match is None:
            return None
        self.num_matches += 1
        try:
            step = int(match[STEP_GROUP]) if self._pattern.has_step else self.num_matches
            value = float(match[self._pattern.value_group])
        except (ValueError, TypeError):  # TypeError: the group took no part in the match
            return _malformed(line)
        return Report(step=step, value=value) if _is_step(step) else _malformed(line)


def _malformed(line: bytes) -> Malformed:
    return Malformed(text=text_of_line(line[: 4 * _SHOWN])[:_SHOWN])


def _is_step(step: object) -> bool:
    return type(step) is int and 1 <= step <= LARGEST_STEP


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return None
