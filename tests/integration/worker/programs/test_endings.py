"""How a trial that is a program ends: by itself, by a rule, by its failure, or because it was asked to."""

from __future__ import annotations

import errno
import json
import os
from typing import Any

import pytest
from optuna.trial import TrialState
from sqlalchemy import text

from hpsearch.errors import ArtifactError, HpsearchError, SurroundingsError
from hpsearch.scripts.keeper.client import Keeper, StartRequest
from hpsearch.signals import StopSignal
from hpsearch.store.claims.ledger import Ledger
from hpsearch.store.connection.database import DatabaseAwayError
from hpsearch.store.registration import Registration
from hpsearch.store.rows.correct_images import read_correctness
from hpsearch.study.study_file import parse_definition
from hpsearch.worker.programs.ended_trials import ProgramsFailError
from hpsearch.worker.programs.preparation import CannotStartError, prepare_program

REPORT = """
report() { echo "{\\"step\\": $1, \\"value\\": $2}" > "$HPSEARCH_REPORTS"; }
"""
ENDLESS = "while :; do sleep 0.05; done\n"
# Reports 0.5 for ever: five times a second are enough for a rule, and all that it reports is recorded.
STEADY = REPORT + "step=1; while :; do report $step 0.5; step=$((step + 1)); sleep 0.05; done\n"


def ending(trial: Any) -> tuple[str, str]:
    return trial.state.name, trial.user_attrs["stop_reason"]


def test_a_program_ends_by_itself(programs: Any) -> None:
    (trial,) = programs.run(REPORT + "report 1 0.5; report 2 0.25; report 3 0.75")
    assert ending(trial) == ("COMPLETE", "finished")
    assert (trial.value, trial.user_attrs["epochs"], trial.user_attrs["best_epoch"]) == (0.25, 3, 2)


def test_the_last_value_counts_where_the_study_says_so(programs: Any) -> None:
    (trial,) = programs.run(REPORT + "report 1 0.5; report 2 0.25; report 3 0.75", value="last")
    assert trial.value == 0.75


def test_own_patience(programs: Any) -> None:
    """The script is ended: its exit code, whatever it is, is no failure."""
    patience = {"stopping": {"rule": "no-improvement-in-n", "n": 3}}
    trials = programs.run("trap 'exit 3' TERM\n" + STEADY, sections=patience)
    assert [ending(trial) for trial in trials] == [("COMPLETE", "no-improvement")]


def test_max_steps(programs: Any) -> None:
    (trial,) = programs.run(STEADY, max_steps=4)
    assert ending(trial) == ("COMPLETE", "max-steps")
    assert sorted(trial.intermediate_values) == [1, 2, 3, 4]


def test_timeout_after_a_report_is_an_end(programs: Any) -> None:
    (trial,) = programs.run(REPORT + "report 1 0.5\n" + ENDLESS, timeout_minutes=0.01)
    assert ending(trial) == ("COMPLETE", "timeout")
    assert trial.value == 0.5


def test_timeout_without_a_report_is_a_failure(programs: Any) -> None:
    trials = programs.run("echo waiting\n" + ENDLESS, timeout_minutes=0.01, max_attempts=2)
    assert [trial.state for trial in trials] == [TrialState.FAIL] * 2
    assert "took longer than timeout_minutes = 0.01, and reported nothing" in trials[-1].user_attrs["fail_reason"]
    assert "waiting" in trials[-1].user_attrs["fail_reason"]


def test_a_pruned_program_that_exits_with_0_is_pruned(programs: Any) -> None:
    """What it reports after the signal is dropped. (The good points come first, and end.)"""
    script = (
        REPORT + 'trap "report 99 0.0; exit 0" TERM\n'
        '[ "$1" -lt 50 ] && { report 1 0.1; report 2 0.1; exit 0; }\n'
        "report 1 0.9; report 2 0.9\n" + ENDLESS
    )
    pruning = {"pruning": {"pruner": "median", "warmup_epochs": 1, "startup_trials": 2}}
    trials = programs.run(script, [10, 11, 12, 90], sections=pruning)
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 3 + ["PRUNED"]
    assert trials[-1].user_attrs["stop_reason"] == "pruned"
    assert 99 not in trials[-1].intermediate_values
    assert trials[-1].value == 0.9


ASKING = """
import sys
import hpsearch.trial
step = 0
while True:
    step += 1
    hpsearch.trial.report(step, 0.1 if int(sys.argv[1]) < 50 else 0.9)
    if hpsearch.trial.should_stop():
        hpsearch.trial.report(step + 1, 0.0)
        break
    if step == 3 and int(sys.argv[1]) < 50:
        break
print("left by itself after", step)
sys.exit(5 if int(sys.argv[1]) > 90 else 0)
"""


