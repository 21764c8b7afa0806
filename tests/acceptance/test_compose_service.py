"""What the services start, docker/compose_service.py: settings, the password file, and errors in one line."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest
from sqlalchemy import make_url

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "docker" / "compose_service.py"


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module, with its files in a folder of the test's."""
    spec = importlib.util.spec_from_file_location("compose_service", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "PASSWORD_FILE", tmp_path / "database_password")
    monkeypatch.setattr(module, "OWN_PASSWORD_FILE", tmp_path / "own")
    monkeypatch.setattr(module, "NAME_FILE", tmp_path / "current-study")
    monkeypatch.setattr(module, "DATA_FOLDER", tmp_path / "data")
    monkeypatch.setattr(module, "APP_FOLDER", ROOT)
    monkeypatch.chdir(ROOT)
    return module


def test_a_random_password_is_made_once_for_owner_and_group_only(service: ModuleType) -> None:
    assert service.provide_password({}) == 0
    made = service.PASSWORD_FILE.read_text()
    assert len(made) >= 43  # 32 bytes
    assert service.PASSWORD_FILE.stat().st_mode & 0o777 == 0o440
    assert service.provide_password({}) == 0
    assert service.PASSWORD_FILE.read_text() == made


def test_no_two_projects_get_the_same_password(service: ModuleType) -> None:
    service.provide_password({})
    first = service.PASSWORD_FILE.read_text()
    service.PASSWORD_FILE.unlink()
    service.provide_password({})
    assert service.PASSWORD_FILE.read_text() != first


def test_the_first_line_of_ones_own_file_is_the_password_and_wins(service: ModuleType) -> None:
    service.provide_password({})
    service.OWN_PASSWORD_FILE.write_text("own pass word\nand a note\n")
    assert service.provide_password({}) == 0
    assert service.PASSWORD_FILE.read_text() == "own pass word"
    assert [path.name for path in service.PASSWORD_FILE.parent.glob(".database_password*")] == []


@pytest.mark.parametrize("text", ["", "\nsecond line\n"])
def test_an_empty_password_is_refused(service: ModuleType, text: str) -> None:
    service.OWN_PASSWORD_FILE.write_text(text)
    with pytest.raises(service.SettingError, match="password file is empty"):
        service.provide_password({})
    assert not service.PASSWORD_FILE.exists()


def test_the_password_is_never_printed(service: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    service.provide_password({})
    service.OWN_PASSWORD_FILE.write_text("own-password")
    service.provide_password({})
    printed = capsys.readouterr()
    assert "own-password" not in printed.out + printed.err


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("", ()),
        ("--set a=1 --set b=2", ("--set", "a=1", "--set", "b=2")),
        ("--set=a=1", ("--set", "a=1")),
        ("--set 'name=two words'", ("--set", "name=two words")),
        ("--set name=$(reboot);`id`", ("--set", "name=$(reboot);`id`")),
        ("--set --set=x", ("--set", "--set=x")),
    ],
)
def test_study_options_are_split_like_words_of_a_shell_and_run_by_none(
    service: ModuleType, text: str, options: tuple[str, ...]
) -> None:
    assert service.study_options({"STUDY_OPTIONS": text}) == options


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("--storage postgresql://elsewhere/x", "takes --set KEY=VALUE only, got '--storage'"),
        ("a=1", "takes --set KEY=VALUE only, got 'a=1'"),
        ("--set a=1 --set", "ends with --set and nothing to set"),
        ("--set 'a=1", "cannot be read: No closing quotation"),
    ],
)
def test_other_study_options_are_refused(service: ModuleType, text: str, error: str) -> None:
    with pytest.raises(service.SettingError, match=error):
        service.study_options({"STUDY_OPTIONS": text})


@pytest.mark.parametrize(
    ("settings", "threads"),
    [
        ({}, 8),
        ({"WORKER_THREADS": "", "HPSEARCH_SUPERVISED_WORKERS": "3"}, 2),
        ({"HPSEARCH_SUPERVISED_WORKERS": "20"}, 1),
        ({"WORKER_THREADS": "5", "HPSEARCH_SUPERVISED_WORKERS": "3"}, 5),
    ],
)
def test_workers_share_the_cores_unless_their_threads_are_named(
    service: ModuleType, settings: Mapping[str, str], threads: int
) -> None:
    assert service.worker_threads(settings, 8) == threads


@pytest.mark.parametrize("text", ["0", "-1", "many", "1.5"])
@pytest.mark.parametrize(
    ("variable", "named"), [("WORKER_THREADS", "WORKER_THREADS"), ("HPSEARCH_SUPERVISED_WORKERS", "WORKERS")]
)
def test_numbers_of_threads_and_workers_are_checked(service: ModuleType, variable: str, named: str, text: str) -> None:
    with pytest.raises(service.SettingError, match=f"^{named} must be a whole number from 1, got '{text}'"):
        service.worker_threads({variable: text}, 8)


