"""What the services of docker-compose.yml start: `compose_service.py password|study|worker|dashboard`.

    password  puts the database's password where the other services read it: a random one, or the user's own
    study     checks all settings (`check_settings`), registers the study of the study file, and writes down its name
    worker    joins that study
    dashboard serves optuna-dashboard, and tells the address at which Compose publishes it

All settings come as environment variables (.env.example). Nothing here is evaluated by a shell.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import re
import secrets
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from hpsearch.cgroups import usable_processors
from hpsearch.errors import InputError
from hpsearch.logs import LogFormat, configure_logging, get_logger, log_final_error

PASSWORD_FILE = Path("/run/secrets/database_password")
OWN_PASSWORD_FILE = Path("/run/own-secrets/database_password")
NAME_FILE = Path("/cache/current-study")
DATA_FOLDER = Path("/data")
APP_FOLDER = Path("/app")  # our studies and examples; the current folder is the user's own, /code
STUDY_FOLDERS = (Path(), Path("studies"), Path("examples"))
QUICK_START = "studies/quickstart.toml"
QUICK_START_ON_DIGITS = ("--set", "data.dataset=digits", "--set", "name=quickstart-digits")
LEAST_SECONDS = {"HPSEARCH_CHECKPOINT_SECONDS": 0, "HPSEARCH_STALL_SECONDS": 1, "HPSEARCH_LIFE_SIGN_MAX_AGE": 1}
SWITCHES = ("HPSEARCH_WAIT_FOR_GPU", "HPSEARCH_SHARE_GPU")
BAD_INPUT = 2


class SettingError(InputError):
    """A setting of the user's is wrong: one line, and one with a hint."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message, hint=hint)


def main(arguments: Sequence[str]) -> int:
    """Run one role; returns the exit code."""
    roles = {"password": provide_password, "study": create_study, "worker": work, "dashboard": show_dashboard}
    if len(arguments) != 1 or arguments[0] not in roles:
        print(f"usage: compose_service.py {'|'.join(roles)}", file=sys.stderr)
        return BAD_INPUT
    for name in [name for name, value in os.environ.items() if name.startswith("HPSEARCH_") and not value]:
        del os.environ[name]  # Compose passes what is not set as an empty value
    try:
        return roles[arguments[0]](os.environ)
    except SettingError as error:
        if _wants_json():
            configure_logging(log_format=LogFormat.JSON)
            log_final_error(error)
        else:
            print(f"error: {error}\nhint: {error.hint}", file=sys.stderr)
        return BAD_INPUT
    except SystemExit as end:  # a worker that was asked to stop before it had claimed anything
        return end.code if isinstance(end.code, int) else 1


def provide_password(environment: Mapping[str, str]) -> int:
    """Write the password file, whole and for owner and group only, unless the right one is there.

    A random one is made once and kept: the database remembers the password that it was created with.
    """
    if OWN_PASSWORD_FILE.exists():
        lines = OWN_PASSWORD_FILE.read_text(encoding="utf-8").splitlines()
        if not lines or not lines[0]:
            raise SettingError("the password file is empty", "its first line is the password of the database")
        password = lines[0]
        _say("taking the password from your own file")
    elif PASSWORD_FILE.exists():
        _say("the database's password is there already")
        return 0
    else:
        password = secrets.token_urlsafe(32)
        _say("made a random password for the database")
    _write_whole(PASSWORD_FILE, password, mode=0o440)
    return 0


def create_study(environment: Mapping[str, str]) -> int:
    """Register the study, or find it, and write its name down.

    The quick start alone, with nothing set by the user, runs on digits where MNIST cannot be had: loudly.
    """
    options = study_options(environment)
    file = study_file(environment)
    check_settings(environment)
    # Here and not above: the role `password` needs none of it, and it takes seconds.
    from hpsearch.cli.main import run_command_line
    from hpsearch.data.dataset_path import load_study_file

    check_program(file, options[1::2], environment)
    if not environment.get("STUDY") and not options and not _can_have_mnist(file):
        _say(
            "*** MNIST cannot be had here: THE QUICK START RUNS ON DIGITS (1,797 images of scikit-learn) INSTEAD ***",
            level=logging.WARNING,
        )
        options = QUICK_START_ON_DIGITS
    code = run_command_line(["create", file, *options])
    if code == 0:
        logging.disable(logging.WARNING)  # what there is to say about the file has been said
        name = load_study_file(Path(file), options[1::2]).name
        logging.disable(logging.NOTSET)
        _write_whole(NAME_FILE, name, mode=0o644)
    return code


