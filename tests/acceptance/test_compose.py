"""The compose files on a real Docker engine: the whole service, what it survives, and what it gives away."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState
from playwright.sync_api import sync_playwright
from sqlalchemy import URL

# Building the image takes minutes on a machine that has never done it.
pytestmark = [pytest.mark.acceptance, pytest.mark.docker, pytest.mark.long, pytest.mark.timeout(1200)]

ROOT = Path(__file__).parents[2]
OLD_COMPOSE_IMAGE = "hpsearch:test-1.29"  # stays there: its builder takes the next one from it
OUR_SETTINGS = ("HPSEARCH_", "STUDY", "WORKER", "DATABASE_", "DASHBOARD_", "POSTGRES_", "COMPOSE_", "TORCH_")
PASSWORD = "database_password"
ENDED = (TrialState.COMPLETE, TrialState.PRUNED)


@pytest.fixture(scope="module")
def engine() -> None:
    """A Docker engine; without one these tests are skipped, or fail where HPSEARCH_REQUIRE_DOCKER is 1."""
    answer = "no docker command"
    if shutil.which("docker"):
        asked = subprocess.run(["docker", "version"], capture_output=True, text=True, timeout=60, check=False)
        if asked.returncode == 0:
            return
        answer = asked.stderr.strip().rpartition("\n")[2]
    if os.environ.get("HPSEARCH_REQUIRE_DOCKER") == "1":
        pytest.fail(f"no Docker engine answers: {answer}")
    pytest.skip(f"no Docker engine answers: {answer}")


def compose_v2() -> tuple[str, ...]:
    return ("docker", "compose")


def compose_v1() -> tuple[str, ...]:
    if shutil.which("docker-compose") is None:
        pytest.skip("no docker-compose 1.29 on this machine")
    return ("docker-compose",)


class Stack:
    """One project of Compose, with settings of its own and none of the user's."""

    def __init__(self, command: tuple[str, ...], files: tuple[str, ...], folder: Path, **settings: str) -> None:
        self.name = f"hpsearch-test-{uuid.uuid4().hex[:8]}"
        no_env_file = folder / f"{self.name}.env"
        no_env_file.write_text("")
        named = [option for file in files for option in ("--file", str(ROOT / file))]
        options = ["--project-name", self.name, "--project-directory", str(ROOT), "--env-file", str(no_env_file)]
        self.command = [*command, *options, *named]
        user = {key: value for key, value in os.environ.items() if not key.startswith(OUR_SETTINGS)}
        # Compose labels an image with its project: under one name, a test that builds beside this one would have `up`
        # make this one's containers anew.
        self.image = f"hpsearch:{self.name}" if command == compose_v2() else OLD_COMPOSE_IMAGE
        self.environment = {**user, "HPSEARCH_IMAGE": self.image, "DASHBOARD_PORT": "0", **settings}

    def __call__(self, *arguments: str, **settings: str) -> str:
        """Run a command of Compose to its end; returns its stdout."""
        done = subprocess.run(
            [*self.command, *arguments],
            env={**self.environment, **settings},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(arguments)}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done.stdout

    def containers(self, service: str) -> list[str]:
        """Ids of a service's containers, ended ones too."""
        only = [f"--filter=label=com.docker.compose.{key}" for key in (f"project={self.name}", f"service={service}")]
        return docker("ps", "--all", "--quiet", "--no-trunc", *only).split()

    def address(self, service: str, port: int) -> str:
        """Where a port of a service is published."""
        return self("port", service, str(port)).strip()

    def logs(self) -> str:
        return self("logs", "--no-color")


@contextlib.contextmanager
def running(stack: Stack) -> Iterator[Stack]:
    """Take everything down afterwards, volumes too; show the logs of what went wrong."""
    try:
        yield stack
    except BaseException:
        with contextlib.suppress(AssertionError):
            print(stack.logs()[-20_000:])
        raise
    finally:
        stack("down", "--volumes", "--remove-orphans")
        if stack.image != OLD_COMPOSE_IMAGE:
            subprocess.run(["docker", "image", "rm", stack.image], capture_output=True, check=False)


def docker(*arguments: str) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stderr[-3000:]}"
    return done.stdout


def inspect(container: str) -> dict[str, Any]:
    (found,) = json.loads(docker("inspect", container))
    return dict(found)


def kill_own_process(container: str, image: str) -> None:
    """SIGKILL as the kernel sends it when memory runs out: after `docker kill` an engine restarts nothing."""
    pid = inspect(container)["State"]["Pid"]
    kill = f"import os; os.kill({pid}, 9)"
    docker("run", "--rm", "--pid=host", "--user=0", "--entrypoint=python", image, "-c", kill)


