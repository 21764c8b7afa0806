"""A worker's metrics as Prometheus finds them: a process of its own, scraped over HTTP."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from hpsearch.errors import InputError
from hpsearch.store.claims.claim import Outcome
from hpsearch.worker.health import life_sign as life_sign_module
from hpsearch.worker.health.life_sign import LifeSign, WorkerState
from hpsearch.worker.health.metrics import WorkerMetrics
from hpsearch.worker.options import MetricsAddress

WORKER = """
import sys
from hpsearch.store.claims.claim import Outcome
from hpsearch.worker.health.life_sign import LifeSign, WorkerState
from hpsearch.worker.health.metrics import MetricsAddress, WorkerMetrics

with LifeSign() as life_sign:
    metrics = WorkerMetrics(study="mlp", worker='host:"1"', life_sign=life_sign)
    with metrics.serve(MetricsAddress.parse("0")) as url:
        life_sign.renew(WorkerState.TRAINING, "3 lanes")
        metrics.set_device("cpu")
        metrics.lanes_busy.set(3)
        metrics.lanes.set(8)
        metrics.trial_epochs.inc(6)
        metrics.epoch_seconds.observe(0.5)
        metrics.epoch_seconds.observe(20.0)
        metrics.trials_ended[Outcome.PRUNED].inc()
        metrics.checkpoints["written"].inc()
        metrics.reports_buffered.set(6)
        metrics.fenced_writes.inc(2)
        metrics.database_retries.inc()
        metrics.database_called(0.004, "record")
        metrics.database_called(0.1)
        print(url, flush=True)
        sys.stdin.read()
