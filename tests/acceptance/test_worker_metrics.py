"""A real worker, scraped while it trains: what Prometheus and a container's health check see of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.acceptance.in_process import hpsearch_here

pytestmark = pytest.mark.acceptance

STUDY = """
name = "endless"
[data]
dataset = "digits"
[model]
hidden_units = 10
[training]
max_epochs = 100000
[search]
learning_rate = [0.1, 0.01, 0.001]
[stopping]
rule = "none"
"""


def scrape(url: str) -> dict[str, float]:
    """The samples without labels, by name, and the worker's own labels as keys."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=240) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    found = {}
    for family in families:
        for sample in family.samples:
            found[" ".join([sample.name, *(str(sample.labels[key]) for key in sorted(sample.labels))])] = sample.value
    return found


def test_a_worker_shows_what_it_does_and_takes_its_life_sign_along(tmp_path: Path, database_url: str) -> None:
    (tmp_path / "endless.toml").write_text(STUDY)
    life_sign = tmp_path / "alive"
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("HPSEARCH_")},
        "HPSEARCH_HOME": str(tmp_path / "home"),
        "HPSEARCH_STORAGE": database_url,
        "HPSEARCH_LIFE_SIGN": str(life_sign),
        "HPSEARCH_LOG_FORMAT": "json",
    }
    command = [sys.executable, "-m", "hpsearch"]
    own = {name: value for name, value in environment.items() if name.startswith("HPSEARCH_")}
    assert hpsearch_here("create", "endless.toml", folder=tmp_path, environment=own).returncode == 0
    worker = subprocess.Popen(
        [*command, "worker", "endless", "--device", "cpu", "--lanes", "2", "--metrics", "0"],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert worker.stderr is not None
    try:
        lines = map(json.loads, worker.stderr)
        served = next(line for line in lines if line["message"].startswith("metrics at "))
        url = served["message"].split()[2].removesuffix("/metrics,")
        while (found := scrape(url)).get("hpsearch_epoch_seconds_count", 0) < 2:  # all is told of the first
            assert worker.poll() is None
        later = scrape(url)
        health = subprocess.run([*command, "health"], env=environment, capture_output=True, text=True, timeout=240)
        with urllib.request.urlopen(f"{url}/healthz", timeout=240) as answer:
            document = json.load(answer)
        worker.send_signal(signal.SIGTERM)
        leaving = list(lines)
        assert worker.wait(timeout=240) == 0
    finally:
        worker.kill()
        worker.wait()
        worker.stderr.close()
    assert found[f"hpsearch_worker_info cpu endless {served['worker']}"] == 1
    assert found["hpsearch_worker_state training"] == 1
    assert (found["hpsearch_lanes"], found["hpsearch_lanes_busy"]) == (2, 2)
    # It trains on while it is scraped: what is read later has counted at least as much.
    assert found["hpsearch_trial_epochs_total"] <= 2 * (later["hpsearch_epoch_seconds_count"] + 1)
    assert later["hpsearch_trial_epochs_total"] >= 2 * found["hpsearch_epoch_seconds_count"]
    assert found["hpsearch_database_seconds_count claim"] > 0
    assert (health.returncode, health.stdout.split()[0]) == (0, "training")
    assert document["status"] == "ok"
    assert {line["study"] for line in leaving} == {"endless"}
    assert {line["device"] for line in leaving} == {"cpu"}
    assert not life_sign.exists()