def work(environment: Mapping[str, str]) -> int:
    """Join the study that the service `study` registered; on another machine, the one that STUDY names."""
    signal.signal(signal.SIGTERM, _leave_at_once)  # while torch is imported; then the command has its own handler
    name = study_name(environment)
    os.environ["OMP_NUM_THREADS"] = str(worker_threads(environment, usable_processors()))
    from hpsearch.cli.main import run_command_line

    return run_command_line(["worker", name])


def show_dashboard(environment: Mapping[str, str]) -> int:
    """Serve it for all addresses of the container, and tell the one outside instead: only Compose knows that."""
    port = environment.get("DASHBOARD_PORT", "")
    is_known = port not in ("", "0")
    _say(f"http://127.0.0.1:{port}/dashboard" if is_known else "docker compose port dashboard 8080 tells its address")
    from hpsearch.cli.main import run_command_line

    with contextlib.redirect_stdout(io.StringIO()):
        return run_command_line(["dashboard", "--host", "0.0.0.0", "--port", "8080", "--behind-proxy"])


def study_file(environment: Mapping[str, str]) -> str:
    """The file that STUDY names, by its path or its name alone: in the user's own folder, or in one of ours."""
    named = environment.get("STUDY") or QUICK_START
    is_path = named.endswith(".toml")
    places = [Path(named)] if is_path else [folder / f"{named}.toml" for folder in STUDY_FOLDERS]
    for path in [*places, *(APP_FOLDER / place for place in places)]:
        if path.is_file():
            return str(path)
    if is_path:
        return named
    raise SettingError(f"STUDY must name a study file, got {named!r}", f"for example STUDY={QUICK_START}")


def study_name(environment: Mapping[str, str]) -> str:
    """What the service `study` wrote down. On another machine, where STUDY_OPTIONS is not passed, STUDY is the name."""
    if "STUDY_OPTIONS" in environment:
        return NAME_FILE.read_text(encoding="utf-8")
    name = environment.get("STUDY", "")
    if not name or name.endswith(".toml"):
        hint = "`docker compose exec dashboard hpsearch status`, where the database is, lists the names"
        raise SettingError(f"STUDY must be the study's name here, got {name!r}", hint)
    return name


def check_settings(environment: Mapping[str, str]) -> None:
    """Refuse what a worker would refuse, before there is a worker that starts again and again."""
    worker_threads(environment, num_cpus=1)
    device = environment.get("HPSEARCH_DEVICE", "")
    if device and not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise SettingError(f"HPSEARCH_DEVICE must be auto, cpu or cuda:N, got {device!r}", "correct it in .env")
    for variable, least in LEAST_SECONDS.items():
        text = environment.get(variable, "")
        if text and not _is_number_from(least, text):
            raise SettingError(f"{variable} must be seconds, from {least}, got {text!r}", "correct it in .env")
    for variable in SWITCHES:
        text = environment.get(variable, "true")
        if text.lower() not in ("", "true", "false", "1", "0", "yes", "no", "on", "off"):
            raise SettingError(f"{variable} must be true or false, got {text!r}", "correct it in .env")
    data = environment.get("DATA_FOLDER", "")
    with contextlib.suppress(PermissionError):  # what cannot be looked at is the command's own error
        if data and not any(DATA_FOLDER.iterdir()):
            hint = "Docker makes a missing folder, as root's: correct HPSEARCH_DATA in .env"
            raise SettingError(f"HPSEARCH_DATA is set to {data}, which has no data", hint)
    from hpsearch.worker.options import MetricsAddress, parse_lanes

    try:
        parse_lanes(environment.get("HPSEARCH_LANES") or "auto")
        if metrics := environment.get("HPSEARCH_METRICS"):
            MetricsAddress.parse(metrics)
    except InputError as error:
        message = str(error).replace("--lanes", "HPSEARCH_LANES").replace("--metrics", "HPSEARCH_METRICS")
        raise SettingError(message, error.hint or "correct it in .env") from None


