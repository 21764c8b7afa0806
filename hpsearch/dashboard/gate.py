"""Decides which requests reach optuna-dashboard, and protects its answers: a WSGI application in front of it.

optuna-dashboard has no login and no read-only mode, and it answers requests for any Host. A page of any web site can
make a browser on this machine send requests to it (DNS rebinding), and its routes delete studies and set results.
Requests are therefore checked against allow-lists: a route that a later version adds is refused until it is listed
here.
"""

from __future__ import annotations

import base64
import hmac
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, final
from wsgiref.headers import Headers
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from hpsearch.dashboard.hosts import canonical_host, host_of, is_loopback

LOCAL_ADDRESS = "hpsearch.local_address"  # key in a request's environment: the address at which the request arrived
HEALTH_PATH = "/healthz"

_READING = ("GET", "HEAD")
# Writes that are allowed without --allow-changes: Markdown notes, and files beside those of the workers. The other POST
# routes of optuna-dashboard 0.21 change studies, except /api/llm/*, which only read and ask a language model; hpsearch
# configures none.
_ALLOWED_WRITES = (
    ("PUT", re.compile(r"/api/studies/[0-9]+(/[0-9]+)?/note")),
    ("POST", re.compile(r"/api/artifacts/[0-9]+(/[0-9]+)?")),
)
_RENAME = re.compile(r"/api/studies/(?P<study>[0-9]+)/rename/*")

# Pages of optuna-dashboard itself. All other answers are uploaded files.
_OWN_PATHS = re.compile(r"|/|/(dashboard|api|static|csv)(/.*)?|/favicon\.ico|/incompatible-rdb-schema", re.DOTALL)
_HEALTH_IS_THAT_OF = "/api/studies"  # answers only while the database does
_SHOWN_TYPES = ("image/", "audio/", "video/")  # of uploaded files: shown inside the dashboard's pages, never run
_MAX_DRAINED_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Access:
    """Who may request what.

    Args:
        hosts: host names and addresses under which the dashboard may be requested, besides loopback and the address at
            which a request arrived; in the form of `canonical_host`.
        password: None: no login. The user's name is not checked.
        allows_changes: all routes of optuna-dashboard are allowed, including those that delete.
    """

    hosts: frozenset[str] = frozenset()
    password: str | None = field(default=None, repr=False)
    allows_changes: bool = False


@dataclass(frozen=True)
class _Refusal:
    """An answer of the gate in place of the dashboard's; the dashboard's page shows the reason of a refused action."""

    reason: str
    status: HTTPStatus = HTTPStatus.FORBIDDEN
    headers: tuple[tuple[str, str], ...] = ()


