"""hpsearch's SQL names Optuna's tables and columns as text: each name is one that Optuna declares."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator, Mapping

import pytest
from optuna.storages._rdb import models
from sqlalchemy import Connection, TextClause, create_engine, text
from sqlalchemy.exc import ProgrammingError

import hpsearch
from hpsearch.store.connection import tables


def statements_of(value: object) -> Iterator[TextClause]:
    if isinstance(value, TextClause):
        yield value
    elif isinstance(value, tuple | list):
        yield from (each for each in value if isinstance(each, TextClause))
    elif isinstance(value, Mapping):
        yield from (each for each in value.values() if isinstance(each, TextClause))


@pytest.fixture(scope="module")
def statements() -> dict[str, str]:
    """Every statement of every module, by its place, with NULL for each parameter."""
    found: dict[str, str] = {}
    for module in pkgutil.walk_packages(hpsearch.__path__, "hpsearch."):
        if module.name.endswith("__main__"):
            continue
        for name, value in vars(importlib.import_module(module.name)).items():
            for number, clause in enumerate(statements_of(value)):
                sql = re.sub(r"(?<![:\w]):\w+", "NULL", clause.text)
                if sql.split()[0] in ("SELECT", "WITH", "INSERT", "UPDATE", "DELETE"):
                    found[f"{module.name}.{name}[{number}]"] = sql
    return found


@pytest.fixture
def declared(database_url: str) -> Iterator[Connection]:
    """A database with the tables that Optuna declares, and ours."""
    engine = create_engine(database_url)
    with engine.connect() as connection:
        models.BaseModel.metadata.create_all(connection)
        tables.metadata.create_all(connection)
        connection.commit()
        yield connection
    engine.dispose()


def unknown_names(connection: Connection, statements: Mapping[str, str]) -> dict[str, str]:
    """What the server does not understand, by the statement's place. It looks names up, and executes nothing."""
    faults: dict[str, str] = {}
    for place, sql in statements.items():
        try:
            with connection.begin_nested():
                connection.exec_driver_sql("PREPARE a_statement AS " + sql.replace("%", "%%"))
                connection.execute(text("DEALLOCATE a_statement"))
        except ProgrammingError as error:
            faults[place] = str(error.orig)
    return faults


def test_every_table_and_column_that_our_sql_names_is_declared(
    declared: Connection, statements: Mapping[str, str]
) -> None:
    assert len(statements) > 50
    assert unknown_names(declared, statements) == {}


@pytest.mark.parametrize("name", ["studies", "trials"])
def test_the_columns_of_optunas_tables_that_tables_py_has_are_declared(name: str) -> None:
    declared = models.BaseModel.metadata.tables[name]
    assert set(getattr(tables, name).columns.keys()) <= set(declared.columns.keys())


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ("ALTER TABLE trials RENAME COLUMN datetime_start TO started_at", "hpsearch.store.claims.ledger_sql.CLAIM[0]"),
        ("ALTER TABLE trial_params RENAME TO parameters", "hpsearch.store.rows.distributions._INSERT_PARAMETERS[0]"),
    ],
)
def test_a_name_that_optuna_changes_is_found(
    declared: Connection, statements: Mapping[str, str], change: str, place: str
) -> None:
    declared.execute(text(change))
    assert "does not exist" in unknown_names(declared, statements)[place]
