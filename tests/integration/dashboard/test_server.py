"""The dashboard's gate: what passes, by which names it may be asked, and how uploaded files leave."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import re
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIServer
from wsgiref.util import FileWrapper, setup_testing_defaults

import pytest

from hpsearch.artifacts.best_parameters import PARAMETERS_FILE, Artifacts, open_artifacts
from hpsearch.cli.options import parse_hosts
from hpsearch.dashboard import server as dashboard
from hpsearch.dashboard.gate import LOCAL_ADDRESS, Access, DashboardGate
from hpsearch.dashboard.server import build_app, serve_dashboard
from hpsearch.errors import InputError
from hpsearch.results.summary import read_summary
from hpsearch.store.claims.claim import Outcome, Result
from hpsearch.store.claims.ledger import Ledger
from hpsearch.store.connection.database import Database
from hpsearch.store.rows.counts import PointCounts
from hpsearch.store.studies import StoredStudy, load_study

SCRIPT = b"<script>document.title = 'it ran'</script>"


@dataclass
class Answer:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


@pytest.fixture
def study(new_study: Callable[..., StoredStudy]) -> StoredStudy:
    return new_study(2)


@pytest.fixture
def artifacts(tmp_path: Path) -> Artifacts:
    return open_artifacts(tmp_path / "artifacts")


@pytest.fixture
def gate(database: Database, artifacts: Artifacts) -> Callable[..., DashboardGate]:
    return lambda **access: build_app(database.storage, artifacts, Access(**access))


def ask(
    app: DashboardGate, method: str, path: str, document: object = None, headers: Mapping[str, str] | None = None
) -> Answer:
    """One request, by default as a program of this machine makes it."""
    content = b"" if document is None else json.dumps(document).encode()
    asked = {"Host": "127.0.0.1:8080", **(headers or {})}
    environ: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "PATH_INFO": path,
        "CONTENT_LENGTH": str(len(content)),
        "CONTENT_TYPE": "application/json",
        "wsgi.input": io.BytesIO(content),
        "wsgi.file_wrapper": FileWrapper,
        LOCAL_ADDRESS: "10.1.2.3",
        **{f"HTTP_{name.upper().replace('-', '_')}": value for name, value in asked.items() if value},
    }
    setup_testing_defaults(environ)
    if not asked["Host"]:
        del environ["HTTP_HOST"]
    answer = Answer()

    def start(status: str, sent: list[tuple[str, str]], *_: object) -> Any:
        answer.status = int(status[:3])
        answer.headers = {name.lower(): value for name, value in sent}

    body = app(environ, start)
    answer.body = b"".join(body)
    if hasattr(body, "close"):
        body.close()
    return answer


def routes() -> list[tuple[str, str]]:
    """Every route of the installed optuna-dashboard, with numbers in place of its patterns."""
    import optuna
    from optuna_dashboard import wsgi

    app = wsgi(optuna.storages.InMemoryStorage())
    filled = [(route.method, re.sub(r"<(\w+):int>", "1", route.rule)) for route in app.routes]  # type: ignore[attr-defined]
    return [(method, re.sub(r"<[^>]*>+", "abc", path)) for method, path in filled]


NOTES_AND_UPLOADS = {
    ("PUT", "/api/studies/1/note"),
    ("PUT", "/api/studies/1/1/note"),
    ("POST", "/api/artifacts/1"),
    ("POST", "/api/artifacts/1/1"),
}


def test_of_all_routes_that_do_not_read_only_notes_and_uploads_pass() -> None:
    """The rule stands for routes that no version has yet, too: the application behind the gate is never asked."""
    asked: list[tuple[str, str]] = []

    def application(environ: dict[str, Any], start: Any) -> list[bytes]:
        asked.append((environ["REQUEST_METHOD"], environ["PATH_INFO"]))
        start("200 OK", [])
        return []

    gate = DashboardGate(application, Access(), is_hpsearch_study=lambda study_id: True)
    known = [(method, path) for method, path in routes() if method != "GET"]
    assert set(known) > NOTES_AND_UPLOADS
    invented = [("POST", "/api/v2/studies"), ("PATCH", "/api/studies/1"), ("DELETE", "/api/studies/1/note")]
    near_misses = [("PUT", "/api/studies/1/note/x"), ("POST", "/api/artifacts/1/1/1"), ("POST", "/api/studies/1/note")]
    odd = [("PUT", "/api/studies/1\xff/note"), ("DELETE", "/api//studies/1"), ("QUERY", "/api/studies")]
    statuses = {route: ask(gate, *route, {}).status for route in [*known, *invented, *near_misses, *odd]}
    assert {route for route, status in statuses.items() if status == 200} == NOTES_AND_UPLOADS
    assert set(asked) == NOTES_AND_UPLOADS
    assert {status for status in statuses.values() if status != 200} == {403, 404}
    assert all(ask(gate, method, path).status == 200 for method, path in routes() if method == "GET")


@pytest.mark.parametrize(
    ("method", "path", "document"),
    [
        ("DELETE", "/api/studies/{study}", {}),
        ("POST", "/api/studies/{study}/rename", {"study_name": "other"}),
        ("POST", "/api/trials/{trial}/tell", {"state": "COMPLETE", "values": [-5]}),
        ("POST", "/api/trials/{trial}/user-attrs", {"user_attrs": {"point": 7}}),
        ("DELETE", "/api/artifacts/{study}/{trial}/{artifact}", None),
    ],
)
def test_a_study_is_as_it_was_after_each_attempt_to_change_it(
    gate: Callable[..., DashboardGate],
    database: Database,
    study: StoredStudy,
    artifacts: Artifacts,
    method: str,
    path: str,
    document: object,
) -> None:
    ledger = Ledger(database=database, study_id=study.study_id, owner=1)
    (claim,) = ledger.claim(1)
    artifact = artifacts.save_parameters(ledger.set_system_attribute, claim.trial_id, {}, {})
    assert artifact is not None
    before = database.load_study(study.name).get_trials()
    filled = path.format(study=study.study_id, trial=claim.trial_id, artifact=artifact)
    answer = ask(gate(), method, filled, document)
    assert answer.status == 403
    assert "--allow-changes" in json.loads(answer.body)["reason"]  # the page shows this
    assert database.load_study(study.name).get_trials() == before
    assert load_study(database, study.name) == study
    assert artifacts.store.read(artifact)


def test_notes_are_saved(gate: Callable[..., DashboardGate], database: Database, study: StoredStudy) -> None:
    trial_id = database.load_study(study.name).get_trials()[0]._trial_id
    for path in (f"/api/studies/{study.study_id}/note", f"/api/studies/{study.study_id}/{trial_id}/note"):
        assert ask(gate(), "PUT", path, {"version": 1, "body": "*seen*"}).status == 204
    detail = json.loads(ask(gate(), "GET", f"/api/studies/{study.study_id}").body)
    assert [detail["note"]["body"], detail["trials"][0]["note"]["body"]] == ["*seen*", "*seen*"]


@pytest.mark.parametrize("filename", ["page.html", "page.svg", "page.xhtml", "script.js", "page.pdf", "page", "a.png"])
def test_an_uploaded_file_is_saved_and_never_run(
    gate: Callable[..., DashboardGate], study: StoredStudy, filename: str
) -> None:
    app = gate()
    file = {"file": "data:;base64," + base64.b64encode(SCRIPT).decode(), "filename": filename}
    uploaded = ask(app, "POST", f"/api/artifacts/{study.study_id}", file)
    assert uploaded.status == 201
    path = f"/artifacts/{study.study_id}/{json.loads(uploaded.body)['artifact_id']}"
    answer = ask(app, "GET", path)
    assert (answer.status, answer.body) == (200, SCRIPT)
    assert answer.headers["content-disposition"] == "attachment"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"] == "sandbox"
    shown = {"page.svg": "image/svg+xml", "a.png": "image/png"}  # an image runs no script inside a page
    assert answer.headers["content-type"] == shown.get(filename, "application/octet-stream")
    assert "access-control-allow-origin" not in answer.headers
    # The application drops bytes that are no UTF-8, and would find the file under this name as well.
    assert ask(app, "GET", path.replace("artifacts", "arti\xfffacts")).status == 404


def test_an_uploaded_file_never_stands_in_for_a_trials_parameters(
    gate: Callable[..., DashboardGate], database: Database, study: StoredStudy, artifacts: Artifacts
) -> None:
    ledger = Ledger(database=database, study_id=study.study_id, owner=1)
    (claim,) = ledger.claim(1)
    for _ in range(3):
        file = {"file": "data:;base64,AAAA", "filename": PARAMETERS_FILE}
        assert ask(gate(), "POST", f"/api/artifacts/{study.study_id}/{claim.trial_id}", file).status == 201
    ours = artifacts.save_parameters(ledger.set_system_attribute, claim.trial_id, {}, {})
    assert ours is not None
    ledger.finish([Result(trial_id=claim.trial_id, outcome=Outcome.COMPLETE, loss=0.5)])
    best = read_summary(database, study.name).require_best()
    assert artifacts.parameters_id(best.frozen()) == ours


@pytest.mark.parametrize(
    ("host", "is_allowed"),
    [
        ("127.0.0.1:8080", True),
        ("127.0.0.1:49152", True),  # a port that Docker or ssh has chosen
        ("localhost", True),
        ("LOCALHOST.:1", True),
        ("127.9.9.9", True),
        ("[::1]:8080", True),
        ("[0:0:0:0:0:0:0:1]", True),
        ("[::ffff:127.0.0.1]:8080", True),
        ("10.1.2.3:8080", True),  # where the request came in: a pod's own address, which the probe names
        ("[::ffff:10.1.2.3]:8080", True),
        ("search.example.org", True),
        ("Search.Example.org:443", True),
        ("[fd00::5]:8080", True),
        ("10.1.2.4:8080", False),
        ("evil.example.org:8080", False),
        ("search.example.org.evil.example.org", False),
        ("localhost.evil.example.org", False),
        ("127.0.0.1.evil.example.org", False),
        ("127.0.0.1:8080@evil.example.org", False),
        ("127.0.0.1, evil.example.org", False),
        ("[localhost]", False),
        ("[::1", False),
        ("127.0.0.1:port", False),
        ("", False),
    ],
)
def test_only_known_hosts_are_answered(gate: Callable[..., DashboardGate], host: str, is_allowed: bool) -> None:
    app = gate(hosts=parse_hosts(["search.example.org,fd00::5"]), allows_changes=True)
    for method, path in (("GET", "/api/studies"), ("GET", "/healthz"), ("GET", "/dashboard")):
        answer = ask(app, method, path, headers={"Host": host})
        assert answer.status == (200 if is_allowed else 403)
        assert is_allowed or "--allowed-host" in json.loads(answer.body)["reason"]


@pytest.mark.parametrize(
    ("headers", "is_allowed"),
    [
        ({}, True),  # no browser
        ({"Origin": "http://127.0.0.1:8080"}, True),
        ({"Origin": "https://search.example.org"}, True),  # the proxy has replaced Host
        ({"Host": "localhost:9", "Origin": "http://localhost:9"}, True),
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Origin": "http://evil.example.org"}, False),
        ({"Origin": "http://127.0.0.1:8081"}, False),  # somebody else's program on this machine
        ({"Origin": "http://localhost:8080"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": "file://"}, False),
    ],
)
def test_only_the_dashboards_own_pages_may_change_anything(
    gate: Callable[..., DashboardGate], study: StoredStudy, headers: dict[str, str], is_allowed: bool
) -> None:
    app = gate(hosts=frozenset({"search.example.org"}), allows_changes=True)
    note = ask(app, "PUT", f"/api/studies/{study.study_id}/note", {"version": 1, "body": "x"}, headers)
    assert note.status == (204 if is_allowed else 403)
    assert ask(app, "DELETE", f"/api/studies/{study.study_id}", {}, headers).status == (204 if is_allowed else 403)


def test_with_changes_allowed_a_renaming_that_would_lose_the_points_is_refused(
    gate: Callable[..., DashboardGate], database: Database, study: StoredStudy
) -> None:
    app = gate(allows_changes=True)
    renamed = ask(app, "POST", f"/api/studies/{study.study_id}/rename", {"study_name": "other"})
    assert renamed.status == 403
    assert "copying" in json.loads(renamed.body)["reason"]
    assert Ledger(database=database, study_id=study.study_id).counts() == PointCounts(waiting=2)
    created = ask(app, "POST", "/api/studies", {"study_name": "a", "directions": ["minimize"]})
    theirs = json.loads(created.body)["study_summary"]["study_id"]
    assert ask(app, "POST", f"/api/studies/{theirs}/rename", {"study_name": "b"}).status == 201
    assert ask(app, "POST", "/api/studies/999/rename", {"study_name": "b"}).status in (404, 500)


@pytest.mark.parametrize(
    ("credentials", "status"),
    [
        (None, 401),
        ("Basic " + base64.b64encode("anybody:s\N{LATIN SMALL LETTER U WITH DIAERESIS}ß:er".encode()).decode(), 200),
        ("basic " + base64.b64encode("s\N{LATIN SMALL LETTER U WITH DIAERESIS}ß:er".encode()).decode(), 401),
        ("Basic " + base64.b64encode(b"anybody:").decode(), 401),
        ("Basic " + base64.b64encode(b"anybody").decode(), 401),
        ("Basic !", 401),
        ("Basic", 401),
        ("Bearer süß:er", 401),
    ],
)
def test_a_password_is_asked_for_everything_but_health(
    gate: Callable[..., DashboardGate], credentials: str | None, status: int
) -> None:
    app = gate(password="süß:er")
    headers = {} if credentials is None else {"Authorization": credentials}
    for path in ("/dashboard", "/api/studies", "/artifacts/1/ab"):
        answer = ask(app, "GET", path, headers=headers)
        assert (answer.status == 401) == (status == 401)
        assert ("www-authenticate" in answer.headers) == (status == 401)
        assert b"er" not in answer.body or status == 200
    assert ask(app, "GET", "/healthz").status == 200
    assert "süß" not in repr(app._access)


def test_health_is_that_of_the_database(gate: Callable[..., DashboardGate], database: Database) -> None:
    app = gate()
    assert ask(app, "GET", "/healthz").body == b"ok\n"
    with database.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE studies RENAME TO gone")
    assert ask(app, "GET", "/healthz").status == 503


@contextlib.contextmanager
def served(database: Database, artifacts: Artifacts, host: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The page's address, as it is told."""
    servers: list[WSGIServer] = []
    make_server = dashboard.make_server

    def note_server(*arguments: Any) -> Any:
        servers.append(make_server(*arguments))
        return servers[-1]

    monkeypatch.setattr(dashboard, "make_server", note_server)
    is_ready, told = threading.Event(), []

    def on_ready(url: str) -> None:
        told.append(url)
        is_ready.set()

    thread = threading.Thread(
        target=serve_dashboard, args=(database.storage, artifacts, host, 0, Access()), kwargs={"on_ready": on_ready}
    )
    thread.start()
    assert is_ready.wait(60)
    try:
        yield told[0]
    finally:
        servers[0].shutdown()
        thread.join()


