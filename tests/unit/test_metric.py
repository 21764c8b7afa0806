"""How an error is shown."""

from __future__ import annotations

import pytest

from hpsearch.metric import error_text, interval_text


@pytest.mark.parametrize(("num_errors", "expected"), [(21, "0.18 %"), (27, "0.22 %"), (1000, "8.33 %"), (0, "0.00 %")])
def test_an_error_is_rounded_once(num_errors: int, expected: str) -> None:
    assert error_text(num_errors / 12_000) == expected
    assert interval_text((num_errors / 12_000,) * 2) == f"{expected.removesuffix(' %')} to {expected}"


def test_no_error_is_a_dash_and_a_deviation_follows() -> None:
    assert error_text(None) == "-"
    assert error_text(0.082, 0.0042) == "8.20 % +- 0.42"
