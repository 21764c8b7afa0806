"""A user's code runs in our process: it cannot end it, sees no arguments of ours, and what it changes is put back."""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from hpsearch.errors import InputError
from hpsearch.study.settings import ModelSettings
from hpsearch.training.networks.build import build_network

NETWORK = """
import sys
from torch import nn

def make(image_shape, num_classes):
    {in_factory}
    return Network(image_shape[0] * image_shape[1], num_classes)

class Network(nn.Module):
    def __init__(self, pixels, classes):
        super().__init__()
        self.layer = nn.Linear(pixels, classes)
    def forward(self, images):
        {in_forward}
        return self.layer(images.flatten(1))
"""


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Builds a network from a module that has these lines at its top, in its factory and in its forward pass."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path, str(tmp_path)])

    def build(at_import: str = "pass", in_factory: str = "pass", in_forward: str = "pass") -> None:
        source = NETWORK.format(in_factory=in_factory, in_forward=in_forward)
        (tmp_path / "foreign_network.py").write_text(f"{at_import}\n{source}")
        sys.modules.pop("foreign_network", None)
        build_network(ModelSettings(family="foreign_network:make"), (8, 8), 3)

    yield build
    sys.modules.pop("foreign_network", None)


@pytest.mark.parametrize("where", ["at_import", "in_factory", "in_forward"])
@pytest.mark.parametrize("code", ["0", "3", "'enough'", ""])
def test_an_exit_is_an_error_that_names_it(where: str, code: str, build: Callable[..., None]) -> None:
    with pytest.raises(InputError, match=r"model\.family foreign_network:make: ") as caught:
        build(**{where: f"import sys; sys.exit({code})"})
    assert f"it called sys.exit({code}) (foreign_network.py:" in str(caught.value)


def test_the_command_line_is_not_its_own(
    build: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["hpsearch", "run", "study.toml"]
    monkeypatch.setattr("sys.argv", arguments)
    parses = (
        "import argparse\nparser = argparse.ArgumentParser()\nparser.add_argument('--width', {})\nparser.parse_args()"
    )
    build(at_import=parses.format("default=3"))
    with pytest.raises(InputError, match=r"it called sys\.exit\(2\)"):
        build(at_import=parses.format("required=True"))
    assert "usage: foreign_network " in capsys.readouterr().err
    assert sys.argv is arguments


CHANGES = """
import logging, logging.config, os, signal, sys, warnings
import numpy, torch
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
logging.basicConfig(level=logging.DEBUG, force=True)
logging.config.dictConfig({'version': 1})
logging.disable(logging.CRITICAL)
warnings.simplefilter('error')
os.chdir('/')
sys.argv.append('more')
sys.stdout = sys.stderr
numpy.seterr(all='raise')
torch.set_default_dtype(torch.float64)
torch.set_default_device('meta')
torch.set_num_threads(torch.get_num_threads() + 1)
torch.set_float32_matmul_precision('medium')
torch.set_grad_enabled(False)
torch.use_deterministic_algorithms(True)
torch.autograd.set_detect_anomaly(True)
torch.manual_seed(1)
"""


def state() -> list[object]:
    root = logging.getLogger()
    return [
        [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)],
        (list(root.handlers), root.level, root.manager.disable, logging.getLogger("hpsearch.test").disabled),
        list(warnings.filters),
        os.getcwd(),  # noqa: PTH109  # a text
        (list(sys.argv), sys.stdout),
        np.geterr(),
        (torch.get_default_dtype(), torch.get_default_device(), torch.get_num_threads()),
        (torch.get_float32_matmul_precision(), torch.is_grad_enabled(), torch.is_anomaly_enabled()),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_rng_state().tolist(),
    ]


def test_what_it_changes_for_everybody_is_put_back(build: Callable[..., None]) -> None:
    before = state()
    build(at_import=CHANGES)
    assert state() == before
