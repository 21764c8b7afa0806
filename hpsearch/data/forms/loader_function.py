"""A loader of one's own: "package.module:function", called once for each part.

`function("train")` and `function("validation")` return (x, y) arrays (`arrays`); for the validation part it may return
None, which sets aside rows of the training part. `function("test")` is called by the vault alone. The function runs in
each worker's process, as the factory of a network does.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, final

from hpsearch.data.array_split import ArraySplit, checksums_of, own_test_part, selection_of
from hpsearch.data.arrays import Examples, examples_of
from hpsearch.data.forms.form import DataForm, DataRequest, OpeningPermit
from hpsearch.data.splits import SOURCE_PREFIX, SPLIT, SelectionData, Split
from hpsearch.errors import DataError, InputError
from hpsearch.foreign_code import failure, foreign_code, import_function
from hpsearch.study.settings import is_custom_family

_KEY = "data.dataset"


@final
@dataclass(frozen=True, slots=True)
class LoaderFunction(DataForm):
    """A user's function(part), which returns the arrays of "train", "validation" or "test".

    Its source file is part of the data's identity: an edited loader could return another test part.
    """

    path_description = 'a loader of your own, "package.module:function"'
    keys = frozenset({"validation", "split_seed", "task"})

    path: str

    @classmethod
    def called(cls, dataset: str) -> Self | None:
        return cls(dataset) if is_custom_family(dataset) else None

    def load_selection(self, request: DataRequest) -> SelectionData:
        function, source = import_function(_KEY, self.path), self._source_checksum()
        settings = request.settings
        train, given = self._required(function, "train"), self._called(function, "validation")
        drawn = ArraySplit.draw(train, given, settings, has_test=True, source=self.path)
        return selection_of(
            drawn.parts(),
            drawn.record(settings, form="loader function", has_test=True),
            settings,
            name=self.path,
            source=self.path,
            checksums={
                **source,
                **checksums_of(train, "train"),
                **({SPLIT: drawn.rows.sha256} if given is None else checksums_of(given, "validation")),
            },
        )

    def read_test_part(self, permit: OpeningPermit, request: DataRequest) -> tuple[Split, dict[str, str]]:
        function, source = import_function(_KEY, self.path), self._source_checksum()
        record = request.stored or self.load_selection(request).record
        part = self._called(function, "test")
        if part is None:
            raise DataError(
                f'{self.path} returned None for "test": there is no test part',
                hint='return the (x, y) of test examples for "test"',
            )
        return own_test_part(part, record, self.path), {**source, **checksums_of(part, "test")}

    def _source_checksum(self) -> dict[str, str]:
        """SHA-256 of the file with the function, by its name; empty for a module without a file."""
        module = sys.modules[self.path.partition(":")[0]]
        file = getattr(module, "__file__", None)
        if file is None:
            return {}
        path = Path(file)
        return {f"{SOURCE_PREFIX}{path.name}": hashlib.sha256(path.read_bytes()).hexdigest()}

    def _required(self, function: Callable[..., Any], part: str) -> Examples:
        examples = self._called(function, part)
        if examples is None:
            raise self._refusal(part, "returned None")
        return examples

    def _called(self, function: Callable[..., Any], part: str) -> Examples | None:
        """The checked arrays of a part; None if the function returned None.

        Raises:
            InputError: the call failed, or did not return two arrays.
            DataError: as `examples_of`.
        """
        try:
            with foreign_code(self.path):
                returned = function(part)
        except Exception as error:
            raise failure(_KEY, self.path, f'{self.path.partition(":")[2]}("{part}") failed', error) from error
        if returned is None:
            return None
        if not isinstance(returned, tuple | list) or len(returned) != 2:
            raise self._refusal(part, f"returned {type(returned).__name__}")
        x, y = returned
        return examples_of(x, y, self.path, part)

    def _refusal(self, part: str, what: str) -> InputError:
        return InputError(
            f'{_KEY} {self.path}: for "{part}" the function {what}, expected a pair of arrays (x, y)',
            hint='def function(part): return x, y  # of "train", "validation" (or None) and "test"',
        )
