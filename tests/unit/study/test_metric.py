"""The key `metric`: which names are taken, and what a metric without a test is refused with."""

from __future__ import annotations

import pytest

from hpsearch.errors import InputError
from hpsearch.metric import METRICS, ONLY_SHOWN
from hpsearch.study.study_file import parse_definition


def test_a_metric_that_is_only_shown_is_refused_with_what_to_take_instead() -> None:
    with pytest.raises(InputError) as error:
        parse_definition({"name": "a", "metric": "macro-f1", "search": {"seed": [1]}}, source="study.toml")
    told = str(error.value)
    assert told.startswith("study.toml: metric must have a test for paired comparisons, which macro-f1 has not")
    assert "take balanced-error" in told
    assert set(ONLY_SHOWN.values()) <= set(METRICS)
    assert not set(ONLY_SHOWN) & set(METRICS)


def test_another_name_is_refused_with_all_metrics() -> None:
    with pytest.raises(InputError, match="metric must be one of zero-one, balanced-error"):
        parse_definition({"name": "a", "metric": "f1", "search": {"seed": [1]}}, source="study.toml")
