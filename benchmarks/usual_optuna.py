"""A whole study with plain Optuna and the usual loop: start to finish, as a person would write it.

    python -m benchmarks.usual_optuna benchmarks/whole_study.toml --processes 2

The points are enqueued in the order of the grid, the pruner is the study's, the storage is a PostgreSQL of the same
kind as hpsearch's own (embedded, started here). More processes share the cores out. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Sequence
from multiprocessing.sharedctypes import Synchronized
from typing import Any

import optuna
import torch
from optuna.trial import TrialState

from benchmarks.measurement import run_script
from benchmarks.usual_loop import UsualData, build_network, train
from benchmarks.usual_study import StudyResult, load_images, load_usual_definition, usual_arguments
from hpsearch.device.processors import threads_per_worker
from hpsearch.errors import HpsearchError
from hpsearch.postgres.embedded import EmbeddedPostgres
from hpsearch.search.pruners import build_pruner
from hpsearch.study.definition import StudyDefinition


def main() -> None:
    options = usual_arguments(__doc__).parse_args()
    definition = load_usual_definition(options)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with EmbeddedPostgres.start() as postgres:
        study = optuna.create_study(study_name=definition.name, storage=postgres.url, direction="minimize")
        optimize_in_processes(definition, postgres.url, options)
        trials = study.get_trials(deepcopy=False)
        StudyResult(
            num_points=sum(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials),
            trial_epochs=sum(len(trial.intermediate_values) for trial in trials),
            best_error=study.best_value,
            best_point=study.best_params,
        ).print()


def optimize_in_processes(definition: StudyDefinition, url: str, options: argparse.Namespace) -> None:
    """Train all points: here, or in as many processes as were asked for.

    Raises:
        HpsearchError: a process has failed.
    """
    context = multiprocessing.get_context("spawn")
    next_point = context.Value("i", 0)
    threads = threads_per_worker(options.processes)
    if options.processes == 1:
        optimize(definition, url, next_point, threads)
        return
    arguments = (definition, url, next_point, threads)
    processes = [context.Process(target=optimize, args=arguments) for _ in range(options.processes)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    check_exit_codes([process.exitcode for process in processes])


def check_exit_codes(codes: Sequence[int | None]) -> None:
    """Raise HpsearchError unless all are 0; the processes themselves have told on stderr what was wrong."""
    if any(code != 0 for code in codes):
        raise HpsearchError(f"Optuna's processes ended with {list(codes)}")


def optimize(definition: StudyDefinition, url: str, next_point: Synchronized[int], threads: int) -> None:
    """Take points of the grid, one after the other, until none is left.

    Args:
        next_point: the first that nobody has taken; shared by all processes.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    torch.set_num_threads(threads)
    # MedianPruner(n_startup_trials=..., n_warmup_steps=...): Optuna's own, with the study's numbers.
    pruner = build_pruner(definition.pruning, definition.training.max_epochs)
    # Every point is enqueued: the sampler has nothing to do, and the random one costs nothing.
    sampler = optuna.samplers.RandomSampler(seed=0)
    study = optuna.load_study(study_name=definition.name, storage=url, sampler=sampler, pruner=pruner)
    data = UsualData.of(load_images(definition))
    points = list(definition.points())
    grid = {dimension.name: dimension.values for dimension in definition.search.dimensions}

    def objective(trial: optuna.Trial) -> float:
        point: dict[str, Any] = {name: trial.suggest_categorical(name, values) for name, values in grid.items()}
        settings = definition.resolve(point)
        network = build_network(settings, data)
        best = 1.0
        for epoch, error in enumerate(train(settings, data, network), start=1):
            best = min(best, error)
            trial.report(error, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return best

    while True:
        with next_point.get_lock():
            index, next_point.value = next_point.value, next_point.value + 1
        if index >= len(points):
            return
        # One enqueued, one trained: whichever process takes it, none draws a point of its own.
        study.enqueue_trial(points[index])
        study.optimize(objective, n_trials=1)


if __name__ == "__main__":
    run_script(main)
