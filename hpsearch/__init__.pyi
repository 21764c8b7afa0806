# What type checkers and editors see of `import hpsearch`; `__init__.py` brings it lazily. A test holds the two equal.
from hpsearch.api import Study as Study
from hpsearch.api import load as load
from hpsearch.api import objective as objective
from hpsearch.api import run as run

__version__: str
__all__ = ["Study", "load", "objective", "run"]
