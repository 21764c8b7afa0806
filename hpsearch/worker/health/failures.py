"""What made a worker fail, in the one line that its trials keep."""

from __future__ import annotations

from hpsearch.safe_text import mask_passwords
from hpsearch.training.networks.custom_module import place_of
from hpsearch.wording import first_line

LONGEST_MESSAGE = 200  # characters: a trial attribute is read in tables


def describe_failure(error: BaseException) -> str:
    """`ValueError: no such layer (networks.py:12)`: type, first line, and the last frame of the user's own code."""
    text = first_line(error) if str(error).strip() else ""
    message = mask_passwords(text)  # before the cut, which could take away what a password is known by
    if len(message) > LONGEST_MESSAGE:
        message = message[:LONGEST_MESSAGE] + "..."
    return f"{type(error).__name__}{message and ': '}{message}{place_of(error)}"
