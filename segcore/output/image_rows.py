"""The images of an edition with their instances, in the order of the tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segcore.errors import StorageError, UsageError
from segcore.output.results import Results
from segcore.output.schema import INSTANCES_SCHEMA
from segcore.text import plural

_IMAGE_COLUMNS = ("image_id", "n_instances")


@dataclass(frozen=True)
class ImageRecord:
    """What the `images` table says of one image, see `IMAGES_SCHEMA`."""

    image_id: str
    uri: str
    etag: str
    shard: str
    unit: str
    width: int | None
    height: int | None
    status: str
    error_code: str | None
    error_message: str | None
    n_instances: int
    page: int | None

    @property
    def key(self) -> str:
        """The name in its shard; for a loose image, its URI."""
        return self.image_id.removeprefix(f"{self.shard}#") if self.shard else self.image_id


RECORD_COLUMNS = tuple(ImageRecord.__dataclass_fields__)


def to_records(images: pa.Table) -> list[ImageRecord]:
    """The rows of an `images` table that has the columns `RECORD_COLUMNS`."""
    return [ImageRecord(**row) for row in images.select(list(RECORD_COLUMNS)).to_pylist()]


@dataclass(frozen=True)
class UnitRows:
    """The images of one unit, and the instances of each.

    Attributes:
        images: With at least the columns image_id and n_instances.
        instances: In the order of the images.
        offsets: (images + 1,) int64: image i has the instances [offsets[i], offsets[i + 1]).
    """

    unit: str
    images: pa.Table
    instances: pa.Table
    offsets: np.ndarray

    def instances_of(self, row: int) -> pa.Table:
        """The instances of the image in this row."""
        start, stop = self.offsets[row : row + 2].tolist()
        return self.instances.slice(start, stop - start)


def read_unit_rows(
    results: Results,
    unit: str,
    image_columns: Sequence[str] = RECORD_COLUMNS,
    instance_columns: Sequence[str] = tuple(INSTANCES_SCHEMA.names),
) -> UnitRows:
    """The rows of one unit in both tables.

    Raises:
        StorageError: The two tables do not fit together.
        UsageError: A part is not a table of this schema.
    """
    image_names = tuple(dict.fromkeys((*image_columns, *_IMAGE_COLUMNS)))
    instance_names = tuple(dict.fromkeys((*instance_columns, "image_id")))
    images = results.read_rows("images", unit, image_names)
    instances = results.read_rows("instances", unit, instance_names)
    n_instances = images["n_instances"].to_numpy().astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(n_instances)])
    owners = images["image_id"].take(pa.array(np.repeat(np.arange(len(n_instances)), n_instances)))
    if len(owners) != instances.num_rows or not pc.all(
        pc.equal(owners, instances["image_id"]), min_count=0
    ):
        raise StorageError(
            f"The parts of unit {unit} in {results.prefix} do not fit together.",
            "`segcore verify` says what is wrong.",
        )
    return UnitRows(unit, images, instances, offsets)


def describe_unread(named: Sequence[str], n_units: int) -> list[str]:
    """Sentences about units that cannot be read and whose images are left out.

    Args:
        named: ``unit: what is wrong``, of some of them.
        n_units: How many there are.
    """
    sentences = [f"A unit cannot be read and is left out: {text}" for text in named]
    if more := n_units - len(named):
        sentences.append(
            f"{plural(more, 'more unit')} cannot be read; `segcore verify` names them."
        )
    return sentences


def read_instances(
    results: Results, records: Iterable[ImageRecord]
) -> Iterator[tuple[ImageRecord, pa.Table, str]]:
    """The instances of some images, unit by unit; only these units are read.

    Where a unit cannot be read, its images come with no instances and a sentence about it.
    """
    by_unit: dict[str, list[ImageRecord]] = defaultdict(list)
    for record in records:
        by_unit[record.unit].append(record)
    for unit, of_unit in by_unit.items():
        try:
            rows = read_unit_rows(results, unit, ("image_id", "n_instances"))
        except (StorageError, UsageError) as error:
            yield from (
                (record, INSTANCES_SCHEMA.empty_table(), error.message) for record in of_unit
            )
            continue
        places = {name: row for row, name in enumerate(rows.images["image_id"].to_pylist())}
        for record in of_unit:
            of_image = rows.instances_of(places[record.image_id])
            # Copied: a slice would keep the masks of the whole unit in memory.
            yield record, of_image.take(pa.array(np.arange(of_image.num_rows))), ""
