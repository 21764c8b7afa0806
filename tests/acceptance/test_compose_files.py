"""What the compose files promise, read from the files themselves: no engine is needed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.acceptance

ROOT = Path(__file__).parents[2]
STACK = ROOT / "docker-compose.yml"
OTHER_HOST = ROOT / "docker" / "compose.worker.yml"
OVERRIDES = sorted(set((ROOT / "docker").glob("compose.*.yml")) - {OTHER_HOST})
LONG_RUNNING = ("db", "worker", "dashboard")


def services(path: Path) -> dict[str, dict[str, Any]]:
    return dict(yaml.safe_load(path.read_text())["services"])


def variables(text: str) -> set[str]:
    return set(re.findall(r"\$\{([A-Z0-9_]+)", text))


@pytest.mark.parametrize("path", [STACK, OTHER_HOST], ids=lambda path: path.name)
def test_every_service_is_confined_and_its_log_is_bounded(path: Path) -> None:
    for name, service in services(path).items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["init"] is True, name
        assert service["pids_limit"] > 0, name
        assert service["logging"]["options"].keys() == {"max-size", "max-file"}, name
        assert "container_name" not in service, name
        assert not service.get("privileged"), name


def test_only_the_copy_of_a_users_own_password_has_a_capability_and_it_has_no_network() -> None:
    for path in (STACK, OTHER_HOST, *OVERRIDES):
        for name, service in services(path).items():
            if "cap_add" in service:
                assert (name, service["cap_add"]) == ("password", ["DAC_OVERRIDE"]), path.name
    for path in (STACK, OTHER_HOST):
        assert services(path)["password"]["network_mode"] == "none"


def test_what_runs_for_long_says_whether_it_is_well_and_comes_back_when_it_dies() -> None:
    stack = services(STACK)
    for name in LONG_RUNNING:
        assert stack[name]["healthcheck"]["test"][0] == "CMD", name
        assert stack[name]["restart"] in ("unless-stopped", "on-failure"), name
        assert "stop_grace_period" in stack[name], name
    # A finished study's workers exit with 0: they shall stay away, and any other end brings them back.
    assert stack["worker"]["restart"] == "on-failure"


def test_the_database_is_published_by_the_override_only_and_only_where_it_is_told() -> None:
    assert "ports" not in services(STACK)["db"]
    assert services(STACK)["dashboard"]["ports"] == ["127.0.0.1:${DASHBOARD_PORT:-8080}:8080"]
    publishing = [path.name for path in OVERRIDES if "ports" in services(path).get("db", {})]
    assert publishing == ["compose.publish.yml"]
    (port,) = services(ROOT / "docker" / "compose.publish.yml")["db"]["ports"]
    assert port.startswith("${DATABASE_ADDRESS:?")


def test_a_worker_of_another_host_is_the_same_worker() -> None:
    here, there = services(STACK)["worker"], services(OTHER_HOST)["worker"]
    assert here.pop("networks")
    assert here.pop("depends_on").keys() == {"db", "study"}
    assert there.pop("depends_on").keys() == {"password"}
    own, others = here.pop("environment"), there.pop("environment")
    assert {key for key in own if own[key] != others.get(key)} == {"STUDY", "STUDY_OPTIONS", "HPSEARCH_STORAGE"}
    assert others.keys() < own.keys()
    assert here == there


def test_another_password_file_is_another_configuration_of_what_copies_it() -> None:
    """What Compose compares, to make a container anew, leaves out where a secret comes from."""
    for path in (OTHER_HOST, ROOT / "docker" / "compose.password.yml"):
        mounting = [service for service in services(path).values() if "secrets" in service]
        assert [service["labels"] for service in mounting] == [{"own-password": "${HPSEARCH_PASSWORD_FILE}"}]


def test_the_study_gets_the_workers_settings_to_check_them_first() -> None:
    study, worker = (services(STACK)[name]["environment"] for name in ("study", "worker"))
    assert {key for key in worker if worker[key] != study.get(key)} == {"HPSEARCH_LIFE_SIGN"}


def test_programs_find_the_users_code_read_only_and_shared_memory() -> None:
    stack = services(STACK)
    for name in ("study", "worker", "hpsearch"):
        assert stack[name]["working_dir"] == "/code"
        assert "${CODE:-./examples/own_scripts}:/code:ro" in stack[name]["volumes"]
    assert stack["worker"]["shm_size"] == "1g"


def test_no_file_holds_a_password_or_needs_a_registry_for_a_digest() -> None:
    for path in (STACK, OTHER_HOST, *OVERRIDES, ROOT / "docker" / "Dockerfile"):
        text = path.read_text()
        assert "# syntax=" not in text
        assert not re.search(r"@sha256:[0-9a-f]{64}", text)
        assert not re.search(r"://[^/\s]+:[^@\s/]+@", text), "a password in a URL"


def test_the_example_of_env_names_every_setting_with_its_default() -> None:
    files = [path.read_text() for path in (STACK, OTHER_HOST, *OVERRIDES)]
    example = dict(re.findall(r"^#?([A-Z0-9_]+)=(.*)$", (ROOT / ".env.example").read_text(), flags=re.MULTILINE))
    assert example.keys() == variables("".join(files)) - {"USER"}  # the shell has it
    active = dict(re.findall(r"^([A-Z0-9_]+)=(.*)$", (ROOT / ".env.example").read_text(), flags=re.MULTILINE))
    for text in files:
        for name, default in re.findall(r"\$\{([A-Z0-9_]+):-([^}]*)\}", text):
            if name in active:
                assert active[name] == default, name


def test_the_document_names_every_setting_and_every_file() -> None:
    text = (ROOT / "docs" / "compose.md").read_text()
    assert "own-image.Dockerfile" in text
    for path in (STACK, OTHER_HOST, *OVERRIDES):
        assert path.name in text
        for name in variables(path.read_text()):
            assert re.search(rf"\b{name}\b", text), name
