"""CIFAR-10 from a folder of JPEGs: the shipped LeNet study, and one MLPClassifier of scikit-learn at its defaults.

Both train on the same images, and are judged on the folder's test part. `own_data.py` calls `run_images`; the contender
is a process of its own, `python -m benchmarks.own_data_images STUDY.toml FOLDER`.
"""

from __future__ import annotations

import json
import os
import sys
import tarfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

from benchmarks.own_data_cases import images_study
from benchmarks.own_data_splits import run_hpsearch, timed, write_study
from benchmarks.scratch import scratch_folder
from benchmarks.whole_study import environment_of
from hpsearch.data.catalog import load_selection_data
from hpsearch.data.files.lookup import DataLocations
from hpsearch.errors import DataError
from hpsearch.study.study_file import load_definition

ARCHIVE = "cifar10-jpeg.tar.gz"
_FOLDER = "cifar10-jpeg"


def run_images(datasets: Path, train_samples: int, *, max_epochs: int | None = None) -> dict[str, Any]:
    """Unpack the archive, then let both sides train, one after the other.

    Args:
        max_epochs: of LeNet's trials and of the MLPClassifier, in place of their own numbers: to see whether it runs.
    Raises:
        DataError: the archive is not there.
        HpsearchError: a program failed.
    """
    if not (datasets / ARCHIVE).is_file():
        raise DataError(f"no file {ARCHIVE} in the folder of data sets", hint="leave the images out: --only")
    with scratch_folder() as folder:
        with tarfile.open(datasets / ARCHIVE) as archive:
            archive.extractall(folder / _FOLDER, filter="data")
        study_file = write_study(folder, images_study(_FOLDER, train_samples, max_epochs=max_epochs))
        found: dict[str, Any] = {"load": round(os.getloadavg()[0], 2), "train_samples": train_samples}
        found["hpsearch"] = run_hpsearch(study_file, folder)
        command = [sys.executable, "-m", "benchmarks.own_data_images", str(study_file), str(folder)]
        if max_epochs is not None:
            command.append(str(max_epochs))
        environment = {**environment_of(folder), "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder / "cache")}
        output, times = timed("the contender", command, environment)
    found["contender"] = {**json.loads(output.strip().splitlines()[-1]), **times}
    return found


def fit_and_judge(study_file: Path, folder: Path, max_epochs: int | None) -> dict[str, Any]:
    """An MLPClassifier on the study's training images; its error on the validation and on the test images."""
    settings = load_definition(study_file).data
    locations = DataLocations(local=folder, cache=folder / "cache")
    data = load_selection_data(settings, locations=locations)
    network = MLPClassifier(random_state=0, **({} if max_epochs is None else {"max_iter": max_epochs}))
    network.fit(data.train.floats(slice(0, len(data.train))), data.train.labels)
    images, labels = read_test_images(folder / _FOLDER / "test", data.class_names)
    return {
        "rows": len(labels),
        "validation": float(np.mean(network.predict(data.validation.floats()) != data.validation.labels)),
        "test": float(np.mean(network.predict(images) != labels)),
        "epochs": int(network.n_iter_),
    }


def read_test_images(folder: Path, class_names: tuple[str, ...]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """All images of CLASS/*.jpg as [N, 3 * 32 * 32] in [0, 1], the channels first, as hpsearch lays them out."""
    images, labels = [], []
    for label, name in enumerate(class_names):
        for path in sorted((folder / name).glob("*.jpg")):
            with Image.open(path) as image:
                images.append(np.asarray(image.convert("RGB")).transpose(2, 0, 1).reshape(-1))
            labels.append(label)
    return np.stack(images).astype(np.float32) / np.float32(255), np.array(labels, dtype=np.int64)


def main() -> None:
    study_file, folder, *max_epochs = sys.argv[1:]
    warnings.simplefilter("ignore", ConvergenceWarning)
    print(json.dumps(fit_and_judge(Path(study_file), Path(folder), int(max_epochs[0]) if max_epochs else None)))


if __name__ == "__main__":
    main()
