"""The Python API: run a study, read its results, or use it as a plain Optuna objective. See docs/python-api.md.

    import hpsearch

    study = hpsearch.run("studies/mlp.toml", workers=2)
    study.trials_dataframe()

`import hpsearch` imports these names lazily, because their imports take seconds.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import optuna
from numpy.typing import NDArray
from safetensors.numpy import load as load_safetensors

from hpsearch import environment
from hpsearch.artifacts.best_parameters import open_artifacts
from hpsearch.artifacts.place import artifact_place
from hpsearch.atomic_file import write_file
from hpsearch.console.launch_view import TerminalListener
from hpsearch.data.dataset_path import load_study_file
from hpsearch.data.given_arrays import with_stored_arrays
from hpsearch.errors import InputError
from hpsearch.launch.launcher import LaunchListener, train_study
from hpsearch.launch.options import LaunchOptions, check_launch
from hpsearch.results.choice import ChosenPoint
from hpsearch.results.confirmation.outcome import Confirmation
from hpsearch.results.data_frame import curves_frame, trials_frame
from hpsearch.results.export import MODEL_SUFFIX, choose_format, export_model, export_point, render_export
from hpsearch.results.prediction import Predictor
from hpsearch.results.report.page import write_report
from hpsearch.results.selection import Selection
from hpsearch.results.status import StudyStatus, read_status
from hpsearch.results.stored_parameters import read_parameters
from hpsearch.results.study_pictures import Pictures
from hpsearch.results.summary import StudySummary, read_summary
from hpsearch.results.trial_summary import TrialSummary
from hpsearch.store.connection.database import Database, open_storage
from hpsearch.store.progress import Progress
from hpsearch.store.studies import StoredStudy, load_study
from hpsearch.study.definition import StudyDefinition
from hpsearch.study.own_networks import require_own_networks
from hpsearch.study.study_file import parse_definition
from hpsearch.worker.objective import Objective
from hpsearch.worker.options import MAX_LANES, WorkerOptions, parse_lanes

__all__ = ["Definition", "Objective", "Progress", "Study", "load", "objective", "run"]

Definition = StudyDefinition | Mapping[str, Any] | str | os.PathLike[str]  # an object, its document, or a file's path
PointName = Literal["best", "confirmed"]
MAX_WORKERS = 256


def run(
    definition: Definition,
    *,
    workers: int | None = None,
    lanes: int | Literal["auto"] = "auto",
    device: str = "auto",
    storage: str | None = None,
    artifacts: str | os.PathLike[str] | None = None,
    progress: bool | Callable[[Progress], None] = True,
    check: bool = True,
) -> Study:
    """Create or resume a study, train it with worker processes on this machine, and return it.

    Works like `hpsearch run`. It returns when the study is finished; after Ctrl-C (in a notebook: interrupting the
    kernel) the same call resumes the study. Signal handlers of this process are not changed.

    Args:
        workers: None: one per GPU, or one.
        lanes: number of trials that a worker trains at once; `auto`: the fastest number, learned in training.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        storage: URL of a PostgreSQL; None: the value of HPSEARCH_STORAGE, otherwise the embedded one.
        artifacts: folder or s3://BUCKET/PREFIX; None: the value of HPSEARCH_ARTIFACTS, otherwise a folder in hpsearch's
            home.
        progress: whether to show progress on stderr; or a function that is called with it about once a second.
        check: look at the data before the study is created.
    Raises:
        HpsearchError: the definition, the data, the storage or the device is not suitable, or workers keep dying.
        UncountedPointsError: the study has ended, but points were given up; `load` still returns it.
        KeyboardInterrupt: re-raised when the workers have given their trials back.
    """
    definition = _read_definition(definition)
    _check_numbers(workers, lanes)
    storage = _storage(storage)
    worker = WorkerOptions(device=device, lanes=parse_lanes(str(lanes)), artifacts=_artifacts(artifacts))
    launch = check_launch(
        LaunchOptions(storage=storage, workers=workers, worker=worker, checks=check, study=definition)
    )
    with launch.first_worker(definition.name) as first, open_storage(storage) as database:
        stored = train_study(database, definition, launch, first, _listener(progress))
        read_summary(database, stored.name).require_all_counted()
    return Study(stored, storage=storage, artifacts=artifact_place(launch.options.worker.artifacts))


def load(name: str, storage: str | None = None, *, artifacts: str | os.PathLike[str] | None = None) -> Study:
    """Return a study that is in the database, finished or not.

    Args:
        storage, artifacts: as for `run`.
    Raises:
        StudyNotFoundError: no such study; the hint lists the existing ones.
    """
    storage = _storage(storage)
    with open_storage(storage) as database:
        stored = load_study(database, name)
    return Study(stored, storage=storage, artifacts=artifact_place(_artifacts(artifacts)))


def objective(definition: Definition, *, device: str = "auto") -> Objective:
    """Return a plain Optuna objective for `study.optimize`, with any sampler, pruner and storage.

    It draws the dimensions of `[search]`, trains one trial in this process, reports the value of the study's metric
    after every epoch, lets the study's pruner decide, and returns the best value. An AUC or R2 needs an Optuna
    study with direction maximize. The data is read during this call.

    Raises:
        HpsearchError: the definition, the data or the device is not suitable.
    """
    return Objective(_read_definition(definition), device=device)


class Study:
    """A study in the database. Everything except its name and definition is read again at each call.

    Each call opens its own connection, and so starts and stops the embedded PostgreSQL if it has no other client. In a
    `with` block, and after `optuna_study`, the connection stays open: until the end of the block, `close`, or the end
    of the process. Not thread-safe.
    """

    def __init__(self, stored: StoredStudy, *, storage: str | None, artifacts: str) -> None:
        """Use `run` or `load`."""
        self._stored = stored
        self._storage = storage
        self._artifacts = artifacts
        self._database: Database | None = None
        self._connection = contextlib.ExitStack()

    @property
    def name(self) -> str:
        return self._stored.name

    @property
    def definition(self) -> StudyDefinition:
        """The definition at the time this object was created; a study can be widened later."""
        return self._stored.definition

    @property
    def summary(self) -> StudySummary:
        """All trials as of now, best first, without their curves."""
        with self._open() as database:
            return read_summary(database, self.name)

    @property
    def best(self) -> TrialSummary:
        """The search's best complete trial as of now. Raises NothingCompleteError if there is none."""
        return self.summary.require_best()

    @property
    def chosen(self) -> ChosenPoint:
        """The chosen point as of now: the confirmed one once a confirmation is finished, else the search's best.

        Its `trial` has the parameters and the validation error. Raises NothingCompleteError if no trial is complete.
        """
        return self._status().choose()

    @property
    def confirmation(self) -> Confirmation | None:
        """The outcome of fresh seeds for the best points as of now; None if `hpsearch confirm` has not been run."""
        return self._status().confirmation

    def best_parameters(self, point: PointName | None = None) -> dict[str, NDArray[np.generic]]:
        """Return the chosen point's network at its best validation: arrays by name.

        Args:
            point: as for `export`.
        Raises:
            NothingCompleteError: no trial is complete.
            InputError: the confirmed point was requested, and no finished confirmation has picked one.
            ArtifactError: the file is not in the artifacts, or is damaged.
        """
        artifacts = open_artifacts(self._artifacts, is_read_only=True)
        chosen = self._status().choose(_selection(point))
        arrays: dict[str, NDArray[np.generic]] = load_safetensors(
            read_parameters(chosen.study, chosen.trial, artifacts)
        )
        return arrays

    def predict(self, examples: Any, point: PointName | None = None) -> NDArray[Any]:
        """Return the class of each row or image, or in regression the value in the target's unit: [N].

        Only the database and the artifacts are needed, and not the data set. Use `predictor` for many calls.

        Args:
            examples: of a table a pandas.DataFrame, a pyarrow.Table, a dict of columns or a list of dicts, with the
                columns that the model was trained on; otherwise images [N, rows, columns] or [N, rows, columns, 3] of
                uint8, or of floats in 0..1.
            point: as for `export`.
        Raises:
            InputError: columns are missing or of a wrong kind, or images have another shape than in training.
            NothingCompleteError, ArtifactError: as `best_parameters`.
        """
        return self.predictor(point).predict(examples)

    def predict_proba(self, examples: Any, point: PointName | None = None) -> NDArray[np.float64]:
        """Return the probability of each class, [N, classes], in the order of `predictor().classes`.

        Raises:
            InputError: as `predict`, or the study is for regression.
        """
        return self.predictor(point).predict_proba(examples)

    def predictor(self, point: PointName | None = None) -> Predictor:
        """Return the chosen model, read once, with `predict`, `predict_proba` and `classes`."""
        chosen = self._status().choose(_selection(point))
        return Predictor.of(chosen, open_artifacts(self._artifacts, is_read_only=True))

    def trials_dataframe(self) -> Any:
        """Return all trials, best first, as a pandas.DataFrame; docs/python-api.md lists its columns.

        Raises:
            ImportError: pandas is not installed.
        """
        return trials_frame(self.summary)

    def curves_dataframe(self) -> Any:
        """Return all epochs of all trials as a pandas.DataFrame; docs/python-api.md lists its columns.

        Raises:
            ImportError: pandas is not installed.
        """
        with self._open() as database:
            summary = read_summary(database, self.name, with_curves=True)
        return curves_frame(summary)

    def export(self, path: str | os.PathLike[str], point: PointName | None = None) -> None:
        """Write a point with its evidence (.json, .toml, .yaml, .env) or its trained parameters (.safetensors).

        Args:
            path: its suffix selects the format.
            point: None: the chosen point; "best": the search's best; "confirmed": the one that `hpsearch confirm`
                picked.
        Raises:
            InputError: no format has the file's suffix, or there is no finished confirmation that chose a point.
            NothingCompleteError: no trial is complete.
            ArtifactError: the file cannot be written, or the parameters cannot be read.
        """
        path = Path(path)
        is_model = path.suffix.lower() == MODEL_SUFFIX
        export_format = None if is_model else choose_format(None, path)
        with self._open() as database:
            status = read_status(database, self.name)
            chosen = status.choose(_selection(point))
            if is_model:
                export_model(chosen, open_artifacts(self._artifacts, is_read_only=True), path)
        if export_format is not None:
            write_file(path, render_export(export_point(chosen, status), export_format))

    def report(self, path: str | os.PathLike[str]) -> None:
        """Write the HTML report, one self-contained file.

        Raises:
            NothingCompleteError: no trial is complete.
            ArtifactError: the file cannot be written.
        """
        with self._open() as database:
            write_report(database, self.name, Path(path), artifacts=self._artifacts)

    def pictures(self) -> Pictures:
        """Pictures of the trials as of now: filters over time, confusion matrix, most confidently wrong images.

        Nothing is trained. Filters need `keep_every` in the study; the other pictures need the parameters of the trial,
        which are always kept of the best one, and the data set on this machine.

        Raises:
            InputError: the study's trials are programs.
        """
        require_own_networks(self.definition, "there are no pictures", "study.report(path) draws the reported curves")
        return Pictures(self.summary, self._artifacts)

    def optuna_study(self) -> optuna.Study:
        """Return the study as plain Optuna reads it, for Optuna's plots and tables.

        The connection stays open for it: close this object only when you have finished with the Optuna study. Its
        trials belong to the workers; do not add or change trials through it.
        """
        return self._keep_open().load_study(self.name)

    def close(self) -> None:
        """Close the connection that a `with` block or `optuna_study` keeps open. Safe to call again."""
        self._database = None
        self._connection.close()

    def __enter__(self) -> Study:
        self._keep_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<hpsearch.Study {self.name!r}>"

    def _status(self) -> StudyStatus:
        with self._open() as database:
            return read_status(database, self.name)

    def _keep_open(self) -> Database:
        if self._database is None:
            self._database = self._connection.enter_context(open_storage(self._storage))
        return self._database

    def _open(self) -> AbstractContextManager[Database]:
        return open_storage(self._storage) if self._database is None else contextlib.nullcontext(self._database)