@pytest.mark.parametrize("number", [60, 91])
def test_a_script_that_asks_ends_itself_by_its_patience(programs: Any, number: int) -> None:
    (programs.folder / "ask.py").write_text(ASKING)
    patience = {"stopping": {"rule": "no-improvement-in-n", "n": 3}}
    (trial,) = programs.run("", [number], run=["{python}", "ask.py", "{number}"], sections=patience, grace_seconds=30)
    assert ending(trial) == ("COMPLETE", "no-improvement")
    assert trial.value == 0.9
    assert "left by itself" in _output(programs, trial)


def test_a_script_that_asks_ends_itself_when_it_is_pruned(programs: Any) -> None:
    (programs.folder / "ask.py").write_text(ASKING)
    pruning = {"pruning": {"pruner": "median", "warmup_epochs": 1, "startup_trials": 2}}
    run = ["{python}", "ask.py", "{number}"]
    trials = programs.run("", [10, 11, 12, 90], run=run, sections=pruning, grace_seconds=30)
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 3 + ["PRUNED"]
    assert "left by itself" in _output(programs, trials[-1])


def _output(programs: Any, trial: Any) -> str:
    (file,) = [
        path
        for path in (programs.folder / "artifacts").iterdir()
        if any(path.name in str(value) for value in trial.system_attrs.values())
    ]
    return file.read_text()


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("report 1 0.5; echo cuda is gone; exit 4", "ended with exit code 4; its last lines:\ncuda is gone"),
        ("report 1 0.5; kill -SEGV $$", "was ended by signal 11; it printed nothing"),
        ("report 1 0.5; kill -TERM $$", "was ended by signal 15; it printed nothing"),
        ("echo no report", "ended without a report; its last lines:\nno report"),
    ],
)
def test_a_failure_spends_one_of_the_attempts(programs: Any, script: str, reason: str) -> None:
    """The value that it has reported before does not count."""
    trials = programs.run(REPORT + script)
    assert [trial.state for trial in trials] == [TrialState.FAIL] * 3
    assert {trial.user_attrs["fail_reason"] for trial in trials} == {reason}


# Saves that it is done before it reports anything, and is stopped then. With this file there is nothing left to do.
_DONE_UNSEEN = (
    REPORT
    + """
[ -e "$HPSEARCH_FOLDER/done" ] && exit 0
touch "$HPSEARCH_FOLDER/done"
while [ "$HPSEARCH_ATTEMPT" = 1 ]; do sleep 0.05; done
report 1 0.5
"""
)


def test_files_that_are_ahead_of_the_reports_are_given_up(programs: Any) -> None:
    """The attempt that finds nothing left to do is no failure: the next one begins with an empty folder."""
    study = programs.create(_DONE_UNSEEN, max_attempts=1)
    programs.stop_after(lambda: any(programs.folder.glob("attempts/*/point-*/attempt-1/done")))
    programs.work(study)
    programs.stop = StopSignal()
    programs.work(study)
    first, second, third = programs.trials(study)
    assert "had gone on from an earlier attempt's files" in second.user_attrs["fail_reason"]
    assert [trial.state.name for trial in (first, second, third)] == ["FAIL", "FAIL", "COMPLETE"]


def test_of_two_best_trials_the_folder_of_the_first_is_kept(programs: Any) -> None:
    """It is the one that every view names."""
    script = REPORT + 'touch "$HPSEARCH_FOLDER/model"; case $1 in 10) report 1 0.5;; *) report 1 0.25;; esac'
    trials = programs.run(script, [10, 11, 12])
    assert [trial.value for trial in trials] == [0.5, 0.25, 0.25]
    assert [path.parts[-3] for path in programs.folder.glob("attempts/*/*/*/model")] == ["point-000001"]


def test_a_finished_study_keeps_the_folders_of_its_best_point_and_of_those_that_were_given_up(programs: Any) -> None:
    """Folders of points that another machine has counted are removed, too."""
    script = REPORT + 'touch "$HPSEARCH_FOLDER/model"; [ $1 = 11 ] && exit 1; report 1 0.$1'
    study = programs.create(script, [10, 11, 12])
    folders = programs.folder / "attempts" / study.program_key
    programs.work(study)
    (folders / "point-000002" / "attempt-1").mkdir(parents=True)
    programs.work(study)
    assert _states(programs, study) == {"COMPLETE": 2, "FAIL": 1}
    assert sorted(path.name for path in folders.iterdir()) == ["point-000000", "point-000001"]


