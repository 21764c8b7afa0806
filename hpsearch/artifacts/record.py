"""The records of artifacts: system attributes of trials, as Optuna writes and its dashboard reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from hpsearch.stored_json import ARTIFACT_RECORD_PREFIX, parse_stored_object


def artifact_record(artifact_id: str, file_name: str, mimetype: str = "application/octet-stream") -> tuple[str, str]:
    """Key and value of the system attribute that `optuna.artifacts.upload_artifact` would write, after the file."""
    record = {"artifact_id": artifact_id, "filename": file_name, "mimetype": mimetype, "encoding": None}
    return ARTIFACT_RECORD_PREFIX + artifact_id, json.dumps(record)


def recorded_id(attributes: Mapping[str, Any], file_name: str, number: int) -> str | None:
    """Return the id of the artifact that the system attributes of a trial record under this file name, or None.

    The last record with the file name is used: a file of that name that a user has uploaded was recorded earlier,
    because a trial that has ended accepts no records.

    Args:
        attributes: in the order in which they were set.
        number: of the trial, for error messages.
    Raises:
        StorageError: a record is damaged.
    """
    for key, value in reversed([*attributes.items()]):
        if key.startswith(ARTIFACT_RECORD_PREFIX):
            place = f"table trial_system_attributes, key {key}"
            record = parse_stored_object(value, f"trial {number}", place, ("filename", "artifact_id"))
            if record["filename"] == file_name:
                return str(record["artifact_id"])
    return None
