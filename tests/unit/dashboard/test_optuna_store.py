"""optuna-dashboard reads and removes artifacts of hpsearch's stores as if they were Optuna's."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from optuna.artifacts.exceptions import ArtifactNotFound

from hpsearch.artifacts.store import FolderStore
from hpsearch.dashboard.server import OptunaStore


def test_it_passes_content_on_and_a_missing_artifact_is_optunas_error(tmp_path: Path) -> None:
    store = OptunaStore(FolderStore(tmp_path))
    store.write("a", io.BytesIO(b"content"))
    with store.open_reader("a") as reader:
        assert reader.read() == b"content"
    store.remove("a")
    assert list(tmp_path.iterdir()) == []
    for use in (store.open_reader, store.remove):
        for name in ("a", "../a"):
            with pytest.raises(ArtifactNotFound, match="a"):
                use(name)
