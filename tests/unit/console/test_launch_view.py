"""What `run` and `create` say of a study that they have created, found or changed."""

from __future__ import annotations

from typing import Any

import pytest

from hpsearch.console.launch_view import TerminalListener, describe_registration
from hpsearch.store.registration import Registration
from hpsearch.store.studies import StoredStudy
from hpsearch.study.study_file import parse_definition

NETWORKS = {"name": "a", "search": {"learning_rate": [0.1]}}
PROGRAMS = {"name": "a", "command": {"run": ["train", "{a}"]}, "search": {"a": [1]}}


def registration(**values: Any) -> Registration:
    definition = parse_definition({"name": "a", "search": {"learning_rate": [0.1]}}, source="test")
    study = StoredStudy(study_id=1, definition=definition, dataset_checksums={}, versions={})
    return Registration(**{"study": study, "is_new": False, "num_points": 24, **values})


def test_study_that_is_new_or_stays_as_it_is() -> None:
    assert describe_registration(registration(is_new=True), "resumed") == "study 'a' created: 24 points"
    assert describe_registration(registration(num_points=1), "resumed", ", 2 workers") == (
        "study 'a' resumed: 1 point, 2 workers"
    )


def test_changed_study_shows_how() -> None:
    changes = ("search.lambda_2: [0.1] in the study, [0.1, 0.2] given",)
    assert describe_registration(registration(num_added=12, changes=changes), "resumed", ", 2 workers") == (
        "study 'a' widened: 12 new points, 24 in all, 2 workers\n"
        "  search.lambda_2: [0.1] in the study, [0.1, 0.2] given"
    )
    assert describe_registration(registration(changes=('keep_parameters: "best" in the study, "all" given',)), "") == (
        'study \'a\' changed: no new points, 24 in all\n  keep_parameters: "best" in the study, "all" given'
    )


@pytest.mark.parametrize(
    ("document", "number", "told"),
    [
        (NETWORKS, None, "1 worker with the fastest number of lanes"),
        (NETWORKS, 4, "1 worker with 4 lanes each"),
        (PROGRAMS, 4, "1 worker with 4 programs at once"),
        (PROGRAMS, None, "1 worker with as many programs as fit"),
    ],
)
def test_it_is_told_how_much_runs_at_once(
    document: dict[str, Any], number: int | None, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    definition = parse_definition(document, source="test")
    study = StoredStudy(study_id=1, definition=definition, dataset_checksums={}, versions={})
    TerminalListener().prepared(registration(study=study), 1, number)
    assert told in capsys.readouterr().err
