"""Errors of the driver are recognised, also where Optuna's storage has wrapped them."""

from __future__ import annotations

from optuna.exceptions import OptunaError, StorageInternalError
from sqlalchemy.exc import OperationalError

from hpsearch.store.connection.refusals import driver_error, refusal_of


def test_an_error_in_optunas_wrapping_is_the_drivers() -> None:
    cause = OperationalError("SELECT 1", {}, Exception("has not answered for 3 s in the middle of a statement"))
    wrapped, other = StorageInternalError("x"), OptunaError("x")
    wrapped.__cause__ = other.__cause__ = cause
    assert driver_error(wrapped) is driver_error(cause) is cause
    assert refusal_of(wrapped) is refusal_of(cause) is not None
    assert driver_error(other) is None
    assert driver_error(StorageInternalError("a bug")) is None
