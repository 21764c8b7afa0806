"""The tables: Optuna's own, as its models declare them, and ours beside them.

Optuna's tables hold what every Optuna program reads: studies, trials, parameters, values. They are reached
through Optuna's declarations, so that a renamed column breaks at import and not in the data; the versions of
both schemas are checked when a database is opened (schema.py). Ours hold what Optuna has no place for:

    hpsearch_schema        one row: the version of these tables
    hpsearch_points        one row per point of a study: its current trial, its attempt, and the lease on it
    hpsearch_epochs        one row per trial and epoch: what the intermediate value alone does not tell
    hpsearch_checkpoints   one row per point that can be resumed: where its last checkpoint is

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
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
)

# Of our own tables; what a new version changes stands in schema.py. 1: points, epochs. 2: checkpoints.
SCHEMA_VERSION = 2
OPTUNA_REVISION = "v3.2.0.a"  # of Optuna's tables whose columns are written here (Optuna 3.2 to 5.0)


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

schema = Table("hpsearch_schema", metadata, Column("version", Integer, primary_key=True, autoincrement=False))

points = Table(
    "hpsearch_points",
    metadata,
    Column("study_id", Integer, ForeignKey(studies.c.study_id, ondelete="CASCADE"), primary_key=True),
    Column("point", Integer, primary_key=True),  # 0, 1, 2 ... in grid order
    Column("trial_id", Integer, ForeignKey(trials.c.trial_id, ondelete="CASCADE"), nullable=False, unique=True),
    # Points of one cohort may share a worker's lanes. NULL: parameters are drawn when the point is claimed.
    Column("cohort", Text),
    Column("attempt", Integer, nullable=False, default=1),
    # Attempts that ended with their worker's death and had got no farther than an earlier one.
    Column("crashes", Integer, nullable=False, default=0),
    Column("furthest_epoch", Integer, nullable=False, default=0),  # that any dead attempt had reached
    Column("owner", BigInteger),  # the worker that holds the lease; NULL when nobody does
    Column("claim", BigInteger),  # the call that claimed it: made again, it finds what it has already
    Column("renewed_at", DateTime(timezone=True)),
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

checkpoints = Table(
    "hpsearch_checkpoints",
    metadata,
    Column("study_id", Integer, primary_key=True),
    Column("point", Integer, primary_key=True),
    # The trial that wrote it: the point's current one, or an earlier attempt.
    Column("trial_id", Integer, ForeignKey(trials.c.trial_id, ondelete="CASCADE"), nullable=False, unique=True),
    Column("epoch", Integer, nullable=False),  # the last one that it contains
    Column("artifact_id", Text, nullable=False),  # its file in the workers' artifact store
    Column("num_bytes", BigInteger, nullable=False),
    Column("saved_at", DateTime(timezone=True), nullable=False),
    ForeignKeyConstraint(["study_id", "point"], [points.c.study_id, points.c.point], ondelete="CASCADE"),
)
