"""The pages of a TIFF as images of their own: which there are, and that they keep their pixels.

Files are written by hand with known pixels, or by Pillow; Pillow reads the same pages, too. When
this was written, 1,128 files of tifffile (colours, depths, compressions, predictors, strips, tiles,
planes, byte orders, BigTIFF) gave the 3,456 pages that tifffile reads, and refused 1,056.
"""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from segcore.errors import ErrorCode, ImageError
from segcore.images import (
    DecodeOptions,
    cut_page,
    decode_image,
    decode_with_warnings,
    find_pages,
)
from tests.support.image_files import mutations, save
from tests.support.tiff_files import Page, noise, tiff_file

ALL = DecodeOptions(pages="all")
LAYOUTS = [{}, {"rows_per_strip": 5}, {"tile": (16, 16)}]


def pages_of(data: bytes, max_pages: int = 1000) -> list[np.ndarray | ErrorCode]:
    """The pixels of each page, or why there are none."""
    decoded: list[np.ndarray | ErrorCode] = []
    for page in find_pages(data, max_pages):
        try:
            if page.error:
                raise page.error
            decoded.append(decode_image(cut_page(data, page.offset), ALL))
        except ImageError as error:
            decoded.append(error.code)
    return decoded


def as_rgb(samples: np.ndarray) -> np.ndarray:
    high = (samples >> 8 * (samples.dtype.itemsize - 1)).astype(np.uint8)
    return np.broadcast_to(high, (*high.shape[:2], 3))


@pytest.mark.parametrize(("order", "big"), list(itertools.product("<>", (False, True))))
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_each_layout_keeps_its_pixels(order: str, big: bool, dtype: type) -> None:
    for channels, planar, layout in itertools.product((1, 3), (False, True), LAYOUTS):
        pages = [Page(noise(seed, channels, dtype), planar, **layout) for seed in range(3)]
        decoded = pages_of(tiff_file(pages, order, big=big))
        assert len(decoded) == 3
        for page, pixels in zip(pages, decoded, strict=True):
            if isinstance(pixels, ErrorCode):  # as the same page alone in its file
                with pytest.raises(ImageError):
                    decode_image(tiff_file([page], order, big=big))
            else:
                assert np.array_equal(pixels, as_rgb(page.samples))


