"""What is written of a trial that ends. Its lane is gone by then, so all of it is taken from the lane at once."""

from __future__ import annotations

from dataclasses import replace

from hpsearch.store.claims.ledger import Outcome, Result
from hpsearch.store.rows.correct_images import Correctness
from hpsearch.store.studies import StoredStudy
from hpsearch.training.lanes.cohort import Cohort
from hpsearch.worker.epoch_writer import BestParameters, Ending
from hpsearch.worker.lane import Lane


def ending_of(lane: Lane, result: Result, study: StoredStudy, cohort: Cohort, best_value: float | None) -> Ending:
    """A trial's end, with its best parameters if they may be kept.

    Args:
        cohort: in which the trial still has its lane.
        best_value: of the study's COMPLETE trials, as far as is known; what is worse is not kept.
    """
    if result.outcome is not Outcome.COMPLETE:
        return Ending(number=lane.claim.number, result=result)
    trial_id, definition = lane.claim.trial_id, study.definition
    result = replace(result, correct=Correctness.of(cohort.best_correct(trial_id)))
    is_worse = best_value is not None and result.value is not None and result.value > best_value
    if is_worse and not definition.keeps_all_parameters:
        return Ending(number=lane.claim.number, result=result)
    metadata = {
        "study": study.name,
        "definition_sha256": definition.sha256,
        "value_sha256": definition.value_sha256,  # stays when the study is widened
        "trial": str(lane.claim.number),
        "settings": lane.settings.model_dump_json(),
        "validation_zero_one": repr(result.value),
    }
    best = BestParameters(
        arrays=cohort.best_parameters(trial_id), metadata=metadata, is_always_kept=definition.keeps_all_parameters
    )
    return Ending(number=lane.claim.number, result=result, best=best)
