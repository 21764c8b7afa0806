"""Digits as the checks get them, and studies on them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from hpsearch.checks.finding import Finding
from hpsearch.checks.models import checked_models
from hpsearch.checks.samples import CheckedModel
from hpsearch.data.catalog import load_selection_data
from hpsearch.data.files.lookup import DataLocations
from hpsearch.data.splits import SelectionData
from hpsearch.study.definition import StudyDefinition
from hpsearch.study.study_file import parse_definition
from tests.unit.checks.rule import broken_rules

Define = Callable[..., StudyDefinition]
Model = Callable[..., CheckedModel]


@pytest.fixture(scope="session")
def digits() -> SelectionData:
    definition = parse_definition(
        {"name": "a", "data": {"dataset": "digits"}, "search": {"learning_rate": [1.0]}}, source=""
    )
    return load_selection_data(definition.data, locations=DataLocations.from_environment())


@pytest.fixture
def define() -> Define:
    """A study on digits; keyword arguments replace sections."""

    def definition(**sections: Any) -> StudyDefinition:
        document = {
            "name": "checked",
            "data": {"dataset": "digits"},
            "model": {"hidden_units": 20},
            "training": {"batch_size": 20, "max_epochs": 10},
            "search": {"learning_rate": [0.1, 0.01]},
        }
        return parse_definition({**document, **sections}, source="test")

    return definition


@pytest.fixture
def model(define: Define, digits: SelectionData) -> Model:
    """The only network of such a study."""

    def checked(family: str = "mlp", data: SelectionData = digits, **training: Any) -> CheckedModel:
        widths = {"hidden_units": 20} if family == "mlp" else {}
        study = define(model={"family": family, **widths}, training={"batch_size": 20, "max_epochs": 10, **training})
        (settings,), _ = checked_models(study)
        return CheckedModel(definition=study, settings=settings, data=data, deadline=time.monotonic() + 300)

    return checked


@pytest.fixture(autouse=True)
def every_finding_obeys_the_rule(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hold every finding that a test of this folder sees made to the rule, unless the test makes it itself."""
    if request.module.__name__.endswith("test_record"):
        return
    complete = Finding.__post_init__

    def check(finding: Finding) -> None:
        complete(finding)
        assert not [*broken_rules(finding)], finding

    monkeypatch.setattr(Finding, "__post_init__", check)