@pytest.mark.parametrize(
    ("mode", "compression"),
    [
        *itertools.product(("RGB", "L", "CMYK"), ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg")),
        *itertools.product(("P", "1"), ("raw", "packbits", "tiff_lzw")),
        *(("1", f"group{i}") for i in (3, 4)),
        ("RGBA", "tiff_lzw"),
        ("I;16", "tiff_adobe_deflate"),
    ],
)
def test_compressed_pages_are_those_of_pillow_and_of_a_file_of_their_own(mode, compression) -> None:
    images = []
    for seed in range(4):
        image = Image.fromarray(noise(seed).repeat(3, 0).repeat(3, 1))
        if mode == "I;16":
            image = Image.fromarray(noise(seed, 1, np.uint16)[..., 0])
        images.append(image if mode in ("RGB", "I;16") else image.convert(mode))
    data = save(images[0], "TIFF", save_all=True, append_images=images[1:], compression=compression)
    decoded = pages_of(data)
    assert len(decoded) == 4
    with Image.open(io.BytesIO(data)) as file:
        for number, (image, pixels) in enumerate(zip(images, decoded, strict=True)):
            alone = decode_image(save(image, "TIFF", compression=compression))
            assert np.array_equal(pixels, alone), number
            file.seek(number)
            if mode == "I;16":
                assert np.array_equal(pixels[..., 0], np.asarray(file) >> 8)
            else:
                difference = pixels.astype(int) - np.asarray(file.convert("RGB"))
                assert np.abs(difference).max() <= (mode == "CMYK"), number


def test_pages_are_turned_by_their_own_orientation() -> None:
    samples = noise(1)
    pages = [Page(samples, tags={274: (value,)}) for value in (1, 6, 3)]
    upright, turned, half = pages_of(tiff_file(pages))
    assert np.array_equal(turned, np.rot90(upright, -1))
    assert np.array_equal(half, upright[::-1, ::-1])


@pytest.mark.parametrize(("order", "big"), list(itertools.product("<>", (False, True))))
def test_reduced_copies_and_masks_are_no_pages(order: str, big: bool) -> None:
    for subfile, is_page in ((0, True), (1, False), (2, True), (4, False), (5, False)):
        samples = [noise(seed, 3, np.uint16) for seed in range(3)]
        pages = [Page(samples[0]), Page(samples[1], subfile=subfile), Page(samples[2])]
        data = tiff_file(pages, order, big=big)
        kept = [page for page in pages if is_page or page is not pages[1]]
        assert len(find_pages(data, 1000)) == len(kept)
        (warning,) = decode_with_warnings(data).warnings
        assert str(warning).startswith(f"pages_left_out: {len(kept) - 1} page")
        assert warning.n_left_out == len(kept) - 1
        assert decode_with_warnings(data, ALL).warnings == ()
    old_form = Page(noise(1), tags={255: (2,)})
    assert find_pages(tiff_file([Page(noise(0)), old_form], order, big=big), 9) == []


def test_a_thumbnail_first_leaves_its_page() -> None:
    thumbnail, page = Page(noise(0), subfile=1), Page(noise(1))
    (pixels,) = pages_of(tiff_file([thumbnail, page]))
    assert np.array_equal(pixels, page.samples)
    assert find_pages(tiff_file([thumbnail, thumbnail]), 9) == []  # refused as it is


def test_chains_that_lead_in_a_circle_or_nowhere_end() -> None:
    pages = [Page(noise(seed)) for seed in range(3)]
    data = tiff_file(pages)
    first = int.from_bytes(data[4:8], "little")
    assert len(pages_of(tiff_file(pages, last_next=first))) == 3
    assert pages_of(tiff_file(pages, last_next=1 << 30))[3:] == [ErrorCode.TRUNCATED]
    cut = data[: find_pages(data, 9)[2].offset + 1]  # the directory of the last page is gone
    assert [code for code in pages_of(cut) if isinstance(code, ErrorCode)] == [ErrorCode.TRUNCATED]
    assert len(pages_of(cut)) == 3
    (warning,) = decode_with_warnings(cut).warnings
    assert warning.n_left_out == 2  # as many as `all` has rows for


def test_pages_are_limited() -> None:
    data = tiff_file([Page(noise(seed)) for seed in range(5)])
    assert len(pages_of(data, 5)) == 5
    found = find_pages(data, 3)
    assert [page.number for page in found] == [1, 2, 3, 4]
    assert found[-1].error.code == ErrorCode.TOO_MANY_PAGES
    assert "decode.max_pages" in found[-1].error.message


def test_a_bad_page_fails_alone() -> None:
    good = Page(noise(1))
    beyond = {273: (1 << 30,)}
    faults = {
        "pixels behind the end": (Page(noise(2), tags=beyond), ErrorCode.TRUNCATED),
        "no pixels": (Page(noise(2), tags={273: (), 279: ()}), ErrorCode.CORRUPT),
        "no size": (Page(noise(2), tags={256: (0,)}), ErrorCode.CORRUPT),
        "floats": (Page(noise(2), tags={339: (3,)}), ErrorCode.UNSUPPORTED_FORMAT),
        "unknown compression": (Page(noise(2), tags={259: (7777,)}), ErrorCode.UNSUPPORTED_FORMAT),
        "old JPEG": (Page(noise(2), tags={259: (6,)}), ErrorCode.UNSUPPORTED_FORMAT),
        "a bomb": (Page(noise(2), tags={256: (1 << 20,), 257: (1 << 20,)}), "too_many_pixels"),
    }
    for name, (bad, code) in faults.items():
        for position in range(1, 3):
            pages = [good, good]
            pages.insert(position, bad)
            decoded = pages_of(tiff_file(pages))
            assert decoded.pop(position) == code, name
            assert all(np.array_equal(pixels, good.samples) for pixels in decoded), name
    first = pages_of(tiff_file([faults["no pixels"][0], good]))
    assert first[0] == ErrorCode.CORRUPT
    assert np.array_equal(first[1], good.samples)


def test_sizes_of_uncompressed_strips_are_not_believed() -> None:
    page = noise(1)
    for counts in ((0,), (1,), (1 << 31,)):
        data = tiff_file([Page(noise(0)), Page(page, tags={279: counts}), Page(noise(2))])
        assert np.array_equal(pages_of(data)[1], page)


def test_tiles_may_share_their_bytes_but_not_grow() -> None:
    blank = np.zeros((64, 64, 3), np.uint8)
    shared = Page(blank, tile=(16, 16), tags={324: (8,) * 16})
    data = tiff_file([Page(np.full((16, 16, 3), 7, np.uint8)), shared])
    small = cut_page(data, find_pages(data, 9)[1].offset)
    assert len(small) < 2000
    assert (decode_image(small, ALL) == 7).all()
    n = 60_000  # strips, each of nearly the whole file
    many = {259: (5,), 278: (1,), 273: tuple(range(8, 8 + n)), 279: (1 << 30,) * n}
    data = tiff_file([Page(noise(0)), Page(noise(1), tags=many)])
    assert pages_of(data)[1] == ErrorCode.CORRUPT


def test_overlapping_directories_take_linear_time() -> None:
    data = bytearray(b"II*\0" + (8).to_bytes(4, "little"))
    n_entries = 5460  # 65,520 bytes
    entry = b"\xfe\xff\x01\0\x01\0\0\0\0\0\0\0"
    body = bytearray(n_entries.to_bytes(2, "little") + entry * n_entries)
    data += body
    # Each next directory begins 12 bytes later, in the entries of the first.
    for step in range(3000):
        place = 8 + 12 * step
        data[place : place + 2] = n_entries.to_bytes(2, "little")
        end = place + 2 + 12 * n_entries
        data += bytes(max(0, end + 4 - len(data)))
        data[end : end + 4] = (place + 12).to_bytes(4, "little")
    found = find_pages(bytes(data), 100_000)
    assert found[-1].error is not None
    assert len(found) < 20  # each takes time in proportion to the whole file


def test_what_is_no_part_of_a_page_is_not_copied() -> None:
    profile = {65001: tuple(range(60_000)), 65002: tuple(range(60_000)) * 10}
    pages = [Page(noise(seed), tags=profile) for seed in range(3)]
    data = tiff_file(pages)
    cut = cut_page(data, find_pages(data, 9)[1].offset)
    assert len(cut) < 130_000  # the tag of more than a megabyte is left out
    assert np.array_equal(decode_image(cut, ALL), pages[1].samples)


@pytest.mark.slow
def test_damaged_files_raise_nothing_else() -> None:
    files = {
        "lzw": save(noise(0), "TIFF", save_all=True, append_images=[Image.fromarray(noise(1))] * 2,
                    compression="tiff_lzw"),
        "tiles": tiff_file([Page(noise(seed), tile=(16, 16)) for seed in range(3)], ">"),
        "planes": tiff_file([Page(noise(seed), True) for seed in range(3)], big=True),
    }  # fmt: skip
    for _, data in mutations(files, 150):
        pages_of(data)
