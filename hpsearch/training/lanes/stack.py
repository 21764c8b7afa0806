"""The tensors of all busy lanes, all [L, ...]: parameters, best parameters, reference, optimizer state and rates.

Lanes of one kind lie side by side, so that an operation which only some of them need works on a slice. An optimizer's
state has rows for the lanes that use this optimizer, and no others.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from hpsearch.study.settings import TrainingSettings, TrialSettings
from hpsearch.training.correct_images import gained_and_lost
from hpsearch.training.losses import LanePenalties
from hpsearch.training.networks.network import Network
from hpsearch.training.networks.padding import PADDED_FAMILIES, fit, padding_bias
from hpsearch.training.optimizers import Rates
from hpsearch.training.tensors import Tensors, runs

# The numbers that are sent to the device for each lane at the start of an epoch.
NUMBERS = ("learning_rate", "momentum", "beta_1", "beta_2", "epsilon", "lambda_1", "lambda_2")
# First part of a tensor's name in a checkpoint -> field of `TrialTensors`.
_PARTS = {"parameters": "parameters", "optimizer": "optimizer_state", "best": "best_parameters", "correct": "records"}


# Trials may be trained in blocks of minibatches (`dense_step`) up to this relative decay per step, 2 * learning_rate *
# lambda_2: the powers of the shrinking factor then stay close enough to 1 to lose no precision.
LARGEST_BLOCK_DECAY = 0.02


@dataclass(frozen=True, order=True, slots=True)
class LaneKind:
    """What decides which operations train a lane. The order is that of the lanes in a stack.

    Args:
        is_linear: each step is a linear function of the weights, so that the lane may be trained in blocks of
            minibatches (`dense_step`).
    """

    optimizer: str = "sgd"
    is_linear: bool = False
    activation: str = "tanh"

    @classmethod
    def of(cls, settings: TrialSettings) -> LaneKind:
        training = settings.training
        # The initial rate decides: no schedule raises it.
        decay = 2.0 * training.learning_rate * training.lambda_2
        is_linear = training.optimizer == "sgd" and training.lambda_1 == 0.0 and decay <= LARGEST_BLOCK_DECAY
        return cls(optimizer=training.optimizer, is_linear=is_linear, activation=settings.model.activation)


@dataclass(frozen=True, kw_only=True)
class TrialTensors:
    """All tensors from which one trial's training continues."""

    parameters: Tensors
    optimizer_state: Tensors
    best_parameters: Tensors
    records: Tensors  # what the judge keeps of the examples at the best validation and at the reference: [N]

    @classmethod
    def fresh(cls, parameters: Tensors, optimizer_state: Tensors, records: Tensors | None = None) -> TrialTensors:
        """The tensors of a trial before its first minibatch."""
        return cls(
            parameters=parameters,
            optimizer_state=optimizer_state,
            best_parameters=parameters,
            records={} if records is None else records,
        )

    def map(self, change: Callable[[Tensor], Tensor]) -> TrialTensors:
        """Apply a function to every tensor."""
        return self.replaced({name: change(tensor) for name, tensor in self.named().items()})

    def fit(self, network: Network) -> TrialTensors:
        """Resize all tensors to the widths of another network (`padding.fit`)."""
        if network.model.family not in PADDED_FAMILIES:
            return self  # networks of these families are never padded
        return replace(
            self,
            parameters=fit(self.parameters, network),
            optimizer_state=fit(self.optimizer_state, network),
            best_parameters=fit(self.best_parameters, network),
        )

    def named(self) -> dict[str, Tensor]:
        """All tensors by unique names: parameters/..., optimizer/..., best/..., correct/..."""
        return {f"{part}/{name}": tensor for part, key in _PARTS.items() for name, tensor in getattr(self, key).items()}

    def replaced(self, named: Tensors) -> TrialTensors:
        """A copy with other tensors, under the names that `named` gives."""
        parts = _PARTS.items()
        return TrialTensors(
            **{key: {name: named[f"{part}/{name}"] for name in getattr(self, key)} for part, key in parts}
        )


