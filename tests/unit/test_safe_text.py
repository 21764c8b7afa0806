"""What leaves the process: no password in any spelling, and nothing that a terminal would obey."""

from __future__ import annotations

import html
import json
import re
import threading
import unicodedata
import warnings
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hpsearch import logs, safe_text
from hpsearch.console.fitted_table import FittedTable
from hpsearch.console.notice import print_line, say
from hpsearch.console.screen import text_of
from hpsearch.console.tables import print_json
from hpsearch.errors import InputError
from hpsearch.results.view_tables import Column, ViewTable
from hpsearch.safe_text import for_terminal, mask_passwords, masked, remember_passwords
from hpsearch.store.connection.address import parse_url

# Long enough to be nothing else, and with whatever a URL, a shell, JSON or a quoted string gives a meaning to.
passwords = st.text(st.sampled_from("aZ0\"'@:/%{}$&?#=\\ <ü"), min_size=6, max_size=12).map(
    lambda text: f"s3cret{text}Q"
)


@given(passwords)
@example('s3cret"@/:%Q')
def test_a_password_that_the_process_was_given_is_in_no_text(password: str) -> None:
    safe_text._secrets.clear()
    remember_passwords(f"postgresql://app:{quote(password, safe='')}@host/studies")
    encoded = {quote(password), quote(password, safe=""), quote_plus(password)}
    encoded |= {re.sub("%..", lambda octet: octet[0].lower(), text) for text in encoded}
    spellings = {*encoded, password, html.escape(password), json.dumps(password)[1:-1], repr(password)[1:-1]}
    for spelling in spellings:
        assert spelling not in mask_passwords(f"no extra argument ({spelling}), {{'key': '{spelling}'}} {spelling}")
        assert spelling not in json.dumps(masked({"a": [f"x{spelling}y"], spelling: 1}))


@given(passwords)
def test_the_form_of_a_url_gives_its_password_away(password: str) -> None:
    safe_text._secrets.clear()
    kept = quote(password, safe="\"'@:/{}$&?#=\\<")  # all but blanks and % as somebody types it
    for form in ("postgresql://app:{}@host/d", "postgresql+psycopg2://app:{}@/d", "https://app:{}@host/x"):
        assert kept not in mask_passwords(f"cannot reach {form.format(kept)} today")
    whole = quote(password, safe="")
    for form in ("postgresql://app@h/d?password={}&x=1", "host=h password={} user=u", "{{'password': '{}'}}"):
        assert whole not in mask_passwords(form.format(whole))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("postgresql://app:secret", "postgresql://app:***"),  # the host was forgotten
        ("postgresql://app:two words@h/d", "postgresql://app:***@h/d"),
        ('postgresql://app:a"b@h/d?sslpassword=c"d', "postgresql://app:***@h/d?sslpassword=***"),
        ("http_proxy=http://me:secret@proxy:3128 refused", "http_proxy=http://me:***@proxy:3128 refused"),
        ("PGPASSWORD=secret psql", "PGPASSWORD=*** psql"),
        ('{"password": "se\\"cret", "user": "app"}', '{"password": \'***\', "user": "app"}'),
        ("postgresql://app@azure:short@h/db", "postgresql://app@azure:***@h/db"),
        ("postgresql:/app:short@h/db: no such study file", "postgresql:/app:***@h/db: no such study file"),
        ("postgresql://a[b:short@h/db", "postgresql://a[b:***@h/db"),
        ("postgresql://h:5432/d and postgresql://[::1]:5432/d and postgresql://app@[::1]:5432/d", None),
        ("docker://registry:5000/image@sha256:0123abcd", None),
        ("postgresql://USER:PASSWORD@HOST:5432/DATABASE", None),
        ("HPSEARCH_STORAGE_PASSWORD_FILE=/run/secrets/password", None),
    ],
)
def test_passwords_told_by_their_form(text: str, told: str | None) -> None:
    assert mask_passwords(text) == (text if told is None else told)


