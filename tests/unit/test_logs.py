"""Log lines: text for people, JSON for collectors, and a password in neither."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpsearch.errors import InputError, StorageError
from hpsearch.logs import (
    LogFormat,
    _our_handler,
    bind_log_context,
    configure_logging,
    find_final_error,
    get_logger,
    is_json_logging,
    log_final_error,
    take_over_logger,
)
from hpsearch.safe_text import mask_passwords

log = get_logger("test")


@pytest.fixture(autouse=True)
def _loggers_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("HPSEARCH_LOG_LEVEL", raising=False)
    loggers = [logging.getLogger(name) for name in ("hpsearch", "optuna", None)]
    before = [(list(logger.handlers), logger.level, logger.propagate) for logger in loggers]
    logging.getLogger("hpsearch").handlers.clear()  # a context that another test has bound
    yield
    logging.captureWarnings(False)
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Callable[[], list[str]]:
    """What has been written to stderr since the last call; nothing may be on stdout."""

    def read() -> list[str]:
        captured = capsys.readouterr()
        assert captured.out == ""
        return captured.err.splitlines()

    return read


@pytest.fixture
def objects(lines: Callable[[], list[str]]) -> Callable[[], list[dict[str, Any]]]:
    """The same as JSON objects, one per line; logging is configured for JSON."""
    configure_logging(log_format=LogFormat.JSON)
    return lambda: [json.loads(line, parse_constant=pytest.fail) for line in lines()]


def test_a_text_line_has_time_level_logger_and_message(lines: Callable[[], list[str]]) -> None:
    configure_logging()
    bind_log_context(study="mlp")
    log.warning("trial %d begins", 7, extra={"trial": 7})
    (line,) = lines()
    datetime.strptime(line[:8], "%H:%M:%S")
    assert line[8:] == " WARNING hpsearch.test: trial 7 begins"


def test_a_json_line_says_when_what_and_where(objects: Callable[[], list[dict[str, Any]]]) -> None:
    bind_log_context(study="mlp", worker="host:1")
    bind_log_context(device="cuda:0")
    before = datetime.now(UTC)
    log.info("trial %d goes on", 7, extra={"trial": 7, "epoch": 3})
    (line,) = objects()
    time = line.pop("time")
    assert time[-5] == "."  # milliseconds
    assert time[-1] == "Z"  # UTC
    assert abs((datetime.fromisoformat(time) - before).total_seconds()) < 60
    assert line == {
        "level": "INFO",
        "logger": "hpsearch.test",
        "message": "trial 7 goes on",
        "study": "mlp",
        "worker": "host:1",
        "device": "cuda:0",
        "trial": 7,
        "epoch": 3,
    }


def test_fields_of_one_event_win_over_the_context_but_not_over_the_line_itself(
    objects: Callable[[], list[dict[str, Any]]],
) -> None:
    bind_log_context(study="mlp", level="loud")
    log.info("said", extra={"study": "other", "logger": "mine"})
    (line,) = objects()
    assert (line["study"], line["logger"], line["level"]) == ("other", "hpsearch.test", "INFO")


def test_an_exception_and_line_breaks_stay_in_one_line(objects: Callable[[], list[dict[str, Any]]]) -> None:
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        log.exception("broken\nin \u2028 two")
    (line,) = objects()
    assert line["message"] == "broken\nin \u2028 two"
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("ValueError: first\nsecond")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_whatever_a_field_holds_the_line_is_json(value: object) -> None:
    configure_logging(log_format=LogFormat.JSON)
    handler = _our_handler()  # pytest has its own on a logger that does not propagate
    assert handler is not None
    record = logging.makeLogRecord({"name": "x", "msg": "m", "value": value})
    line = handler.format(record)
    assert len(line.splitlines()) == 1
    assert "value" in json.loads(line, parse_constant=pytest.fail)  # nor NaN, which JSON does not have


@pytest.mark.parametrize("log_format", list(LogFormat))
def test_no_line_shows_a_password(log_format: LogFormat, lines: Callable[[], list[str]]) -> None:
    configure_logging(log_format=log_format)
    url = "postgresql+psycopg2://mary:pa@ss/wo:rd@db:5432/hp"
    bind_log_context(storage=url)
    try:
        raise ValueError(f"cannot open {url}")
    except ValueError:
        log.exception("no answer from %s", url, extra={"url": url, "nested": {"urls": [url, url]}})
    text = "\n".join(lines())
    assert "mary:***@db:5432/hp" in text
    assert "pa@ss" not in text
    assert "wo:rd" not in text


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("postgresql://u:p@h/d and postgres://u:q@h", "postgresql://u:***@h/d and postgres://u:***@h"),
        ("postgresql://:secret@/d", "postgresql://:***@/d"),
        (
            "postgresql://u@h:5432/d?password=secret&sslmode=require",
            "postgresql://u@h:5432/d?password=***&sslmode=require",
        ),
        ("host=h password='a b' user=u", "host=h password=*** user=u"),
        ("postgresql://h:5432/d has been away for 3 s, mary@example.org", None),
        ("password authentication failed", None),
    ],
)
def test_what_is_masked_and_what_is_not(text: str, masked: str | None) -> None:
    assert mask_passwords(text) == (text if masked is None else masked)


def test_warnings_of_python_and_of_libraries_are_json_too(objects: Callable[[], list[dict[str, Any]]]) -> None:
    logging.getLogger("somebody.else").warning("careful")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        configure_logging(log_format=LogFormat.JSON)
        warnings.warn("old ways", UserWarning, stacklevel=1)
    first, second = objects()
    assert (first["logger"], first["message"]) == ("somebody.else", "careful")
    assert second["logger"] == "py.warnings"
    assert "UserWarning: old ways" in second["message"]


@pytest.mark.parametrize("log_format", list(LogFormat))
def test_configuring_twice_writes_a_line_once_in_the_last_format(
    log_format: LogFormat, lines: Callable[[], list[str]]
) -> None:
    configure_logging(log_format=LogFormat.JSON)
    configure_logging(log_format=log_format)
    assert is_json_logging() == (log_format is LogFormat.JSON)
    log.info("once")
    (line,) = lines()
    assert line.startswith("{") == is_json_logging()


def test_a_library_that_configures_its_own_logging_is_taken_over(objects: Callable[[], list[dict[str, Any]]]) -> None:
    library = logging.getLogger("optuna")
    library.handlers[:] = [logging.StreamHandler()]
    library.propagate = False
    take_over_logger("optuna")
    logging.getLogger("optuna.storages").info("a trial has ended")
    logging.getLogger("optuna.storages").warning("careful")
    (line,) = objects()
    assert (line["logger"], line["message"]) == ("optuna.storages", "careful")


def test_a_library_keeps_its_handler_where_hpsearch_is_one_itself() -> None:
    library = logging.getLogger("optuna")
    own = logging.StreamHandler()
    library.handlers[:] = [own]
    bind_log_context(study="nobody hears this")
    take_over_logger("optuna")
    assert library.handlers == [own]
    assert not is_json_logging()


def test_verbose_and_the_level_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, lines: Callable[[], list[str]]
) -> None:
    configure_logging(verbose=True)
    log.debug("small things")
    monkeypatch.setenv("HPSEARCH_LOG_LEVEL", "error")
    configure_logging(verbose=True)
    log.warning("not so bad")
    assert len(lines()) == 1


def test_an_unknown_level_is_an_error_in_the_format_that_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPSEARCH_LOG_LEVEL", "loud")
    with pytest.raises(InputError, match=r"must be one of DEBUG, .*, got 'LOUD'"):
        configure_logging(log_format=LogFormat.JSON)
    assert is_json_logging()


def test_a_final_error_is_found_again(
    objects: Callable[[], list[dict[str, Any]]], lines: Callable[[], list[str]]
) -> None:
    log.error("not the last word", extra={"hint": "none"})
    log_final_error(StorageError("the database is away", hint="start it"))
    log_final_error(InputError("without a hint"))
    others, final, bare = [json.dumps(line) for line in objects()]
    assert json.loads(final).items() >= {"level": "ERROR", "hint": "start it", "exit_code": 3}.items()
    assert "hint" not in json.loads(bare)
    assert find_final_error(final) == "the database is away"
    assert find_final_error("error: the database is away") == "the database is away"
    for line in (others, final[:20], "{}", "12:00:00 ERROR hpsearch: error: no", "[1, 2]", ""):
        assert find_final_error(line) is None
