"""`python -m hpsearch`: the same as the `hpsearch` command. Workers are started by this file's path (supervisor.py).

No file of the current folder takes the place of a module: `python -m` puts that folder first on sys.path, where a
`random.py` or `types.py` would be imported in place of Python's own.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # programs that `multiprocessing` spawns import this file again, under another name
    if not sys.flags.safe_path:
        del sys.path[0]
    sys.path.append(str(Path(__file__).parents[1]))  # where hpsearch is not installed
    from hpsearch.cli.main import main

    main()