def wait_for(what: str, is_there: Callable[[], bool], seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not is_there():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.5)


def state(container: str) -> str:
    return str(inspect(container)["State"]["Status"])


def has_ended_well(container: str) -> bool:
    """Whether it has exited; it must have done so by itself and with 0."""
    found = inspect(container)["State"]
    if found["Status"] != "exited" or found["Restarting"]:
        return False
    assert found["ExitCode"] == 0, docker("logs", "--tail", "50", container)
    return True


def study_settings() -> dict[str, str]:
    """A study of twelve points that lasts about a minute on two cores, on real MNIST where that is there."""
    options = {"name": "composed", "pruning.pruner": "none", "stopping.rule": "none", "training.max_epochs": "10"}
    data = os.environ.get("HPSEARCH_DATA")
    settings = {"HPSEARCH_DATA": data} if data else {}
    if not data:
        options |= {"data.dataset": "digits", "training.max_epochs": "400"}
    chosen = " ".join(f"--set {key}={value}" for key, value in options.items())
    return {
        "STUDY": "studies/quickstart.toml",
        "STUDY_OPTIONS": chosen,
        "WORKER_THREADS": "1",
        **settings,
    }


def read_trials(stack: Stack, password: str) -> list[FrozenTrial]:
    """All trials, with plain Optuna and from outside."""
    host, _, port = stack.address("db", 5432).rpartition(":")
    url = URL.create("postgresql+psycopg2", "hpsearch", password, host, int(port), "hpsearch")
    storage = optuna.storages.RDBStorage(url.render_as_string(hide_password=False))
    try:
        return optuna.load_study(study_name="composed", storage=storage).get_trials()
    finally:
        storage.remove_session()
        storage.engine.dispose()


def free_port() -> str:
    """A port that stays the same when a container is restarted, other than one that the engine chooses."""
    with socket.create_server(("", 0)) as server:
        return str(server.getsockname()[1])


def bridge_address() -> str:
    """An address of this machine that containers of every network reach."""
    return docker("network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Gateway}}").strip()


@pytest.mark.browser
def test_a_study_is_counted_once_whatever_is_done_to_its_containers(engine: None, tmp_path: Path) -> None:
    files = ("docker-compose.yml", "docker/compose.publish.yml")
    published = {"DATABASE_ADDRESS": bridge_address(), "DATABASE_PORT": free_port()}
    stack = Stack(compose_v2(), files, tmp_path, WORKERS="2", **published, **study_settings())
    with running(stack):
        stack("up", "--build", "--detach")
        first, second = stack.containers("worker")
        password = stack("exec", "-T", "db", "cat", f"/run/secrets/{PASSWORD}").strip()
        wait_for("a trial that trains", lambda: any(t.intermediate_values for t in read_trials(stack, password)))
        _check_that_the_password_stays_secret(stack, password)

        # Asked to stop: it gives its trials back and ends with 0; 137 would mean that the engine had to kill it.
        assert state(first) == "running"
        docker("stop", "-t", "10", first)
        assert inspect(first)["State"]["ExitCode"] == 0
        assert "given back" in stack.logs()
        docker("start", first)

        kill_own_process(second, stack.image)
        wait_for("the killed worker comes back", lambda: inspect(second)["RestartCount"] == 1)
        words = "was killed, perhaps because memory ran out: the next ones train at most"
        wait_for("it has found its lanes of before", lambda: words in stack.logs())
        with running(_worker_of_another_host(stack, password, tmp_path)) as elsewhere:
            elsewhere("up", "--detach")
            assert any(t.state is TrialState.RUNNING for t in read_trials(stack, password)), "nothing left to disturb"
            stack("restart", "db")
            _look_at_the_dashboard(stack)
            workers = [first, second, *elsewhere.containers("worker")]
            for container in workers:
                wait_for("a worker ends", lambda container=container: has_ended_well(container))
            assert "joins study composed" in elsewhere.logs()

        trials = read_trials(stack, password)
        assert sorted(t.user_attrs["point"] for t in trials if t.state in ENDED) == list(range(12))
        assert {t.state for t in trials} <= {*ENDED, TrialState.FAIL}
        assert len(trials) > 12  # what was taken from the workers that were stopped and killed was queued again
        best = json.loads(stack("run", "--rm", "-T", "hpsearch", "export", "composed"))
        assert best["value"] == min(t.value for t in trials if t.state is TrialState.COMPLETE)
        _check_that_containers_are_confined(stack)

        # The same command again finds all done.
        stack("up", "--detach")
        for container in (first, second):
            wait_for("a worker ends again", lambda container=container: has_ended_well(container))
        assert "was there already, with the same definition" in stack.logs()
        assert len(read_trials(stack, password)) == len(trials)


