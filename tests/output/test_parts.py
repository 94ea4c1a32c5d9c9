"""The commit of a unit: tables that other tools open, all or nothing, the same bytes each time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import duckdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from pycocotools import mask as coco_mask

from segcore.errors import ErrorCode, ImageError, StorageError
from segcore.instances import Instances
from segcore.output.part_counts import PartCounts
from segcore.output.parts import Parts
from segcore.output.schema import IMAGES_SCHEMA, INSTANCES_SCHEMA
from segcore.output.tables import ImageResult
from segcore.sources.units import Member, Unit, make_unit
from segcore.storage import ObjectInfo, Storage


def _unit(*names: str) -> Unit:
    members = [Member(name, name, f"etag-{name}", 10) for name in names]
    return make_unit(
        "objects", stop=len(members), n_images=len(members), n_bytes=10, members=members
    )


def _instances(n: int, height: int = 20, width: int = 30) -> Instances:
    masks = np.zeros((height, width, n), np.uint8, order="F")
    for i in range(n):
        masks[i : i + 5, 2 * i : 2 * i + 4, i] = 1
    rles = coco_mask.encode(masks)
    return Instances(
        height=height,
        width=width,
        boxes=np.array([[2 * i, i, 4, 5] for i in range(n)], np.float32).reshape(n, 4),
        scores=np.linspace(0.9, 0.3, n).astype(np.float32),
        category_ids=np.array([1 + i % 2 for i in range(n)], np.int32),
        areas=np.array([20] * n, np.int64),
        counts=[rle["counts"] for rle in rles],
    )


def _results() -> list[ImageResult]:
    return [
        ImageResult("a", "a", "1", 30, 20, _instances(3)),
        ImageResult("b", "b", "2", error=ImageError(ErrorCode.CORRUPT, "no pixels")),
        ImageResult("c", "c", "3", 30, 20, Instances.empty(20, 30)),
        ImageResult("d", "d", "4", 30, 20, _instances(2)),
    ]


@pytest.fixture
def parts(tmp_path) -> Parts:
    return Parts(
        storage=Storage(),
        prefix=str(tmp_path / "out" / "edition"),
        edition="edition",
        run="0123456789abcdef",
        licence="CC0-1.0",
        categories=((1, "round"), (2, "square")),
    )


def test_tables_open_in_duckdb_and_pandas(parts):
    unit = _unit("a", "b", "c", "d")
    counts = parts.commit(unit, _results(), {"duplicate_names": 1, "ignored_members": 0})
    assert counts == PartCounts(unit.unit, 3, 1, 5, {"corrupt": 1}, {"duplicate_names": 1})
    rows = duckdb.sql(
        f"select image_id, count(*) n, sum(area) area from "
        f"read_parquet('{parts.prefix}/instances/*.parquet') group by 1 order by 1"
    ).fetchall()
    assert rows == [("a", 3, 60), ("d", 2, 40)]
    images = pd.read_parquet(f"{parts.prefix}/images/")
    assert list(images["image_id"]) == ["a", "b", "c", "d"]
    assert list(images["status"]) == ["ok", "failed", "ok", "ok"]
    assert list(images["n_instances"]) == [3, 0, 0, 2]
    assert list(images["error_code"].dropna()) == ["corrupt"]
    assert set(images["unit"]) == {unit.unit}


def test_masks_decode_to_the_canvas(parts):
    parts.commit(_unit("a", "b", "c", "d"), _results())
    rows = pd.read_parquet(f"{parts.prefix}/instances/")
    for row in rows.itertuples():
        mask = coco_mask.decode({"size": [row.height, row.width], "counts": row.counts.encode()})
        assert mask.shape == (20, 30)
        assert mask.sum() == row.area
    assert list(rows["instance_index"]) == [0, 1, 2, 0, 1]
    assert list(rows["category"][:3]) == ["round", "square", "round"]
    assert list(rows.loc[1, ["bbox_x", "bbox_y", "bbox_w", "bbox_h"]]) == [2, 1, 4, 5]


def test_files_hold_schema_and_metadata(parts):
    unit = _unit("a", "b", "c", "d")
    parts.commit(unit, _results())
    for table, schema in (("images", IMAGES_SCHEMA), ("instances", INSTANCES_SCHEMA)):
        stored = pq.read_schema(parts.layout.part(table, unit.unit))
        assert stored.equals(schema)
        metadata = {key.decode(): value.decode() for key, value in stored.metadata.items()}
        assert metadata["segcore.schema_version"] == "2"
        assert metadata["segcore.edition"] == "edition"
        assert metadata["segcore.run"] == "0123456789abcdef"
        assert metadata["segcore.licence"] == "CC0-1.0"
        column = pq.ParquetFile(parts.layout.part(table, unit.unit)).metadata.row_group(0).column(0)
        assert column.compression == "ZSTD"


def test_the_same_results_give_the_same_bytes(parts):
    unit = _unit("a", "b", "c", "d")
    uris = [parts.layout.part(table, unit.unit) for table in ("images", "instances")]
    parts.commit(unit, _results())
    first = [Storage().read(uri) for uri in uris]
    parts.commit(unit, _results())
    assert [Storage().read(uri) for uri in uris] == first


def test_a_unit_without_any_instance_has_both_parts(parts):
    unit = _unit("b")
    parts.commit(unit, [_results()[1]])
    assert len(pd.read_parquet(f"{parts.prefix}/instances/")) == 0
    assert parts.committed_units() == {unit.unit}


class _FailingStorage(Storage):
    """Refuses to write objects in this folder."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder

    def write(self, uri: str, data: bytes) -> ObjectInfo:
        if self.folder in uri:
            raise StorageError("the disk is full")
        return super().write(uri, data)


