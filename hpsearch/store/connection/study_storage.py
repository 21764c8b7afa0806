"""Optuna's storage of the study database, with a deletion of studies that succeeds while workers are active.

Optuna deletes the rows that it has read. A row that a worker adds meanwhile makes the database refuse, and Optuna then
rolls back without an error: the study stays. This storage locks the study's rows first, so that workers have to wait
and then find no study.
"""

from __future__ import annotations

from typing import Any, final

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy import URL, text
from sqlalchemy.exc import OperationalError

from hpsearch.errors import StorageError
from hpsearch.store.connection.tables import OPTUNA_REVISION

_TRIES = 5
_IS_THERE = text("SELECT 1 FROM studies WHERE study_id = :study")

# In the order in which workers lock them: numbering new trials locks the study first, writing locks the points first.
_LOCKS = (
    text("SELECT 1 FROM studies WHERE study_id = :study FOR UPDATE"),
    text("SELECT 1 FROM hpsearch_points WHERE study_id = :study ORDER BY point FOR UPDATE"),
    text("SELECT 1 FROM trials WHERE study_id = :study ORDER BY trial_id FOR UPDATE"),
)


def open_study_storage(url: URL, engine_options: dict[str, Any]) -> StudyStorage:
    """Return Optuna's storage, with an engine of its own; creates Optuna's tables in an empty database.

    Raises:
        StorageError: the installed Optuna writes other tables than this hpsearch.
    """
    # RDBStorage calls str.format on the URL: braces in a password must be doubled.
    text_url = url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
    storage = StudyStorage(text_url, engine_kwargs=engine_options, skip_compatibility_check=True)
    if (spoken := storage.get_head_version()) == OPTUNA_REVISION:
        return storage
    storage.engine.dispose()
    raise StorageError(
        f"Optuna {optuna.__version__} has schema revision {spoken}, this hpsearch writes {OPTUNA_REVISION}",
        hint="install a supported version of Optuna: pip install 'optuna>=5,<6'",
    )


@final
class StudyStorage(RDBStorage):
    """The storage through which Optuna and its dashboard read and write the study database."""

    def check_revision(self, address: str) -> None:
        """Raise StorageError unless the tables are of the installed Optuna; `address` names the database."""
        spoken, stored = self.get_head_version(), self.get_current_version()
        if stored != spoken:
            is_older = stored in self.get_all_versions()
            raise StorageError(
                f"the database at {address} has Optuna's schema revision {stored}, "
                f"Optuna {optuna.__version__} has {spoken}",
                hint="back up the database, then run: optuna storage upgrade --storage URL"
                if is_older
                else "it was created by a newer Optuna: install that version",
            )

    def delete_study(self, study_id: int) -> None:
        """Delete a study with all its rows except the vault's. May be called at any time, while workers are active.

        Raises:
            KeyError: there is no such study.
            StorageError: every try failed, because workers kept writing to the study; it is unchanged.
        """
        for _ in range(_TRIES):
            if self._has_deleted(study_id):
                return
        raise StorageError(
            f"study number {study_id} could not be deleted in {_TRIES} tries: its workers keep writing to it",
            hint="stop its workers first",
        )

    def _has_deleted(self, study_id: int) -> bool:
        session = self.scoped_session()  # this thread's session: Optuna continues in it, in the same transaction
        try:
            for lock in _LOCKS:
                session.execute(lock, {"study": study_id})
            super().delete_study(study_id)
            return session.execute(_IS_THERE, {"study": study_id}).one_or_none() is None
        except (OperationalError, StorageInternalError) as error:
            if not _is_deadlock(error):
                raise
            return False
        finally:
            session.close()


def _is_deadlock(error: OperationalError | StorageInternalError) -> bool:
    """Whether the database aborted our transaction in favour of a worker's that waited for it."""
    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
    return isinstance(cause, OperationalError) and getattr(cause.orig, "pgcode", None) == "40P01"
