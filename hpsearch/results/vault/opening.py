"""One opening of a test set, from the committed intent to the number on record.

The intent and the number are rows of the study's database; this machine's vault.jsonl is told of both.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from hpsearch.data.test_files import marks_of_content, marks_of_test_files
from hpsearch.home import vault_file
from hpsearch.results.provenance import user_at_host
from hpsearch.results.summary import StudySummary
from hpsearch.results.vault.intents import Attempt, declare_intent, is_declared, opened_before, read_intent_ids
from hpsearch.results.vault.machine_openings import MachineLedger, MachineOpening, describe_machine_openings, moment
from hpsearch.results.vault.record import Finding, VaultRecord, record_opening
from hpsearch.store.connection.database import Database
from hpsearch.store.studies import StoredStudy


@dataclass(frozen=True, kw_only=True)
class Opening:
    """An opening whose intent is committed.

    Args:
        noted: what this machine's vault.jsonl was told of it.
        chosen: the point, as `Finding.chosen` has it.
    """

    database: Database
    study: StoredStudy
    attempt: Attempt
    noted: MachineOpening
    chosen: Mapping[str, Any]

    def is_on_record(self) -> bool:
        return is_declared(self.database, self.attempt)

    def record(self, finding: Finding, tell: Callable[[str], None]) -> VaultRecord:
        """Write the number down. Raises VaultOpenedError, with the other's number, if another process was first."""
        place = {"opening_id": self.attempt.opening_id, "opening": self.attempt.opening}
        record, is_ours = record_opening(self.database, self.study, finding, **place)
        if not is_ours:
            raise opened_before(self.study.name, [record])
        noted = replace(
            self.noted,
            at=moment(),
            files=self.noted.files | marks_of_content(finding.test_checksums),
            num_images=finding.num_images,
            num_errors=finding.num_errors,
        )
        for line in MachineLedger(path=vault_file()).append(noted):
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
    """Commit the intent and note it on this machine, after a look at what the machine remembers of these files.

    Raises:
        DataError: the test files are missing; they were looked for, and not opened.
        VaultOpenedError: another process has opened the test set meanwhile.
    """
    study = summary.study
    marks = marks_of_test_files(study.definition.data, study.dataset_checksums)
    machine = MachineLedger(path=vault_file())
    earlier, problems = machine.openings(marks, without=read_intent_ids(database, study))
    chosen = {**described, "machine_openings": len(earlier)}
    intent_id = uuid.uuid4().hex
    attempt = declare_intent(
        database,
        study,
        intent_id=intent_id,
        chosen=chosen,
        parameters_sha256=parameters_sha256,
        reason=reason,
    )
    noted = MachineOpening(
        intent_id=intent_id,
        at=moment(),
        by=user_at_host(),
        study=study.name,
        database=database.address,
        files=marks,
    )
    problems += machine.append(noted)
    for line in (*describe_machine_openings(earlier), *problems):
        tell(line)
    return Opening(database=database, study=study, attempt=attempt, noted=noted, chosen=chosen)