@dataclass(kw_only=True)
class LaneStack:
    """The stacked tensors of the lanes, without gaps: an unused lane takes no memory and no time.

    Lane l of every tensor belongs to the same trial. `rates` and `penalties` are valid for one epoch (`set_rates`).

    Args:
        num_recorded: number of validation examples of which a record is kept (`Judge.num_recorded`).
        record_type: of these records.
        critical_gains: the table of a `ReferenceTest`, on the device; None: no reference is kept.
        kinds: of each lane, in order.
        version: incremented whenever tensors move to other memory or a step's operations change. Graphs captured
            under an earlier version must not be replayed.
    """

    device: torch.device
    num_recorded: int = 0
    record_type: torch.dtype = torch.bool
    critical_gains: Tensor | None = None
    kinds: list[LaneKind] = field(default_factory=list)
    version: int = 0
    rates: Rates = field(init=False)
    penalties: LanePenalties = field(init=False)
    parameters: dict[str, Tensor] = field(default_factory=dict)
    optimizer_states: dict[str, dict[str, Tensor]] = field(default_factory=dict)  # by optimizer; of its lanes only
    best_parameters: dict[str, Tensor] = field(default_factory=dict)
    best_losses: dict[str, Tensor] = field(default_factory=dict)  # loss, nll: [L] float64
    records: dict[str, Tensor] = field(default_factory=dict)  # best and, if one is kept, reference: [L, N]

    def __post_init__(self) -> None:
        self._numbers = torch.empty(len(NUMBERS), 0, dtype=torch.float64, device=self.device)
        self.set_rates([], [])

    @property
    def num_lanes(self) -> int:
        return len(self.kinds)

    @property
    def optimizer_state(self) -> dict[str, Tensor]:
        """The state of lanes that all have the same optimizer, [L, ...]."""
        (optimizer,) = {kind.optimizer for kind in self.kinds}
        return self.optimizer_states[optimizer]

    @property
    def linear(self) -> slice:
        """The lanes that may be trained in blocks of minibatches."""
        start = next((lane for lane, kind in enumerate(self.kinds) if kind.is_linear), 0)
        return slice(start, start + sum(kind.is_linear for kind in self.kinds))

    def insert(self, trials: Sequence[tuple[LaneKind, TrialTensors]]) -> list[int]:
        """Insert trials that begin, whose tensors are copied, behind the lanes of their kinds. Return their lanes.

        The stack is copied once, however many trials there are, and is unchanged when memory runs out meanwhile.
        """
        if not trials:
            return []
        kinds, sources = list(self.kinds), list(range(self.num_lanes))
        for place, (kind, _) in enumerate(trials):
            lane = bisect_right(kinds, kind)
            kinds.insert(lane, kind)
            sources.insert(lane, self.num_lanes + place)
        self._arrange(kinds, sources, [tensors for _, tensors in trials])
        return [sources.index(len(kinds) - len(trials) + place) for place in range(len(trials))]

    def replace(self, lane: int, parameters: Tensors, optimizer_state: Tensors) -> None:
        """Give a lane to another trial of the same kind; the tensors keep their memory."""
        for stacked, single, row in self._pairs(lane, parameters, optimizer_state):
            for name, value in single.items():
                stacked[name][row].copy_(value)

    def fresh_records(self) -> dict[str, Tensor]:
        """The records of a trial before its first validation: zeros; of zero-one: no example is correct."""
        names = ["best"] if self.critical_gains is None else ["best", "reference"]
        return {name: torch.zeros(self.num_recorded, dtype=self.record_type, device=self.device) for name in names}

    def set_best(self, lane: int, tensors: TrialTensors, *, loss: float, nll: float) -> None:
        """Set a lane's best and reference from earlier epochs. The tensors keep their memory; no host sync."""
        pairs = (self.best_parameters, tensors.best_parameters), (self.records, tensors.records)
        for stacked, single in pairs:
            for name, value in single.items():
                stacked[name][lane].copy_(value)
        self.best_losses["loss"][lane] = loss
        self.best_losses["nll"][lane] = nll

    def copied(self, lanes: Sequence[int]) -> list[TrialTensors]:
        """A copy of each of these lanes' tensors, on the device; no host sync."""
        shared = (self.parameters, self.best_parameters, self.records)
        parameters, best, records = (_copied_rows(stacked, lanes) for stacked in shared)
        states: dict[int, Tensors] = {}
        for optimizer, state in self.optimizer_states.items():
            its = [lane for lane in lanes if self.kinds[lane].optimizer == optimizer]
            first = self._first_lane(optimizer)
            states |= zip(its, _copied_rows(state, [lane - first for lane in its]), strict=True)
        return [
            TrialTensors(parameters=p, optimizer_state=states[lane], best_parameters=b, records=r)
            for lane, p, b, r in zip(lanes, parameters, best, records, strict=True)
        ]

    def remove(self, lanes: Collection[int]) -> None:
        """Remove the lanes of finished trials; the others move up. The stack is copied once."""
        kept = [lane for lane in range(self.num_lanes) if lane not in lanes]
        self._arrange([self.kinds[lane] for lane in kept], kept, [])

    def _arrange(self, kinds: list[LaneKind], sources: Sequence[int], trials: Sequence[TrialTensors]) -> None:
        """Put the stack together from its own lanes and those of trials that begin.

        Args:
            kinds, sources: of each new lane: its kind, and its lane until now or num_lanes + its place in `trials`.
        """
        arranged: Iterable[tuple[dict[str, Tensor], str, Tensor]] = self._arranged(kinds, sources, trials)
        if trials:
            arranged = list(arranged)  # all or none; lanes that are removed need no memory for a second stack
        self.version += 1
        for stacked, name, value in arranged:
            stacked[name] = value
        self.kinds = kinds

    def _arranged(
        self, kinds: list[LaneKind], sources: Sequence[int], trials: Sequence[TrialTensors]
    ) -> Iterator[tuple[dict[str, Tensor], str, Tensor]]:
        """Each stacked tensor put together anew, with its place: the group that it is in, and its name there."""
        fresh = [self._fresh(trial.parameters) for trial in trials]
        for index, stacked in enumerate(self._shared):
            yield from _arranged_rows(stacked, sources, self.num_lanes, [its[index] for its in fresh])
        states = [trial.optimizer_state for trial in trials]
        for optimizer in {kind.optimizer for kind in (*self.kinds, *kinds)}:
            state, first = self.optimizer_states.setdefault(optimizer, {}), self._first_lane(optimizer)
            its = [source for source, kind in zip(sources, kinds, strict=True) if kind.optimizer == optimizer]
            yield from _arranged_rows(state, its, self.num_lanes, states, first=first)

    def resize(self, network: Network, *, grows: bool = False) -> None:
        """Resize all lanes' parameters and optimizer state to the widths of another network.

        Args:
            grows: to larger widths. The stack is then unchanged when memory runs out meanwhile.
        """
        bias = padding_bias([kind.activation for kind in self.kinds], self.device)
        groups = (self.parameters, self.best_parameters, *self.optimizer_states.values())
        resized: Iterable[tuple[dict[str, Tensor], Tensors]] = ((each, fit(each, network, bias)) for each in groups)
        if grows:
            resized = list(resized)
        self.version += 1
        for stacked, fitted in resized:
            stacked.update(fitted)

    def part(self, lanes: slice) -> LaneStack:
        """A view of consecutive lanes that shares their memory: training it trains these lanes."""
        part = LaneStack(
            device=self.device,
            num_recorded=self.num_recorded,
            record_type=self.record_type,
            critical_gains=self.critical_gains,
            kinds=self.kinds[lanes],
        )
        part.rates, part.penalties = self.rates.part(lanes), self.penalties.part(lanes)
        if all(kind.is_linear for kind in part.kinds):
            part.penalties = replace(part.penalties, has_l1=False)
        shared = ("parameters", "best_parameters", "best_losses", "records")
        for its, mine in ((getattr(part, name), getattr(self, name)) for name in shared):
            its.update({name: value[lanes] for name, value in mine.items()})
        for optimizer in dict.fromkeys(kind.optimizer for kind in part.kinds):
            first = self._first_lane(optimizer)
            rows = slice(max(lanes.start - first, 0), lanes.stop - first)
            state = self.optimizer_states[optimizer]
            part.optimizer_states[optimizer] = {name: value[rows] for name, value in state.items()}
        return part

    def by_optimizer(self) -> list[tuple[slice, str, LaneStack]]:
        """The lanes of each optimizer: where they are, the optimizer's name, and a view of them."""
        groups = list(runs(kind.optimizer for kind in self.kinds))
        return [(lanes, name, self if len(groups) == 1 else self.part(lanes)) for lanes, name in groups]

    def set_rates(self, trainings: Sequence[TrainingSettings], learning_rates: Sequence[float]) -> None:
        """Set the rates and penalties of an epoch with one transfer to the device.

        The tensors keep their memory while the number of lanes is the same. `version` grows when the number of lanes
        changes, or when L1 or L2 begins or stops to be used by any lane.
        """
        rows = [
            [rate, *(getattr(training, name) for name in NUMBERS[1:])]
            for training, rate in zip(trainings, learning_rates, strict=True)
        ]
        values = torch.tensor(rows, dtype=torch.float64).reshape(-1, len(NUMBERS)).t()
        if values.shape != self._numbers.shape:
            self._numbers = torch.empty(values.shape, dtype=torch.float64, device=self.device)
            self.version += 1
        self._numbers.copy_(values)
        by_name = dict(zip(NUMBERS, self._numbers, strict=True))
        before = self.penalties if hasattr(self, "penalties") else None
        self.penalties = LanePenalties(
            lambda_1=by_name.pop("lambda_1"),
            lambda_2=by_name.pop("lambda_2"),
            has_l1=any(training.lambda_1 > 0 for training in trainings),
            has_l2=any(training.lambda_2 > 0 for training in trainings),
        )
        self.rates = Rates(**by_name)
        if before is not None and (before.has_l1, before.has_l2) != (self.penalties.has_l1, self.penalties.has_l2):
            self.version += 1

    @torch.no_grad()
    def keep_best(self, loss: Tensor, nll: Tensor, record: Tensor) -> tuple[Tensor, ...]:
        """Keep the parameters of those lanes whose validation is their best so far; no host sync.

        The rule is `Validation.is_better_than`: lower loss, then lower NLL. A validation whose NLL is not
        finite is never the best: a diverged network still has a zero-one loss, which can be low by chance.

        Args:
            loss, nll: [L] float64.
            record: of the judge, [L, N].
        Returns:
            If a reference is kept: images gained and lost against the previous reference, [L] float64 each;
            otherwise empty.
        """
        best_loss, best_nll = self.best_losses["loss"], self.best_losses["nll"]
        is_finite = nll.isfinite() & loss.isfinite()
        is_lower = (loss < best_loss) & is_finite
        is_best = is_lower | ((loss == best_loss) & (nll < best_nll) & is_finite)
        compared = self._compare(is_lower, record)
        best_loss.copy_(torch.where(is_best, loss, best_loss))
        best_nll.copy_(torch.where(is_best, nll, best_nll))
        for name, best in self.best_parameters.items():
            parameter = self.parameters[name]
            mask = is_best.reshape(-1, *[1] * (parameter.dim() - 1))
            # torch.where instead of arithmetic with a 0/1 mask: 0 * NaN would overwrite a diverged lane's best.
            torch.where(mask, parameter, best, out=best)
        best_record = self.records["best"]
        torch.where(is_best.unsqueeze(-1), record, best_record, out=best_record)
        return compared

    def _compare(self, is_new_best: Tensor, correct: Tensor) -> tuple[Tensor, ...]:
        """Images gained and lost. A new best that is significantly better than the reference replaces it.

        `search.stopping.SignificancePatience` makes the same decision from the same numbers and table. A tie in
        the loss is not a new best there, whatever the NLL.
        """
        if self.critical_gains is None:
            return ()
        reference = self.records["reference"]
        gained, lost = gained_and_lost(correct, reference)
        is_first = self.best_losses["loss"].isinf()
        is_significant = is_first | (gained >= self.critical_gains[gained + lost])
        moves = (is_new_best & is_significant).unsqueeze(-1)
        torch.where(moves, correct, reference, out=reference)
        return gained.double(), lost.double()

    def _pairs(
        self, lane: int, parameters: Tensors, optimizer_state: Tensors
    ) -> list[tuple[dict[str, Tensor], Tensors, int]]:
        """Each group of stacked tensors, with a fresh trial's tensors for it and the row of the lane."""
        fresh = [*self._fresh(parameters), optimizer_state]
        return [(stacked, its, row) for (stacked, row), its in zip(self._stacked(lane), fresh, strict=True)]

    def _fresh(self, parameters: Tensors) -> list[Tensors]:
        """The tensors of a trial before its first minibatch, in the order of `_shared`."""
        worst = torch.tensor(math.inf, dtype=torch.float64, device=self.device)
        return [parameters, parameters, {"loss": worst, "nll": worst}, self.fresh_records()]

    @property
    def _shared(self) -> tuple[dict[str, Tensor], ...]:
        """Each group of stacked tensors that has a row for each lane."""
        return self.parameters, self.best_parameters, self.best_losses, self.records

    def _stacked(self, lane: int) -> list[tuple[dict[str, Tensor], int]]:
        """Each group of stacked tensors that a lane has a row in, with that row."""
        optimizer = self.kinds[lane].optimizer
        state = self.optimizer_states.setdefault(optimizer, {})
        return [*((stacked, lane) for stacked in self._shared), (state, lane - self._first_lane(optimizer))]

    def _first_lane(self, optimizer: str) -> int:
        return bisect_left(self.kinds, optimizer, key=lambda kind: kind.optimizer)


