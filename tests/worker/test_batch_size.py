"""The batches that a worker finds to fit when it starts."""

from __future__ import annotations

import pytest
import torch

from segcore.errors import ClusterError
from segcore.models.base import ModelOptions
from segcore.models.registry import load_model
from segcore.worker.batch_size import fit_batch_size
from segcore.worker.batching import DeviceLost
from tests.support.fake_models import BrightModel


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    """In which other processes may give memory back: see the tests of batching."""
    monkeypatch.setattr("segcore.worker.batching.time.sleep", lambda seconds: None)


class LimitedModel(BrightModel):
    """Has memory for so many images in all batches at once, and always takes it for full ones."""

    def __init__(self, fits: int, batch_size: int) -> None:
        super().__init__(ModelOptions(batch_size=batch_size))
        self.fits = fits
        self.shapes: set[tuple[int, ...]] = set()

    def forward(self, prepared):
        self.shapes |= {item.image.shape for item in prepared}
        if self.batch_size > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().forward(prepared)


@pytest.mark.parametrize(("fits", "expected"), [(100, 32), (32, 32), (31, 16), (3, 2), (1, 1)])
def test_the_largest_half_that_fits(fits, expected):
    model = LimitedModel(fits, 32)
    fit_batch_size(model, 2)
    assert model.batch_size == expected
    assert model.shapes == {(1024, 1024, 3)}


def test_the_largest_canvas_is_tried():
    model = LimitedModel(8, 4)
    model.info.parameters["imgsz"] = 320
    fit_batch_size(model, 1)
    assert model.shapes == {(320, 320, 3)}


def test_a_gpu_without_room_for_one_image_is_said():
    with pytest.raises(ClusterError, match="single image of 1024 x 1024 pixels") as caught:
        fit_batch_size(LimitedModel(0, 4), 2)
    assert "ray.gpus_per_actor" in caught.value.hint


def test_a_broken_device_is_not_taken_for_one_that_is_full(monkeypatch):
    model = BrightModel()

    def forward(prepared):
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(model, "forward", forward)
    with pytest.raises(DeviceLost):
        fit_batch_size(model, 1)


def test_other_errors_are_left_to_the_images(monkeypatch):
    model = BrightModel()
    monkeypatch.setattr(model, "postprocess", lambda raw, prepared: 1 / 0)
    fit_batch_size(model, 1)
    assert model.batch_size == 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_a_share_of_the_memory_of_a_gpu():
    total = torch.cuda.get_device_properties(0).total_memory
    try:
        torch.cuda.set_per_process_memory_fraction(min(1.0, 1.5e9 / total))
        options = ModelOptions(device="cuda", batch_size=1024, imgsz=640, shape="square")
        model = load_model("nuclei-yolo11n", options)
        fit_batch_size(model, 2)
        assert 1 <= model.batch_size < 1024
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
