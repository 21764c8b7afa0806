"""hpsearch: a hyper-parameter search service for images and tables, coordinated by PostgreSQL."""

import importlib

__version__ = "0.1.0"

__all__ = ["Study", "load", "objective", "run"]


def __getattr__(name: str) -> object:
    """Import the Python API (api.py) on first use: importing torch takes seconds (PEP 562).

    `__init__.pyi` declares the same names for type checkers and editors.
    """
    if name in __all__:
        return getattr(importlib.import_module("hpsearch.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
