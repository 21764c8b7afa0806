"""The environment of a user's script: the worker's own, without what belongs to hpsearch, and what the trial is given.

A script runs with the worker's rights, so this is no protection against a hostile one. It prevents that a script, its
logs or a tool that uploads its environment receives the password of the study's database by accident. The trial's own
variables come from `ProgramCall.environment` in worker/programs/program_call.py.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

from hpsearch import environment
from hpsearch.study.command_line import Value, as_text, parameter_variable

_SECRET_PREFIXES: Final = ("PG", "AWS_")  # of the database and of the bucket
# What hpsearch sets for its own training: launch/worker_command.py and docker/Dockerfile. A script is a program with
# other loops, and torch's own default suits it better.
_LANE_VARIABLES: Final = frozenset({"GOMP_SPINCOUNT", "OMP_NUM_THREADS"})


def script_environment(
    base: Mapping[str, str],
    *,
    pass_environment: Collection[str],
    own: Mapping[str, str],
    settings: Mapping[str, str],
    cpus: int,
    devices: Sequence[str] | None,
    temporary: Path,
) -> dict[str, str]:
    """Return all variables of one attempt's process; of two with the same name, the later one in this list is used.

    1. `base` without HPSEARCH_*, PG*, AWS_* and what hpsearch sets for its own training
    2. OMP_NUM_THREADS, PYTHONUNBUFFERED and TMPDIR
    3. `settings`
    4. CUDA_VISIBLE_DEVICES and `own`, which a study cannot change: another GPU may be another trial's

    Args:
        base: the worker's environment.
        pass_environment: names of variables that 1. keeps nevertheless; HPSEARCH_* is never kept.
        own: the variables of hpsearch.trial (HPSEARCH_REPORTS ... HPSEARCH_PARAM_*).
        settings: the study's `env`, rendered.
        cpus: processors of this attempt.
        devices: UUIDs of its GPUs; None or empty: the script sees no GPU.
        temporary: folder for its temporary files.
    """
    return {
        **{name: text for name, text in base.items() if _is_passed(name, pass_environment)},
        "OMP_NUM_THREADS": str(cpus),
        "PYTHONUNBUFFERED": "1",
        "TMPDIR": str(temporary),
        **{name: text for name, text in settings.items() if not name.startswith(environment.PREFIX)},
        "CUDA_VISIBLE_DEVICES": ",".join(devices or ()),
        **own,
    }


def parameter_variables(values: Mapping[str, Value]) -> dict[str, str]:
    """Return a point as variables: HPSEARCH_PARAM_LEARNING_RATE=0.001."""
    return {parameter_variable(name): as_text(value) for name, value in values.items()}


def _is_passed(name: str, pass_environment: Collection[str]) -> bool:
    if name.startswith(environment.PREFIX):
        return False
    return name in pass_environment or not (name.startswith(_SECRET_PREFIXES) or name in _LANE_VARIABLES)
