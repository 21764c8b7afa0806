"""docs/observability.md says which metrics, labels and fields there are; the code has the same ones."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from hpsearch.worker.health.life_sign import LifeSign
from hpsearch.worker.health.metrics import WorkerMetrics

DOCUMENT = (Path(__file__).parents[2] / "docs" / "observability.md").read_text(encoding="utf-8")
METRICS = WorkerMetrics(study="s", worker="w", life_sign=LifeSign())


def full_name(name: str, kind: str) -> str:
    return f"{name}_total" if kind == "counter" else name


def test_the_table_of_metrics_is_the_one_of_the_code() -> None:
    rows = []
    for metric in METRICS.registry.collect():
        if metric.name.startswith("hpsearch_"):
            labels = sorted({label for sample in metric.samples for label in sample.labels} - {"le"})
            name = full_name(metric.name, metric.type)
            rows.append(f"| `{name}` | {metric.type} | {', '.join(labels)} | {metric.documentation} |")
    documented = [line for line in DOCUMENT.splitlines() if line.startswith("| `hpsearch_")]
    assert [row.replace("|  |", "| |") for row in rows] == documented


def test_every_metric_that_is_named_exists() -> None:
    families = text_string_to_metric_families(generate_latest(METRICS.registry).decode())
    known = {sample.name for family in families for sample in family.samples}
    table = {full_name(metric.name, metric.type) for metric in METRICS.registry.collect()}
    named = set(re.findall(r"hpsearch_[a-z_]+", DOCUMENT))
    assert named
    assert named - known - table == set()


def test_every_value_of_a_label_is_documented() -> None:
    for metric in METRICS.registry.collect():
        for sample in metric.samples:
            for label in {"state", "outcome", "result", "operation"} & sample.labels.keys():
                assert f"`{sample.labels[label]}`" in DOCUMENT


def test_names_are_as_prometheus_wants_them() -> None:
    for metric in METRICS.registry.collect():
        if metric.type == "histogram":
            assert metric.name.endswith("_seconds")
        assert metric.documentation


@pytest.mark.parametrize("block", re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.S))
def test_examples_are_yaml(block: str) -> None:
    assert isinstance(yaml.safe_load(block), dict)


def test_the_example_of_a_log_line_begins_as_lines_do() -> None:
    (line,) = re.findall(r"^    (\{.*), \.\.\.\}$", DOCUMENT, re.M)
    assert list(json.loads(line + "}")) == ["time", "level", "logger", "message", "study"]
