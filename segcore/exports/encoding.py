"""Encoding images in this process or in several, in order and with bounded memory."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice

import cv2

from segcore.errors import SegcoreError
from segcore.exports.formats.base import Encoded, ExportImage, Format

_MASKS_IN_A_BATCH = 2000
_PICTURE_BYTES_IN_A_BATCH = 32 << 20
_BATCHES_AHEAD = 2  # for each process


def encode_images(
    form: Format, images: Iterator[ExportImage], workers: int
) -> Iterator[tuple[ExportImage, Encoded]]:
    """Each image, without its picture, and what `form` makes of it.

    Raises:
        SegcoreError: A process died, as where memory ran out.
    """
    if workers <= 1:
        for image in images:
            yield image, form.encode(image)
        return
    context = multiprocessing.get_context("spawn")  # a fork would lack the threads of Arrow
    with ProcessPoolExecutor(workers, context, _start, (form,)) as pool:
        pending: deque[tuple[list[ExportImage], Future[list[Encoded]]]] = deque()
        batches = _batches(images)
        try:
            while True:
                for batch in islice(batches, workers * _BATCHES_AHEAD - len(pending)):
                    pending.append((batch, pool.submit(_encode_batch, batch)))
                if not pending:
                    return
                batch, future = pending.popleft()
                yield from zip(batch, future.result(), strict=True)
        except BrokenProcessPool:
            raise SegcoreError(
                "A process that converts masks died, perhaps because memory ran out.",
                "Rerun the same command; --workers 1 takes the least memory.",
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _batches(images: Iterator[ExportImage]) -> Iterator[list[ExportImage]]:
    batch: list[ExportImage] = []
    n_masks = n_bytes = 0
    for image in images:
        batch.append(image)
        n_masks += 10 + len(image.counts)
        n_bytes += len(image.picture or b"")
        if n_masks >= _MASKS_IN_A_BATCH or n_bytes >= _PICTURE_BYTES_IN_A_BATCH:
            yield batch
            batch, n_masks, n_bytes = [], 0, 0
    if batch:
        yield batch


_form: Format


def _start(form: Format) -> None:
    global _form
    _form = form
    cv2.setNumThreads(1)


def _encode_batch(images: list[ExportImage]) -> list[Encoded]:
    return [_form.encode(image) for image in images]
