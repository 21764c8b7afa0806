"""Search spaces under the name that users import: `from hpsearch.space import LogGrid`."""

from hpsearch.study.space import Choice, Dimension, LogGrid, Range, SearchSettings

__all__ = ["Choice", "Dimension", "LogGrid", "Range", "SearchSettings"]
