"""The state of a study beside its confirmation."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from hpsearch.results.status import StudyStatus


def picked(trial_id: int | None) -> Any:
    search_trial = None if trial_id is None else SimpleNamespace(trial_id=trial_id)
    return SimpleNamespace(trial=None, configuration=SimpleNamespace(search_trial=search_trial))


@pytest.mark.parametrize(
    ("confirmation", "is_another"),
    [
        (None, False),
        (SimpleNamespace(companion=SimpleNamespace(study=None), is_finished=False, chosen=picked(4)), False),
        (SimpleNamespace(companion=SimpleNamespace(study=None), is_finished=True, chosen=None), False),
        (SimpleNamespace(companion=SimpleNamespace(study=None), is_finished=True, chosen=picked(3)), False),
        (SimpleNamespace(companion=SimpleNamespace(study=None), is_finished=True, chosen=picked(4)), True),
        (SimpleNamespace(companion=SimpleNamespace(study=None), is_finished=True, chosen=picked(None)), True),
    ],
)
def test_a_finished_confirmation_may_pick_another_point_than_the_search_s_best(
    confirmation: Any, is_another: bool
) -> None:
    summary: Any = SimpleNamespace(best=SimpleNamespace(trial_id=3), study=None, require_best=lambda: None)
    assert StudyStatus(summary=summary, confirmation=confirmation).best_is_another is is_another
