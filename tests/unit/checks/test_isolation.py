"""Networks are checked in a process of their own, which may die or hang."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hpsearch.checks import isolation
from hpsearch.checks.finding import DATA, Finding, Verdict
from hpsearch.checks.models import MODEL_CHECKS, checked_models
from hpsearch.study.definition import StudyDefinition

Define = Callable[..., StudyDefinition]


class _Trap(nn.Module):
    """Springs when it is evaluated with more images than the check of a new network has."""

    def __init__(self, image_shape: tuple[int, int], num_classes: int, kind: str) -> None:
        super().__init__()
        self.layer = nn.Linear(image_shape[0] * image_shape[1], num_classes)
        self.kind = kind

    def forward(self, images: Tensor) -> Tensor:
        if len(images) > 100:
            if self.kind.startswith("dies"):
                os._exit(7)
            time.sleep(1000)
        scores: Tensor = self.layer(torch.flatten(images, 1))
        return scores


def trap(*, image_shape: tuple[int, int], num_classes: int, kind: str) -> nn.Module:
    return _Trap(image_shape, num_classes, kind)


def findings(study: StudyDefinition, *, seconds: float) -> list[Finding]:
    models, _ = checked_models(study)
    with isolation.ModelProcess(study, models) as process:
        return list(process.findings(time.monotonic() + seconds))


def test_a_network_that_ends_its_process_fails_and_the_next_one_is_checked(define: Define) -> None:
    search = {"learning_rate": [0.1], "options.kind": ["dies", "dies too"]}
    found = findings(define(model={"family": f"{__name__}:trap"}, search=search), seconds=120)
    names = [name for name in MODEL_CHECKS if name != "untrained loss"]
    subjects = dict.fromkeys(finding.subject for finding in found if finding.subject != DATA)
    assert len(subjects) == 2
    for subject in subjects:
        first, *others = [finding for finding in found if finding.subject == subject]
        assert (first.check, first.verdict) == ("untrained loss", Verdict.FAILED)
        assert first.found == "its process ended (exit code 7)"
        assert [finding.check for finding in others] == names


def test_a_network_that_hangs_is_stopped_when_the_time_is_over(define: Define, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "GRACE_SECONDS", 0.0)
    search = {"learning_rate": [0.1], "options.kind": ["hangs", "dies"]}
    found = findings(define(model={"family": f"{__name__}:trap"}, search=search), seconds=30)
    (hung,) = [finding for finding in found if finding.verdict is Verdict.WARNING]
    assert hung.check == "untrained loss"
    assert hung.found.startswith("stopped while it ran, out of time")
    # The other network has had its part of the time.
    (dead,) = [finding for finding in found if finding.verdict is Verdict.FAILED]
    assert (dead.check, dead.subject != hung.subject) == ("untrained loss", True)


def test_a_process_that_is_not_asked_ends(define: Define) -> None:
    study = define()
    models, _ = checked_models(study)
    with isolation.ModelProcess(study, models) as process:
        child = process._process
    assert child.returncode is not None


class _Printer(nn.Module):
    def __init__(self, image_shape: tuple[int, int], num_classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(image_shape[0] * image_shape[1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        os.write(1, b"a print of the network\n")
        scores: Tensor = self.layer(torch.flatten(images, 1))
        return scores


def printer(*, image_shape: tuple[int, int], num_classes: int) -> nn.Module:
    return _Printer(image_shape, num_classes)


def test_what_a_network_prints_is_no_part_of_the_document(
    define: Define, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pickle.py").write_text("raise RuntimeError('a file of this folder was imported')")
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3]))
    monkeypatch.chdir(tmp_path)
    found = findings(define(model={"family": f"{__name__}:printer"}), seconds=60)
    assert {finding.verdict for finding in found if finding.check == "untrained loss"} == {Verdict.PASSED}
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "a print of the network" in captured.err
