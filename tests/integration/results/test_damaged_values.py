"""What somebody has changed in the database ends every view in one line and exit code 3, or changes nothing there."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from hpsearch.console.tables import print_confirmation, print_json, print_opening, print_status
from hpsearch.data.forms.idx_files import IdxFolder
from hpsearch.errors import HpsearchError
from hpsearch.results.confirmation.plan import plan_confirmation
from hpsearch.results.data_frame import curves_frame, trials_frame
from hpsearch.results.export import ExportFormat, export_model, export_point, render_export
from hpsearch.results.report.page import render_report
from hpsearch.results.selection import Selection
from hpsearch.results.status import read_status
from hpsearch.store.rows.curves import CurveReader
from tests.integration.results.vault_studies import Search, Searched, confirm

DEEP = "[" * 5000 + "]" * 5000
TEXTS = ["", "null", "[]", "{}", '"x"', "-1", "1e999", "9" * 4000, DEEP, '["a", {"b": null}]']
NUMBERS = ["NaN", "Infinity", "-1", "2", "1e308"]
ATTRIBUTES = (
    "best_validation_nll",
    "best_epoch",
    "stop_reason",
    "worker",
    "seconds",
    "resumed_at_epoch",
    "point",
    "lanes",
    "verdict",
    "verdict_detail",
    "update_ratio",
)
# Table, column, which rows, and what they become.
CELLS = [
    *(
        ("study_user_attributes", "value_json", f"key = 'hpsearch:{key}'", TEXTS)
        for key in ("definition", "dataset_checksums", "versions", "confirms")
    ),
    *(("trial_user_attributes", "value_json", f"key = '{key}'", TEXTS) for key in ATTRIBUTES),
    ("trial_system_attributes", "value_json", "key LIKE 'artifacts:%'", TEXTS),
    ("trial_params", "distribution_json", "TRUE", TEXTS),
    ("trial_params", "param_value", "TRUE", NUMBERS),
    ("trial_values", "value", "TRUE", NUMBERS),
    ("trial_intermediate_values", "intermediate_value", "TRUE", [*NUMBERS, None]),
    *(
        ("hpsearch_epochs", column, "TRUE", NUMBERS)
        for column in ("train_nll", "validation_nll", "learning_rate", "seconds")
    ),
    ("hpsearch_diagnoses", "update_ratios", "TRUE", TEXTS),
    *(("hpsearch_diagnoses", column, "TRUE", NUMBERS) for column in ("nll", "gradient_norm", "dead")),
    ("hpsearch_correctness", "num_images", "TRUE", ["0", "-1", "7", "2147483647"]),
    ("hpsearch_correctness", "num_images", "trial_id = (SELECT max(trial_id) FROM hpsearch_correctness)", ["19"]),
    ("hpsearch_correctness", "bits", "TRUE", ["", "x"]),
    ("hpsearch_rounds", "num_points", "TRUE", ["-1", "0"]),
    *(("hpsearch_vault", column, "TRUE", TEXTS) for column in ("versions", "test_checksums", "chosen")),
    ("hpsearch_vault", "num_images", "TRUE", ["0", "-1"]),
    ("hpsearch_vault", "num_errors", "TRUE", ["-1", "2147483647"]),
    ("hpsearch_vault_intents", "chosen", "TRUE", TEXTS),
]
ESCAPING = ["../../x", "/etc/passwd", "", ".", "a/../b", "nul\0", "\ud800"]


def views(searched: Searched) -> Iterator[Callable[[], object]]:
    """All that reads a study. They read it in one place, so that it is read once here."""
    database = searched.database
    status = read_status(database, "searched", with_curves=True)
    yield lambda: print_status(status)
    yield lambda: print_json(status.as_json())
    yield lambda: render_report(status)
    for selection in (None, Selection.BEST):
        document = export_point(status.choose(selection), status)
        for export_format in ExportFormat:
            yield lambda document=document, form=export_format: render_export(document, form)
    yield lambda: export_model(status.choose(), searched.artifacts, Path("/dev/null/x.safetensors"))
    yield lambda: trials_frame(status.summary)
    yield lambda: curves_frame(status.summary)
    yield lambda: plan_confirmation(database, "searched", top=2, num_seeds=2)
    yield lambda: status.confirmation and print_confirmation(status.confirmation)
    yield lambda: [print_opening(record, status) for record in status.summary.openings]
    yield lambda: CurveReader(database, searched.study.study_id).read()


def look(searched: Searched) -> list[str]:
    """What was wrong with the ends of the views; nothing if each ended well or as an error of ours should."""
    wrong = []
    with contextlib.redirect_stdout(io.StringIO()):
        found = views(searched)
        while True:
            try:
                view = next(found)
            except StopIteration:
                return wrong
            except HpsearchError as error:
                return wrong + _unfit(error)
            except Exception as error:
                return [*wrong, repr(error)[:150]]
            try:
                view()
            except HpsearchError as error:
                wrong += _unfit(error)
            except Exception as error:
                wrong.append(repr(error)[:150])


def _unfit(error: HpsearchError) -> list[str]:
    is_fit = error.exit_code in (2, 3) and "\n" not in str(error) and len(str(error)) < 2000
    return [] if is_fit else [f"{error.exit_code}: {str(error)[:150]}"]


@pytest.fixture
def whole(search: Search, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Searched:
    """A study with everything: rounds, a confirmation, an opening, and one without a number."""
    searched = search(str(folder))
    confirm(searched)
    with searched.database.engine.begin() as connection:
        for key, value in (
            ("stop_reason", '"x"'),
            ("worker", '"w"'),
            ("seconds", "1.0"),
            ("resumed_at_epoch", "0"),
            ("lanes", "[1]"),
            ("verdict", '"fine"'),
            ("verdict_detail", '"d"'),
            ("update_ratio", "0.001"),
        ):
            connection.execute(
                text(
                    "INSERT INTO trial_user_attributes (trial_id, key, value_json) SELECT trial_id, :k, :v FROM trials"
                ),
                {"k": key, "v": value},
            )
        connection.exec_driver_sql(
            "INSERT INTO hpsearch_diagnoses (trial_id, epoch, nll, gradient_norm, dead, update_ratios) "
            """SELECT trial_id, epoch, 0.5, 0.1, NULL, '{"w": 0.001, "v": null}' FROM hpsearch_epochs"""
        )
        values = {"study": searched.study.study_id}
        connection.execute(text("INSERT INTO hpsearch_rounds VALUES (:study, 1, 2, '{}', 'why', now())"), values)
    searched.open()
    with monkeypatch.context() as power_cut:
        power_cut.setattr(IdxFolder, "read_test_part", lambda *_: pytest.fail("cut"))
        with pytest.raises(pytest.fail.Exception):
            searched.open(reason="again")
    assert look(searched) == []
    return searched


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_no_damaged_value_ends_a_view_in_a_traceback(whole: Searched, every: int) -> None:
    """Every third value of a cell, and another third in the next one; all of them in `make test-slow`."""
    wrong: list[tuple[str, ...]] = []
    for place, (table, column, rows, values) in enumerate(CELLS):
        with changed(whole, table, column, rows) as change:
            for value in list(values)[place % min(every, len(list(values))) :: every]:
                change(value)
                wrong += [(table, column, rows, str(value)[:20], said) for said in look(whole)]
    assert not wrong, "\n".join(map(str, wrong))


def test_no_stored_id_of_an_artifact_leads_out_of_the_store(whole: Searched) -> None:
    outside = Path(whole.artifacts.place).parent / "x"
    written = outside.with_name("written.safetensors")
    outside.write_bytes(next(Path(whole.artifacts.place).iterdir()).read_bytes())
    with changed(whole, "trial_system_attributes", "value_json", "key LIKE 'artifacts:%'") as change:
        for artifact_id in ESCAPING:
            change(json.dumps(json.dumps({"filename": "parameters.safetensors", "artifact_id": artifact_id})))
            for use in (
                lambda: export_model(read_status(whole.database, "searched").choose(), whole.artifacts, written),
                lambda: whole.open(reason="again"),
            ):
                with pytest.raises(HpsearchError, match="is not in") as caught:
                    use()
                assert caught.value.exit_code == 3
    assert not written.exists()


@contextlib.contextmanager
def changed(searched: Searched, table: str, column: str, rows: str) -> Iterator[Callable[[Any], None]]:
    """Gives a function that overwrites these cells; afterwards they are what they were."""
    engine = searched.database.engine
    with engine.begin() as connection:
        connection.execute(text(f"CREATE TABLE kept AS SELECT * FROM {table} WHERE {rows}"))
        keys = connection.execute(_KEYS, {"table": table}).scalars().all()
        kind = connection.execute(_KIND, {"table": table, "column": column}).scalar_one()
        assert connection.execute(text("SELECT count(*) FROM kept")).scalar_one(), (table, rows)

    def change(value: Any) -> None:
        with engine.begin() as connection:
            connection.execute(
                text(f"UPDATE {table} SET {column} = CAST(:value AS {kind}) WHERE {rows}"), {"value": value}
            )

    try:
        yield change
    finally:
        same = " AND ".join(f"t.{key} = kept.{key}" for key in keys)
        with engine.begin() as connection:
            connection.execute(text(f"UPDATE {table} t SET {column} = kept.{column} FROM kept WHERE {same}"))
            connection.execute(text("DROP TABLE kept"))


_KEYS = text("""
    SELECT a.attname FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY(i.indkey)
    WHERE i.indrelid = CAST(:table AS regclass) AND i.indisprimary
""")
_KIND = text("SELECT data_type FROM information_schema.columns WHERE table_name = :table AND column_name = :column")
