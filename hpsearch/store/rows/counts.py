"""Numbers of a study: its points by state, its lost points, and its validation images."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import text

from hpsearch.store.connection.database import Database
from hpsearch.study.definition import StudyDefinition

# All trials of a study are evaluated on the same images.
_NUM_IMAGES = text("""
    SELECT max(c.num_images) AS num_images
    FROM (SELECT trial_id, num_images FROM hpsearch_correctness
        UNION ALL SELECT trial_id, num_examples FROM hpsearch_example_losses WHERE num_examples < 10000) c
    JOIN trials t USING (trial_id)
    WHERE t.study_id = :study AND c.num_images > 0
""")


@dataclass(frozen=True, kw_only=True)
class PointCounts:
    """The points of a study by the state of their current trial."""

    waiting: int = 0
    running: int = 0
    complete: int = 0
    pruned: int = 0
    failed: int = 0  # given up (claims/requeue.py)

    @property
    def counted(self) -> int:
        """COMPLETE and PRUNED points."""
        return self.complete + self.pruned

    @property
    def unfinished(self) -> int:
        """Points that wait or run."""
        return self.waiting + self.running

    @property
    def total(self) -> int:
        """All points, including those that were given up."""
        return self.unfinished + self.counted + self.failed


def num_lost_points(definition: StudyDefinition, num_points: int) -> int:
    """Return how many deleted points of a study can be queued again from its definition.

    Another program has deleted their trials. Points of a coarse-to-fine search cannot be restored: only their trials
    had their parameters.

    Args:
        num_points: number of points that the study has.
    """
    if definition.search.strategy == "coarse-to-fine":
        return 0
    return max(0, definition.num_points - num_points)


def read_num_images(database: Database, study_id: int) -> int | None:
    """Return the number of images in the study's validation set, or None if no trial has a record of it."""
    (row,) = database.rows(_NUM_IMAGES, {"study": study_id})
    num_images: int | None = row.num_images
    return num_images