@pytest.mark.parametrize(("host", "shown"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]"), ("0.0.0.0", "0.0.0.0")])
def test_it_listens_on_addresses_of_both_versions(
    database: Database, artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch, host: str, shown: str
) -> None:
    with served(database, artifacts, host, monkeypatch) as url:
        assert re.fullmatch(rf"http://{re.escape(shown)}:\d+/dashboard", url)
        with urllib.request.urlopen(url.replace("/dashboard", "/api/studies")) as answer:
            assert json.load(answer) == {"study_summaries": []}


def test_a_refusal_arrives_also_when_much_was_sent(
    database: Database, artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(database, artifacts, "127.0.0.1", monkeypatch) as url:
        request = urllib.request.Request(url.replace("/dashboard", "/api/studies"), data=bytes(500_000))
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request)
        assert caught.value.code == 403
        assert "reason" in json.load(caught.value)


def test_the_address_at_which_a_request_came_in_is_a_name_for_it(
    database: Database, artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """127.0.0.2 stands for a pod's address; what counts is the socket's, so loopback's rule is taken away."""
    monkeypatch.setattr("hpsearch.dashboard.gate.is_loopback", lambda host: False)
    with served(database, artifacts, "0.0.0.0", monkeypatch) as url:
        port = urlsplit(url).port
        for named, status in (("127.0.0.2", 200), ("127.0.0.3", 403)):
            with socket.create_connection(("127.0.0.2", port)) as connection:
                connection.sendall(f"GET /healthz HTTP/1.1\r\nHost: {named}:{port}\r\n\r\n".encode())
                assert int(connection.makefile("rb").readline().split()[1]) == status


@pytest.mark.parametrize("given", ["http://search.example.org", "a/b", "*.example.org", "a b", "user@host", "[::1"])
def test_an_allowed_host_is_a_name_or_an_address(given: str) -> None:
    with pytest.raises(InputError, match="--allowed-host must be a name or an address"):
        parse_hosts([given])


def test_several_hosts_may_stand_in_one_variable() -> None:
    assert parse_hosts(["A.example.org, b.example.org.", "fd00:0::5", ""]) == {
        "a.example.org",
        "b.example.org",
        "fd00::5",
    }
