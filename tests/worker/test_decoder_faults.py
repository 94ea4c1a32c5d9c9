"""What a decoder raises: damage is the image's, memory that ran out and our own faults are not."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from segcore.errors import ErrorCode
from segcore.images import DecodeOptions
from segcore.images import decoding as decoding_module
from segcore.sources import Sample
from segcore.worker.prefetch import Prefetcher
from segcore.worker.preprocessing import PreparedSample
from tests.support.image_files import save

PICTURE = np.random.default_rng(0).integers(0, 256, (13, 17, 3), np.uint8)


def _prepare(data: bytes, options: DecodeOptions | None = None) -> PreparedSample:
    prefetcher = Prefetcher(threads=1, window=1, max_decoded_bytes=1 << 20)
    return prefetcher.prepare(Sample("a", "", "", data), lambda i: i, options or DecodeOptions())


@pytest.mark.parametrize("error", [TypeError("no"), AttributeError("no"), KeyError("no")])
def test_a_fault_of_our_own_is_an_internal_error(monkeypatch, caplog, error) -> None:
    def fail(*args):
        raise error

    monkeypatch.setattr(decoding_module, "apply_orientation", fail)
    with caplog.at_level(logging.ERROR):
        prepared = _prepare(save(PICTURE, "PNG"))
    assert prepared.error.code == ErrorCode.INTERNAL_ERROR
    assert type(error).__name__ in prepared.error.message
    (record,) = caplog.records
    assert "Traceback" in record.traceback


@pytest.mark.parametrize(
    "error", [MemoryError(), ValueError("Insufficient memory (case 4)"), OSError("out of memory")]
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_memory_that_runs_out_in_a_decoder_is_no_damage(monkeypatch, kind: str, error) -> None:
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("simplejpeg.decode_jpeg", fail)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    monkeypatch.setattr("PIL.WebPImagePlugin.WebPImageFile.load", fail)
    monkeypatch.setattr("PIL.TiffImagePlugin.TiffImageFile.load", fail)
    for options in (DecodeOptions(), DecodeOptions(strict=False)):
        assert _prepare(save(PICTURE, kind), options).error.code == ErrorCode.OUT_OF_MEMORY
