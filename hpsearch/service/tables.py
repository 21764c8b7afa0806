"""The tables: Optuna's own, as its models declare them, and our two beside them.

Optuna's tables hold what every Optuna program reads: studies, trials, parameters, values. They are reached through
Optuna's declarations, so that a renamed column breaks at import and not in the data; the schema version is checked
when a database is opened (database.py). Ours hold what Optuna has no place for:

    hpsearch_points   one row per point of a study: its current trial, its attempt, and the lease on it
    hpsearch_epochs   one row per trial and epoch: what the intermediate value alone does not tell

Deleting a study in optuna-dashboard deletes our rows too (ON DELETE CASCADE).
"""

from __future__ import annotations

from typing import cast

from optuna.storages._rdb import models
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
)

OPTUNA_SCHEMA_VERSION = 12  # the version whose columns are written here (Optuna 4.9 and 5.0)


def _table(model: object) -> Table:
    return cast(Table, model.__table__)  # type: ignore[attr-defined]


studies = _table(models.StudyModel)
study_directions = _table(models.StudyDirectionModel)
study_user_attributes = _table(models.StudyUserAttributeModel)
trials = _table(models.TrialModel)
trial_params = _table(models.TrialParamModel)
trial_values = _table(models.TrialValueModel)
trial_intermediate_values = _table(models.TrialIntermediateValueModel)
trial_user_attributes = _table(models.TrialUserAttributeModel)
trial_system_attributes = _table(models.TrialSystemAttributeModel)

metadata = MetaData()

points = Table(
    "hpsearch_points",
    metadata,
    Column("study_id", Integer, ForeignKey(studies.c.study_id, ondelete="CASCADE"), primary_key=True),
    Column("point", Integer, primary_key=True),  # 0, 1, 2 ... in grid order
    Column(
        "trial_id", Integer, ForeignKey(trials.c.trial_id, ondelete="CASCADE"), nullable=False, unique=True
    ),
    Column("cohort", Text),  # points of one cohort may share a worker's lanes; NULL until parameters are drawn
    Column("attempt", Integer, nullable=False, default=1),
    Column("crashes", Integer, nullable=False, default=0),  # attempts that ended with their worker's death
    Column("owner", BigInteger),  # the worker that holds the lease; NULL when nobody does
    Column("lease_expires_at", DateTime(timezone=True)),
    Column("is_counted", Boolean, nullable=False, default=False),  # its trial is COMPLETE or PRUNED
    Index("ix_hpsearch_points_owner", "owner"),
)

epochs = Table(
    "hpsearch_epochs",
    metadata,
    Column("trial_id", Integer, ForeignKey(trials.c.trial_id, ondelete="CASCADE"), primary_key=True),
    Column("epoch", Integer, primary_key=True),  # 1-based, as the step of the intermediate value
    Column("train_nll", Double, nullable=False),  # nats
    Column("validation_nll", Double, nullable=False),  # nats
    Column("learning_rate", Double, nullable=False),
    Column("seconds", Double, nullable=False),
)
