"""Describes why a worker failed, in the one line that its trials keep."""

from __future__ import annotations

from hpsearch.foreign_code import place_of
from hpsearch.safe_text import mask_passwords
from hpsearch.wording import first_line

LONGEST_MESSAGE = 200  # characters: a trial attribute is shown in tables


def describe_failure(error: BaseException) -> str:
    """Return a line such as `ValueError: no such layer (networks.py:12)`.

    It has the error's type, its first line, and the last frame of the user's own code.
    """
    text = first_line(error) if str(error).strip() else ""
    message = mask_passwords(text)  # before the cut, which could remove the text by which a password is recognised
    if len(message) > LONGEST_MESSAGE:
        message = message[:LONGEST_MESSAGE] + "..."
    return f"{type(error).__name__}{message and ': '}{message}{place_of(error)}"
