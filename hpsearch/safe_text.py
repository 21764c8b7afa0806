"""Text that leaves the process: without passwords, and without control characters where a terminal shows it.

All output passes through this module: error lines, log lines, tracebacks, warnings, tables, JSON documents, reports,
and stored failure messages. A password is recognised in two ways: by its form (`://user:password@`, `password=...`), or
because the process was given it (`remember_passwords`); then all of its spellings are masked.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote, unquote_plus

MASK = "***"

# An @ in a user's name is often not encoded either; [ after / or @ starts an IPv6 address.
_NAME = r"(?:[^\s:/@\[]|@(?!\[)|(?<![/@])\[)*"
_USER = rf"(\b[a-z][a-z0-9+.-]*:/{{1,2}}{_NAME})"  # a single / if a URL was treated as a path
_DATABASE_USER = rf"(\bpostgres(?:ql)?(?:\+\w+)?:/{{1,2}}{_NAME})"
_PORT = r"(?!\d{1,5}(?:[/?#,;.)\s'\"]|$))"  # postgresql://host:5432/d has no password
_UNMASKED = r"(?!\*\*\*|PASSWORD@)"  # the second one: placeholders in our own hints
_GIVEN_DATABASE = re.compile(rf"{_DATABASE_USER}:{_PORT}(?P<rest>.*)", re.I | re.S)
_GIVEN_URL = re.compile(rf"{_USER}:{_PORT}(?P<rest>\S+@)", re.I)
_QUOTED = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
# In a URL's query, a DSN, the environment.
_PASSWORD_OPTION = re.compile(rf"\b(\w*password|passwd)=(?:{_QUOTED}|[^\s&]+)", re.I)
# The forms in which a password appears, in the order in which they are masked.
_FORMS = (
    # Up to the last @ before a blank: an @ or / in a password is often not encoded.
    (re.compile(rf"{_DATABASE_USER}:{_UNMASKED}\S*@", re.I), rf"\1:{MASK}@"),
    (re.compile(rf"{_USER}:{_PORT}{_UNMASKED}\S*@", re.I), rf"\1:{MASK}@"),
    (re.compile(rf"{_DATABASE_USER}:{_PORT}{_UNMASKED}[^\n@]*@", re.I), rf"\1:{MASK}@"),  # with a blank
    (re.compile(rf"{_DATABASE_USER}:{_PORT}{_UNMASKED}\S+", re.I), rf"\1:{MASK}"),  # without a host
    (_PASSWORD_OPTION, rf"\1={MASK}"),
    (re.compile(rf"(['\"]\w*password['\"]\s*:\s*)(?:{_QUOTED})", re.I), rf"\1'{MASK}'"),  # in a dictionary
)

# Characters that a terminal interprets or cannot show: C0 except tab and line break, DEL, C1, marks that change the
# text direction, Unicode line separators, and lone surrogates (bytes that were not UTF-8).
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

# A lower-case word is masked only by its form: removing it from all text would damage the text and reveal it.
_SHORTEST_SECRET, _SURE_SECRET = 8, 16
_secrets: dict[str, re.Pattern[str]] = {}  # password -> pattern of all its spellings


def mask_passwords(text: str) -> str:
    """Mask the passwords in URLs and connection strings, and those that this process was given."""
    for spellings in _secrets.values():
        text = spellings.sub(MASK, text)
    for form, shown in _FORMS:
        text = form.sub(shown, text)
    return text


def for_terminal(text: str) -> str:
    """Return the text as a terminal may show it: passwords masked, control characters escaped (`\\x1b`)."""
    return _UNPRINTABLE.sub(lambda match: _spelt(match[0]), mask_passwords(text))


def masked(value: Any) -> Any:
    """Mask every string in a document of dicts, lists and strings, before it becomes JSON."""
    if isinstance(value, str):
        return mask_passwords(value)
    if isinstance(value, Mapping):
        return {masked(key): masked(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [masked(item) for item in value]
    return value


def remember_passwords(text: str) -> None:
    """Mask the passwords of this URL or connection string from now on, wherever they occur."""
    for password in _passwords_in(text):
        remember_password(password)


def remember_password(password: str) -> None:
    """Mask this password from now on: raw, percent-encoded, quoted and in JSON.

    Short passwords and lower-case words are ignored: they are masked only by their form.
    """
    is_word = len(password) < _SURE_SECRET and password.isalpha() and password.islower()
    if len(password) < _SHORTEST_SECRET or is_word or password in _secrets:
        return
    whole = {json.dumps(password)[1:-1], repr(password)[1:-1], html.escape(password)}
    partly_encoded = "".join(map(_in_url, password))
    _secrets[password] = re.compile("|".join([partly_encoded, *map(re.escape, sorted(whole, key=len, reverse=True))]))


def _in_url(character: str) -> str:
    """Return a pattern for one character of a password as a URL may contain it: raw or percent-encoded."""
    octets = "".join(f"%{octet:02X}" for octet in character.encode(errors="surrogateescape"))
    return f"(?:{re.escape(character)}|(?i:{octets}){'|[+]' if character == ' ' else ''})"


def _passwords_in(text: str) -> Iterator[str]:
    if match := _GIVEN_DATABASE.search(text) or _GIVEN_URL.search(text):
        rest = match["rest"]
        raw = rest.rpartition("@")[0] or rest
        yield from dict.fromkeys((raw, unquote(raw)))
    for match in _PASSWORD_OPTION.finditer(text):
        raw = match[0].partition("=")[2]
        yield from dict.fromkeys((raw, raw.strip("'\""), unquote_plus(raw), unquote(raw)))


def _spelt(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
