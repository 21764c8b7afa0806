"""Whether the training images fill the minibatches of every point of a study, as `run` requires."""

from __future__ import annotations

from hpsearch.checks.finding import DATA, Finding, Verdict, line_for_values, line_in, searched
from hpsearch.data.minibatch_fit import bytes_per_image, check_batch_size, check_resident_bytes
from hpsearch.data.splits import SelectionData
from hpsearch.errors import InputError
from hpsearch.study.corners import shape_settings
from hpsearch.study.definition import StudyDefinition
from hpsearch.wording import counted


def check_batch_sizes(definition: StudyDefinition, data: SelectionData) -> Finding:
    """Compare every batch size of the study with the training images and with `data.max_resident_bytes`."""
    num_train = len(data.train)
    image_bytes = bytes_per_image(data.train.images.shape[1], data.train.images.itemsize)
    most_bytes = definition.data.max_resident_bytes
    is_chunked = most_bytes is not None and num_train * image_bytes > most_bytes
    sizes = [*dict.fromkeys(settings.training.batch_size for settings in shape_settings(definition))]
    numbers = {"training_images": num_train, "smallest": min(sizes), "largest": max(sizes)}
    cause = fix = ""
    try:
        for size in sizes:
            check_batch_size(size, num_train)
        cause = "data.max_resident_bytes: raise it, or take smaller minibatches"
        fix = line_in("data", "max_resident_bytes", max(sizes) * image_bytes)
        for size in sizes:
            if most_bytes is not None and is_chunked:
                check_resident_bytes(size, image_bytes, most_bytes)
    except InputError as error:
        return Finding(
            check="batch sizes",
            subject=DATA,
            verdict=Verdict.FAILED,
            found=str(error),
            expected="minibatches that the training images fill",
            look_at=(cause or "training.batch_size, or its values in [search]: take smaller ones",),
            fix=fix or _smaller(definition, num_train),
            numbers=numbers,
        )
    return Finding(
        check="batch sizes",
        subject=DATA,
        verdict=Verdict.PASSED,
        found=f"{counted(len(sizes), 'batch size')} of at most {max(sizes):,} among {num_train:,} training images",
        numbers=numbers,
    )


def _smaller(definition: StudyDefinition, num_train: int) -> str:
    """The line with a batch size that fits, or with those of the searched ones that fit."""
    dimension = searched(definition, "batch_size")
    fitting = [value for value in dimension.values if int(value) <= num_train] if dimension else []
    return line_for_values(definition, "training", "batch_size", fitting, max(1, num_train // 10))