def test_docker_compose_1_29_runs_the_quick_start_without_a_setting(engine: None, tmp_path: Path) -> None:
    stack = Stack(compose_v1(), ("docker-compose.yml",), tmp_path)
    with running(stack):
        stack("up", "--build", "--detach")
        (worker,) = stack.containers("worker")
        wait_for("the worker ends", lambda: has_ended_well(worker))
        (study,) = json.loads(stack("run", "--rm", "-T", "hpsearch", "status", "--json"))
        assert study["points"]["total"] == 12
        assert study["points"]["complete"] + study["points"]["pruned"] == 12
        # The tools reach the test images, and the worker's parameters, and write down who asked for it.
        opening = json.loads(stack("run", "--rm", "-T", "hpsearch", "test", study["name"], "--json", USER="anna"))
        assert opening["opened_by"].startswith("anna@")


def test_a_script_of_the_users_folder_is_searched_where_it_is_allowed(engine: None, tmp_path: Path) -> None:
    code = tmp_path / "mine"
    code.mkdir()
    (code / "train.py").write_text(
        "import sys, hpsearch.trial, pathlib\n"
        "pathlib.Path.home().joinpath('.cache-of-mine').write_text('')\n"
        "hpsearch.trial.report(1, float(sys.argv[1]))\n"
    )
    (code / "mine.toml").write_text(
        'name = "mine"\n[command]\nrun = ["{python}", "train.py", "{rate}"]\n[search]\nrate = [0.4, 0.3, 0.2, 0.1]\n'
    )
    for path in (tmp_path, code):
        path.chmod(0o755)
    stack = Stack(compose_v2(), ("docker-compose.yml",), tmp_path, CODE=str(code), STUDY="mine.toml")
    with running(stack):
        stack("build", "password")
        with pytest.raises(AssertionError, match=r"service .*study.* didn't complete"):
            stack("up", "--detach")
        assert "HPSEARCH_COMMANDS=1 in .env allows it" in stack.logs()
        allowed = {"HPSEARCH_COMMANDS": "1"}
        stack("up", "--detach", **allowed)
        (worker,) = stack.containers("worker")
        wait_for("the worker ends", lambda: has_ended_well(worker))
        assert inspect(worker)["HostConfig"]["ShmSize"] == 2**30
        best = json.loads(stack("run", "--rm", "-T", "hpsearch", "export", "mine"))
        assert (best["value"], best["parameters"]) == (0.1, {"rate": 0.1})
        confirmed = stack("run", "--rm", "-T", "hpsearch", "confirm", "mine", "--top", "2", "--seeds", "2", **allowed)
        assert "chosen: point 1" in confirmed


def test_a_password_of_ones_own_is_taken_from_a_closed_file(engine: None, tmp_path: Path) -> None:
    own = tmp_path / "password"
    own.write_text("p@ss:wo{r}d/%20\n")
    own.chmod(0o600)
    files = ("docker-compose.yml", "docker/compose.password.yml")
    stack = Stack(compose_v2(), files, tmp_path, HPSEARCH_PASSWORD_FILE=str(own))
    with running(stack):
        stack("build", "password")
        # The command connects over the network, where the password is asked for.
        assert json.loads(stack("run", "--rm", "-T", "hpsearch", "status", "--json")) == []
        assert stack("exec", "-T", "db", "cat", f"/run/secrets/{PASSWORD}") == "p@ss:wo{r}d/%20"


@pytest.mark.parametrize("version", [compose_v2, compose_v1])
@pytest.mark.parametrize(
    "files",
    [
        ("docker-compose.yml",),
        ("docker-compose.yml", "docker/compose.gpu.yml"),
        ("docker-compose.yml", "docker/compose.publish.yml"),
        ("docker-compose.yml", "docker/compose.password.yml"),
        ("docker/compose.worker.yml",),
        ("docker/compose.worker.yml", "docker/compose.gpu.yml"),
    ],
    ids=lambda files: "+".join(Path(file).name.removesuffix(".yml") for file in files),
)
def test_both_versions_of_compose_read_the_files(
    engine: None, tmp_path: Path, version: Callable[[], tuple[str, ...]], files: tuple[str, ...]
) -> None:
    own = tmp_path / "password"
    own.write_text("secret of the test\n")
    settings = {
        "DATABASE_ADDRESS": "127.0.0.1",
        "HPSEARCH_PASSWORD_FILE": str(own),
        "HPSEARCH_STORAGE": "postgresql://hpsearch@db.example/hpsearch",
        "STUDY": "quickstart",
    }
    config = Stack(version(), files, tmp_path, **settings)("config")
    assert "secret of the test" not in config


