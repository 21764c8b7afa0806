"""A whole study with Ray Tune, ASHA and the usual loop: start to finish, as a person would write it.

    python -m benchmarks.usual_ray benchmarks/whole_study.toml --processes 2

As many trials at the same time as processes, one CPU and one thread each; actors are used again, the images lie in
Ray's object store. ASHA's first rung is where the study's pruner begins. No dashboard, no usage statistics. Needs
`pip install 'hpsearch[bench]'`. Prints one line of JSON.
"""

from __future__ import annotations

import os
import tempfile
from typing import Any

import ray
import torch
from ray import tune
from ray.tune.schedulers import ASHAScheduler

from benchmarks.measurement import run_script
from benchmarks.usual_loop import UsualData, build_network, train
from benchmarks.usual_study import StudyResult, load_images, load_usual_definition, usual_arguments
from hpsearch.data.splits import SelectionData
from hpsearch.device.processors import threads_per_worker
from hpsearch.errors import HpsearchError
from hpsearch.study.definition import StudyDefinition


def main() -> None:
    options = usual_arguments(__doc__).parse_args()
    definition = load_usual_definition(options)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing is sent anywhere
    # A short path: Ray puts sockets below it, whose names may have 107 characters.
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        ray.init(
            address="local",
            num_cpus=options.processes,
            num_gpus=0,
            include_dashboard=False,
            log_to_driver=False,
            _temp_dir=folder,
        )
        try:
            fit(definition, options.processes, folder).print()
        finally:
            ray.shutdown()


def fit(definition: StudyDefinition, processes: int, folder: str) -> StudyResult:
    """Train all points.

    Raises:
        HpsearchError: a trial has failed.
    """
    max_epochs, pruning = definition.training.max_epochs, definition.pruning
    # Where the study's own pruner judges a trial for the first time.
    first_rung = pruning.min_epochs if pruning.pruner == "successive-halving" else pruning.warmup_epochs + 1
    scheduler = ASHAScheduler(
        time_attr="training_iteration",
        max_t=max_epochs,
        grace_period=min(max_epochs, first_rung),
        reduction_factor=pruning.reduction_factor,
    )
    shared = {"data": load_images(definition), "definition": definition, "threads": threads_per_worker(processes)}
    trainable = tune.with_parameters(train_point, **shared)
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": 1}),
        # The grid's points, listed, so that they come in the same order as everywhere else.
        param_space={"point": tune.grid_search(list(definition.points()))},
        tune_config=tune.TuneConfig(
            metric="validation_error",
            mode="min",
            scheduler=scheduler,
            max_concurrent_trials=processes,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(storage_path=folder, verbose=0),
    )
    results = tuner.fit()
    if results.errors:
        raise HpsearchError(f"{len(results.errors)} of Ray's trials have failed: {results.errors[0]}")
    best = min(results, key=lambda result: float(result.metrics["best_error"]))
    return StudyResult(
        num_points=len(results),
        trial_epochs=sum(int(result.metrics["training_iteration"]) for result in results),
        best_error=float(best.metrics["best_error"]),
        best_point=best.config["point"],
    )


def train_point(config: dict[str, Any], *, data: SelectionData, definition: StudyDefinition, threads: int) -> None:
    """One trial, in an actor of Ray's; ASHA ends it from outside."""
    torch.set_num_threads(threads)
    settings = definition.resolve(config["point"])
    tensors = UsualData.of(data)
    network = build_network(settings, tensors)
    best = 1.0
    for error in train(settings, tensors, network):
        best = min(best, error)
        tune.report({"validation_error": error, "best_error": best})


if __name__ == "__main__":
    run_script(main)
