"""One unit through reading, decoding, the model and the commit, without Ray."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pyarrow.parquet as pq
import pytest

from segcore.errors import StorageError
from segcore.images import DecodeOptions
from segcore.models.base import ModelOptions
from segcore.output.parts import Parts
from segcore.sources import Sample, SourceOptions
from segcore.storage import Storage
from segcore.worker import unit_worker
from segcore.worker.read_options import ReadOptions
from segcore.worker.unit_worker import UnitWorker
from tests.support.bright_images import boxed_png, unit_of_files
from tests.support.fake_models import RAISES, BrightModel


def _worker(tmp_path, model: BrightModel, max_concurrent_batches: int = 1) -> UnitWorker:
    read_options = ReadOptions(
        Storage(), SourceOptions(), DecodeOptions(), threads=2, max_decoded_bytes=1 << 20
    )
    parts = Parts(Storage(), str(tmp_path / "out"), "e", "r", "CC0-1.0", ((1, "bright"),))
    return UnitWorker(model, read_options, parts, max_concurrent_batches)


@pytest.mark.slow
def test_rows_keep_the_order_of_the_unit_and_batches_skip_failures(tmp_path):
    contents = {f"{i:02d}.png": boxed_png(10 + i, 20) for i in range(9)}
    contents["03.png"] = b"\x89PNG\r\n\x1a\n"
    contents["05.png"] = boxed_png(15, 20, RAISES)
    model = BrightModel(ModelOptions(batch_size=4))
    reports: list[tuple[int, int, int]] = []
    unit = unit_of_files(tmp_path, contents)
    counts = _worker(tmp_path, model).segment(unit, lambda *so_far: reports.append(so_far))

    assert (counts.ok, counts.failed, counts.instances) == (7, 2, 7)
    rows = pq.read_table(tmp_path / "out" / "images" / f"{unit.unit}.parquet").to_pylist()
    assert [row["image_id"].rpartition("/")[2] for row in rows] == sorted(contents)
    assert [row["height"] for row in rows] == [10, 11, 12, None, 14, 15, 16, 17, 18]
    assert rows[5]["error_code"] == "model_error"
    assert model.batches[0] == 4  # 00 01 02 04: the broken one takes no place in a batch
    assert reports[-1] == (7, 2, 7)


def test_masks_for_another_canvas_are_the_models_error(tmp_path):
    class CroppingModel(BrightModel):
        def postprocess(self, raw, prepared):
            return super().postprocess([mask[:-1] for mask in raw], prepared)

    unit = unit_of_files(tmp_path, {"a.png": boxed_png(9, 9)})
    counts = _worker(tmp_path, CroppingModel()).segment(unit)
    assert counts.failures == {"model_error": 1}


def test_storage_that_goes_away_commits_nothing(tmp_path, monkeypatch):
    unit = unit_of_files(tmp_path, {"a.png": boxed_png(9, 9), "b.png": boxed_png(9, 9)})

    def read_one_and_fail(unit, storage, options, notes, without):
        yield Sample("a", "a", "", boxed_png(9, 9))
        raise StorageError("the server is gone")

    monkeypatch.setattr(unit_worker, "read_unit", read_one_and_fail)
    with pytest.raises(StorageError, match="gone"):
        _worker(tmp_path, BrightModel()).segment(unit)
    assert not (tmp_path / "out").exists()


@pytest.mark.faults
def test_concurrent_units_give_what_they_give_one_after_another(tmp_path):
    contents = {f"{i:02d}.png": boxed_png(10 + i, 20 + i % 3) for i in range(20)}
    contents["03.png"] = boxed_png(15, 20, RAISES)
    units = [unit_of_files(tmp_path / name, contents) for name in "abc"]
    one_by_one = _worker(tmp_path / "one-by-one", BrightModel())
    for unit in units:
        one_by_one.segment(unit)
    model = BrightModel(ModelOptions(batch_size=3))
    concurrent = _worker(tmp_path / "concurrent", model, max_concurrent_batches=3)
    with ThreadPoolExecutor(3) as pool:
        assert [counts.ok for counts in pool.map(concurrent.segment, units)] == [19] * 3
    one_by_one_files, concurrent_files = (
        {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.parquet")}
        for root in (tmp_path / "one-by-one" / "out", tmp_path / "concurrent" / "out")
    )
    assert len(one_by_one_files) == 6
    assert one_by_one_files == concurrent_files
