"""Commands that show studies."""

from __future__ import annotations

import pytest

from hpsearch.cli.main import run_command_line


def test_an_option_that_was_removed_is_still_accepted_and_says_so(
    tables_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line(["status", "--seconds", "5", "--storage", tables_url]) == 0
    assert "--seconds has no effect any more: --watch looks every 2 seconds" in capsys.readouterr().err
