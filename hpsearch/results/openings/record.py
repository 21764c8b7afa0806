"""An opening of a test set: the attempt, what was found, and the record that `stored_openings` reads and writes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, ClassVar

from hpsearch.errors import InputError
from hpsearch.metric import METRICS, ZERO_ONE, Metric, Task
from hpsearch.search.proportions import wilson_interval
from hpsearch.wording import counted, format_time

MAX_REASON_CHARACTERS = 500


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One committed attempt at an opening.

    Args:
        opening_id: id that the row with the number will have.
    """

    intent_id: str
    opening_id: int
    opening: int
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class Copies:
    """Test images that are copies of training or validation images. The network may have seen them before.

    Args:
        exact: number of test images that equal such an image, bit for bit.
        near: number of test images that nearly equal one, among the `num_looked_at` that were looked at for this.
        num_looked_at: at most checks.duplicates.MOST_NEAR_IMAGES; 0 for rows of a table, which are alike by chance.
    """

    exact: int
    near: int
    num_looked_at: int

    @classmethod
    def from_json(cls, stored: object) -> Copies | None:
        """Copies from a stored `Finding.chosen`; None if they were not looked for (older versions), or are damaged."""
        names = [each.name for each in fields(cls)]
        if not isinstance(stored, Mapping) or not all(type(stored.get(name)) is int for name in names):
            return None
        return cls(**{name: stored[name] for name in names})

    def describe(self, num_images: int) -> str:
        """One line: `3 of 256 test images are also training or validation images, and 2 of 256 nearly`."""
        if not self.num_looked_at:
            return f"{self.exact:,} of {num_images:,} test rows have all features of a training or validation row"
        near = f"{self.near:,} of {self.num_looked_at:,} nearly"
        what = f"{self.exact:,} of {num_images:,} test images are also training or validation images, and {near}"
        return f"{what}: the error on new images may be higher" if self.exact or self.near else what


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of an evaluation on the test images, before it is on record.

    Args:
        test_checksums: file name -> SHA-256 of the unpacked content of the test files.
        chosen: what was evaluated:
            selection           best (of the search) or confirmed (over fresh seeds)
            study, trial, point whose parameters were evaluated
            params              the searched keys with their values
            search_error        validation value of the trial, on which the point was selected
            validation_error    validation value of the evaluated parameters, computed for this opening
            metric, test_value, test_interval   of a study that is not judged by its errors
            num_groups          groups of test rows that are the units of test_interval, which is then also there for a
                                study that is judged by its errors
            examples            what they are called, if they are no images
            macro_f1            on the test examples, in classification; absent in records of older versions
            is_retrained        whether the parameters were trained again for this opening, not stored by the search
            device              that evaluated them
            machine_openings    number of earlier openings of these test files, by other studies, on this machine
            copies              of training and validation images among the test images, as in `Copies`; absent if they
                                were not counted
        parameters_sha256: SHA-256 of the safetensors file that was evaluated (or would contain a retrained network).
        num_images, num_errors: number of test examples, and of misclassified ones (0 in regression).
    """

    test_checksums: Mapping[str, str]
    chosen: Mapping[str, Any]
    parameters_sha256: str
    num_images: int
    num_errors: int


@dataclass(frozen=True, kw_only=True)
class OpeningEntry(ABC):
    """An opening on record, with or without a number.

    Args:
        opening: 1: the one that counts; 2, 3 ...: further openings.
        reason: why the vault was opened again; None for the first opening.
        chosen, parameters_sha256: what was or was to be evaluated, as in `Finding`.
    """

    opening_id: int
    study_name: str
    opening: int
    reason: str | None
    chosen: Mapping[str, Any]
    parameters_sha256: str

    has_number: ClassVar[bool]
    json_keys: ClassVar[tuple[str, ...]]  # of `as_json`, which are attributes

    @property
    def metric(self) -> Metric:
        """By which the study is judged; zero-one if an older version of hpsearch wrote the record."""
        return METRICS.get(str(self.chosen.get("metric")), ZERO_ONE)

    @property
    def examples(self) -> str:
        """What the test examples are called: images, or rows of a table."""
        return str(self.chosen.get("examples", "images"))

    @property
    def model(self) -> str:
        """What was evaluated, as text: `trial 3 of small (best, retrained)`."""
        retrained = ", retrained" if self.chosen["is_retrained"] else ""
        return f"trial {self.chosen['trial']} of {self.chosen['study']} ({self.chosen['selection']}{retrained})"

    def lines(self) -> list[str]:
        """Lines for display: the opening with its number, and its reason."""
        again = [] if self.reason is None else [f"     again: {self.reason}"]
        return [f"  {self.opening}. {self.describe()}", *again]

    def as_json(self) -> dict[str, Any]:
        """The opening in `test --json`, `status --json` and exports. These keys are stable; new keys may be added."""
        values = {name: getattr(self, name) for name in self.json_keys}
        values = {name.removesuffix("_name"): value for name, value in values.items()}
        times = {name: format_time(value) for name, value in values.items() if isinstance(value, datetime)}
        return values | times | {name: dict(value) for name, value in values.items() if isinstance(value, Mapping)}

    @abstractmethod
    def describe(self) -> str:
        """One line: when, by whom, for which point, and the number if there is one."""


@dataclass(frozen=True, kw_only=True)
class VaultRecord(OpeningEntry):
    """One opening with its number, as recorded in the ledger.

    Args:
        opened_at: UTC, by the database's clock.
        opened_by: user@host.
        code_commit: commit of the running hpsearch; None if it is not known.
        versions: of hpsearch and of the programs that its results depend on.
        chosen: as in `Finding`; also intent, the id of the committed attempt that gave the number.
        test_checksums, num_images, num_errors: as in `Finding`.

    The keys of `as_json`:
        opening             1, 2, 3 ...
        reason              null for the first
        opened_at (UTC), opened_by, code_commit (or null), versions, definition_sha256
        test_checksums, parameters_sha256, chosen: as in `Finding`
        num_images, num_errors
        metric              name of the study's metric
        test_value          its value on the test examples; test_value_interval: 95 % interval: [low, high]
        test_error          fraction of misclassified test images, or null in regression
        test_error_interval its 95 % Wilson interval: [low, high], or null: in regression, and with groups if the study
                            is not judged by its errors
        macro_f1            on the test examples; null in regression, and of older versions
    """

    has_number = True
    json_keys = (
        *("opening", "reason", "opened_at", "opened_by", "code_commit", "versions", "definition_sha256"),
        *("test_checksums", "parameters_sha256", "chosen", "num_images", "num_errors"),
        *("metric_name", "test_value", "test_value_interval", "test_error", "test_error_interval", "macro_f1"),
    )
    opened_at: datetime
    opened_by: str
    code_commit: str | None
    versions: Mapping[str, str]
    definition_sha256: str
    test_checksums: Mapping[str, str]
    num_images: int
    num_errors: int

    @property
    def is_regression(self) -> bool:
        return self.metric.task is Task.REGRESSION

    @property
    def metric_name(self) -> str:
        return self.metric.name

    @property
    def test_value(self) -> float | None:
        """The metric's value on the test examples; None if it is not defined there."""
        value: float | None = self.chosen.get("test_value", self.num_errors / self.num_images)
        return value

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the test value: Wilson's of an error, by the normal approximation of other metrics.

        Over other groups of rows, if there are groups. None if it is not known.
        """
        if "test_interval" in self.chosen:
            interval = self.chosen["test_interval"]
            return None if interval is None else (interval[0], interval[1])
        return wilson_interval(self.num_errors, self.num_images)

    @property
    def test_value_interval(self) -> list[float] | None:
        return None if self.interval is None else list(self.interval)

    @property
    def test_error(self) -> float | None:
        """Fraction of misclassified test images; None in regression."""
        return None if self.is_regression else self.num_errors / self.num_images

    @property
    def test_error_interval(self) -> list[float] | None:
        if self.metric is ZERO_ONE:
            return self.test_value_interval
        # Rows of a group are not independent, and the variance of the error over groups is not on record.
        if self.is_regression or self.num_groups is not None:
            return None
        return list(wilson_interval(self.num_errors, self.num_images))

    @property
    def num_groups(self) -> int | None:
        """The number of groups that are the units of the interval; None: the examples are."""
        number = self.chosen.get("num_groups")
        return number if type(number) is int and number > 0 else None

    @property
    def macro_f1(self) -> float | None:
        """Macro-F1 on the test examples; None in regression, or if an older version wrote the record."""
        value: float | None = self.chosen.get("macro_f1")
        return value

    @property
    def macro_f1_text(self) -> str:
        return "-" if self.macro_f1 is None else f"{self.macro_f1:.4f}"

    @property
    def machine_openings(self) -> int:
        """Number of earlier openings of these test files, by other studies, on the machine of this opening."""
        number = self.chosen.get("machine_openings")  # missing in records of older versions
        return number if isinstance(number, int) else 0

    @property
    def copies(self) -> Copies | None:
        """Copies of training and validation images among the test images; None: they were not counted."""
        return Copies.from_json(self.chosen.get("copies"))

    def describe_copies(self) -> str | None:
        """`copies` as one line; None: they were not counted."""
        return None if self.copies is None else self.copies.describe(self.num_images)

    def describe_number(self) -> str:
        """The number as text: `8.20 % (21 of 256 images; 95 % interval 5.43 to 12.21 %)`."""
        groups = "" if self.num_groups is None else f" in {counted(self.num_groups, 'group')}"
        metric, examples = self.metric, f"{self.num_images:,} {self.examples}{groups}"
        if metric is ZERO_ONE:
            examples = f"{self.num_errors:,} of {examples}"
        if self.test_value is None:
            return f"not defined on these {examples}"
        interval = "not known" if self.interval is None else metric.interval_text(self.interval)
        return f"{metric.text(self.test_value)} ({examples}; 95 % interval {interval})"

    def describe(self) -> str:
        opened = f"{self.opened_at:%Y-%m-%d %H:%M:%S} UTC by {self.opened_by}"
        return f"{opened}: {self.metric.test_label} {self.describe_number()} of {self.model}"


Openings = tuple[tuple[VaultRecord, ...], tuple[VaultRecord, ...]]  # of a study, and of deleted studies of its name


def check_reason(reason: str) -> str:
    """Validate the reason for a further opening; returns it without surrounding white space.

    Raises:
        InputError: it is empty, too long, or not a single line of text.
    """
    reason = reason.strip()
    hint = '--again "the reason for opening the test set again"'
    if not reason:
        raise InputError("--again needs a reason, got nothing", hint=hint)
    if len(reason) > MAX_REASON_CHARACTERS:
        raise InputError(f"--again takes {MAX_REASON_CHARACTERS} characters at most, got {len(reason)}", hint=hint)
    if not reason.isprintable():
        raise InputError("--again takes one line of text without control characters", hint=hint)
    return reason
