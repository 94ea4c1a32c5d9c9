"""Units that a `UnitReader` reads, in one piece."""

from __future__ import annotations

from collections.abc import Generator

from segcore.worker.preprocessing import PreparedSample
from segcore.worker.unit_worker import Remarks


def read_whole(
    reading: Generator[PreparedSample, None, Remarks],
) -> tuple[list[PreparedSample], Remarks]:
    """All images, and the remarks at their end."""
    images = []
    while True:
        try:
            images.append(next(reading))
        except StopIteration as end:
            return images, end.value