def check_program(file: str, overrides: Sequence[str], environment: Mapping[str, str]) -> None:
    """Refuse a study of programs that no worker may run; with any other error, the command that follows says more."""
    from hpsearch.data.dataset_path import load_study_file

    logging.disable(logging.WARNING)
    try:
        is_program = load_study_file(Path(file), overrides).is_program
    except InputError:
        return
    finally:
        logging.disable(logging.NOTSET)
    if is_program and environment.get("HPSEARCH_COMMANDS") != "1":
        raise SettingError(
            f"the study of {file} runs a program, which nobody has allowed",
            "HPSEARCH_COMMANDS=1 in .env allows it; CODE names the folder with your script",
        )


def study_options(environment: Mapping[str, str]) -> tuple[str, ...]:
    """STUDY_OPTIONS as arguments: any number of `--set KEY=VALUE`, quoted as in a shell."""
    text = environment.get("STUDY_OPTIONS", "")
    hint = "for example STUDY_OPTIONS='--set data.dataset=digits --set training.max_epochs=3'"
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise SettingError(f"STUDY_OPTIONS cannot be read: {error}", hint) from None
    options: list[str] = []
    for word in words:
        follows_set = len(options) % 2 == 1
        key = word.removeprefix("--set=")
        if follows_set or word == "--set":
            options.append(word)
        elif word != key:
            options += ["--set", key]
        else:
            raise SettingError(f"STUDY_OPTIONS takes --set KEY=VALUE only, got {word!r}", hint)
    if len(options) % 2 == 1:
        raise SettingError("STUDY_OPTIONS ends with --set and nothing to set", hint)
    return tuple(options)


def worker_threads(environment: Mapping[str, str], num_cpus: int) -> int:
    """CPU threads of one worker: WORKER_THREADS, or this machine's cores shared out among WORKERS."""
    named = {key: environment.get(key, "") for key in ("WORKER_THREADS", "HPSEARCH_SUPERVISED_WORKERS")}
    numbers = {}
    for key, text in named.items():
        if text and (not text.isdecimal() or int(text) == 0):
            variable = "WORKERS" if key != "WORKER_THREADS" else key
            raise SettingError(f"{variable} must be a whole number from 1, got {text!r}", "correct it in .env")
        numbers[key] = int(text) if text else None
    return numbers["WORKER_THREADS"] or max(1, num_cpus // (numbers["HPSEARCH_SUPERVISED_WORKERS"] or 1))


def _can_have_mnist(file: str) -> bool:
    """Load what the study reads of MNIST, downloading it if need be; False if no mirror answers.

    Damaged files are not taken for missing ones: then the command itself says what is wrong.
    """
    from hpsearch.console.progress_view import download_progress
    from hpsearch.data.catalog import load_selection_data
    from hpsearch.data.dataset_path import load_study_file
    from hpsearch.data.files.download import MirrorsFailedError
    from hpsearch.data.files.lookup import DataLocations
    from hpsearch.errors import DataError

    try:
        with download_progress() as progress:
            locations = DataLocations.from_environment(progress)
            load_selection_data(load_study_file(Path(file), ()).data, locations=locations)
    except DataError as error:
        return not isinstance(error.__cause__, MirrorsFailedError)
    return True


def _is_number_from(least: float, text: str) -> bool:
    try:
        return least <= float(text) < math.inf
    except ValueError:
        return False


def _say(message: str, *, level: int = logging.INFO) -> None:
    """A line for people on stdout, or for a log collector on stderr, as all of hpsearch's."""
    if _wants_json():
        configure_logging(log_format=LogFormat.JSON)
        get_logger("compose").log(level, message)
    else:
        print(message, flush=True)


def _wants_json() -> bool:
    return os.environ.get("HPSEARCH_LOG_FORMAT") == LogFormat.JSON.value


def _write_whole(path: Path, text: str, *, mode: int) -> None:
    """The old content or the new one, never a part, and no moment in which others may read it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fchmod(handle, mode)
        os.fsync(handle)
    temporary.replace(path)


def _leave_at_once(number: int, frame: FrameType | None) -> NoReturn:
    os._exit(0)


if __name__ == "__main__":
    exit_code = main(sys.argv[1:])
    # All is written and closed. What Python would still take down, torch above all, takes seconds on a busy machine:
    # of the ten that a worker has to end in.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)
