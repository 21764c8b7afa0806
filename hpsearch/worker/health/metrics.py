"""A worker's counters and timings, and the small HTTP server that shows them: /metrics for Prometheus, /healthz.

Each worker is a separate scrape target. Study, worker and device therefore appear once, on hpsearch_worker_info, and
not on every series. docs/observability.md has the table of metrics, how to scrape them, and alert rules. Metrics
are cheap enough to be updated whether or not they are served.
"""

from __future__ import annotations

import contextlib
import json
import socket
import socketserver
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from typing import get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    MetricsHandler,
    ProcessCollector,
    disable_created_metrics,
)

from hpsearch import environment
from hpsearch.errors import InputError
from hpsearch.logs import get_logger
from hpsearch.store.claims.claim import Outcome
from hpsearch.store.connection.database import DatabaseOperation
from hpsearch.worker.health.life_sign import LifeSign, WorkerState
from hpsearch.worker.options import MetricsAddress

_log = get_logger("metrics")

# A round trip takes a millisecond or two; with a database in trouble, seconds.
_DATABASE_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
# From captured lanes of a small network on a GPU to many lanes of a convolutional network on a few cores.
_EPOCH_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)


class WorkerMetrics:
    """One worker's metrics, each of which any thread may update.

    Args:
        life_sign: says what the worker is doing, and when it last made progress.
    """

    def __init__(self, *, study: str = "", worker: str = "", life_sign: LifeSign | None = None) -> None:
        self.life_sign = sign = life_sign or LifeSign()
        self.registry = CollectorRegistry()
        gauge = partial(Gauge, registry=self.registry)
        counter = partial(Counter, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry)
        ProcessCollector(registry=self.registry)
        self._names = {"study": study, "worker": worker}
        self._info = gauge(
            "hpsearch_worker_info", "Always 1; the labels identify the worker.", ("study", "worker", "device")
        )
        self.set_device("")
        states = gauge("hpsearch_worker_state", "1 for the worker's current state, else 0.", ("state",))
        for state in WorkerState:
            states.labels(state=state).set_function(partial(_is_in, sign, state))
        gauge(
            "hpsearch_life_sign_timestamp_seconds",
            "Unix time of the worker's last progress: an epoch, a look at the study, the start of a wait.",
        ).set_function(lambda: sign.latest.unix_seconds)
        self.lanes = gauge("hpsearch_lanes", "Lanes of the current cohort.")
        self.lanes_busy = gauge("hpsearch_lanes_busy", "Lanes that train a trial.")
        self.trial_epochs = counter("hpsearch_trial_epochs_total", "Epochs trained, summed over all lanes.")
        self.epoch_seconds = histogram(
            "hpsearch_epoch_seconds", "Wall time of one epoch of all lanes together.", buckets=_EPOCH_BUCKETS
        )
        trials = counter("hpsearch_trials_ended_total", "Trials that this worker has counted.", ("outcome",))
        self.trials_ended = {outcome: trials.labels(outcome=outcome.name.lower()) for outcome in Outcome}
        results = counter(
            "hpsearch_checkpoints_total",
            "Checkpoints of trials that were written, failed, or were restored.",
            ("result",),
        )
        self.checkpoints = {name: results.labels(result=name) for name in ("written", "failed", "restored")}
        self.reports_buffered = gauge("hpsearch_reports_buffered", "Epoch reports that are not in the database yet.")
        self.fenced_writes = counter(
            "hpsearch_fenced_writes_total",
            "Trials whose reports or results were refused because another worker had taken them over.",
        )
        self.database_retries = counter(
            "hpsearch_database_retries_total", "Database calls that were repeated after a lost connection."
        )
        calls = histogram(
            "hpsearch_database_seconds",
            "Time of one attempt at a database call.",
            ("operation",),
            buckets=_DATABASE_BUCKETS,
        )
        self._database_seconds = {name: calls.labels(operation=name) for name in get_args(DatabaseOperation)}

    def set_device(self, description: str) -> None:
        """Set the device that this worker trains on; an empty description before it has a device."""
        self._info.clear()
        self._info.labels(**self._names, device=description).set(1)

    def database_called(self, seconds: float, operation: DatabaseOperation = "other") -> None:
        """Record the duration of one attempt at a database call, successful or not."""
        self._database_seconds[operation].observe(seconds)

    @contextlib.contextmanager
    def serve(self, address: MetricsAddress | None) -> Iterator[str | None]:
        """Serve /metrics and /healthz while the context is open, and yield the server's URL. None: serve nothing.

        Raises:
            InputError: the port is taken, or the host is not an address of this machine.
        """
        if address is None:
            yield None
            return
        # Otherwise each counter has a second series, which is not used.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # only sets a flag
        server = _open_server(address, _handler_of(self.registry, self.life_sign))
        thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
        thread.start()
        url = f"http://{replace(address, port=server.server_address[1])}"
        _log.info("metrics at %s/metrics, health at %s/healthz", url, url)
        try:
            yield url
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class _Server(socketserver.ThreadingTCPServer):
    # Not http.server.HTTPServer of the standard library: that class first asks the DNS for this machine's name.
    daemon_threads = True
    allow_reuse_address = True


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(MetricsHandler):
    timeout = 10.0  # seconds for a client that sends nothing
    life_sign: LifeSign

    def do_GET(self) -> None:  # noqa: N802  # named by the base class
        path = self.path.partition("?")[0]
        if path == "/metrics":
            super().do_GET()
        elif path == "/healthz":
            self._show_health()
        else:
            self.send_error(HTTPStatus.NOT_FOUND, "only /metrics and /healthz exist")

    def _show_health(self) -> None:
        sign = self.life_sign.latest
        is_fresh = sign.is_fresh
        document = {
            "status": "ok" if is_fresh else "stale",
            "state": sign.state,
            "detail": sign.detail,
            "age_seconds": round(sign.age_seconds, 1),
        }
        body = json.dumps(document).encode() + b"\n"
        self.send_response(HTTPStatus.OK if is_fresh else HTTPStatus.SERVICE_UNAVAILABLE)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _is_in(life_sign: LifeSign, state: WorkerState) -> float:
    return float(life_sign.latest.state == state)


def _handler_of(registry: CollectorRegistry, life_sign: LifeSign) -> type[_Handler]:
    return type("_WorkerHandler", (_Handler,), {"registry": registry, "life_sign": life_sign})


def _open_server(address: MetricsAddress, handler: type[_Handler]) -> _Server:
    server = _Server6 if ":" in address.host else _Server
    try:
        return server((address.host, address.port), handler)
    except OSError as error:
        raise InputError(
            f"cannot serve metrics at {address}: {error.strerror or error}",
            hint="name another port (0: any free one), or an address of this machine, "
            f"with --metrics or {environment.METRICS}",
        ) from error