@final
class DashboardGate:
    """The WSGI application. Thread-safe.

    Args:
        app: optuna-dashboard.
        access: the rules.
        is_hpsearch_study: whether the study of this id belongs to hpsearch; renaming it would lose its points.
    """

    def __init__(self, app: WSGIApplication, access: Access, *, is_hpsearch_study: Callable[[int], bool]) -> None:
        self._app = app
        self._access = access
        self._is_hpsearch_study = is_hpsearch_study

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        refusal = self._refuse(environ)
        if refusal is not None:
            text = json.dumps({"reason": refusal.reason}) + "\n"
            return _send(environ, start_response, refusal.status, "application/json", text, refusal.headers)
        path = environ["PATH_INFO"]
        if path == HEALTH_PATH:
            return self._show_health(environ, start_response)
        is_upload = _OWN_PATHS.fullmatch(path) is None
        return self._app(environ, _with_safe_headers(start_response, is_upload=is_upload))

    def _refuse(self, environ: WSGIEnvironment) -> _Refusal | None:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        host = host_of(environ.get("HTTP_HOST", ""))
        if host is None or not self._is_allowed(host, environ):
            return _Refusal(
                f"Host {environ.get('HTTP_HOST', '')!r} is not a known name of this dashboard. "
                "hint: hpsearch dashboard --allowed-host NAME"
            )
        if not path.isascii():  # the application drops bytes that are not UTF-8 and would see another path
            return _Refusal("no such page", HTTPStatus.NOT_FOUND)
        if path != HEALTH_PATH and not self._knows_password(environ):
            login = ("WWW-Authenticate", 'Basic realm="hpsearch dashboard", charset="UTF-8"')
            return _Refusal("a password is required", HTTPStatus.UNAUTHORIZED, (login,))
        if method in _READING:
            return None
        return self._refuse_write(method, path, environ)

    def _refuse_write(self, method: str, path: str, environ: WSGIEnvironment) -> _Refusal | None:
        if not self._is_same_origin(environ):
            return _Refusal(f"a page of {environ.get('HTTP_ORIGIN', 'another site')} may not change anything here")
        is_allowed = any(method == allowed and pattern.fullmatch(path) for allowed, pattern in _ALLOWED_WRITES)
        if not is_allowed and not self._access.allows_changes:
            return _Refusal(
                "this dashboard changes no studies (notes and uploads are saved). "
                "hint: hpsearch dashboard --allow-changes"
            )
        rename = _RENAME.fullmatch(path)
        if rename is not None and self._is_hpsearch_study(int(rename["study"])):
            return _Refusal(
                "optuna-dashboard renames a study by copying it and deleting the original, which loses the points, "
                "epochs and checkpoints of a study of hpsearch"
            )
        return None

    def _is_allowed(self, host: str, environ: WSGIEnvironment) -> bool:
        return is_loopback(host) or host in self._access.hosts or host == canonical_host(environ.get(LOCAL_ADDRESS, ""))

    def _knows_password(self, environ: WSGIEnvironment) -> bool:
        if self._access.password is None:
            return True
        scheme, _, credentials = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        try:
            _, _, given = base64.b64decode(credentials.strip(), validate=True).partition(b":")
        except ValueError:
            return False
        return scheme.lower() == "basic" and hmac.compare_digest(given, self._access.password.encode())

    def _is_same_origin(self, environ: WSGIEnvironment) -> bool:
        """Whether the request comes from a page of the dashboard, or from no page.

        Browsers send the origin of every write.
        """
        origin = environ.get("HTTP_ORIGIN")
        if origin is None:
            return environ.get("HTTP_SEC_FETCH_SITE", "none") in ("none", "same-origin")
        scheme, _, netloc = origin.partition("://")
        if scheme not in ("http", "https"):
            return False
        # A proxy may have replaced Host with its own name for this dashboard; the browser knows the outer name.
        return netloc.lower() == environ["HTTP_HOST"].lower() or host_of(netloc) in self._access.hosts

    def _show_health(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer 200 while the studies can be read, otherwise 503. Reveals nothing else, and requires no password."""
        statuses: list[str] = []
        asked = {**environ, "REQUEST_METHOD": "GET", "PATH_INFO": _HEALTH_IS_THAT_OF, "QUERY_STRING": ""}

        def note(status: str, headers: list[tuple[str, str]], *_: Any) -> Callable[[bytes], object]:
            statuses.append(status)
            return lambda data: None

        body = self._app(asked, note)
        getattr(body, "close", lambda: None)()
        is_well = any(status.startswith("200") for status in statuses[-1:])
        status, text = (HTTPStatus.OK, "ok") if is_well else (HTTPStatus.SERVICE_UNAVAILABLE, "no database")
        return _send(environ, start_response, status, "text/plain; charset=utf-8", text + "\n")


def _with_safe_headers(start_response: StartResponse, *, is_upload: bool) -> StartResponse:
    """Add headers that stop other sites from reading or framing an answer, and browsers from running an upload."""

    def start(status: str, headers: list[tuple[str, str]], *error: Any) -> Callable[[bytes], object]:
        kept = Headers(list(headers))
        content_type = kept.get("Content-Type") or ""
        del kept["Access-Control-Allow-Origin"]
        kept["X-Content-Type-Options"] = "nosniff"
        kept["X-Frame-Options"] = "SAMEORIGIN"
        kept["Cross-Origin-Resource-Policy"] = "same-origin"
        if is_upload:
            is_shown = content_type.lower().startswith(_SHOWN_TYPES)
            kept["Content-Type"] = content_type if is_shown else "application/octet-stream"
            kept["Content-Disposition"] = "attachment"
            kept["Content-Security-Policy"] = "sandbox"
        return start_response(status, kept.items(), *error)

    return start


def _send(
    environ: WSGIEnvironment,
    start_response: StartResponse,
    status: HTTPStatus,
    content_type: str,
    text: str,
    headers: Iterable[tuple[str, str]] = (),
) -> Iterable[bytes]:
    _drain(environ)
    content = text.encode()
    sent = [("Content-Type", content_type), ("Content-Length", str(len(content))), *headers]
    _with_safe_headers(start_response, is_upload=False)(f"{status.value} {status.phrase}", sent)
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [content]


def _drain(environ: WSGIEnvironment) -> None:
    """Read the rest of the request: if the connection is closed before, it is reset, and the answer is lost."""
    length = environ.get("CONTENT_LENGTH") or "0"
    if length.isascii() and length.isdecimal():
        environ["wsgi.input"].read(min(int(length), _MAX_DRAINED_BYTES))
