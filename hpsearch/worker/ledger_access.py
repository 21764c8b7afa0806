"""How a worker asks the ledger: one that has trials in work does not wait for a database that is away."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeVar, final

from hpsearch.store.claims.ledger import Ledger
from hpsearch.store.connection.database import DatabaseAwayError

T = TypeVar("T")
D = TypeVar("D")

ASK_AGAIN_SECONDS = 2.0  # between two questions to a database that is away, while there are trials in work


@final
@dataclass(kw_only=True)
class LedgerAccess:
    """A worker's way to its ledger, for one thread.

    Args:
        ledger: in the worker's name; it waits for the database.
        is_busy: whether the worker has trials in work, so that it must not wait.
        is_behind: whether the worker's writes wait for the database.
    """

    ledger: Ledger
    is_busy: Callable[[], bool]
    is_behind: Callable[[], bool] = lambda: False
    brief: Ledger = field(init=False)  # the same, which does not wait
    _ask_again_at: float = 0.0  # the database did not answer: not before this time.monotonic()

    def __post_init__(self) -> None:
        self.brief = replace(self.ledger, database=self.ledger.database.brief())

    def ask(self, question: Callable[[Ledger], T], default: D) -> T | D:
        """Ask the ledger. With trials in work, do not wait: return the default if the database is away."""
        if not self.is_busy():
            return question(self.ledger)
        if self.is_away:
            return default
        try:
            return question(self.brief)
        except DatabaseAwayError:
            self.note_absence()
            return default

    @property
    def is_away(self) -> bool:
        """Whether the database was found to be away or behind a moment ago, so that it should not be asked now."""
        return self.is_behind() or time.monotonic() < self._ask_again_at

    def note_absence(self) -> None:
        """Do not ask the database again for ASK_AGAIN_SECONDS."""
        self._ask_again_at = time.monotonic() + ASK_AGAIN_SECONDS
