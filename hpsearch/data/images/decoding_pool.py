"""Decode many image files with all processors that this process may use.

Pillow decodes while it holds Python's lock, so that threads would take turns. The helpers are programs of their own and
not children of `multiprocessing`: those would import the user's script again.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Final, final

from hpsearch.data.images.image_decoding import DecodedImage, decode_files, read_answer
from hpsearch.errors import DataError

CHUNK: Final = 64  # files of a request, at most
REQUEST_BYTES: Final = 2**23  # of the decoded images of a request, unless a single one is larger
WAITING_BYTES: Final = 2**30  # of all answers that wait in memory
FEW_FILES: Final = 1000  # decoded before a helper has started
_AHEAD: Final = 2  # requests per helper whose answers wait in memory


def decode_images(
    paths: Sequence[Path], image_size: tuple[int, int] | None, *, num_processes: int
) -> Iterator[DecodedImage]:
    """Decode files, in their order. Memory is bounded, whatever the size of the images.

    Without `image_size`, an image of another size than the first one is not decoded.

    Args:
        image_size: as for `decode_files`.
        num_processes: of the helpers; few files, or a single processor, need none.
    Raises:
        DataError: a helper was killed, or cannot be started.
    """
    if num_processes < 2 or len(paths) < FEW_FILES:
        yield from decode_files(paths, image_size)
        return
    num_before, size = 0, None
    for image in decode_files(paths, image_size):  # up to the first that tells the size of all
        yield image
        num_before += 1
        if image.pixels is not None:
            size = image.pixels.shape[-2], image.pixels.shape[-1]
            break
    if size is None:
        return
    paths = paths[num_before:]
    image_bytes = 3 * size[0] * size[1]
    num_files = max(1, min(CHUNK, REQUEST_BYTES // image_bytes))
    num_waiting = max(1, min(_AHEAD * num_processes, WAITING_BYTES // (num_files * image_bytes)))
    num_processes = min(num_processes, math.ceil(len(paths) / num_files), num_waiting)
    with contextlib.ExitStack() as stack:
        idle: queue.SimpleQueue[_Helper] = queue.SimpleQueue()
        for _ in range(num_processes):
            idle.put(stack.enter_context(_Helper()))

        def decode(chunk: Sequence[Path]) -> list[DecodedImage]:
            helper = idle.get()
            try:
                return helper.decode(chunk, image_size, size)
            finally:
                idle.put(helper)

        pool = stack.enter_context(ThreadPoolExecutor(num_processes))
        stack.callback(pool.shutdown, cancel_futures=True)
        waiting: deque[Future[list[DecodedImage]]] = deque()
        for start in range(0, len(paths), num_files):
            if len(waiting) >= num_waiting:
                yield from waiting.popleft().result()
            waiting.append(pool.submit(decode, paths[start : start + num_files]))
        while waiting:
            yield from waiting.popleft().result()


@final
class _Helper:
    """One helper process."""

    def __init__(self) -> None:
        command = [sys.executable, "-P", "-m", "hpsearch.data.images.image_decoding"]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        except OSError as error:
            raise DataError(
                f"no process can be started that decodes images: {error.strerror}", hint="give it more memory"
            ) from error

    def __enter__(self) -> _Helper:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()  # it has nothing to lose
        self._process.communicate()

    def decode(
        self, paths: Sequence[Path], image_size: tuple[int, int] | None, expected: tuple[int, int] | None
    ) -> list[DecodedImage]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        names = [os.fspath(path) for path in paths]
        request = json.dumps({"paths": names, "image_size": image_size, "expected": expected})
        try:
            self._process.stdin.write(request.encode() + b"\n")
            self._process.stdin.flush()
            return read_answer(self._process.stdout, len(paths))  # type: ignore[arg-type]
        except (EOFError, BrokenPipeError) as error:
            raise DataError(
                f"the process that decodes images ended (status {self._process.wait()}) at one of {paths[0]} .. "
                f"{paths[-1]}",
                hint="see whether memory ran out, and whether these images can be opened with another program",
            ) from error
