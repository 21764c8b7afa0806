"""`hpsearch test STUDY`: open the vault, once, and print the error on the test images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from hpsearch.cli import options

if TYPE_CHECKING:
    from hpsearch.results.openings.record import VaultRecord
    from hpsearch.results.status import StudyStatus


def open_test_set(
    study: options.StudyName,
    point: options.Point = None,
    retrain: Annotated[
        bool,
        typer.Option("--retrain", help="Train the point again with its own seed instead of loading its parameters."),
    ] = False,
    again: Annotated[
        str | None,
        typer.Option(
            metavar="REASON",
            show_default=False,
            help="Open the test set again for this reason, which reports show with all numbers.",
        ),
    ] = None,
    device: options.Device = "auto",
    storage: options.Storage = None,
    artifacts: options.Artifacts = None,
    wait_for_gpu: options.WaitForGpu = True,
    share_gpu: options.ShareGpu = False,
    as_json: options.AsJson = False,
) -> None:
    """Evaluate the chosen point on the test images, once per study, and record the number."""
    from hpsearch.artifacts.best_parameters import open_artifacts
    from hpsearch.artifacts.place import artifact_place
    from hpsearch.console.notice import say
    from hpsearch.console.progress_view import download_progress
    from hpsearch.console.tables import print_json, print_opening
    from hpsearch.device.pin import PinRules
    from hpsearch.device.processors import threads_per_worker
    from hpsearch.results.status import read_status
    from hpsearch.results.vault.final_test import VaultRequest, open_vault

    request = VaultRequest(
        selection=point,
        is_retrained=retrain,
        reason=again,
        device=device,
        pin_rules=PinRules(waits=wait_for_gpu, is_shared=share_gpu),
        threads=threads_per_worker(1),
    )
    kept = open_artifacts(artifact_place(artifacts), is_read_only=True)
    with options.open_storage(storage) as database:
        record = open_vault(database, study, kept, request, show_download=download_progress, tell=say)
        status = read_status(database, study)
    if as_json:
        print_json(opening_as_json(record, status))
    else:
        print_opening(record, status)


def opening_as_json(record: VaultRecord, status: StudyStatus) -> dict[str, Any]:
    """What `hpsearch test --json` prints: the study's name, the opening, and all openings, this one included.

    is_of_chosen_point  whether it was for the chosen point of `status`, `export` and `report`
    """
    return {
        "study": record.study_name,
        "is_of_chosen_point": status.chosen is not None and status.chosen.is_of(record),
        **record.as_json(),
        **status.summary.test_set_as_json(),
    }
