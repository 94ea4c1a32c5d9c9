"""Small archives for tests: real images, tars and Parquet files, on disk or S3."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Mapping
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from segcore.sources import Sample, Source, SourceOptions, open_source, read_unit
from segcore.sources.units import UnitLimits
from segcore.storage import Storage


def image_bytes(seed: int = 0, extension: str = "png") -> bytes:
    """A small image that is a function of its seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 9, 3), np.uint8)
    encoded, data = cv2.imencode("." + extension, pixels)
    assert encoded
    return data.tobytes()


def tar_bytes(members: Iterable[tuple[str, bytes] | tarfile.TarInfo], **options: Any) -> bytes:
    """A tar of (name, content) pairs; a TarInfo is a member without content."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", **options) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            archive.addfile(info, io.BytesIO(member[1]))
    return sink.getvalue()


def parquet_bytes(columns: Mapping[str, Any] | pa.Table, rows_per_group: int = 100) -> bytes:
    """A Parquet file of these columns."""
    table = columns if isinstance(columns, pa.Table) else pa.table(dict(columns))
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=rows_per_group)
    return sink.getvalue()


def open_and_read(
    uri: str, storage: Storage, limits: UnitLimits | None = None, **options: Any
) -> tuple[Source, list[Sample]]:
    """Open an archive, cut it into units, read all of them."""
    source_options = SourceOptions(**options)
    source = open_source(uri, source_options, storage)
    samples = [
        sample
        for unit in source.units(limits or UnitLimits())
        for sample in read_unit(unit, storage, source_options)
    ]
    return source, samples


def codes(samples: Iterable[Sample]) -> dict[str, str]:
    """The error code of each sample that failed, by image id."""
    return {s.image_id: str(s.error.code) for s in samples if s.error is not None}
