"""What is remembered about lanes: per case, whole, and never worth an error."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from hpsearch.data.resident import ResidentData
from hpsearch.study.settings import StoppingSettings, TrialSettings
from hpsearch.study.study_file import parse_definition
from hpsearch.training.lanes.cohort import Cohort
from hpsearch.training.lanes.device_model import DeviceSpeed
from hpsearch.worker.cohorts import Cohorts
from hpsearch.worker.lanes.measured_lane_counts import KnownLanes, LaneCase, LaneMemory, StudyMix

CPU = torch.device("cpu")
CASE = LaneCase(words="a device; a network")
KNOWN = KnownLanes(case=CASE.words, seconds={1: 1.0, 2: 0.5, 4: 0.1 + 0.2})


def test_what_was_remembered_is_recalled(tmp_path: Path) -> None:
    memory = LaneMemory(tmp_path / "home" / "lanes")
    assert memory.recall(CASE) == KnownLanes(case=CASE.words)
    memory.remember(KNOWN)
    assert memory.recall(CASE) == KNOWN
    assert memory.recall(LaneCase(words="another device")).seconds == {}
    assert [path.name for path in memory.folder.iterdir()] == [memory.path(CASE).name]  # nothing half-written is left


def test_a_shortage_is_added_to_what_is_known(tmp_path: Path) -> None:
    memory = LaneMemory(tmp_path)
    memory.remember(KNOWN)
    memory.note_shortage(CASE, 2)
    assert (memory.recall(CASE), memory.most_lanes(CASE)) == (KNOWN, 2)
    memory.note_shortage(CASE, 8)  # another worker's, which had more lanes
    assert memory.most_lanes(CASE) == 2
    memory.remember(KNOWN)
    assert memory.most_lanes(CASE) == 2
    other = LaneCase(words="never measured")
    memory.note_shortage(other, 3)
    assert (memory.recall(other).seconds, memory.most_lanes(other)) == ({}, 3)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe\x00",
        b"[1, 2]",
        b'{"format": 4, "case": "a device; a network"}',
        b'{"format": 3, "case": "a device; a network", "seconds": {"0": 1.0}}',
        b'{"format": 3, "case": "a device; a network", "seconds": {"8": -1.0}}',
        b'{"format": 3, "case": "a device; a network", "seconds": {"8": NaN}}',
        b'{"format": 3, "case": "a device; a network", "extra": 1}',
        b'{"format": 3, "case": "somebody else\'s"}',
    ],
)
def test_a_damaged_or_foreign_file_is_as_none_and_is_told(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    memory = LaneMemory(tmp_path)
    memory.path(CASE).write_bytes(content)
    assert memory.recall(CASE) == KnownLanes(case=CASE.words)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert str(memory.path(CASE)) in caplog.text
    memory.remember(KNOWN)
    assert memory.recall(CASE) == KNOWN


@pytest.mark.parametrize("rest", ['1, "obstacle": null', '2, "most": 3'])
def test_a_file_of_an_earlier_format_is_as_none_without_a_word(
    rest: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    memory = LaneMemory(tmp_path)
    memory.path(CASE).write_text(f'{{"case": "a device; a network", "seconds": {{"1": 1.0}}, "format": {rest}}}')
    assert memory.recall(CASE) == KnownLanes(case=CASE.words)
    assert caplog.messages == []


def test_a_device_is_measured_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    speeds = [DeviceSpeed(flops=0.1 + 0.2 + i, bytes_per_second=1.0, call_seconds=1.0) for i in range(3)]
    measured = iter(speeds)

    def memory() -> LaneMemory:
        return LaneMemory(tmp_path, measure=lambda device: next(measured))

    assert [memory().device_speed(CPU, 1), memory().device_speed(CPU, 1)] == [speeds[0]] * 2
    assert memory().device_speed(CPU, 2) == speeds[1]  # workers that share the machine
    memory().path(LaneCase.of_device(CPU, 1)).write_text('{"format": 3}')
    assert memory().device_speed(CPU, 1) == speeds[2]
    assert "cannot be used" in caplog.text


def test_a_folder_in_the_files_place_is_as_no_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    memory = LaneMemory(tmp_path)
    memory.path(CASE).mkdir()
    assert memory.recall(CASE) == KnownLanes(case=CASE.words)
    memory.remember(KNOWN)
    assert "cannot remember" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == [memory.path(CASE).name]


def test_a_home_that_cannot_be_written_costs_a_warning_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    memory = LaneMemory(tmp_path / "file" / "lanes")
    memory.remember(KNOWN)
    assert memory.recall(CASE) == KnownLanes(case=CASE.words)
    assert "cannot remember" in caplog.text


def test_the_file_tells_a_person_what_it_is_about(tmp_path: Path) -> None:
    memory = LaneMemory(tmp_path)
    memory.remember(KNOWN)
    document = json.loads(memory.path(CASE).read_text())
    assert document["case"] == CASE.words
    assert document["seconds"] == {"1": 1.0, "2": 0.5, "4": 0.1 + 0.2}


@pytest.mark.usefixtures("one_thread")
def test_a_case_is_all_that_the_measurement_depends_on(
    resident: Callable[..., ResidentData], trial: Callable[..., TrialSettings]
) -> None:
    def words(settings: dict[str, Any] | None = None, **sizes: Any) -> str:
        num_sharing, mix = sizes.pop("num_sharing", 1), StudyMix(**sizes.pop("mix", {}))
        return LaneCase.of(trial(**(settings or {})), resident(**sizes), CPU, num_sharing, mix).words

    usual = words()
    assert words() == usual
    assert words({"learning_rate": 0.5, "lambda_2": 0.1, "seed": 3}) == usual  # lanes of one cohort
    assert words({"optimizer": "adam"}) == usual == words({"activation": "relu"})
    both = {"most_units": 30}
    assert words({"hidden_units": 20}, mix=both) == words({"hidden_units": 30}, mix=both)
    assert words({"hidden_units": 20}, mix={"most_units": 500}) == words({"hidden_units": 30}, mix={"most_units": 900})
    others = [
        words({"hidden_units": 33}),
        words({"batch_size": 10}),
        words({"precision": "bfloat16"}),
        words({"shuffle": True}),
        words({"family": "cnn"}, image_shape=(28, 28)),
        words({"family": "cnn", "kernels": (2, 5)}, image_shape=(28, 28)),
        words(num_sharing=2),
        words(mix={"words": "optimizers adam"}),
        words(mix={"most_units": 30}),  # 12 units otherwise
        words(mix={"stopping": StoppingSettings(patience=4)}),
        words({"family": "logistic"}),
        words(num_train=131),
        words(image_shape=(20, 20)),
        words(max_resident_bytes=10_000),
    ]
    torch.set_num_threads(2)
    others.append(words())
    assert len({usual, *others}) == len(others) + 1
    assert f"torch {torch.__version__}" in usual


def test_a_shortage_is_forgotten_after_a_day(tmp_path: Path) -> None:
    """Others may have held the memory."""
    now = datetime(2026, 1, 1, tzinfo=UTC)
    memory = LaneMemory(tmp_path, now=lambda: now)
    memory.remember(KNOWN)
    memory.note_shortage(CASE, 2)
    now += timedelta(hours=23)
    assert memory.most_lanes(CASE) == 2
    now += timedelta(hours=2)
    assert (memory.recall(CASE), memory.most_lanes(CASE)) == (KNOWN, None)


def parsed_mix(search: dict[str, Any] | None = None, **sections: Any) -> StudyMix:
    search = search or {}
    if "points" not in search:
        search = {"strategy": "grid", "learning_rate": [0.1, 0.2], **search}
    document = {"name": "s", "data": {"dataset": "digits"}, "search": search, **sections}
    return StudyMix.of(parse_definition(document, source="test"))


def test_studies_with_other_optimizers_penalties_or_metrics_have_readings_of_their_own() -> None:
    def mix(search: dict[str, Any] | None = None, **sections: Any) -> str:
        return parsed_mix(search, **sections).words

    assert mix() == mix({"learning_rate": [0.3]}) == "optimizers sgd; metric zero-one"
    assert mix(training={"optimizer": "adam"}) == mix({"optimizer": ["adam"]}) == "optimizers adam; metric zero-one"
    assert (
        mix({"optimizer": ["sgd", "adam"]})
        == mix({"optimizer": ["adam", "sgd"]})
        == "optimizers adam, sgd; metric zero-one"
    )
    assert mix(metric="nll") == "optimizers sgd; metric nll"
    assert mix(training={"lambda_1": 1e-3}) == mix({"lambda_1": [0.0, 1e-3]}) == f"{mix()}; lambda_1"


def test_a_cohort_costs_what_the_widest_network_costs_that_its_study_can_bring_into_it(
    trial: Callable[..., TrialSettings],
) -> None:
    def widest(units: int, most: int) -> int:
        return StudyMix(most_units=most).widest_model(trial(hidden_units=units)).hidden_units

    assert parsed_mix({"hidden_units": [20, 300]}).most_units == 300
    assert parsed_mix(model={"hidden_units": 70}).most_units == 70
    points = [{"hidden_units": 20}, {"learning_rate": 0.1}]  # the second has the model's own number
    assert parsed_mix({"strategy": "listed", "points": points}, model={"hidden_units": 70}).most_units == 70
    assert [widest(20, 300), widest(200, 300), widest(200, 900)] == [32, 300, 512]
    assert widest(400, 300) == 400  # coarse-to-fine goes beyond the study's own values


@pytest.mark.parametrize("stopping", [{"patience": 4}, {"patience": 7}, {"rule": "none"}])
def test_as_many_validations_are_expected_as_an_epoch_has(
    stopping: dict[str, Any], resident: Callable[..., ResidentData], trial: Callable[..., TrialSettings]
) -> None:
    data, settings = resident(), trial(batch_size=6)
    cohorts = Cohorts(StoppingSettings.model_validate(stopping), data, CPU, Cohort)
    cohort = cohorts.open(settings)
    cohort.admit("a", settings)
    (report,) = cohort.train_epoch().values()
    assert parsed_mix(stopping=stopping).validations_per_epoch(10) == len(report.validations)


def test_a_shortage_that_was_noted_while_the_clock_was_ahead_is_forgotten(tmp_path: Path) -> None:
    LaneMemory(tmp_path, now=lambda: datetime.now(UTC) + timedelta(days=365)).note_shortage(CASE, 2)
    assert LaneMemory(tmp_path).most_lanes(CASE) is None


def test_a_file_that_cannot_be_used_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    memory = LaneMemory(tmp_path)
    memory.path(CASE).write_text("{")
    for _ in range(3):
        memory.recall(CASE)
    assert len(caplog.messages) == 1
