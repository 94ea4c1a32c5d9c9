"""Images read and prepared ahead of the model."""

from __future__ import annotations

import threading
from typing import NamedTuple

import pytest

from segcore.errors import ErrorCode, ImageError
from segcore.images import DecodeOptions
from segcore.sources import Sample
from segcore.worker.prefetch import ByteBudget, Prefetcher
from tests.support.bright_images import boxed_png


def _stream(prefetcher: Prefetcher, samples, preprocess=lambda image: image.shape):
    return prefetcher.stream(samples, preprocess, DecodeOptions())


def test_reading_stays_within_the_window():
    n_read = 0
    lock = threading.Lock()

    def samples():
        nonlocal n_read
        for i in range(50):
            with lock:
                n_read += 1
            yield Sample(str(i), "", "", boxed_png(8, 8))

    stream = _stream(Prefetcher(threads=2, window=5, max_decoded_bytes=1 << 20), samples())
    for n, image in enumerate(stream):
        assert image.sample.image_id == str(n)
        assert image.sample.data is None  # encoded bytes are let go
        with lock:
            assert n_read <= n + 1 + 5 + 1
    assert n_read == 50


def test_leaving_early_stops_the_reader():
    threads_before = threading.active_count()
    endless = (Sample(str(i), "", "", boxed_png(8, 8)) for i in iter(int, 1))
    stream = _stream(Prefetcher(threads=2, window=3, max_decoded_bytes=1 << 20), endless)
    next(stream)
    stream.close()
    assert threading.active_count() == threads_before


def test_an_image_larger_than_the_budget_still_passes_alone():
    prefetcher = Prefetcher(threads=3, window=6, max_decoded_bytes=100)
    samples = [Sample(str(i), "", "", boxed_png(30, 30)) for i in range(5)]
    images = list(_stream(prefetcher, samples))
    assert [image.value for image in images] == [(30, 30, 3)] * 5


def test_the_budget_bounds_what_is_held_at_once():
    budget, held, max_held = ByteBudget(100), 0, 0
    lock = threading.Lock()

    def hold_and_release() -> None:
        nonlocal held, max_held
        for _ in range(50):
            with budget.hold(40):
                with lock:
                    held += 40
                    max_held = max(max_held, held)
                with lock:
                    held -= 40

    threads = [threading.Thread(target=hold_and_release) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert held == 0
    assert 40 <= max_held <= 80


@pytest.mark.parametrize(
    ("error", "code"),
    [(ValueError("no"), ErrorCode.MODEL_ERROR), (MemoryError(), ErrorCode.OUT_OF_MEMORY)],
)
def test_a_preprocess_that_raises_fails_its_image_only(error, code):
    def preprocess(image):
        if image.shape[0] == 9:
            raise error
        return image.shape

    prefetcher = Prefetcher(threads=1, window=4, max_decoded_bytes=1 << 20)
    samples = [Sample(str(height), "", "", boxed_png(height, 8)) for height in (8, 9, 10)]
    images = list(_stream(prefetcher, samples, preprocess))
    assert [image.error and image.error.code for image in images] == [None, code, None]


def test_an_error_of_the_source_is_passed_on():
    error = ImageError(ErrorCode.NOT_FOUND, "no such object")
    prefetcher = Prefetcher(threads=1, window=4, max_decoded_bytes=1 << 20)
    (image,) = _stream(prefetcher, [Sample("a", "a", "", None, error)])
    assert image.error is error


class _HalfPreprocess:
    """Sees images at half of their size, but no larger than 10 x 10."""

    def __call__(self, image, size=None):
        return image

    def content_size(self, height: int, width: int) -> tuple[int, int]:
        return min(height // 2, 10), min(width // 2, 10)


class _Resized(NamedTuple):
    seen_size: tuple[int, int]


def _resize(image):
    """The same as a function of a model that tells the size with its prepared image."""
    return _Resized(_HalfPreprocess().content_size(*image.shape[:2]))


@pytest.mark.parametrize(
    ("preprocess", "scale"),
    [(_HalfPreprocess(), "full"), (_HalfPreprocess(), "reduced"), (_resize, "full")],
)
def test_images_that_the_model_sees_much_smaller_have_a_warning(preprocess, scale) -> None:
    prefetcher = Prefetcher(threads=1, window=4, max_decoded_bytes=1 << 20)
    sizes = [(20, 20), (40, 40), (41, 20), (20, 41)]
    samples = [Sample(str(size), "", "", boxed_png(*size)) for size in sizes]
    images = list(prefetcher.stream(samples, preprocess, DecodeOptions(scale=scale)))
    assert [len(image.warnings) for image in images] == [0, 0, 1, 1]
    assert str(images[2].warnings[0]) == (
        "strongly_reduced: the model sees these 20 x 41 pixels as 10 x 10, so small objects are "
        "lost; cut such images into tiles"
    )


@pytest.mark.parametrize("seen_size", [None, (1,), ("wide", "high")])
def test_a_size_that_a_model_tells_wrongly_is_its_error(seen_size) -> None:
    prefetcher = Prefetcher(threads=1, window=4, max_decoded_bytes=1 << 20)
    sample = Sample("a", "", "", boxed_png(20, 20))
    image = prefetcher.prepare(sample, lambda image: _Resized(seen_size), DecodeOptions())
    assert image.error.code == ErrorCode.MODEL_ERROR