@given(st.text())
def test_a_terminal_is_given_nothing_to_obey(text: str) -> None:
    shown = for_terminal(text)
    controls = {character for character in shown if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")}
    assert controls <= {"\n", "\t"}
    assert "\u202e" not in shown


ESCAPE = "\x1b]0;owned\x07\x9b31m\r"


@pytest.mark.parametrize("show", [say, print_line, lambda text: print_json({"a": text})])
def test_every_way_to_a_terminal_is_safe(show: Callable[[str], None], capsys: pytest.CaptureFixture[str]) -> None:
    show(f"{ESCAPE} postgresql://app:secret@h/d")
    shown = "".join(capsys.readouterr())
    assert "secret" not in shown
    assert not set(ESCAPE) & set(shown) & {"\x1b", "\x07", "\x9b", "\r"}


def test_tables_and_live_lines_are_safe(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    console = Console()
    console.print(FittedTable(ViewTable(columns=[Column(f"x{ESCAPE}", [f"{ESCAPE}\n{ESCAPE}"])])), text_of(ESCAPE))
    shown = capsys.readouterr().out
    assert not set(shown) & {"\x1b", "\x07", "\x9b", "\r"}
    assert r"\x1b]0;owned\x07\x9b31m\x0d\n\x1b]0;owned" in shown


def test_tracebacks_and_warnings_of_python_are_masked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module, name in ((logs.sys, "excepthook"), (logs.sys, "unraisablehook"), (threading, "excepthook")):
        monkeypatch.setattr(module, name, getattr(module, name))
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    logs.show_no_password()
    url = "postgresql://app:secret@h/d"

    def fail() -> None:
        raise ValueError(f"{url} {ESCAPE}")

    class Unraisable:
        def __del__(self) -> None:
            fail()

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    del thread
    Unraisable()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logs.warnings.showwarning(UserWarning(url), UserWarning, "file.py", 1)
    try:
        fail()
    except ValueError as error:
        logs.sys.excepthook(type(error), error, error.__traceback__)
    shown = capsys.readouterr().err
    assert shown.count("postgresql://app:***@h/d") == 4
    assert shown.count("Traceback") == 3
    assert "secret" not in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://app:s3cret%00word@h/d",
        "postgresql://a%00p:s3cretword@h/d",
        "postgresql://app:s3cretword@h/d%00",
        "postgresql://app:s3cretword@h/d?options=%00",
        "postgresql://app:s3cret\udcffword@h/d",
    ],
)
def test_a_url_that_libpq_cannot_be_given_is_refused_in_one_line(url: str) -> None:
    with pytest.raises(InputError, match="control character") as caught:
        parse_url(url)
    assert "s3cret" not in str(caught.value)


def test_a_password_in_the_query_is_a_password_like_any_other() -> None:
    url = parse_url("postgresql://app@h/d?password=s3cret%26word&sslmode=require")
    assert url.password == "s3cret&word"
    assert dict(url.query) == {"sslmode": "require"}


def test_a_word_of_everyday_language_is_not_cut_out_of_all_text() -> None:
    remember_passwords("postgresql://hpsearch:hpsearch@h/d")
    assert mask_passwords("hpsearch says postgresql://hpsearch:hpsearch@h/d") == (
        "hpsearch says postgresql://hpsearch:***@h/d"
    )


def test_json_documents_keep_all_but_their_strings() -> None:
    document: dict[str, Any] = {"a": [1, 2.5, None, True, ("x",)], "b": {}}
    assert masked(document) == {"a": [1, 2.5, None, True, ["x"]], "b": {}}


@pytest.mark.parametrize(
    "text", ["see https://wiki.intern: a batch of labels was wrong", "docker://registry:5000/image@sha256:0123abcd"]
)
def test_what_is_no_password_is_not_remembered_as_one(text: str) -> None:
    safe_text._secrets.clear()
    remember_passwords(text)
    assert not safe_text._secrets
