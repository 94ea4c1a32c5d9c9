"""One unit through reading, decoding, the model and the commit, without Ray."""

from __future__ import annotations

import io
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from segcore.errors import ErrorCode, ImageError, StorageError
from segcore.images import DecodeOptions
from segcore.models.base import ModelOptions
from segcore.output.parts import Parts
from segcore.sources import Sample, SourceOptions
from segcore.sources.units import Member, Unit, make_unit
from segcore.storage import Storage
from segcore.worker import unit_worker as worker
from segcore.worker.prefetch import ByteBudget, Prefetcher
from segcore.worker.unit_worker import ReadOptions, UnitWorker
from tests.support.fake_models import RAISES, BrightModel


def _png(height: int, width: int, first: tuple[int, int, int] = (0, 0, 0)) -> bytes:
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[2:6, 1:5, 1] = 200
    pixels[0, 0] = first
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _unit(tmp_path, contents: dict[str, bytes]) -> Unit:
    members = []
    for name, data in contents.items():
        uri = str(tmp_path / name)
        Storage().write(uri, data)
        info = Storage().stat(uri)
        members.append(Member(uri, uri, info.etag, info.size))
    return make_unit(
        "objects", stop=len(members), n_images=len(members), n_bytes=1, members=members
    )


def _worker(tmp_path, model: BrightModel, threads: int = 2, budget: int = 1 << 20) -> UnitWorker:
    reading = ReadOptions(Storage(), SourceOptions(), DecodeOptions(), threads, budget)
    parts = Parts(Storage(), str(tmp_path / "out"), "e", "r", "CC0-1.0", ((1, "bright"),))
    return UnitWorker(model, reading, parts)


def test_rows_keep_the_order_of_the_unit_and_batches_skip_failures(tmp_path):
    contents = {f"{i:02d}.png": _png(10 + i, 20) for i in range(9)}
    contents["03.png"] = b"\x89PNG\r\n\x1a\n"
    contents["05.png"] = _png(15, 20, RAISES)
    model = BrightModel(ModelOptions(batch_size=4))
    seen: list[tuple[int, int, int]] = []
    unit = _unit(tmp_path, contents)
    counts = _worker(tmp_path, model).segment(unit, lambda *counts: seen.append(counts))

    assert (counts.ok, counts.failed, counts.instances) == (7, 2, 7)
    rows = pq.read_table(tmp_path / "out" / "images" / f"{unit.unit}.parquet").to_pylist()
    assert [row["image_id"].rpartition("/")[2] for row in rows] == sorted(contents)
    assert [row["height"] for row in rows] == [10, 11, 12, None, 14, 15, 16, 17, 18]
    assert rows[5]["error_code"] == "model_error"
    assert model.batches[0] == 4  # 00 01 02 04: the broken one takes no place in a batch
    assert seen[-1] == (7, 2, 7)


def test_masks_for_another_canvas_are_the_models_error(tmp_path):
    class Wrong(BrightModel):
        def postprocess(self, raw, prepared):
            return super().postprocess([mask[:-1] for mask in raw], prepared)

    counts = _worker(tmp_path, Wrong()).segment(_unit(tmp_path, {"a.png": _png(9, 9)}))
    assert counts.failures == {"model_error": 1}


def test_storage_that_goes_away_commits_nothing(tmp_path, monkeypatch):
    unit = _unit(tmp_path, {"a.png": _png(9, 9), "b.png": _png(9, 9)})

    def dying(unit, storage, options, notes, without):
        yield Sample("a", "a", "", _png(9, 9))
        raise StorageError("the server is gone")

    monkeypatch.setattr(worker, "read_unit", dying)
    with pytest.raises(StorageError, match="gone"):
        _worker(tmp_path, BrightModel()).segment(unit)
    assert not (tmp_path / "out").exists()


def _stream(ahead: Prefetcher, samples, preprocess=lambda image: image.shape):
    return ahead.stream(samples, preprocess, DecodeOptions())


