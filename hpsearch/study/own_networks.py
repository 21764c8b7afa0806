"""What only studies of hpsearch's own networks have: models, data that hpsearch reads, a test set."""

from __future__ import annotations

from hpsearch.errors import InputError
from hpsearch.study.definition import StudyDefinition


def require_own_networks(definition: StudyDefinition, what: str, hint: str) -> None:
    """Refuse what a study of programs cannot have.

    Args:
        what: begins with a noun and ends before the reason: `--model FILE: there is no model to write`.
    Raises:
        InputError: the study's trials are programs.
    """
    program = definition.program
    if program is not None:
        raise InputError(
            f"{what}: the trials of study {definition.name!r} are programs ([{program.section}]), "
            "which bring their own model and data",
            hint=hint,
        )