def test_nothing_but_what_the_image_needs_is_sent_to_the_builder(engine: None, tmp_path: Path) -> None:
    copied = tmp_path / "context"
    done = subprocess.run(
        ["docker", "build", "--file=-", f"--output=type=local,dest={copied}", str(ROOT)],
        input="FROM scratch\nCOPY . /\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    sent = {path.relative_to(copied).parts[0] for path in copied.iterdir()}
    assert sent == {
        "LICENSE",
        "README.md",
        "constraints.txt",
        "docker",
        "examples",
        "hpsearch",
        "pyproject.toml",
        "studies",
    }
    assert [path.name for path in (copied / "docker").iterdir()] == ["compose_service.py"]
    assert not [path for path in copied.rglob("*") if path.name == "__pycache__" or path.suffix == ".pyc"]


def _check_that_containers_are_confined(stack: Stack) -> None:
    for service in ("password", "db", "study", "worker", "dashboard"):
        for container in stack.containers(service):
            found = inspect(container)
            host = found["HostConfig"]
            assert found["Config"]["User"] in ("10001:10001", "postgres"), service
            assert host["ReadonlyRootfs"], service
            assert host["CapDrop"] == ["ALL"], service
            assert not host["CapAdd"], service
            assert not host["Privileged"], service
            assert host["SecurityOpt"] == ["no-new-privileges:true"], service
            assert host["LogConfig"]["Config"]["max-size"] == "10m", service
    (dashboard,) = stack.containers("dashboard")
    (published,) = inspect(dashboard)["NetworkSettings"]["Ports"]["8080/tcp"]
    assert published["HostIp"] == "127.0.0.1"


def _check_that_the_password_stays_secret(stack: Stack, password: str) -> None:
    assert len(password) > 30
    shown = {"config": stack("config"), "logs": stack.logs()}
    for service in ("password", "db", "study", "worker", "dashboard"):
        for container in stack.containers(service):
            shown[f"inspect {service}"] = json.dumps(inspect(container))
            if state(container) == "running":
                shown[f"top {service}"] = docker("top", container, "-eo", "pid,args")
    assert "postgres" in shown["top db"]
    assert [name for name, text in shown.items() if password in text] == []
    mode = stack("exec", "-T", "db", "stat", "--format=%a %u %g", f"/run/secrets/{PASSWORD}")
    assert mode.split() == ["440", "10001", "10001"]


def _worker_of_another_host(stack: Stack, password: str, folder: Path) -> Stack:
    """A project of its own that shares nothing with the stack but the published database."""
    password_file = folder / "password-of-the-database"
    password_file.write_text(f"{password}\n")
    password_file.chmod(0o600)
    settings = {
        **study_settings(),
        "STUDY": "composed",
        "HPSEARCH_IMAGE": stack.image,
        "HPSEARCH_PASSWORD_FILE": str(password_file),
        "HPSEARCH_STORAGE": f"postgresql://hpsearch@{stack.address('db', 5432)}/hpsearch",
    }
    return Stack(compose_v2(), ("docker/compose.worker.yml",), folder, **settings)


def _look_at_the_dashboard(stack: Stack) -> None:
    """The study's page, as drawn by a real browser; without one, what the page is drawn from."""
    (container,) = stack.containers("dashboard")
    wait_for("the dashboard is healthy", lambda: inspect(container)["State"]["Health"]["Status"] == "healthy")
    address = f"http://{stack.address('dashboard', 8080)}"
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None and os.environ.get("HPSEARCH_REQUIRE_BROWSER") != "1":
        with urllib.request.urlopen(f"{address}/api/studies") as answer:
            assert [study["study_name"] for study in json.load(answer)["study_summaries"]] == ["composed"]
        return
    assert executable is not None, "no chromium on this machine: apt-get install chromium"
    errors: list[str] = []
    with sync_playwright() as playwright:
        # Chromium's own sandbox does not start for root or in most containers; the page is our own.
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{address}/dashboard")
        page.get_by_text("composed").first.click(timeout=30_000)
        page.locator("#plot-history .main-svg").first.wait_for(state="visible", timeout=30_000)
        browser.close()
    assert errors == []
