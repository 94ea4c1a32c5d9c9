"""What a person should know of an image: which warning for which bytes, and none for others."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from segcore.images import DecodeOptions, decode_with_warnings
from tests.support.image_files import pixels, save
from tests.support.tiff_files import Page, noise, tiff_file

PICTURE = Image.fromarray(noise(1))
OTHER = Image.fromarray(255 - np.asarray(PICTURE))


def warnings_of(data: bytes, **options) -> dict[str, str]:
    warnings = decode_with_warnings(data, DecodeOptions(**options)).warnings
    assert all(len(text) < 200 for _, text in warnings)
    return {str(code): text for code, text in warnings}


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "AVIF", "PNG"])
def test_frames_after_the_first_are_counted(kind: str) -> None:
    two = save(PICTURE, kind, save_all=True, append_images=[OTHER])
    three = save(PICTURE, kind, save_all=True, append_images=[OTHER, PICTURE])
    assert warnings_of(save(PICTURE, kind)) == {}
    assert warnings_of(two) == {"frames_left_out": "1 frame after the first is not read"}
    assert warnings_of(three) == {"frames_left_out": "2 frames after the first are not read"}


def test_pages_after_the_first_are_counted() -> None:
    for options in ({}, {"compression": "tiff_lzw"}, {"big_tiff": True}):
        data = save(PICTURE, "TIFF", save_all=True, append_images=[OTHER] * 4, **options)
        text = "4 pages after the first are not read; decode.pages: all reads every page"
        assert warnings_of(data) == {"pages_left_out": text}
        assert warnings_of(save(PICTURE, "TIFF", **options)) == {}


def test_a_small_part_of_a_wide_range_is_a_warning_unless_a_range_was_chosen() -> None:
    rng = np.random.default_rng(0)
    for top, is_narrow in ((4095, True), (8000, True), (9000, False), (65535, False), (1, False)):
        samples = rng.integers(0, top, (40, 50), np.uint16)
        files = [save(samples, "PNG"), save(samples, "TIFF", compression="tiff_lzw"),
                 tiff_file([Page(samples[..., None].repeat(3, 2))], ">")]  # fmt: skip
        for data in files:
            found = warnings_of(data)
            assert set(found) == ({"narrow_range"} if is_narrow else set()), top
            for wide_range in ("min_max", "percentile", (0, 4095)):
                assert warnings_of(data, wide_range=wide_range) == {}
    assert warnings_of(save(rng.integers(0, 9, (40, 50), np.uint8), "PNG")) == {}


def test_repaired_jpegs_have_a_warning() -> None:
    data = save(pixels(), "JPEG")
    tables = data.index(b"\xff\xc4")
    damaged = {
        "cut": data[:-300],
        "no end": data[:-2],
        "bytes in the header": data[:tables] + b"\x11\x22" + data[tables:],
    }
    for name, copy in damaged.items():
        assert set(warnings_of(copy, strict=False)) == {"repaired"}, name
    whole = decode_with_warnings(damaged["bytes in the header"], DecodeOptions(strict=False))
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(whole.pixels, np.asarray(image))
    assert warnings_of(data, strict=False) == {}
