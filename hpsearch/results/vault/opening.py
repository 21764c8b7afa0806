"""One opening of a test set, from the committed intent to the number on record. It reads no image: final_test.py does.

The intent and the number are rows in the study's database; both are also appended to this machine's vault.jsonl.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from hpsearch.data.test_file_marks import marks_of_content, marks_of_test_files
from hpsearch.home import vault_file
from hpsearch.metric import METRICS, ZERO_ONE, Task
from hpsearch.results.openings.intents import declare_intent, is_declared, opened_before, read_intent_ids
from hpsearch.results.openings.machine_openings import (
    MachineOpening,
    append_machine_opening,
    describe_machine_openings,
    read_machine_openings,
)
from hpsearch.results.openings.record import Attempt, Finding, VaultRecord
from hpsearch.results.openings.stored_openings import record_opening
from hpsearch.results.provenance import user_at_host
from hpsearch.results.summary import StudySummary
from hpsearch.store.connection.database import Database
from hpsearch.store.studies import StoredStudy
from hpsearch.wording import format_time


@dataclass(frozen=True, kw_only=True)
class Opening:
    """An opening whose intent is committed.

    Args:
        attempt: the committed attempt.
        noted: the line in this machine's vault.jsonl.
        chosen: the point, as in `Finding.chosen`.
    """

    database: Database
    study: StoredStudy
    attempt: Attempt
    noted: MachineOpening
    chosen: Mapping[str, Any]

    def is_on_record(self) -> bool:
        return is_declared(self.database, self.attempt)

    def record(self, finding: Finding, tell: Callable[[str], None]) -> VaultRecord:
        """Record the number.

        Raises:
            VaultOpenedError: another process recorded a number for this opening first; the message has that number.
        """
        record, is_ours = record_opening(self.database, self.study, self.attempt, finding)
        if not is_ours:
            raise opened_before(self.study.name, [record])
        metric = METRICS.get(str(finding.chosen.get("metric")), ZERO_ONE)
        is_regression = metric.task is Task.REGRESSION  # an older version would show no errors as 0 %
        number = {
            "at": format_time(datetime.now(UTC)),
            "files": self.noted.files | marks_of_content(finding.test_checksums),
            "num_images": finding.num_images,
            "num_errors": None if is_regression else finding.num_errors,
            "metric": finding.chosen.get("metric"),
            "value": finding.chosen.get("test_value"),
        }
        for line in append_machine_opening(vault_file(), self.noted.model_copy(update=number)):
            tell(line)
        return record


def declare_opening(
    database: Database,
    summary: StudySummary,
    described: Mapping[str, Any],
    parameters_sha256: str,
    reason: str | None,
    tell: Callable[[str], None],
) -> Opening:
    """Commit the intent and append it to vault.jsonl. First reads the machine's earlier openings of these test files.

    Args:
        described: the keys of `Finding.chosen` that are known before the evaluation.
        tell: receives lines for display.
    Raises:
        DataError: test files in a user's own folder are missing; no test file is opened to find out.
        VaultOpenedError: another process has opened the test set in the meantime.
    """
    study = summary.study
    marks = marks_of_test_files(study.definition.data, study.dataset_checksums)
    earlier, problems = read_machine_openings(vault_file(), marks, without=read_intent_ids(database, study))
    chosen = {**described, "machine_openings": len(earlier)}
    intent_id = uuid.uuid4().hex
    attempt = declare_intent(
        database, study, intent_id=intent_id, chosen=chosen, parameters_sha256=parameters_sha256, reason=reason
    )
    noted = MachineOpening(
        intent_id=intent_id,
        at=format_time(datetime.now(UTC)),
        by=user_at_host(),
        study=study.name,
        database=database.address,
        files=marks,
    )
    problems += append_machine_opening(vault_file(), noted)
    for line in (*describe_machine_openings(earlier), *problems):
        tell(line)
    return Opening(database=database, study=study, attempt=attempt, noted=noted, chosen=chosen)
