"""Small fixed files of each kind, and the pixels that decoder version 2 gives.

If this fails, the same bytes give other pixels than before. Where that is wanted, `DECODER` in
segcore/images/decoding.py must rise, because existing results were computed with the old ones. The
files were drawn by the writers of tests/grid, whose readers agree with these pixels.
"""

from __future__ import annotations

import base64
import contextlib
import json
import zlib
from pathlib import Path

import numpy as np
import pytest

from segcore.errors import ErrorCode, ImageError
from segcore.images import DECODER, decode_image, decode_with_warnings

FILES = json.loads(Path(__file__).with_name("pixel_files.json").read_text())
# Of these, versions of the libraries may round colours differently.
ROUNDED = {"avif": 2, "heic": 2, "webp": 1}


def file_bytes(name: str) -> bytes:
    return base64.b64decode(FILES[name]["file"])


@pytest.mark.parametrize("name", FILES)
def test_the_same_bytes_give_the_same_pixels(name: str) -> None:
    if name.startswith("heic"):
        pytest.importorskip("pi_heif", reason="HEIC is an extra")
    assert DECODER == "segcore-images 2"
    stored = zlib.decompress(base64.b64decode(FILES[name]["pixels"]))
    expected = np.frombuffer(stored, np.uint8).reshape(FILES[name]["shape"]).astype(int)
    pixels = decode_image(file_bytes(name))
    assert pixels.shape == expected.shape
    assert np.abs(pixels - expected).max() <= ROUNDED.get(name.split()[0], 0)


def test_white_stays_white_in_wide_colours_of_jpeg_2000() -> None:
    assert (decode_image(file_bytes("jp2 16 bits"))[:5] == 255).all()


def test_heic_without_the_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pi_heif", None)
    with pytest.raises(ImageError, match=r"pip install 'segcore\[heic\]'") as caught:
        decode_image(file_bytes("heic turned"))
    assert caught.value.code == ErrorCode.UNSUPPORTED_FORMAT


def test_heic_cut_or_damaged_is_an_image_error() -> None:
    pytest.importorskip("pi_heif", reason="HEIC is an extra")
    data = file_bytes("heic two pictures")
    assert [str(w.code) for w in decode_with_warnings(data).warnings] == ["frames_left_out"]
    rng = np.random.default_rng(0)
    for stop in (20, 300, len(data) // 2, len(data) - 9):
        with pytest.raises(ImageError):
            decode_image(data[:stop])
    for _ in range(150):
        copy = bytearray(data)
        for at in rng.integers(0, len(data), 3):
            copy[at] = rng.integers(256)
        with contextlib.suppress(ImageError):
            assert decode_image(bytes(copy)).dtype == np.uint8
