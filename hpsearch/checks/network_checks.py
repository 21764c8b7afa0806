"""The checks of networks, as the child process of `isolation` runs them."""

from __future__ import annotations

import logging
import pkgutil
from collections.abc import Iterator, Sequence

from hpsearch.checks.finding import Finding, Verdict, line_for, searched, share_of_time
from hpsearch.checks.models import MODEL_CHECKS, OUT_OF_TIME
from hpsearch.checks.samples import CheckedModel, NoMemoryError, OutOfTimeError
from hpsearch.data.splits import SelectionData
from hpsearch.errors import InputError
from hpsearch.study.definition import StudyDefinition
from hpsearch.study.settings import TrialSettings
from hpsearch.training.device_memory import is_out_of_memory
from hpsearch.wording import first_line

_log = logging.getLogger(__name__)


def check_networks(
    definition: StudyDefinition,
    data: SelectionData,
    models: Sequence[TrialSettings],
    first: int = 0,
    *,
    deadline: float,
) -> Iterator[Finding | tuple[int, str]]:
    """Check the networks from number `first` on.

    Args:
        deadline: on `time.monotonic`; checks that do not end by then are skipped.
    Yields:
        Before each check the number of the network and the check's name, and then its finding.
    """
    for place, settings in enumerate(models[first:], start=first):
        until = share_of_time(deadline, len(models) - place)
        model = CheckedModel(definition=definition, settings=settings, data=data, deadline=until)
        yield place, "network"
        refusal = _refusal(model)
        if refusal is not None:
            yield refusal
            yield from (Finding.skip(name, model.name, "there is no network") for name in MODEL_CHECKS)
            continue
        for name in MODEL_CHECKS:
            yield place, name
            yield _run(name, model)


def _refusal(model: CheckedModel) -> Finding | None:
    """The finding about a network that cannot be built; None if it can."""
    try:
        _ = model.network
    except InputError as error:
        # The only built-in network that an image can be too small for is LeNet.
        cause = "the network's code" if model.is_custom else "the size of the images"
        can_change = not model.is_custom and searched(model.definition, "kernels") is None
        return Finding(
            check="network",
            subject=model.name,
            verdict=Verdict.FAILED,
            found=str(error),
            expected="a network that lanes can train",
            look_at=(f"{cause}: {error.hint or 'mend what the message names'}",),
            fix=line_for(model.definition, "model", "family", "mlp") if can_change else "",
        )
    return None


def _run(name: str, model: CheckedModel) -> Finding:
    try:
        model.check_time()
        finding: Finding = pkgutil.resolve_name(MODEL_CHECKS[name])(model)
        return finding
    except OutOfTimeError:
        return Finding.skip(name, model.name, OUT_OF_TIME)
    except NoMemoryError:
        return Finding.skip(name, model.name, "there is not enough memory for one lane")
    except InputError as error:  # such as a batch size that the data does not fill
        return Finding.skip(name, model.name, str(error))
    except Exception as error:
        if is_out_of_memory(error):
            return Finding.skip(name, model.name, "there is not enough memory")
        if not model.is_custom:
            raise
        _log.debug("check %s of %s", name, model.name, exc_info=error)
        return Finding(
            check=name,
            subject=model.name,
            verdict=Verdict.FAILED,
            found=f"{type(error).__name__}: {first_line(error)}",
            expected="a network that can be trained",
            look_at=("the network's code: hpsearch --verbose check shows where it fails",),
        )
