"""The tables: hpsearch's own, and the keys of Optuna's tables to which they refer.

Optuna's tables hold what every Optuna program reads: studies, trials, parameters, values. Optuna's own declarations are
not imported, because they take longer to load than `hpsearch status` takes to answer; a test compares all names in
hpsearch's statements with them. Both schema versions are checked when a database is opened (schema.py). hpsearch's
tables hold what Optuna has no place for:

    hpsearch_schema        one row: the version of these tables
    hpsearch_points        one row per point of a study: its current trial, its attempt, and the lease on it
    hpsearch_epochs        one row per trial and epoch: losses, learning rate and duration
    hpsearch_diagnoses     one row per trial and epoch after which its network was looked at
    hpsearch_checkpoints   one row per point that can be resumed: where its last checkpoint is
    hpsearch_end_states    one row per complete trial that could go on beyond max_epochs: where its last state is
    hpsearch_continued     one row per trial that was continued with more epochs by another trial of its point
    hpsearch_correctness   one row per complete trial: which validation images its best parameters classify correctly
    hpsearch_example_losses    one row per complete trial of a study that is not judged by its errors
    hpsearch_rounds        one row per round of points that a study has been given, or that ended its search
    hpsearch_vault         one row per opening of the test set: who, when, and the result
    hpsearch_vault_intents one row per attempt at an opening, committed before the first test image is read

Deleting a study in optuna-dashboard deletes hpsearch's rows too (ON DELETE CASCADE), except those of the two vault
tables: the fact that the test set was used remains true, so these rows keep the study's name and lose its id.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy import BigInteger, Column, DateTime, Double, ForeignKey, Integer, Table, Text

# Version of hpsearch's own tables; schema.py upgrades older versions. 1: points, epochs. 2: checkpoints. 3:
# correctness, rounds, vault. 4: vault_intents. 5: diagnoses, end_states, continued.
# 6: example_losses. 7: epochs without losses of networks.
SCHEMA_VERSION = 7
OPTUNA_REVISION = "v3.2.0.a"  # revision of Optuna's tables that hpsearch's statements name (Optuna 3.2 to 5.0)


_optuna = sa.MetaData()  # never created from here: Optuna creates its own tables

studies = Table("studies", _optuna, Column("study_id", Integer))
trials = Table("trials", _optuna, Column("trial_id", Integer))

OPTUNA_TABLES = (
    *("studies", "study_directions", "study_user_attributes", "trials", "trial_params", "trial_values"),
    *("trial_intermediate_values", "trial_user_attributes", "trial_system_attributes"),
)

metadata = sa.MetaData()

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
    # Crashes: attempts that ended with their worker's death and got no farther than an earlier attempt.
    Column("crashes", Integer, nullable=False, default=0),
    Column("furthest_epoch", Integer, nullable=False, default=0),  # last epoch that any dead attempt reached
    Column("owner", BigInteger),  # the worker that holds the lease; NULL if none does
    Column("claim", BigInteger),  # token of the claim: a repeated call finds what it has already claimed
    Column("renewed_at", DateTime(timezone=True)),
    Column("lease_expires_at", DateTime(timezone=True)),
    Column("is_counted", sa.Boolean, nullable=False, default=False),  # its trial is COMPLETE or PRUNED
    sa.Index("ix_hpsearch_points_owner", "owner"),
)

epochs = Table(
    "hpsearch_epochs",
    metadata,
    Column("trial_id", Integer, ForeignKey(trials.c.trial_id, ondelete="CASCADE"), primary_key=True),
    Column("epoch", Integer, primary_key=True),  # 1-based, like the step of the intermediate value
    # NULL: the report of a program, which has only a value.
    Column("train_nll", Double),  # nats
    Column("validation_nll", Double),  # nats
    Column("learning_rate", Double),
    Column("seconds", Double, nullable=False),
)

diagnoses = Table(  # a number that was not finite, or that this network does not have, is NULL
    "hpsearch_diagnoses",
    metadata,
    Column("trial_id", Integer, ForeignKey(trials.c.trial_id, ondelete="CASCADE"), primary_key=True),
    Column("epoch", Integer, primary_key=True),
    Column("nll", Double),  # of a fixed batch of training images, in nats
    Column("gradient_norm", Double),
    Column("gradient_noise", Double),
    Column("penalty_norm", Double),
    Column("saturated", Double),  # share of tanh and sigmoid outputs
    Column("dead", Double),  # share of relu units
    Column("update_ratios", Text, nullable=False),  # JSON: weight -> norm of its update divided by its norm, or null
)

checkpoints = Table(
    "hpsearch_checkpoints",
    metadata,
    Column("study_id", Integer, primary_key=True),
    Column("point", Integer, primary_key=True),
    # The trial that wrote it: the point's current one, or an earlier attempt.
    Column("trial_id", Integer, ForeignKey(trials.c.trial_id, ondelete="CASCADE"), nullable=False, unique=True),
    Column("epoch", Integer, nullable=False),  # the last epoch that it contains
    Column("artifact_id", Text, nullable=False),  # its file in the workers' artifact store
    Column("num_bytes", BigInteger, nullable=False),
    Column("saved_at", DateTime(timezone=True), nullable=False),
    sa.ForeignKeyConstraint(["study_id", "point"], [points.c.study_id, points.c.point], ondelete="CASCADE"),
)

end_states = Table(
    "hpsearch_end_states",
    metadata,
    Column("trial_id", Integer, ForeignKey(trials.c.trial_id, ondelete="CASCADE"), primary_key=True),
    Column("study_id", Integer, ForeignKey(studies.c.study_id, ondelete="CASCADE"), nullable=False),
    Column("epoch", Integer, nullable=False),  # the trial's last one
    Column("artifact_id", Text, nullable=False),  # a checkpoint's file
    Column("num_bytes", BigInteger, nullable=False),
    Column("saved_at", DateTime(timezone=True), nullable=False),
)

# The trial counts until the point's current trial is counted; from then on it is superseded.
continued = Table(
    "hpsearch_continued",
    metadata,
    Column("trial_id", Integer, ForeignKey(trials.c.trial_id, ondelete="CASCADE"), primary_key=True),
    Column("study_id", Integer, ForeignKey(studies.c.study_id, ondelete="CASCADE"), nullable=False),
    Column("point", Integer, nullable=False),
    Column("continued_at", DateTime(timezone=True), nullable=False),
    sa.Index("ix_hpsearch_continued_point", "study_id", "point"),
)

correctness = Table(
    "hpsearch_correctness",
    metadata,
    Column("trial_id", Integer, ForeignKey(trials.c.trial_id, ondelete="CASCADE"), primary_key=True),
    Column("num_images", Integer, nullable=False),  # of the validation set
    Column("bits", sa.LargeBinary, nullable=False),  # numpy.packbits: one bit per image, 1 if correct
)

example_losses = Table(
    "hpsearch_example_losses",
    metadata,
    Column("trial_id", Integer, ForeignKey(trials.c.trial_id, ondelete="CASCADE"), primary_key=True),
    Column("num_examples", Integer, nullable=False),  # at most 10,000 of the validation set
    Column("losses", sa.LargeBinary, nullable=False),  # float32, little-endian: their mean is the loss
)

rounds = Table(
    "hpsearch_rounds",
    metadata,
    Column("study_id", Integer, ForeignKey(studies.c.study_id, ondelete="CASCADE"), primary_key=True),
    Column("round", Integer, primary_key=True),  # 0, 1, 2 ...; exactly one process inserts each
    Column("num_points", Integer, nullable=False),  # number of points that it added; 0: this row ended the search
    Column("state", Text, nullable=False),  # JSON: the state from which the next round continues
    Column("reason", Text, nullable=False),  # for people: why these points, or why no more
    Column("opened_at", DateTime(timezone=True), nullable=False),
)

vault = Table(
    "hpsearch_vault",
    metadata,
    Column("opening_id", BigInteger, sa.Identity(), primary_key=True),
    Column("study_id", Integer, ForeignKey(studies.c.study_id, ondelete="SET NULL")),  # NULL: the study was deleted
    Column("study_name", Text, nullable=False),
    Column("opening", Integer, nullable=False),  # 1: the one that counts; later ones need a reason
    Column("reason", Text),
    Column("opened_at", DateTime(timezone=True), nullable=False),
    Column("opened_by", Text, nullable=False),  # user@host
    Column("code_commit", Text),  # commit of the checkout that hpsearch ran from; NULL if none
    Column("versions", Text, nullable=False),  # JSON: hpsearch, python, torch ...
    Column("definition_sha256", Text, nullable=False),
    Column("test_checksums", Text, nullable=False),  # JSON: file -> SHA-256 of the unpacked content
    Column("chosen", Text, nullable=False),  # JSON: which point, from which study and trial, with which parameters
    Column("parameters_sha256", Text, nullable=False),  # of the evaluated safetensors file
    Column("num_images", Integer, nullable=False),
    Column("num_errors", Integer, nullable=False),
    sa.UniqueConstraint("study_id", "opening", name="uq_hpsearch_vault_opening"),
    sa.CheckConstraint("opening = 1 OR reason IS NOT NULL", name="ck_hpsearch_vault_reason"),
)

vault_intents = Table(
    "hpsearch_vault_intents",
    metadata,
    Column("intent_id", Text, primary_key=True),  # drawn by the process; the machine's vault.jsonl has it, too
    # Id of the row in hpsearch_vault that will hold the result; attempts at the same opening share it. If that row is
    # missing, the opening was begun and no result is on record.
    Column("opening_id", BigInteger, nullable=False),
    Column("study_id", Integer, ForeignKey(studies.c.study_id, ondelete="SET NULL")),  # NULL: the study was deleted
    Column("study_name", Text, nullable=False),
    Column("opening", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),  # 1, 2 ... at this opening: same point, same parameters
    Column("reason", Text),
    Column("declared_at", DateTime(timezone=True), nullable=False),
    Column("declared_by", Text, nullable=False),  # user@host
    Column("chosen", Text, nullable=False),  # JSON, as in hpsearch_vault
    Column("parameters_sha256", Text, nullable=False),
    sa.UniqueConstraint("study_id", "opening", "attempt", name="uq_hpsearch_vault_intents_attempt"),
    sa.CheckConstraint("opening = 1 OR reason IS NOT NULL", name="ck_hpsearch_vault_intents_reason"),
)
