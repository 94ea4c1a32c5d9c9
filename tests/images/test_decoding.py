"""Decoding real files of every kind, whole, cut and damaged."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from segcore.errors import ErrorCode, ImageError
from segcore.images import DecodeOptions, decode_image, probe
from tests.support.image_files import HEIGHT, WIDTH, corpus, mutations, pixels, save, tiny_tiff
from tests.support.paths import ROOT

pytestmark = pytest.mark.filterwarnings(r"ignore:::PIL\..*")  # pytest resets the filters of images

FILES = corpus()
RGB = pixels()
GREY = np.repeat(np.asarray(Image.fromarray(RGB).convert("L"))[..., None], 3, axis=2)


def refusal_code(data, options=None):
    """Code of the ImageError that decoding raises."""
    with pytest.raises(ImageError) as caught:
        decode_image(data, options)
    assert caught.value.message
    return caught.value.code


def decode_with_opencv(data):
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


@pytest.mark.parametrize("name", FILES)
def test_every_kind_decodes_to_rgb_of_its_header(name):
    image = decode_image(FILES[name])
    assert image.shape == (HEIGHT, WIDTH, 3)
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    assert image.flags.writeable
    assert probe(FILES[name]) == (name.split("_")[0], WIDTH, HEIGHT)


LOSSLESS = {
    "png": RGB,
    "png_grey": GREY,
    "png_palette": np.asarray(Image.fromarray(RGB).quantize(50).convert("RGB")),
    "png_1bit": np.asarray(Image.fromarray(RGB).convert("1").convert("RGB")),
    "png_16bit": GREY,
    "png_grey_alpha": GREY,
    "png_alpha": RGB,
    "webp_lossless": RGB,
    "webp_alpha": RGB,
    "webp_animated": RGB,
    "tiff": RGB,
    "tiff_16bit": GREY,
    "tiff_1bit": np.asarray(Image.fromarray(RGB).convert("1").convert("RGB")),
    "tiff_palette": np.asarray(Image.fromarray(RGB).quantize(50).convert("RGB")),
    "tiff_cmyk": RGB,
    "tiff_pages": RGB,
    "tiff_lzw": RGB,
    "tiff_deflate": RGB,
    "tiff_packbits": RGB,
    "bmp": RGB,
    "bmp_grey": GREY,
    "bmp_palette": np.asarray(Image.fromarray(RGB).quantize(50).convert("RGB")),
    "bmp_1bit": np.asarray(Image.fromarray(RGB).convert("1").convert("RGB")),
    "bmp_alpha": RGB,
    "bmp_runs": GREY // 32 * 32,
    "gif": np.asarray(Image.fromarray(RGB).quantize(50).convert("RGB")),
    "gif_animated": np.asarray(Image.fromarray(RGB).quantize(50).convert("RGB")),
    "jp2": RGB,
    "jp2_codestream": RGB,
    "jp2_16bit": GREY,
}


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_kinds_give_the_exact_pixels(name):
    assert (decode_image(FILES[name]) == LOSSLESS[name]).all()


@pytest.mark.parametrize(
    "name", ["jpeg", "jpeg_progressive", "jpeg_grey", "jpeg_restarts", "webp", "tiff_jpeg", "avif"]
)
def test_lossy_kinds_are_identical_to_opencv(name):
    if name == "avif" and cv2.imdecode(np.frombuffer(FILES[name], np.uint8), 1) is None:
        pytest.skip("this version of OpenCV does not read AVIF")
    assert (decode_image(FILES[name]) == decode_with_opencv(FILES[name])).all()


def test_photographs_are_identical_to_opencv(shared_data):
    paths = sorted((shared_data / "coco-sample" / "images").glob("*.jpg"))[:20]
    assert len(paths) == 20
    for path in paths:
        data = path.read_bytes()
        assert (decode_image(data) == decode_with_opencv(data)).all()


def test_cmyk_is_the_same_with_and_without_an_adobe_segment():
    data = save(Image.fromarray(RGB).convert("CMYK"), "JPEG", quality=100)
    assert np.abs(decode_image(data).astype(int) - RGB).max() <= 2
    at = data.index(b"\xff\xee")
    without_adobe = data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]
    # Samples are reflectances in both, as in Pillow, OpenCV and browsers.
    stored = 255 - np.asarray(Image.open(io.BytesIO(data))).astype(int)
    expected = stored[..., :3] * stored[..., 3:] / 255
    assert np.abs(decode_image(data).astype(int) - expected).max() <= 0.5
    assert (decode_image(without_adobe) == decode_image(data)).all()


def test_transparent_colours_are_kept():
    rgba = np.dstack([RGB, np.zeros((HEIGHT, WIDTH), np.uint8)])
    assert (decode_image(save(rgba, "PNG")) == RGB).all()
    assert (decode_image(save(rgba, "TIFF")) == RGB).all()
    assert (decode_image(save(rgba, "WEBP", lossless=True, exact=True)) == RGB).all()


@pytest.mark.parametrize("extension", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bit_keeps_the_high_byte(extension, channels):
    samples = np.random.default_rng(2).integers(0, 65536, (20, 30, channels), dtype=np.uint16)
    stored = samples if channels == 1 else samples[..., [2, 1, 0, 3][:channels]]
    data = cv2.imencode(extension, stored)[1].tobytes()
    expected = (samples[..., :3] >> 8).astype(np.uint8)
    assert (decode_image(data) == np.broadcast_to(expected, (20, 30, 3))).all()


def test_tiff_samples_of_other_depths():
    def first_channel(data, bits, **options):
        return decode_image(tiny_tiff(data, bits, **options))[..., 0]

    ramp = np.arange(16).reshape(2, 8)
    bits_16 = (ramp * 4096 + 77).astype(np.uint16)
    high_byte = (bits_16 >> 8).astype(np.uint8)
    big_endian = bits_16.astype(">u2").tobytes()
    assert (first_channel(bits_16.tobytes(), 16) == high_byte).all()
    assert (first_channel(big_endian, 16, order=">") == high_byte).all()
    assert (first_channel(bits_16.tobytes(), 16, photometric=0) == 255 - high_byte).all()
    bits_8 = (ramp * 16).astype(np.uint8)
    assert (first_channel(bits_8.tobytes(), 8, photometric=0) == 255 - bits_8).all()
    bits_4 = bytes(a << 4 | b for a, b in ramp.reshape(-1, 2).tolist())
    assert (first_channel(bits_4, 4) == ramp * 17).all()
    bits_1 = first_channel(b"\xa5\x0f", 1)
    assert (bits_1[0] == np.array([1, 0, 1, 0, 0, 1, 0, 1]) * 255).all()
    bits_12 = b"".join(
        (a << 12 | b).to_bytes(3, "big") for a, b in (ramp * 256 + 5).reshape(-1, 2).tolist()
    )
    assert (first_channel(bits_12, 12) == ramp * 16).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"quality": 100}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
)
def test_exif_orientation_is_applied(kind, options, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = save(RGB, kind, exif=exif, **options)
    as_stored = Image.fromarray(decode_image(save(RGB, kind, **options)))
    as_stored.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(as_stored))
    image = decode_image(data)
    assert image.shape == expected.shape
    assert (image == expected).all()
    assert image.flags.c_contiguous
    assert probe(data)[1:] == (WIDTH, HEIGHT)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0junk" * 9]
)
def test_broken_exif_does_not_fail_the_image(exif):
    for kind in ("JPEG", "WEBP"):
        assert decode_image(save(RGB, kind, exif=exif)).shape == RGB.shape


@pytest.mark.parametrize("name", FILES)
def test_truncation_is_an_error_at_every_point(name):
    data, expected = FILES[name], decode_image(FILES[name])
    cut_points = {*range(0, len(data), max(1, len(data) // 60)), *range(len(data) - 12, len(data))}
    n_refused = 0
    for stop in sorted(cut_points):
        try:
            image = decode_image(data[:stop])
        except ImageError:
            n_refused += 1
        else:  # only what follows the pixels may be missing: padding, later pages
            assert name.startswith(("bmp", "tiff", "gif"))
            assert (image == expected).all()
    assert n_refused >= len(cut_points) // 3


def test_truncated_images_are_reported_as_truncated():
    for name in ("jpeg", "png", "webp", "tiff", "bmp"):
        assert refusal_code(FILES[name][: len(FILES[name]) // 2]) in (
            ErrorCode.TRUNCATED,
            ErrorCode.CORRUPT,
        )
        assert refusal_code(FILES[name][:-10]) == ErrorCode.TRUNCATED


@pytest.mark.parametrize(
    ("kind", "options"),
    [("JPEG", {}), ("PNG", {}), ("TIFF", {"compression": "tiff_deflate"})],
)
@pytest.mark.parametrize("damage", [b"\xff\x00" * 200, bytes(range(256)), bytes(300)])
def test_a_corrupt_middle_is_an_error_and_never_wrong_pixels(kind, options, damage):
    noise = np.random.default_rng(3).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    data = bytearray(save(noise, kind, **options))
    data[len(data) // 2 : len(data) // 2 + len(damage)] = damage
    assert refusal_code(bytes(data)) == ErrorCode.CORRUPT


def test_surplus_bytes_are_damage_inside_a_jpeg_but_not_after_its_end():
    data = FILES["jpeg"]
    assert data.endswith(b"\xff\xd9")
    # A decoder that lost its place leaves bytes over as well: the two cannot be told apart.
    assert refusal_code(data[:-2] + b"\x55" * 40 + b"\xff\xd9") == ErrorCode.CORRUPT
    assert (decode_image(data + b"trailing") == decode_image(data)).all()


def huge_images():
    """A file of each format whose header says 60,000 x 60,000; decoding would take 10 GB."""
    side = 60_000
    png = bytearray(FILES["png_grey"])
    png[16:24] = struct.pack(">II", side, side)
    jpeg = bytearray(FILES["jpeg"])
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", side, side)
    webp = bytearray(FILES["webp_animated"])
    webp[24:30] = (side - 1).to_bytes(3, "little") * 2
    bmp = bytearray(FILES["bmp_1bit"])
    bmp[18:26] = struct.pack("<ii", side, side)
    tiff = tiny_tiff(bytes(16), 8, t256=side, t257=side, t278=side)
    tiles = tiny_tiff(bytes(16), 8, t322=side, t323=side)
    return {"png": png, "jpeg": jpeg, "webp": webp, "bmp": bmp, "tiff": tiff, "tiles": tiles}


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "bmp", "tiff", "tiles"])
def test_the_pixel_limit_is_checked_before_memory_is_allocated(kind):
    assert refusal_code(bytes(huge_images()[kind])) == ErrorCode.TOO_MANY_PIXELS


def test_limits_are_exact():
    at_limit = DecodeOptions(max_pixels=HEIGHT * WIDTH, max_bytes=len(FILES["png"]))
    assert decode_image(FILES["png"], at_limit).shape == RGB.shape
    fewer_pixels = DecodeOptions(max_pixels=HEIGHT * WIDTH - 1)
    assert refusal_code(FILES["png"], fewer_pixels) == ErrorCode.TOO_MANY_PIXELS
    fewer_bytes = DecodeOptions(max_bytes=len(FILES["png"]) - 1)
    assert refusal_code(FILES["png"], fewer_bytes) == ErrorCode.TOO_MANY_BYTES


def test_a_jpeg_with_very_many_scans_is_refused():
    data = FILES["jpeg_progressive"]
    at = data.rindex(b"\xff\xda")
    assert refusal_code(data[:at] + data[at:-2] * 600 + b"\xff\xd9") == ErrorCode.CORRUPT


def test_a_run_length_bmp_with_too_few_bytes_is_refused_before_decoding():
    bomb = bytearray(FILES["bmp_runs"])
    bomb[18:26] = struct.pack("<ii", 12_000, 12_000)
    assert refusal_code(bytes(bomb)) == ErrorCode.TRUNCATED


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", ErrorCode.EMPTY),
        (b"hello, this is no image", ErrorCode.NOT_AN_IMAGE),
        (b"BMW is not a bitmap, whatever it starts with", ErrorCode.NOT_AN_IMAGE),
        (b"\0" * 1000, ErrorCode.NOT_AN_IMAGE),
        (b"\0\0\0\x18ftypmp42\0\0\0\0isommp42", ErrorCode.UNSUPPORTED_FORMAT),
        (b"\xff\x0a and the rest of a JPEG XL", ErrorCode.UNSUPPORTED_FORMAT),
        (save(np.zeros((9, 9), np.float32), "TIFF"), ErrorCode.UNSUPPORTED_FORMAT),
        (save(np.zeros((9, 9), np.int32), "TIFF"), ErrorCode.UNSUPPORTED_FORMAT),
        (
            cv2.imencode(".tiff", np.zeros((9, 9, 3), np.float32))[1].tobytes(),
            ErrorCode.UNSUPPORTED_FORMAT,
        ),
        (tiny_tiff(bytes(16), 8, t339=2), ErrorCode.UNSUPPORTED_FORMAT),
        (tiny_tiff(bytes(64), 32), ErrorCode.UNSUPPORTED_FORMAT),
        (tiny_tiff(bytes(16), 8, t254=1), ErrorCode.UNSUPPORTED_FORMAT),
        (tiny_tiff(bytes(16), 8, t50706=1), ErrorCode.UNSUPPORTED_FORMAT),
        (
            save(
                ImageCms.profileToProfile(
                    Image.fromarray(RGB),
                    ImageCms.createProfile("sRGB"),
                    ImageCms.createProfile("LAB"),
                    outputMode="LAB",
                ),
                "TIFF",
            ),
            ErrorCode.UNSUPPORTED_FORMAT,
        ),
    ],
)
def test_refused_images_have_the_right_error_code(data, code):
    assert refusal_code(data) == code


def test_a_12_bit_jpeg_is_unsupported():
    data = bytearray(FILES["jpeg"])
    data[data.index(b"\xff\xc0") + 4] = 12
    assert refusal_code(bytes(data)) == ErrorCode.UNSUPPORTED_FORMAT


MUTATED = mutations(FILES, per_file=12)


def test_malformed_files_decode_to_their_header_or_raise_image_error():
    assert len(MUTATED) > 300
    codes = set()
    for name, data in MUTATED:
        try:
            image = decode_image(data, DecodeOptions(max_pixels=2_000_000))
        except ImageError as error:
            codes.add(error.code)
            continue
        header = probe(data)
        assert image.dtype == np.uint8
        assert image.shape[2] == 3
        assert set(image.shape[:2]) == {header.height, header.width}, name
        codes.add("ok")
    assert {"ok", ErrorCode.CORRUPT, ErrorCode.TRUNCATED, ErrorCode.TOO_MANY_PIXELS} <= codes


@pytest.mark.slow
def test_native_decoders_are_silent():
    """In a separate process: what libraries write to stderr does not pass through Python."""
    program = (
        "from tests.support.image_files import corpus, mutations\n"
        "from segcore.errors import ImageError\n"
        "from segcore.images import DecodeOptions, decode_image\n"
        "for name, data in mutations(corpus(), per_file=12):\n"
        "    for part in (data, data[: len(data) // 2]):\n"
        "        try:\n"
        "            decode_image(part, DecodeOptions(max_pixels=2_000_000))\n"
        "        except ImageError:\n"
        "            pass\n"
        "print('done')\n"
    )
    completed = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    output = (completed.returncode, completed.stdout, completed.stderr)
    assert output == (0, "done\n", "")


def test_threads_give_the_same_pixels():
    expected = {name: decode_image(data) for name, data in FILES.items()}
    names = sorted(FILES) * 4
    with ThreadPoolExecutor(8) as pool:
        images = pool.map(lambda name: decode_image(FILES[name]), names)
        assert all(
            (image == expected[name]).all() for name, image in zip(names, images, strict=True)
        )
