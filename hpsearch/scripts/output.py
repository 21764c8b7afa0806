"""What an attempt has printed: its beginning and its end, without passwords.

`streams` appends what comes over the output pipe; the worker stores `text` as an artifact and shows `tail` when an
attempt has failed.
"""

from __future__ import annotations

import html
import json
from collections.abc import Collection, Iterator
from typing import Final
from urllib.parse import quote, quote_plus

from hpsearch.safe_text import MASK, for_terminal, mask_passwords
from hpsearch.scripts.report_lines import LineSplitter, text_of_line

_KEPT_BYTES: Final = 256 * 1024
_TRIMMED_BYTES: Final = 4096
_TAIL_BYTES: Final = 64 * 1024
_TAIL_LINE: Final = 500  # characters
# Masking takes time that grows with the square of a line's length.
_MASKED_PIECE: Final = 2000  # characters
_SHORTEST_PART: Final = 4  # characters of a secret


class OutputRecord:
    """The first and the last part of a stream of bytes, in constant memory. Not for several threads at once.

    Args:
        kept_bytes: of the beginning, and of the end.
        secrets: values that neither `text` nor `tail` shows, besides the passwords that `safe_text` knows or
            recognises by their form.
    """

    def __init__(self, *, kept_bytes: int = _KEPT_BYTES, secrets: Collection[str] = ()) -> None:
        self._kept_bytes = kept_bytes
        self._secrets = sorted(filter(None, secrets), key=len, reverse=True)
        self._first = bytearray()
        self._last = bytearray()  # up to twice as much as is kept, so that it is seldom moved
        self._num_bytes = 0

    @property
    def num_bytes(self) -> int:
        """All that was appended."""
        return self._num_bytes

    def append(self, chunk: bytes | memoryview) -> None:
        self._num_bytes += len(chunk)
        missing = self._kept_bytes - len(self._first)
        if missing > 0:
            self._first += chunk[:missing]
            chunk = chunk[missing:]
        if len(chunk) >= self._kept_bytes:
            self._last[:] = chunk[-self._kept_bytes :]
            return
        self._last += chunk
        if len(self._last) >= 2 * self._kept_bytes:
            del self._last[: -self._kept_bytes]

    def text(self) -> str:
        """Return all that was printed as far as it is kept, with a line in place of the rest.

        Invalid UTF-8 becomes U+FFFD; control characters are kept. Beside the part that is left out, an incomplete line
        is left out, too: it could hold half a password.
        """
        first, last = bytes(self._first), bytes(self._last[-self._kept_bytes :])
        if len(first) + len(last) == self._num_bytes:
            return self._masked((first + last).decode("utf-8", errors="replace"))
        first, last = _until_line_end(first), _from_line_start(last)
        beginning = self._masked_end(first).removesuffix("\n")
        note = f"... {self._num_bytes - len(first) - len(last):,} bytes left out ..."
        return f"{beginning}\n{note}\n{self._masked_start(last)}"

    def tail(self, lines: int = 10) -> tuple[str, ...]:
        """Return the last lines that are not empty, for a message: shortened, without escapes and control characters.

        Of a line that was written over (progress bars) each state is a line.
        """
        kept = bytes(self._last) or bytes(self._first)
        if len(self._last) < _TAIL_BYTES and len(self._first) + len(self._last) == self._num_bytes:
            kept = bytes(self._first + self._last)
        is_cut = len(kept) > _TAIL_BYTES or len(kept) < self._num_bytes
        kept = _from_line_start(kept[-_TAIL_BYTES:]) if is_cut else kept
        splitter = LineSplitter()
        found = [text_of_line(line) for line in (*splitter.feed(kept), *splitter.finish())]
        # Masked as one text: a secret may have several lines.
        text = self._masked_start("\n".join(found).encode()) if is_cut else self._masked("\n".join(found))
        shown = [line for line in text.split("\n") if line.strip()][-lines:] if lines > 0 else []
        return tuple(for_terminal(_shortened(line)) for line in shown)

    def _masked_end(self, first: bytes) -> str:
        """Mask a text that may end within a secret."""
        text = first.decode("utf-8", errors="replace")
        for secret in self._secrets:
            for length in range(len(secret) - 1, _SHORTEST_PART - 1, -1):
                if text.endswith(secret[:length]):
                    return self._masked(text[:-length] + MASK)
        return self._masked(text)

    def _masked_start(self, last: bytes) -> str:
        """Mask a text that may begin within a secret."""
        text = last.decode("utf-8", errors="replace")
        for secret in self._secrets:
            for length in range(len(secret) - 1, _SHORTEST_PART - 1, -1):
                if text.startswith(secret[-length:]):
                    return self._masked(MASK + text[length:])
        return self._masked(text)

    def _masked(self, text: str) -> str:
        for secret in self._secrets:
            for spelling in _spellings(secret):
                text = text.replace(spelling, MASK)
        return "".join(map(mask_passwords, _pieces(text)))


def _spellings(secret: str) -> list[str]:
    found = {secret, json.dumps(secret)[1:-1], repr(secret)[1:-1], html.escape(secret)}
    found |= {quote(secret), quote(secret, safe=""), quote_plus(secret)}
    return sorted(found, key=len, reverse=True)


def _pieces(text: str) -> Iterator[str]:
    """Cut a text into short pieces: at line ends if there are any, else at blanks, else anywhere."""
    start = 0
    while len(text) - start > _MASKED_PIECE:
        end = start + _MASKED_PIECE
        cut = text.rfind("\n", start, end) + 1 or text.rfind(" ", start, end) + 1 or end
        yield text[start:cut]
        start = cut
    yield text[start:]


def _until_line_end(first: bytes) -> bytes:
    """Leave out a last line that is incomplete, unless it is long."""
    end = max(first.rfind(b"\n"), first.rfind(b"\r")) + 1
    return first[:end] if end and len(first) - end <= _TRIMMED_BYTES else first


def _from_line_start(last: bytes) -> bytes:
    """Leave out a first line that is incomplete, unless it is long."""
    for position, byte in enumerate(last[:_TRIMMED_BYTES]):
        if byte in b"\r\n":
            return last[position + 1 :]
    return last


def _shortened(line: str) -> str:
    return line if len(line) <= _TAIL_LINE else f"{line[: _TAIL_LINE - 3]}..."
