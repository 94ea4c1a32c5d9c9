"""segcore bench feed: the pixels that reach the model, and how the steady state is found."""

from __future__ import annotations

import json

import pytest

from segcore.bench import feed
from segcore.bench.feed import CpuSampler, summarize_batches
from segcore.bench.images import write_synthetic
from segcore.errors import SegcoreError
from segcore.storage import Storage
from tests.support.commands import call_segcore


class OneCore(CpuSampler):
    """As if one core had been busy all the time."""

    def cpu_seconds(self, start, end):
        return end - start


def test_the_steady_state_leaves_out_the_start_and_what_only_tried_the_memory():
    tried = [(0.0, 32, 999), (0.0, 32, 999)]
    batches = [(10.0 + i, 32, i) for i in range(5)] + [(15.0, 16, 5)]
    cost = summarize_batches([*batches, *tried], 5 * 32 + 16, OneCore(), "pool")
    assert cost.images_per_s == 32.0  # 160 images in the 5 s before the last batch
    assert cost.cpu_ms == pytest.approx(1e3 / 32)
    assert cost.checksum == 15
    assert cost.batch_fill == pytest.approx(176 / (6 * 32), abs=1e-3)


def test_the_system_tells_cpu_time():
    with CpuSampler() as sampler:
        end = feed.time.time() + 1.2
        while feed.time.time() < end:
            pass
    cpu_s = sampler.cpu_seconds(end - 1.2, end)
    assert cpu_s is None or cpu_s > 0.1


@pytest.mark.slow
def test_decoding_alone_counts_each_image_once(tmp_path, monkeypatch):
    write_synthetic(Storage(), str(tmp_path), (64, 48), 40, 8)
    units = feed._archive_units(str(tmp_path))
    assert len(units) == 5
    whole = feed._decode_units(units)[1]
    assert whole == sum(feed._decode_units([unit])[1] for unit in units) > 0


@pytest.mark.slow
def test_other_pixels_are_an_error(monkeypatch):
    decoding = feed.DecodingCost(1.0, 1.0, checksum=1)
    cost = feed.FeedCost(1.0, 1.0, checksum=2, batch_fill=1.0, pool="")
    monkeypatch.setattr(feed, "_decode_alone", lambda archive, images: decoding)
    monkeypatch.setattr(feed, "_feed", lambda *args: cost)
    with pytest.raises(SegcoreError, match="Other pixels reached the model"):
        feed.bench_feed(64, "64x48")


@pytest.mark.ray
@pytest.mark.faults
def test_a_whole_measurement():
    done = call_segcore("bench", "feed", "--images", "96", "--size", "64x48", "--json",
                        "--unit-images", "40")  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["decoding"]["checksum"] == report["feed"]["checksum"] > 0
    assert report["feed"]["pool"].startswith("1 actor with 1 CPU and 1 GPU (cuda) and ")
    assert report["speed_ratio"] > 0
