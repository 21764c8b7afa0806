"""`python -m hpsearch`: the same as the `hpsearch` command. Workers are started by this file's path (supervisor.py).

Files in the current folder must not shadow modules: `python -m` puts that folder first on sys.path, where a `random.py`
or `types.py` would be imported instead of Python's own. Its entry is therefore removed.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # processes that `multiprocessing` spawns import this file again, under another name
    if not sys.flags.safe_path:
        del sys.path[0]
    sys.path.append(str(Path(__file__).parents[1]))  # for runs without an installed hpsearch
    from hpsearch.cli.main import main

    main()