def test_a_study_is_registered_under_its_own_name_and_found_again(
    service: ModuleType, database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HPSEARCH_STORAGE", database_url)
    settings = {
        "STUDY": "studies/quickstart.toml",
        "STUDY_OPTIONS": "--set data.dataset=digits --set name=mine --set training.batch_size=20",
    }
    assert service.create_study(settings) == 0
    assert service.NAME_FILE.read_text() == "mine"
    assert service.create_study(settings) == 0
    assert "was there already, with the same definition" in capsys.readouterr().out


def test_another_definition_of_the_study_is_an_error_and_the_workers_keep_their_study(
    service: ModuleType, database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HPSEARCH_STORAGE", database_url)
    study = {"STUDY": "studies/quickstart.toml", "STUDY_OPTIONS": "--set data.dataset=digits"}
    assert service.create_study(study) == 0
    service.NAME_FILE.write_text("kept")
    assert (
        service.create_study({**study, "STUDY_OPTIONS": f"{study['STUDY_OPTIONS']} --set training.max_epochs=1"}) == 2
    )
    assert "max_epochs" in capsys.readouterr().err
    assert service.NAME_FILE.read_text() == "kept"


@pytest.mark.parametrize("is_set", [True, False])
def test_only_a_quick_start_with_nothing_set_falls_back_to_digits(
    service: ModuleType,
    database_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    is_set: bool,
) -> None:
    monkeypatch.setenv("HPSEARCH_STORAGE", database_url)
    monkeypatch.delenv("HPSEARCH_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", _no_network)
    code = service.create_study({"STUDY": "studies/quickstart.toml"} if is_set else {"STUDY": "", "STUDY_OPTIONS": ""})
    out = capsys.readouterr().out
    assert code == (3 if is_set else 0)
    assert ("THE QUICK START RUNS ON DIGITS" in out) is not is_set
    assert service.NAME_FILE.exists() is not is_set


def _no_network(*arguments: object, **named: object) -> None:
    raise OSError("no network in this test")


def test_a_study_that_is_no_file_is_refused(service: ModuleType) -> None:
    with pytest.raises(service.SettingError, match="STUDY must name a study file, got 'not-there'"):
        service.create_study({"STUDY": "not-there"})


@pytest.mark.parametrize(
    ("named", "file"),
    [
        ("mlp", "studies/mlp.toml"),
        ("two_hidden_layers", "examples/two_hidden_layers.toml"),
        ("elsewhere/mine.toml", "elsewhere/mine.toml"),
        ("", "studies/quickstart.toml"),
    ],
)
def test_a_study_file_is_named_by_its_path_or_its_name_alone(service: ModuleType, named: str, file: str) -> None:
    assert service.study_file({"STUDY": named}) == file


def test_a_study_file_of_the_users_own_folder_comes_before_ours(
    service: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert service.study_file({"STUDY": "mlp"}) == str(ROOT / "studies" / "mlp.toml")
    assert service.study_file({"STUDY": "examples/two_hidden_layers.toml"}).startswith(str(ROOT))
    (tmp_path / "mlp.toml").write_text("")
    assert service.study_file({"STUDY": "mlp"}) == service.study_file({"STUDY": "mlp.toml"}) == "mlp.toml"


def test_a_study_of_a_program_is_refused_unless_commands_are_allowed(
    service: ModuleType, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPSEARCH_STORAGE", database_url)
    study = {"STUDY": "examples/own_scripts/file.toml", "STUDY_OPTIONS": ""}
    with pytest.raises(service.SettingError, match="runs a program"):
        service.create_study(study)
    assert not service.NAME_FILE.exists()
    assert service.create_study({**study, "HPSEARCH_COMMANDS": "1"}) == 0
    assert service.NAME_FILE.read_text() == "own-file"


def test_a_worker_takes_the_name_that_was_registered_and_elsewhere_the_one_it_is_told(service: ModuleType) -> None:
    service.NAME_FILE.write_text("mine")
    assert service.study_name({"STUDY": "mlp", "STUDY_OPTIONS": ""}) == "mine"
    assert service.study_name({"STUDY": "mlp"}) == "mlp"
    with pytest.raises(service.SettingError, match=r"STUDY must be the study's name here, got 'studies/mlp.toml'"):
        service.study_name({"STUDY": "studies/mlp.toml"})


@pytest.mark.parametrize(
    ("variable", "text", "named"),
    [
        ("HPSEARCH_LANES", "0", "HPSEARCH_LANES must be auto or a whole number from 1"),
        ("WORKER_THREADS", "0", "WORKER_THREADS must be"),
        ("HPSEARCH_SUPERVISED_WORKERS", "0", "WORKERS must be"),
        ("HPSEARCH_DEVICE", "gpu", "HPSEARCH_DEVICE must be auto, cpu or cuda:N, got 'gpu'"),
        ("HPSEARCH_CHECKPOINT_SECONDS", "-1", "HPSEARCH_CHECKPOINT_SECONDS must be seconds, from 0"),
        ("HPSEARCH_STALL_SECONDS", "soon", "HPSEARCH_STALL_SECONDS must be seconds, from 1"),
        ("HPSEARCH_STALL_SECONDS", "nan", "HPSEARCH_STALL_SECONDS must be seconds"),
        ("HPSEARCH_LIFE_SIGN_MAX_AGE", "0", "HPSEARCH_LIFE_SIGN_MAX_AGE must be"),
        ("HPSEARCH_METRICS", "here", "HPSEARCH_METRICS must be"),
        ("HPSEARCH_SHARE_GPU", "perhaps", "HPSEARCH_SHARE_GPU must be true or false"),
    ],
)
def test_the_study_refuses_what_its_workers_would_refuse(
    service: ModuleType, variable: str, text: str, named: str
) -> None:
    with pytest.raises(service.SettingError, match=named):
        service.create_study({variable: text})
    assert not service.NAME_FILE.exists()


def test_the_settings_of_the_example_are_accepted(service: ModuleType) -> None:
    example = dict(
        line.split("=", 1) for line in (ROOT / ".env.example").read_text().splitlines() if line[:1].isupper()
    )
    service.check_settings({**example, "HPSEARCH_SUPERVISED_WORKERS": example["WORKERS"]})


def test_a_folder_of_data_that_docker_has_just_made_is_named_as_the_user_named_it(service: ModuleType) -> None:
    service.DATA_FOLDER.mkdir()
    with pytest.raises(service.SettingError, match="HPSEARCH_DATA is set to /srv/dta, which has no data"):
        service.create_study({"DATA_FOLDER": "/srv/dta"})
    service.check_settings({"DATA_FOLDER": ""})
    (service.DATA_FOLDER / "mnist").mkdir()
    service.check_settings({"DATA_FOLDER": "/srv/data"})


def test_for_a_log_collector_every_line_is_an_object(
    service: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HPSEARCH_LOG_FORMAT", "json")
    monkeypatch.setenv("STUDY", "not-there")
    assert service.main(["password"]) == 0
    assert service.main(["study"]) == 2
    printed = capsys.readouterr()
    notice, error = (json.loads(line) for line in printed.err.splitlines())
    assert printed.out == ""
    assert (notice["level"], notice["message"]) == ("INFO", "made a random password for the database")
    assert list(notice) == ["time", "level", "logger", "message"]
    assert (error["level"], error["exit_code"]) == ("ERROR", 2)
    assert error["message"].startswith("STUDY must name a study file")


@pytest.mark.parametrize(
    ("port", "told"),
    [("8081", "http://127.0.0.1:8081/dashboard\n"), ("0", "docker compose port dashboard 8080 tells its address\n")],
)
def test_the_dashboards_address_is_the_published_one(
    service: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], port: str, told: str
) -> None:
    def serve(arguments: list[str]) -> int:
        print("http://0.0.0.0:8080/dashboard")
        return 0

    monkeypatch.setattr("hpsearch.cli.main.run_command_line", serve)
    assert service.show_dashboard({"DASHBOARD_PORT": port}) == 0
    assert capsys.readouterr().out == told


def run_script(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_errors_are_one_line_and_a_hint_with_exit_code_2() -> None:
    done = run_script("study", STUDY="not-there")
    assert done.returncode == 2
    assert done.stdout == ""
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == ["error", "hint"]


@pytest.mark.parametrize("arguments", [(), ("everything",), ("study", "worker")])
def test_unknown_roles_are_refused(arguments: tuple[str, ...]) -> None:
    done = run_script(*arguments)
    assert (done.returncode, done.stderr) == (2, "usage: compose_service.py password|study|worker|dashboard\n")


def test_a_worker_joins_the_study_it_is_told_with_its_share_of_threads(database_url: str, tmp_path: Path) -> None:
    assert make_url(database_url)
    done = run_script("worker", STUDY="not-there", HPSEARCH_STORAGE=database_url, HPSEARCH_ARTIFACTS=str(tmp_path))
    assert done.returncode == 2
    assert "not-there" in done.stderr