def _arranged_rows(
    stacked: dict[str, Tensor], sources: Sequence[int], num_lanes: int, fresh: Sequence[Tensors], *, first: int = 0
) -> Iterator[tuple[dict[str, Tensor], str, Tensor]]:
    """Each stacked tensor put together from its own rows and fresh ones, after `stacked` and its name.

    Args:
        sources: of each row: a lane, of which `first` has row 0, or num_lanes + a place in `fresh`.
    """
    joining = [source for source in sources if source >= num_lanes]
    for name in list(fresh[joining[0] - num_lanes] if joining else stacked):
        pieces = []
        for rows, offset in runs(source - row if source < num_lanes else None for row, source in enumerate(sources)):
            if offset is None:
                pieces += [fresh[source - num_lanes][name].unsqueeze(0) for source in sources[rows]]
            else:
                pieces.append(stacked[name][rows.start + offset - first : rows.stop + offset - first])
        yield stacked, name, torch.cat(pieces) if pieces else stacked[name].new_empty(0, *stacked[name].shape[1:])


def _copied_rows(stacked: Tensors, rows: Sequence[int]) -> list[Tensors]:
    """A copy of some rows of stacked tensors, as the named tensors of each row."""
    # Not index_select, which would transfer an index to the device.
    copies = {name: torch.stack([value[row] for row in rows]) for name, value in stacked.items() if rows}
    return [{name: value[index] for name, value in copies.items()} for index in range(len(rows))]