def test_an_outage_after_trials_were_counted_costs_no_folder(programs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def best_point(ledger: Ledger) -> int | None:
        asked.append(1)
        if len(asked) == 1:
            raise DatabaseAwayError("away")
        return real(ledger)

    real = Ledger.best_point
    monkeypatch.setattr(Ledger, "best_point", best_point)
    script = REPORT + '[ $1 = 11 ] && sleep 4; touch "$HPSEARCH_FOLDER/model"; report 1 0.$1'
    trials = programs.run(script, [10, 11], num_slots=2)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 2
    assert len(asked) > 1
    assert [path.parts[-3] for path in programs.folder.glob("attempts/*/*/*/model")] == ["point-000000"]


def test_a_slot_that_falls_free_is_no_reason_to_look_for_lost_trials(
    programs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    reap = Ledger.reap
    monkeypatch.setattr(Ledger, "reap", lambda ledger: looks.append(reap(ledger)) or 0)
    trials = programs.run(REPORT + "report 1 0.5", list(range(8)))
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 8
    assert len(looks) <= 3  # at the beginning and at the end


def test_a_machine_without_descriptors_to_spare_is_asked_again(programs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = [errno.EMFILE, errno.ENFILE]

    def start(keeper: Keeper, request: StartRequest) -> None:
        if errors:
            raise OSError(errors[0], os.strerror(errors.pop(0)))
        real(keeper, request)

    real = Keeper.start
    monkeypatch.setattr(Keeper, "start", start)
    monkeypatch.setattr("hpsearch.worker.programs.program_starts.START_AGAIN_SECONDS", 0.1)
    trials = programs.run(REPORT + "report 1 0.5", [10, 11], num_slots=2)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 2


def test_another_error_of_a_start_ends_the_worker_and_loses_no_point(
    programs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(keeper: Keeper, request: StartRequest) -> None:
        raise OSError(errno.ENOSYS, "not here")

    monkeypatch.setattr(Keeper, "start", start)
    study = programs.create(REPORT + "report 1 0.5")
    with pytest.raises(SurroundingsError, match="a program cannot be started: not here"):
        programs.work(study)
    assert _states(programs, study) == {"WAITING": 1}


@pytest.mark.filterwarnings("ignore:Choices for a categorical distribution")
@pytest.mark.parametrize("value", [["$(touch owned)"], {"a": "$(touch owned)"}, "$(touch owned)", None])
def test_a_value_that_the_study_does_not_have_is_not_put_into_the_command(programs: Any, value: Any) -> None:
    study = programs.create(REPORT + "report 1 0.5", run=["bash", "-c", "bash script.sh {number}"])
    changed = json.dumps({"name": "CategoricalDistribution", "attributes": {"choices": [value]}})
    change = text("UPDATE trial_params SET param_value = 0, distribution_json = :changed RETURNING 1")
    programs.database.rows(change, {"changed": changed})
    with pytest.raises(HpsearchError):
        programs.work(study)
    assert not list(programs.folder.rglob("owned"))


def test_points_that_were_given_up_are_tried_again_with_more_attempts(programs: Any) -> None:
    """Once the program is mended; a study that lowers the number again loses nothing."""
    study = programs.create("exit 1", [10, 11], max_attempts=2)
    programs.work(study)
    assert _states(programs, study) == {"FAIL": 2}
    (programs.folder / "script.sh").write_text(REPORT + '[ "$1" = 11 ] && exit 1; report 1 0.5')

    def again(max_attempts: int) -> Registration:
        document = study.definition.document()
        document["command"]["max_attempts"] = max_attempts
        return prepare_program(programs.database, parse_definition(document, source="test"), programs.folder)

    assert again(2).changes == ()
    registration = again(3)
    assert "2 points that were given up: tried again" in registration.changes
    programs.work(registration.study)
    assert _states(programs, study) == {"COMPLETE": 1, "FAIL": 1}
    assert not any("tried again" in line for line in again(2).changes)
    assert "1 point that was given up: tried again" in again(4).changes


def test_a_second_attempt_may_succeed(programs: Any) -> None:
    script = REPORT + '[ "$HPSEARCH_ATTEMPT" = 1 ] && exit 1; report 1 0.5'
    trials = programs.run(script)
    assert [trial.state.name for trial in trials] == ["FAIL", "COMPLETE"]


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_a_value_that_is_not_finite_ends_the_trial_as_diverged(programs: Any, value: str) -> None:
    (trial,) = programs.run(REPORT + f"report 1 0.5; report 2 {value}\n" + ENDLESS)
    assert ending(trial) == ("PRUNED", "diverged")
    assert trial.user_attrs["stop_detail"].startswith("diverged at step 2")
    assert trial.value == 0.5


def test_five_failures_at_the_start_end_the_worker(programs: Any) -> None:
    """Nothing more is claimed, and no point is given up."""
    study = programs.create("echo no module named torch; exit 1", range(10, 20))
    with pytest.raises(ProgramsFailError) as raised:
        programs.work(study)
    assert str(raised.value).startswith("5 attempts in a row failed; the command: sh script.sh 1")
    assert "no module named torch" in str(raised.value)
    assert _states(programs, study) == {"WAITING": 10}


def test_twenty_failures_in_a_row_end_the_worker(programs: Any) -> None:
    study = programs.create(REPORT + '[ "$1" -gt 12 ] && exit 1; report 1 0.5', range(10, 40), max_attempts=20)
    with pytest.raises(ProgramsFailError, match=r"^20 attempts in a row failed"):
        programs.work(study)
    assert _states(programs, study)["COMPLETE"] == 3


def test_failures_at_a_worker_s_start_are_no_verdict_on_a_study_with_results(programs: Any) -> None:
    """It has come last, and gets the points that are left: those that fail."""
    study = programs.create(REPORT + "[ -e broken ] && exit 1; report 1 0.5; touch broken", range(10, 13))
    programs.stop_after(lambda: _states(programs, study).get("COMPLETE") == 1)
    programs.work(study)
    programs.stop = StopSignal()
    assert programs.work(study) == 0
    assert _states(programs, study) == {"COMPLETE": 1, "FAIL": 2}


def test_a_command_that_turns_out_not_to_start_spends_no_attempt(programs: Any) -> None:
    """What cannot be seen before a point is claimed: a program without a first line that names its interpreter."""
    study = programs.create("", range(10, 18), run=["./tool", "{number}"])
    (programs.folder / "tool").write_bytes(b"\0not a program")
    (programs.folder / "tool").chmod(0o755)
    with pytest.raises(CannotStartError, match=r"^\[?command\]? cannot be started"):
        programs.work(study, num_slots=8)
    assert _states(programs, study) == {"WAITING": 8}
    assert {row.crashes for row in programs.database.rows(_CRASHES, {"study": study.study_id})} == {0}


def test_a_folder_that_cannot_be_made_loses_no_point(programs: Any) -> None:
    study = programs.create(STEADY, range(10, 14))
    (programs.folder / "attempts").write_text("in the way")
    with pytest.raises(ArtifactError, match="cannot write"):
        programs.work(study, num_slots=2)
    assert _states(programs, study) == {"WAITING": 4}


_CRASHES = text("SELECT crashes FROM hpsearch_points WHERE study_id = :study")
_STATES = text(
    "SELECT CAST(t.state AS text) AS state, count(*) AS number FROM hpsearch_points p JOIN trials t USING (trial_id) "
    "WHERE p.study_id = :study GROUP BY 1"
)


def _states(programs: Any, study: Any) -> dict[str, int]:
    """The points by the state of their current trial."""
    return {row.state: row.number for row in programs.database.rows(_STATES, {"study": study.study_id})}


# Names the results of each step by a file of its own; the value is best at step 2.
_NAMES_RESULTS = """
for step in 1 2 3; do
  echo "1 0 $((step == 2)) $1" > "$HPSEARCH_FOLDER/$step"
  value=0.5; [ $step = 2 ] && value=0.25
  echo "{\\"step\\": $step, \\"value\\": $value, \\"correct\\": \\"$HPSEARCH_FOLDER/$step\\"}" > "$HPSEARCH_REPORTS"
done
"""


@pytest.mark.parametrize(("value", "third"), [("best", True), ("last", False)])
def test_results_of_single_examples_are_those_of_the_report_that_counts(programs: Any, value: str, third: bool) -> None:
    trials = programs.run(_NAMES_RESULTS, [0, 1], run=["bash", "script.sh", "{number}"], value=value)
    found = read_correctness(programs.database, [trial._trial_id for trial in trials])
    right = [its.unpacked().tolist() for its in found.values()]
    assert right == [[True, False, third, False], [True, False, third, True]]
    assert not [name for trial in trials for name in trial.user_attrs if "correct" in name]


# Fails after epoch 2. The next attempt finds its state and does epochs 3 and 4.
_GOES_ON = """
if [ -e "$HPSEARCH_FOLDER/state" ]; then first=3; else first=1; fi
touch "$HPSEARCH_FOLDER/state"
echo "epoch $first err=0.$((9 - first))"
echo "epoch $((first + 1)) err=0.$((8 - first))"
[ $first = 3 ]
"""


@pytest.mark.parametrize(
    ("pattern", "curve"),
    [
        ("err=(.*)", {1: 0.6, 2: 0.5}),
        ("epoch (?P<step>.) err=(.*)", {1: 0.8, 2: 0.7, 3: 0.6, 4: 0.5}),
    ],
)
def test_counted_matches_of_an_earlier_attempt_hide_no_reports(
    programs: Any, pattern: str, curve: dict[int, float]
) -> None:
    first, second = programs.run(_GOES_ON, run=["sh", "script.sh"], pattern=pattern, reads_parameters=True)
    assert first.intermediate_values == {1: 0.8, 2: 0.7}
    assert (second.value, second.intermediate_values) == (0.5, curve)
    assert second.user_attrs["epochs"] == len(curve)
