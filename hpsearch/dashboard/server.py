"""optuna-dashboard on the study database, with hpsearch's artifacts, behind a gate (gate.py)."""

from __future__ import annotations

import contextlib
import socket
import socketserver
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import WSGIEnvironment

from optuna.artifacts.exceptions import ArtifactNotFound
from optuna.storages import RDBStorage

from hpsearch.artifacts.best_parameters import Artifacts
from hpsearch.artifacts.store import ArtifactStore
from hpsearch.dashboard.gate import LOCAL_ADDRESS, Access, DashboardGate
from hpsearch.dashboard.hosts import canonical_host
from hpsearch.errors import InputError
from hpsearch.store.studies import DEFINITION_ATTRIBUTE


class _ThreadingServer(socketserver.ThreadingMixIn, WSGIServer):
    """A page sends many requests at once."""

    daemon_threads = True


class _ThreadingServer6(_ThreadingServer):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    def get_environ(self) -> WSGIEnvironment:
        return {**super().get_environ(), LOCAL_ADDRESS: self.connection.getsockname()[0]}

    def log_message(self, format: str, *args: Any) -> None:
        """Keep request lines off stderr."""


def serve_dashboard(
    storage: RDBStorage, artifacts: Artifacts, host: str, port: int, access: Access, *, on_ready: Callable[[str], None]
) -> None:
    """Serve until interrupted, in this process, so that the database URL appears on no command line.

    Args:
        host: a name, or an IPv4 or IPv6 address.
        port: 0 takes a free port.
        access: `host` is always allowed and need not be in `access.hosts`.
        on_ready: called with the page's address once the port is open.
    Raises:
        InputError: the port or the address is not available.
    """
    access = replace(access, hosts=access.hosts | {canonical_host(host)})
    server_class = _ThreadingServer6 if ":" in host else _ThreadingServer
    shown_host = f"[{host}]" if ":" in host else host
    try:
        server = make_server(host, port, build_app(storage, artifacts, access), server_class, _Handler)
    except OSError as error:
        raise InputError(
            f"cannot listen on {shown_host}:{port}: {error.strerror}",
            hint="use another --port, or an address of this machine as --host",
        ) from error
    with server:
        on_ready(f"http://{shown_host}:{server.server_port}/dashboard")
        server.serve_forever()


def build_app(storage: RDBStorage, artifacts: Artifacts, access: Access) -> DashboardGate:
    """Return optuna-dashboard behind its gate, as a WSGI application."""
    # Imported here because it imports scikit-learn, which would delay the start of every command by a second.
    from optuna_dashboard import wsgi

    def is_hpsearch_study(study_id: int) -> bool:
        try:
            return DEFINITION_ATTRIBUTE in storage.get_study_user_attrs(study_id)
        except KeyError:
            return False

    app = wsgi(storage, artifact_store=OptunaStore(artifacts.store))
    return DashboardGate(app, access, is_hpsearch_study=is_hpsearch_study)


@final
class OptunaStore:
    """An artifact store as optuna-dashboard expects it: a missing artifact is Optuna's error."""

    def __init__(self, store: ArtifactStore) -> None:
        self.write = store.write
        self.open_reader = _optunas_error()(store.open_reader)
        self.remove = _optunas_error()(store.remove)


@contextlib.contextmanager
def _optunas_error() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise ArtifactNotFound(str(error)) from error