class _CallbackListener(LaunchListener):
    """Calls a function of the user, and prints nothing."""

    def __init__(self, on_progress: Callable[[Progress], None]) -> None:
        self._on_progress = on_progress

    @contextlib.contextmanager
    def training(self, study: StoredStudy) -> Iterator[Callable[[Progress], None]]:
        yield self._on_progress


def _listener(progress: bool | Callable[[Progress], None]) -> LaunchListener:
    if callable(progress):
        return _CallbackListener(progress)
    return TerminalListener() if progress else LaunchListener()


def _read_definition(definition: Definition) -> StudyDefinition:
    match definition:
        case StudyDefinition():
            return definition
        case str() | os.PathLike():
            return load_study_file(Path(definition))
        case Mapping():
            return parse_definition(with_stored_arrays(definition), source="the definition")
    raise InputError(
        f"definition must be a StudyDefinition, a dict or a path, got {type(definition).__name__}",
        hint='hpsearch.run("study.toml"), or hpsearch.run({"name": "mine", "search": {...}})',
    )


def _check_numbers(workers: int | None, lanes: int | str) -> None:
    if workers is not None and not (_is_number(workers) and 1 <= workers <= MAX_WORKERS):
        raise InputError(f"workers must be None or a whole number from 1 to {MAX_WORKERS}, got {workers!r}")
    if lanes != "auto" and not (_is_number(lanes) and 1 <= int(lanes) <= MAX_LANES):
        raise InputError(f"lanes must be 'auto' or a whole number from 1 to {MAX_LANES}, got {lanes!r}")


def _selection(point: str | None) -> Selection | None:
    if point is not None and point not in list(Selection):
        raise InputError(f"point must be 'best' or 'confirmed', got {point!r}")
    return None if point is None else Selection(point)


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _storage(url: str | None) -> str | None:
    return url or os.environ.get(environment.STORAGE) or None


def _artifacts(place: str | os.PathLike[str] | None) -> str | None:
    return os.environ.get(environment.ARTIFACTS) or None if place is None else os.fspath(place)
