"""optuna-dashboard on the study database, with our artifacts."""

from __future__ import annotations

import socketserver
from collections.abc import Callable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from optuna.storages import RDBStorage

from hpsearch.errors import InputError
from hpsearch.service.artifacts import Artifacts


class _ThreadingServer(socketserver.ThreadingMixIn, WSGIServer):
    """A page asks for many things at once."""

    daemon_threads = True


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Keep request lines off stderr."""


def serve_dashboard(
    storage: RDBStorage,
    artifacts: Artifacts,
    host: str,
    port: int,
    *,
    on_ready: Callable[[str], None],
) -> None:
    """Serve until interrupted. In this process, so that the database URL appears on no command line.

    Args:
        port: 0 takes a free one.
        on_ready: told the page's address once the port is open.
    Raises:
        InputError: the port or the address cannot be had.
    """
    # Here and not above: it brings scikit-learn along, and every command would start a second later.
    from optuna_dashboard import wsgi

    app = wsgi(storage, artifact_store=artifacts.store)
    try:
        server = make_server(host, port, app, _ThreadingServer, _QuietHandler)
    except OSError as error:
        raise InputError(
            f"cannot listen on {host}:{port}: {error.strerror}", hint="take another port with --port"
        ) from error
    with server:
        on_ready(f"http://{host}:{server.server_port}/dashboard")
        server.serve_forever()
