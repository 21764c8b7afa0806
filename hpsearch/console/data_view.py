"""What `data describe` prints: lines and a table of classes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from hpsearch.checks.description import MOST_INPUTS, ClassCount, DataDescription
from hpsearch.console.contact_sheet import text_sheet
from hpsearch.console.screen import data_console, text_of
from hpsearch.data.example_shape import is_image
from hpsearch.data.splits import SelectionData
from hpsearch.wording import counted, megabytes, percent, value_label

MOST_CLASSES: Final = 20  # in the table; the others are counted
_LABEL_WIDTH = 14


def print_description(description: DataDescription, data: SelectionData) -> None:
    """Print the description, and some of the training examples."""
    console = data_console()
    for line in description_lines(description):
        console.print(text_of(line), soft_wrap=True)
    console.print()
    if is_image(data.example_shape):
        for line in text_sheet(data, console.width):
            console.print(text_of(line), soft_wrap=True)
    else:
        for line in _row_lines(description):
            console.print(text_of(line), soft_wrap=True)


def description_lines(description: DataDescription) -> list[str]:
    """The description without examples."""
    d = description
    outputs = f"{d.num_outputs} outputs" if d.classes else "1 output"
    lines = [
        _line("data set", d.name),
        _line("examples", f"{d.examples_text} of {d.input_type}, {value_label(d.lowest)} to {value_label(d.highest)}"),
        _line("would train", f"{d.task}: {d.num_inputs:,} inputs, {outputs}"),
        _line("parts", f"{d.num_train:,} training, {d.num_validation:,} validation, test {d.test_text}"),
        _line("memory", f"{megabytes(d.train_bytes)} training, {megabytes(d.validation_bytes)} validation per device"),
    ]
    if d.target:
        mean, deviation = (value_label(d.target[key], 6) for key in ("mean", "deviation"))
        lines.append(_line("target", f"mean {mean}, standard deviation {deviation}; trained on standardised values"))
    for interval in d.intervals:
        measured = (
            f"{percent(interval.error, 2)}, measured as {percent(interval.low, 2)} to {percent(interval.high, 2)}"
        )
        over = "" if interval.num_groups is None else f" over {counted(interval.num_groups, 'group')}"
        lines.append(_line("validation", f"{interval.what}: {measured} (95 % interval{over})"))
    if d.filled:
        lines.append(_line("missing values", f"filled, with an indicator: {', '.join(d.filled)}"))
    lines += [_line("left out", f"{name}: {reason}") for name, reason in d.left_out.items()]
    return lines + list(_class_lines(d))


def _class_lines(d: DataDescription) -> Iterator[str]:
    if not d.classes:
        return
    most, least = max(d.classes, key=_in_training), min(d.classes, key=_in_training)
    balance = f"most: {most.name} ({percent(most.train / d.num_train, 1)}), least: {least.name} "
    yield _line("classes", f"{len(d.classes)}; {balance}({percent(least.train / d.num_train, 1)} of training)")
    width = max(len("class"), *(len(entry.name) for entry in d.classes[:MOST_CLASSES]))
    yield f"  {'class':<{width}}  {'training':>10}  {'validation':>10}"
    for entry in d.classes[:MOST_CLASSES]:
        yield f"  {entry.name:<{width}}  {entry.train:>10,}  {entry.validation:>10,}"
    if len(d.classes) > MOST_CLASSES:
        yield f"  and {len(d.classes) - MOST_CLASSES:,} more classes (--json lists all)"


def _row_lines(d: DataDescription) -> Iterator[str]:
    """The first rows, as networks get them."""
    more = f", {MOST_INPUTS} of {d.num_inputs:,} inputs" if d.num_inputs > MOST_INPUTS else ""
    yield f"first training rows, as networks get them{more}:"
    for row in d.first_rows:
        yield "  " + "  ".join(f"{value:>9.4g}" for value in row)


def _in_training(entry: ClassCount) -> int:
    return entry.train


def _line(label: str, text: str) -> str:
    return f"{label:<{_LABEL_WIDTH}}  {text}"
