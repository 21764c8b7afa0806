"""Correctness bits of trials: which validation images a trial's best parameters classify correctly."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, text

from hpsearch.logs import get_logger
from hpsearch.store.connection.database import Database
from hpsearch.store.rows.columns import as_columns, unnest

_log = get_logger("correctness")

_READ = text("""
    SELECT trial_id, num_images, bits FROM hpsearch_correctness WHERE trial_id = ANY(CAST(:trial_ids AS int[]))
""")

_WRITE = text(f"""
    INSERT INTO hpsearch_correctness (trial_id, num_images, bits)
    SELECT * FROM {unnest("r", "trial_id int, num_images int, bits bytea")}
    ON CONFLICT (trial_id) DO NOTHING
""")


@dataclass(frozen=True, kw_only=True)
class Correctness:
    """Which validation images a trial classifies correctly.

    Args:
        bits: `numpy.packbits` of one bit per image, 1 if the prediction is correct; the last byte is padded with zeros.
    """

    num_images: int
    bits: bytes

    @classmethod
    def of(cls, correct: NDArray[np.bool_]) -> Self:
        """Pack one truth value per image, [N]."""
        return cls(num_images=len(correct), bits=np.packbits(correct).tobytes())

    @property
    def is_whole(self) -> bool:
        """Whether there is exactly one bit per image."""
        return self.num_images > 0 and len(self.bits) == -(-self.num_images // 8)

    def unpacked(self) -> NDArray[np.bool_]:
        """Return one truth value per image, [N]."""
        return np.unpackbits(np.frombuffer(self.bits, dtype=np.uint8), count=self.num_images).astype(bool)


def read_correctness(database: Database, trial_ids: Sequence[int]) -> dict[int, Correctness]:
    """Map trial ids to their bits, for those trials that have any. Damaged bits are logged and left out."""
    rows = database.rows(_READ, {"trial_ids": list(trial_ids)})
    found = {row.trial_id: Correctness(num_images=row.num_images, bits=bytes(row.bits)) for row in rows}
    for trial_id, each in found.items():
        if not each.is_whole:
            _log.warning(
                "the record of trial id %d in hpsearch_correctness is damaged: %d bytes for %d images",
                *(trial_id, len(each.bits), each.num_images),
            )
    return {trial_id: each for trial_id, each in found.items() if each.is_whole}


def write_correctness(connection: Connection, items: Iterable[tuple[int, Correctness | None]]) -> None:
    """Write the bits of the trials that have any, in one statement; no statement if no trial has bits.

    Runs in the caller's transaction. The caller must have checked that it may write these trials.

    Args:
        items: (trial id, bits) pairs.
    """
    rows = [(trial_id, each.num_images, each.bits) for trial_id, each in items if each is not None]
    if rows:
        connection.execute(_WRITE, as_columns("trial_id num_images bits", rows))
