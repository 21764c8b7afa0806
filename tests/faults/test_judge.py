"""The judge of the fault table notices each way in which a study can be wrong."""

from __future__ import annotations

import pytest

from tests.faults.arena import Arena

pytestmark = pytest.mark.faults

# What goes wrong, how it comes about, and how it is put right again. Trials 1 to 3 are points 0 to 2.
TAMPERINGS = [
    ("left WAITING", "UPDATE trials SET state = 'WAITING' WHERE number = 1", "UPDATE trials SET state = 'COMPLETE'"),
    ("left WAITING", "UPDATE trials SET state = 'RUNNING' WHERE number = 1", "UPDATE trials SET state = 'COMPLETE'"),
    ("counted 0 times", "UPDATE trials SET state = 'FAIL' WHERE number = 1", "UPDATE trials SET state = 'COMPLETE'"),
    (
        "counted 2 times",
        "UPDATE trial_user_attributes SET value_json = '0' WHERE key = 'point' AND value_json = '1'; "
        "INSERT INTO trials (study_id, number, state) SELECT study_id, 3, 'COMPLETE' FROM studies; "
        "INSERT INTO trial_user_attributes (trial_id, key, value_json) "
        "SELECT max(trial_id), 'point', '1' FROM trials",
        "DELETE FROM trial_user_attributes WHERE trial_id = (SELECT max(trial_id) FROM trials); "
        "DELETE FROM trials WHERE number = 3; "
        "UPDATE trial_user_attributes SET value_json = '1' WHERE key = 'point' AND value_json = '0' "
        "AND trial_id = (SELECT trial_id FROM trials WHERE number = 1)",
    ),
    (
        "has the epochs",
        "UPDATE trial_intermediate_values SET step = 9 WHERE step = 1",
        "UPDATE trial_intermediate_values SET step = 1 WHERE step = 9",
    ),
    (
        "is still held",
        "UPDATE hpsearch_points SET owner = 7 WHERE point = 2",
        "UPDATE hpsearch_points SET owner = NULL",
    ),
    (
        "point 2",
        "UPDATE hpsearch_points SET is_counted = false WHERE point = 2",
        "UPDATE hpsearch_points SET is_counted = true",
    ),
    (
        "was acknowledged",
        "UPDATE trial_values SET value = value + 1; UPDATE trial_intermediate_values "
        "SET intermediate_value = intermediate_value + 1",
        "UPDATE trial_values SET value = value - 1; UPDATE trial_intermediate_values "
        "SET intermediate_value = intermediate_value - 1",
    ),
]


def test_the_judge_notices_what_is_wrong_and_nothing_else(arena: Arena) -> None:
    arena.create(3, max_epochs=2)
    assert arena.worker(lanes=3).wait() == 0
    for message, tamper, repair in TAMPERINGS:
        arena.judge()
        arena.configure(*tamper.split("; "))
        with pytest.raises(AssertionError, match=message):
            arena.judge()
        arena.configure(*repair.split("; "))
    arena.judge()
    with pytest.raises(AssertionError, match="counted 1 times"):
        arena.judge(given_up=[0])


def test_the_judge_waits_for_no_process_that_hangs(arena: Arena) -> None:
    arena.create(1)
    worker = arena.worker()
    with pytest.raises(AssertionError, match="is still there after 0 s"):
        worker.wait(0)