print("closed", flush=True)
"""


@contextmanager
def worker_process() -> Iterator[str]:
    """A process with a worker's metrics; yields its URL. It must end in order."""
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        url = process.stdout.readline().strip()
        assert url, process.communicate()
        yield url
        out, err = process.communicate(timeout=240)
        assert (out, err, process.returncode) == ("closed\n", "", 0)
    finally:
        process.kill()


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=240) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def samples(text: str) -> dict[str, float]:
    """`name{label=value,...}` -> value of each sample."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def worker_metrics(life_sign: LifeSign | None = None) -> WorkerMetrics:
    return WorkerMetrics(study="s", worker="w", life_sign=life_sign or LifeSign())


@contextmanager
def served(life_sign: LifeSign | None = None, address: str = "0") -> Iterator[str]:
    with worker_metrics(life_sign).serve(MetricsAddress.parse(address)) as url:
        assert url is not None
        yield url


def test_prometheus_can_read_what_a_worker_process_has_counted() -> None:
    with worker_process() as url:
        assert url.startswith("http://127.0.0.1:")
        status, text = get(f"{url}/metrics")
        found = samples(text)
        health_status, health = get(f"{url}/healthz")
    assert status == 200
    expected = {
        'hpsearch_worker_info{device=cpu,study=mlp,worker=host:"1"}': 1,
        "hpsearch_worker_state{state=training}": 1,
        "hpsearch_worker_state{state=idle}": 0,
        "hpsearch_lanes": 8,
        "hpsearch_lanes_busy": 3,
        "hpsearch_trial_epochs_total": 6,
        "hpsearch_epoch_seconds_count": 2,
        "hpsearch_epoch_seconds_sum": 20.5,
        "hpsearch_epoch_seconds_bucket{le=1.0}": 1,
        "hpsearch_trials_ended_total{outcome=pruned}": 1,
        "hpsearch_trials_ended_total{outcome=complete}": 0,
        "hpsearch_checkpoints_total{result=written}": 1,
        "hpsearch_checkpoints_total{result=failed}": 0,
        "hpsearch_reports_buffered": 6,
        "hpsearch_fenced_writes_total": 2,
        "hpsearch_database_retries_total": 1,
        "hpsearch_database_seconds_bucket{le=0.005,operation=record}": 1,
        "hpsearch_database_seconds_count{operation=other}": 1,
        "hpsearch_database_seconds_count{operation=claim}": 0,
    }
    assert {name: found.get(name) for name in expected} == expected
    assert found["hpsearch_life_sign_timestamp_seconds"] == pytest.approx(found["process_start_time_seconds"], abs=300)
    assert not [name for name in found if name.startswith("hpsearch_") and "_created" in name]
    assert health_status == 200
    assert json.loads(health).items() >= {"status": "ok", "state": "training", "detail": "3 lanes"}.items()


def test_a_worker_that_waits_for_a_device_has_none_and_then_one() -> None:
    metrics = worker_metrics()
    for device in ("", "cuda:0"):
        if device:
            metrics.set_device(device)
        (info,) = [m for m in metrics.registry.collect() if m.name == "hpsearch_worker_info"]
        assert [sample.labels["device"] for sample in info.samples] == [device]


def test_an_old_life_sign_is_unhealthy(monkeypatch: pytest.MonkeyPatch) -> None:
    life_sign = LifeSign(max_age_seconds=60)
    life_sign.renew(WorkerState.IDLE)
    with served(life_sign) as url:
        assert get(f"{url}/healthz")[0] == 200
        now = life_sign_module.time.monotonic()
        clock: Any = type("Clock", (), {"monotonic": staticmethod(lambda: now + 61)})
        monkeypatch.setattr(life_sign_module, "time", clock)
        status, body = get(f"{url}/healthz")
    assert status == 503
    seen = json.loads(body)
    assert (seen["status"], seen["state"]) == ("stale", "idle")
    assert seen["age_seconds"] >= 61


def test_nothing_else_is_served() -> None:
    with served() as url:
        assert get(f"{url}/")[0] == 404
        assert get(f"{url}/metrics/../../etc/passwd")[0] == 404
        assert get(f"{url}/metrics?name[]=hpsearch_lanes")[0] == 200


def test_metrics_are_there_on_every_address_that_is_asked_for() -> None:
    with served(address="[::1]:0") as url:
        assert url.startswith("http://[::1]:")
        assert get(f"{url}/metrics")[0] == 200


def test_the_free_port_that_was_taken_is_said_in_the_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("hpsearch"), "propagate", True)
    with caplog.at_level("INFO"), served() as url:
        assert f"metrics at {url}/metrics, health at {url}/healthz" in caplog.text


def test_a_port_that_is_taken_is_an_error_with_a_hint() -> None:
    with served() as url:
        taken = url.removeprefix("http://")
        with pytest.raises(InputError, match=f"cannot serve metrics at {taken}: Address already in use") as bad:
            worker_metrics().serve(MetricsAddress.parse(taken)).__enter__()
    assert "another port" in str(bad.value.hint)


def test_a_host_that_is_not_ours_is_an_error() -> None:
    with pytest.raises(InputError, match=r"cannot serve metrics at 192\.0\.2\.1:9100: "):
        worker_metrics().serve(MetricsAddress.parse("192.0.2.1:9100")).__enter__()


def test_the_port_is_free_again_afterwards() -> None:
    with served() as url:
        address = url.removeprefix("http://")
    with served(address=address) as again:
        assert again == url


def test_without_an_address_nothing_is_served_and_counting_works_all_the_same() -> None:
    metrics = worker_metrics()
    with metrics.serve(None) as url:
        metrics.trials_ended[Outcome.COMPLETE].inc()
    assert url is None
    assert metrics.registry.get_sample_value("hpsearch_trials_ended_total", {"outcome": "complete"}) == 1


@pytest.mark.parametrize(
    ("text", "host", "port", "shown"),
    [
        ("9100", "127.0.0.1", 9100, "127.0.0.1:9100"),
        ("localhost:0", "localhost", 0, "localhost:0"),
        ("0.0.0.0:9100", "0.0.0.0", 9100, "0.0.0.0:9100"),
        ("[::]:9100", "::", 9100, "[::]:9100"),
        ("worker-3:65535", "worker-3", 65535, "worker-3:65535"),
    ],
)
def test_addresses(text: str, host: str, port: int, shown: str) -> None:
    address = MetricsAddress.parse(text)
    assert address == MetricsAddress(host=host, port=port)
    assert str(address) == shown
    assert MetricsAddress.parse(str(address)) == address


@pytest.mark.parametrize(
    "text", ["", ":9100", "host:", "host", "65536", "-1", "0.0.0.0", "host:9100/metrics", "²", "hóst:1"]
)
def test_what_is_no_address_is_an_error(text: str) -> None:
    with pytest.raises(InputError, match=r"--metrics must be \[HOST:\]PORT"):
        MetricsAddress.parse(text)


def test_each_of_several_workers_takes_a_port_of_its_own() -> None:
    address = MetricsAddress.parse("0.0.0.0:65534")
    assert [str(address.of_worker(index)) for index in range(2)] == ["0.0.0.0:65534", "0.0.0.0:65535"]
    with pytest.raises(InputError, match="worker 2 would need port 65536"):
        address.of_worker(2)
    assert MetricsAddress.parse("0").of_worker(3).port == 0