@pytest.mark.parametrize("folder", ["/images/", "/instances/"])
def test_a_unit_is_not_done_before_its_images_part(parts, folder):
    failing = replace(parts, storage=_FailingStorage(folder))
    with pytest.raises(StorageError):
        failing.commit(_unit("a", "b", "c", "d"), _results())
    assert parts.committed_units() == set()


def test_counts_come_from_the_footers(parts):
    units = [_unit("a", "b", "c", "d"), _unit("e")]
    written = [parts.commit(units[0], _results()), parts.commit(units[1], [_results()[2]])]
    assert list(parts.read_counts([unit.unit for unit in units])) == written


def test_a_foreign_or_broken_part_is_named(parts):
    unit = _unit("a")
    Storage().write(parts.layout.part("images", unit.unit), b"PAR1 but not really PAR1")
    with pytest.raises(StorageError, match=unit.unit):
        list(parts.read_counts([unit.unit]))
    pd.DataFrame({"x": [1]}).to_parquet(parts.layout.part("images", unit.unit))
    with pytest.raises(StorageError, match=unit.unit):
        list(parts.read_counts([unit.unit]))


def test_stale_parts_and_orphans_are_deleted_and_nothing_else(parts):
    kept, stale, orphan = _unit("a"), _unit("b"), _unit("c")
    parts.commit(kept, _results()[:1])
    parts.commit(stale, _results()[1:2])
    Storage().write(parts.layout.part("instances", orphan.unit), b"left by a driver that died")
    Storage().write(f"{parts.prefix}/images/readme.txt", b"of the user")
    assert parts.delete_all_but({kept.unit: 0}) == 1
    remaining = {info.uri.removeprefix(parts.prefix) for info in Storage().list(parts.prefix)}
    assert remaining == {
        f"/images/{kept.unit}.parquet",
        f"/instances/{kept.unit}.parquet",
        "/images/readme.txt",
    }


def test_an_unknown_category_is_not_written_silently(parts):
    with pytest.raises(KeyError):
        replace(parts, categories=((1, "round"),)).commit(_unit("a"), _results()[:1])


def test_undecodable_file_names_are_kept_readable(parts):
    unit = _unit("a")
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    parts.commit(unit, [ImageResult(name, name, "", error=ImageError(ErrorCode.EMPTY, "empty"))])
    images = pd.read_parquet(f"{parts.prefix}/images/")
    assert images["image_id"][0].startswith("caf\\udce9")


def _recovered() -> list[ImageResult]:
    """`_results`, with the failed image ok."""
    ok = ImageResult("b", "b", "2", 30, 20, _instances(1))
    return [ok if result.image_id == "b" else result for result in _results()]


class _DyingStorage(Storage):
    """Changes nothing any more after a number of changes."""

    def __init__(self, n_changes: int) -> None:
        super().__init__()
        self.n_left = n_changes

    def _count(self) -> None:
        self.n_left -= 1
        if self.n_left < 0:
            raise StorageError("dead")

    def write(self, uri: str, data: bytes) -> ObjectInfo:
        self._count()
        return super().write(uri, data)

    def delete_all(self, uris: Iterable[str]) -> None:
        for uri in uris:
            self._count()
            super().delete(uri)


@pytest.mark.parametrize("n_changes", range(7))
def test_whoever_reads_while_a_part_is_made_again_finds_a_whole_one(parts, n_changes):
    """Two writes and four deletions, and a process that dies between any of them."""
    unit = _unit("a", "b", "c", "d")
    old, new = parts.commit(unit, _results()), PartCounts.of_results(unit.unit, _recovered(), {})
    parts.commit(unit, _results())
    dying = replace(parts, storage=_DyingStorage(n_changes))
    for _ in range(2):  # a first retry, and one of the part that was made by it
        try:
            dying.replace(unit, _recovered())
        except StorageError:
            break
    generations = parts.list_generations()
    assert generations.keys() == {unit.unit}
    listed = parts.as_listed(generations)
    (counts,) = listed.read_counts([unit.unit])
    assert counts == (old if n_changes < 2 else new)
    images, instances = listed.read_tables(unit.unit)
    assert (images.num_rows, instances.num_rows) == (4, counts.instances)

    assert parts.replace(unit, _recovered()) == new  # of a worker that knows no generation but 0
    parts.delete_all_but(parts.list_generations())
    generation = parts.list_generations()[unit.unit]
    names = {info.uri.removeprefix(f"{parts.prefix}/") for info in Storage().list(parts.prefix)}
    file = f"{unit.unit}-g{generation}.parquet"
    assert names == {f"images/{file}", f"instances/{file}"}


def test_each_retry_is_the_next_generation_of_the_unit(parts):
    unit = _unit("a", "b", "c", "d")
    parts.commit(unit, _results())
    for generation, results in enumerate([_recovered(), _results(), _recovered()], start=1):
        parts.replace(unit, results)
        assert parts.list_generations() == {unit.unit: generation}
        assert parts.committed_units() == {unit.unit}
        parts = parts.as_listed(parts.list_generations())
    assert len(list(Storage().list(parts.prefix))) == 2