def test_reading_stays_within_the_window():
    taken = 0
    lock = threading.Lock()

    def samples():
        nonlocal taken
        for i in range(50):
            with lock:
                taken += 1
            yield Sample(str(i), "", "", _png(8, 8))

    stream = _stream(Prefetcher(threads=2, window=5, max_decoded_bytes=1 << 20), samples())
    for n, item in enumerate(stream):
        assert item.sample.image_id == str(n)
        assert item.sample.data is None  # encoded bytes are let go
        with lock:
            assert taken <= n + 1 + 5 + 1
    assert taken == 50


def test_leaving_early_stops_the_reader():
    before = threading.active_count()
    endless = (Sample(str(i), "", "", _png(8, 8)) for i in iter(int, 1))
    stream = _stream(Prefetcher(threads=2, window=3, max_decoded_bytes=1 << 20), endless)
    next(stream)
    stream.close()
    assert threading.active_count() == before


def test_an_image_larger_than_the_budget_still_passes_alone():
    ahead = Prefetcher(threads=3, window=6, max_decoded_bytes=100)
    found = list(_stream(ahead, [Sample(str(i), "", "", _png(30, 30)) for i in range(5)]))
    assert [item.value for item in found] == [(30, 30, 3)] * 5


def test_budget_bounds_what_is_held_together():
    budget, held, most = ByteBudget(100), 0, 0
    lock = threading.Lock()

    def use() -> None:
        nonlocal held, most
        for _ in range(50):
            with budget.hold(40):
                with lock:
                    held += 40
                    most = max(most, held)
                with lock:
                    held -= 40

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert held == 0
    assert 40 <= most <= 80


@pytest.mark.parametrize(
    ("error", "code"),
    [(ValueError("no"), ErrorCode.MODEL_ERROR), (MemoryError(), ErrorCode.OUT_OF_MEMORY)],
)
def test_a_preprocess_that_raises_fails_its_image_only(error, code):
    def preprocess(image):
        if image.shape[0] == 9:
            raise error
        return image.shape

    ahead = Prefetcher(threads=1, window=4, max_decoded_bytes=1 << 20)
    samples = [Sample(str(h), "", "", _png(h, 8)) for h in (8, 9, 10)]
    found = list(_stream(ahead, samples, preprocess))
    assert [item.error and item.error.code for item in found] == [None, code, None]


def test_an_error_of_the_source_is_passed_on():
    error = ImageError(ErrorCode.NOT_FOUND, "no such object")
    ahead = Prefetcher(threads=1, window=4, max_decoded_bytes=1 << 20)
    (item,) = _stream(ahead, [Sample("a", "a", "", None, error)])
    assert item.error is error


def test_units_at_once_give_what_they_give_one_after_another(tmp_path):
    contents = {f"{i:02d}.png": _png(10 + i, 20 + i % 3) for i in range(20)}
    contents["03.png"] = _png(15, 20, RAISES)
    units = [_unit(tmp_path / name, contents) for name in "abc"]
    one = _worker(tmp_path / "one", BrightModel())
    for unit in units:
        one.segment(unit)
    model = BrightModel(ModelOptions(batch_size=3))
    reading = ReadOptions(Storage(), SourceOptions(), DecodeOptions(), 2, 1 << 20)
    parts = Parts(Storage(), str(tmp_path / "all" / "out"), "e", "r", "CC0-1.0", ((1, "bright"),))
    together = UnitWorker(model, reading, parts, max_concurrent_batches=3)
    with ThreadPoolExecutor(3) as pool:
        assert [counts.ok for counts in pool.map(together.segment, units)] == [19] * 3
    files = [
        {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*.parquet")}
        for root in (tmp_path / "one" / "out", tmp_path / "all" / "out")
    ]
    assert len(files[0]) == 6
    assert files[0] == files[1]
