"""Values of parameters are read without Optuna as Optuna reads them."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
    json_to_distribution,
)

from hpsearch.errors import StorageError
from hpsearch.store.rows.distributions import parse_stored_distribution
from hpsearch.store.rows.parameter_values import external_value, parse_from_number

numbers = st.floats(allow_nan=False, allow_infinity=False, width=32)
choices = st.one_of(st.booleans(), st.integers(-(2**60), 2**60), numbers, st.text(max_size=5))


@st.composite
def distributions(draw: st.DrawFn) -> BaseDistribution:
    """Any distribution that a study can have."""
    if draw(st.booleans()):
        return CategoricalDistribution(draw(st.lists(choices, min_size=1, max_size=6)))
    is_log = draw(st.booleans())
    if draw(st.booleans()):
        low, high = sorted(draw(st.tuples(*[st.integers(1 if is_log else -(10**9), 10**9)] * 2)))
        return IntDistribution(low, high, log=is_log)
    smallest = st.floats(1e-300, 1e300) if is_log else numbers
    return FloatDistribution(*sorted(draw(st.tuples(smallest, smallest))), log=is_log)


@given(distribution=distributions(), stored=st.one_of(st.integers(-8, 8), numbers))
def test_values_are_those_of_optuna(distribution: BaseDistribution, stored: float) -> None:
    text = distribution_to_json(distribution)
    assert read(parse_from_number(text, "x"), stored) == read(json_to_distribution(text).to_external_repr, stored)


def read(from_number: Any, stored: float) -> tuple[type, Any] | str:
    """The value with its type, or the message of the error."""
    try:
        value = external_value(from_number, stored, "x")
    except StorageError as error:
        return str(error)
    return type(value), value


FLOAT = '{"name": "FloatDistribution", "attributes": '
INT = '{"name": "IntDistribution", "attributes": '


@pytest.mark.parametrize(
    "text",
    [
        *("{", "{}", "[]", "5", "null", "[" * 100_000),
        '{"name": "NoDistribution", "attributes": {}}',
        '{"name": "CategoricalDistribution", "attributes": {"choices": []}}',
        '{"name": "CategoricalDistribution", "attributes": {"choices": 5}}',
        '{"name": "CategoricalDistribution", "attributes": {"choices": [1], "more": 1}}',
        FLOAT + '{"low": 2.0, "high": 1.0, "log": false, "step": null}}',
        FLOAT + '{"low": 0.0, "high": 1.0, "log": true, "step": null}}',
        FLOAT + '{"low": NaN, "high": 1.0, "log": true, "step": null}}',
        FLOAT + '{"low": "0", "high": 1.0, "log": false, "step": null}}',
        INT + '{"low": 0, "high": 9, "log": true, "step": 1}}',
        INT + '{"low": 9, "high": 1, "log": false, "step": 1}}',
        INT + '{"low": 1, "high": 9, "log": false, "step": 0}}',
        INT + '{"low": 1, "high": 9}, "more": 1}',
    ],
)
def test_what_optuna_refuses_is_refused_in_its_words(text: str) -> None:
    said = []
    for parse in (parse_from_number, parse_stored_distribution):
        try:
            said.append(type(parse(text, "a parameter")).__name__ != "")
        except StorageError as error:
            said.append(str(error))
    assert said[0] == said[1]


@pytest.mark.parametrize(
    "distribution",
    [
        FloatDistribution(0.0, 1.0, step=0.25),
        IntDistribution(0, 9, step=3),
        CategoricalDistribution((None, "a")),
    ],
)
def test_distributions_of_other_programs_are_left_to_optuna(distribution: BaseDistribution) -> None:
    assert parse_from_number(distribution_to_json(distribution), "x")(0.0) == distribution.to_external_repr(0.0)


def test_reading_what_hpsearch_writes_loads_neither_optuna_nor_numpy() -> None:
    written = [FloatDistribution(0.1, 1, log=True), IntDistribution(1, 9), CategoricalDistribution((False, True))]
    program = (
        "import json, sys\n"
        "from hpsearch.store.rows.parameter_values import parse_from_number\n"
        "print([parse_from_number(text, 'x')(1.0) for text in json.loads(sys.argv[1])])\n"
        "sys.exit(str({'optuna', 'numpy'} & sys.modules.keys()) if {'optuna', 'numpy'} & sys.modules.keys() else 0)"
    )
    texts = json.dumps([distribution_to_json(each) for each in written])
    done = subprocess.run([sys.executable, "-c", program, texts], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "[1.0, 1, True]\n"), done.stderr
