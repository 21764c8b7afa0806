"""Where hpsearch keeps its own things on this machine: the embedded database, artifacts, logs of local workers."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def home_folder() -> Path:
    """$HPSEARCH_HOME, else the user's data folder; for root /var/lib/hpsearch.

    Not root's own home: PostgreSQL refuses to run as root, and the user that it runs as instead cannot enter /root
    unless /root is opened to everybody, which is not ours to do.
    """
    home = os.environ.get("HPSEARCH_HOME")
    if home:
        return Path(home).expanduser().absolute()
    if os.geteuid() == 0:
        return Path("/var/lib/hpsearch")
    return platformdirs.user_data_path("hpsearch")


def artifact_folder() -> Path:
    """Where artifacts are kept if nothing else is named."""
    return home_folder() / "artifacts"


def log_folder() -> Path:
    """Where local workers write their logs."""
    return home_folder() / "logs"


def lane_folder() -> Path:
    """Where it is remembered how many lanes pay on this machine."""
    return home_folder() / "lanes"


def vault_file() -> Path:
    """Where this machine's openings of test sets are listed, whatever database their studies are in."""
    return home_folder() / "vault.jsonl"
