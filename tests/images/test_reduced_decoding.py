"""Large JPEGs decoded to what the model sees: the pixels, and the results made from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from segcore.config import Config
from segcore.errors import ErrorCode, ImageError, UsageError
from segcore.images import DecodedImage, DecodeOptions, decode_image, decode_image_reduced
from segcore.models.base import Model, ModelOptions
from segcore.models.registry import load_model
from segcore.output.edition import make_edition
from segcore.output.parts import Parts
from segcore.run.job import prepare_job
from segcore.sources import Sample, SourceOptions
from segcore.sources.units import Member, Unit, make_unit
from segcore.storage import Storage
from segcore.testing.synthetic import render_scene
from segcore.worker.prefetch import Prefetcher
from segcore.worker.preprocessing import Preprocessor
from segcore.worker.read_options import ReadOptions
from segcore.worker.unit_worker import UnitWorker
from tests.support.fake_models import BrightModel
from tests.support.image_files import corpus, mutations, save

REDUCED = DecodeOptions(scale="reduced")


def smooth(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Soft colours that differ everywhere: (height, width, 3) uint8."""
    coarse = np.random.default_rng(seed).integers(
        0, 256, (height // 40 + 3, width // 40 + 3, 3), np.uint8
    )
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def decode_at_least(data: bytes, height: int, width: int) -> DecodedImage:
    return decode_image_reduced(data, lambda *size: (height, width))


def block_means(image: np.ndarray, factor: int) -> np.ndarray:
    """Mean of each factor x factor square; squares that reach beyond the image repeat its edge."""
    height, width = (-(-side // factor) for side in image.shape[:2])
    pads = [(0, -side % factor) for side in image.shape[:2]]
    padded = np.pad(image.astype(float), [*pads, (0, 0)], mode="edge")
    return padded.reshape(height, factor, width, factor, 3).mean(axis=(1, 3))


@pytest.mark.parametrize(
    ("size", "needed", "shape"),
    [
        ((480, 640), (60, 80), (60, 80)),  # exactly as many as are needed
        ((480, 640), (60, 81), (120, 160)),
        ((480, 640), (240, 320), (240, 320)),
        ((480, 640), (241, 320), (480, 640)),
        ((480, 640), (9, 12), (60, 80)),  # the factor is at most 8
        ((475, 633), (60, 80), (60, 80)),  # sides are rounded up
        ((475, 633), (100, 100), (119, 159)),
        ((640, 1), (80, 1), (80, 1)),
        ((1, 640), (1, 100), (1, 160)),
        ((15, 16), (1, 1), (2, 2)),
    ],
)
def test_the_smallest_size_with_enough_pixels_is_chosen(size, needed, shape):
    image = smooth(*size)
    decoded = decode_at_least(save(image, "JPEG", quality=95, subsampling=0), *needed)
    assert decoded.pixels.shape == (*shape, 3)
    assert (decoded.height, decoded.width) == size
    assert decoded.pixels.dtype == np.uint8
    assert decoded.pixels.flags.c_contiguous
    assert decoded.pixels.flags.writeable
    factor = round(max(size) / max(shape))
    assert np.abs(decoded.pixels - block_means(image, factor)).mean() < 3


FILES = corpus()


@pytest.mark.parametrize("name", FILES)
def test_all_formats_but_jpeg_are_decoded_at_full_size(name):
    image = decode_image(FILES[name])
    decoded = decode_at_least(FILES[name], 1, 1)
    assert (decoded.height, decoded.width) == image.shape[:2]
    if name.startswith("jpeg"):
        assert decoded.pixels.shape == (6, 8, 3)
        mean = block_means(image, 8)
        assert np.abs(decoded.pixels[:5, :7] - mean[:5, :7]).mean() < 8
    else:
        assert (decoded.pixels == image).all()


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("jpeg")])
def test_jpegs_that_are_not_large_enough_are_decoded_at_full_size(name):
    assert (decode_at_least(FILES[name], 23, 32).pixels == decode_image(FILES[name])).all()


@pytest.mark.parametrize("mode", ["CMYK", "L"])
def test_all_colour_spaces_are_reduced(mode):
    data = save(Image.fromarray(smooth(480, 640)).convert(mode), "JPEG", quality=95)
    pixels = decode_at_least(data, 100, 100).pixels
    assert np.abs(pixels - block_means(decode_image(data), 4)).max() < 6


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(480, 640), (475, 640), (480, 633), (475, 633)])
def test_exif_orientation_is_applied(orientation, size):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = save(smooth(*size), "JPEG", quality=95, subsampling=0, exif=exif)
    upright = decode_image(data)
    requested_sizes = []

    def content_size(height, width):
        requested_sizes.append((height, width))
        return (40, 60) if height < width else (60, 40)

    decoded = decode_image_reduced(data, content_size)
    assert requested_sizes == [upright.shape[:2]]
    assert (decoded.height, decoded.width) == upright.shape[:2]
    # What lies beyond the image must be at its end: a reversed side is divided evenly.
    rows_reversed, columns_reversed = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    reversed_sides = (
        decoded.height if rows_reversed else 0,
        decoded.width if columns_reversed else 0,
    )
    factor = next(f for f in (8, 4, 2, 1) if all(side % f == 0 for side in reversed_sides))
    assert decoded.pixels.shape[:2] == tuple(-(-side // factor) for side in upright.shape[:2])
    assert np.abs(decoded.pixels - block_means(upright, factor)).max() < 25
    assert np.abs(decoded.pixels - block_means(upright, factor)).mean() < 2


def refusal_code(decoder: Callable[[bytes], object], data: bytes) -> ErrorCode | None:
    try:
        decoder(data)
    except ImageError as error:
        return error.code
    return None


@pytest.mark.parametrize("needed", [(1, 1), (12, 16), (23, 31)])
def test_what_is_refused_at_full_size_is_refused_reduced(needed):
    jpegs = {name: data for name, data in FILES.items() if name.startswith("jpeg")}
    limits = DecodeOptions(max_pixels=2_000_000)
    truncated = [data[:stop] for data in jpegs.values() for stop in range(0, len(data), 23)]
    damaged = [data for _, data in mutations(jpegs, per_file=80)]
    codes = set()
    for data in [*truncated, *damaged]:
        expected = refusal_code(partial(decode_image, options=limits), data)
        decoder = partial(decode_image_reduced, content_size=lambda *size: needed, options=limits)
        assert refusal_code(decoder, data) == expected
        codes.add(expected)
    assert {None, ErrorCode.CORRUPT, ErrorCode.TRUNCATED} <= codes


def test_limits_apply_to_the_full_image():
    data = save(smooth(80, 80), "JPEG")
    options = DecodeOptions(max_pixels=80 * 80 - 1, scale="reduced")
    with pytest.raises(ImageError) as caught:
        decode_image_reduced(data, lambda *size: (10, 10), options)
    assert caught.value.code == ErrorCode.TOO_MANY_PIXELS
    assert decode_image(data, REDUCED).shape == (80, 80, 3)  # `decode_image` ignores the scale


def nuclei(height: int, width: int) -> np.ndarray:
    """A rendered scene at this size: (height, width, 3) uint8."""
    grey = cv2.resize(render_scene(7, 3).pixels, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.repeat(grey[..., None], 3, axis=2)


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model("nuclei-yolo11n", ModelOptions(device="cpu", imgsz=256, conf=0.2))


def segment(model: Model, data: bytes, options: DecodeOptions):
    preprocessor = Preprocessor(model.preprocess, options)
    prepared = [preprocessor.preprocess(preprocessor.decode(data))]
    return model.postprocess(model.forward(prepared), prepared)[0]


@pytest.mark.parametrize(
    ("orientation", "size", "decoded"),
    [
        (1, (1200, 1600), (300, 400)),
        (1, (1195, 1597), (299, 400)),
        (6, (1200, 1600), (400, 300)),
        (8, (1200, 1600), (400, 300)),
    ],
)
def test_results_are_on_the_canvas_of_the_full_image(model, orientation, size, decoded):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = save(nuclei(*size), "JPEG", quality=92, exif=exif)
    shape = decode_image(data).shape[:2]
    full, reduced = (segment(model, data, options) for options in (DecodeOptions(), REDUCED))
    assert Preprocessor(model.preprocess, REDUCED).decode(data).pixels.shape[:2] == decoded
    assert len(full) > 10
    assert abs(len(full) - len(reduced)) <= len(full) // 10
    assert (reduced.height, reduced.width) == shape
    reduced_rles, full_rles = (
        [{"size": list(shape), "counts": counts} for counts in instances.counts]
        for instances in (reduced, full)
    )
    # pycocotools refuses masks of another canvas.
    overlap = coco_mask.iou(reduced_rles, full_rles, [0] * len(full_rles))
    assert np.mean(overlap.max(axis=1) >= 0.85) > 0.8  # the same nuclei at the same places
    ends = reduced.boxes[:, :2] + reduced.boxes[:, 2:]
    assert (ends.max(axis=0) > 0.8 * np.array(shape[::-1])).all()  # over the whole image
    assert [coco_mask.area(mask) for mask in reduced_rles] == reduced.areas.tolist()


def make_unit_of(folder: Path, files: dict[str, bytes]) -> Unit:
    """Write the files; the unit of loose images that they are."""
    members = []
    for name, data in files.items():
        uri = str(folder / name)
        Storage().write(uri, data)
        info = Storage().stat(uri)
        members.append(Member(uri, uri, info.etag, info.size))
    n_images = len(members)
    return make_unit("objects", stop=n_images, n_images=n_images, n_bytes=1, members=members)


@pytest.mark.slow
def test_small_images_give_identical_tables(model, tmp_path):
    files = {
        "a.jpg": save(nuclei(300, 500), "JPEG"),
        "b.png": save(nuclei(600, 800), "PNG"),
        "c.jpg": save(nuclei(200, 250), "JPEG"),
        "d.jpg": b"\xff\xd8\xff\xe0 is no image",
    }
    unit = make_unit_of(tmp_path, files)
    tables = []
    for options in (DecodeOptions(), REDUCED):
        output = tmp_path / options.scale
        parts = Parts(Storage(), str(output), "e", "r", "CC0-1.0", ((1, "nucleus"),))
        read_options = ReadOptions(Storage(), SourceOptions(), options, 2, 1 << 24)
        counts = UnitWorker(model, read_options, parts).segment(unit)
        assert (counts.ok, counts.failed) == (3, 1)
        assert counts.instances > 20
        tables.append([path.read_bytes() for path in sorted(output.rglob("*.parquet"))])
    assert tables[0] == tables[1]
    assert len(tables[0]) == 2


def test_rows_have_the_size_of_the_full_image(model, tmp_path):
    unit = make_unit_of(tmp_path, {"a.jpg": save(nuclei(1200, 1601), "JPEG")})
    parts = Parts(Storage(), str(tmp_path / "out"), "e", "r", "CC0-1.0", ((1, "nucleus"),))
    read_options = ReadOptions(Storage(), SourceOptions(), REDUCED, 2, 1 << 24)
    assert UnitWorker(model, read_options, parts).segment(unit).instances > 10
    (row,) = pq.read_table(tmp_path / "out" / "images" / f"{unit.unit}.parquet").to_pylist()
    assert (row["height"], row["width"]) == (1200, 1601)


def test_a_model_that_needs_full_images_is_refused_before_anything_starts(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(save(smooth(40, 40), "JPEG"))
    settings = {
        "input": str(tmp_path / "in"),
        "output": str(tmp_path / "out"),
        "model": {"name": "tests.support.fake_models:BrightModel"},
        "decode": {"scale": "reduced"},
    }
    with pytest.raises(UsageError, match=r"decode\.scale is `reduced`"):
        prepare_job(Config.model_validate(settings))
    assert not (tmp_path / "out").exists()
    settings["model"] = {"name": "nuclei-yolo11n"}
    job = prepare_job(Config.model_validate(settings))
    assert job.edition.document["decode"]["scale"] == "reduced"
    assert job.edition.name != make_edition(job.model.info, DecodeOptions()).name


def test_the_prefetcher_refuses_such_a_model_too():
    prefetcher = Prefetcher(threads=1, window=1, max_decoded_bytes=1 << 20)
    with pytest.raises(UsageError):
        next(prefetcher.stream([], BrightModel().preprocess, REDUCED))


@pytest.mark.parametrize(
    ("error", "code"),
    [(KeyError("no"), ErrorCode.MODEL_ERROR), (MemoryError(), ErrorCode.OUT_OF_MEMORY)],
)
def test_an_error_of_content_size_fails_that_image_alone(error, code):
    @dataclasses.dataclass
    class FailingPreprocess:
        def __call__(self, image, size=None):
            return size

        def content_size(self, height, width):
            if height == 16:
                raise error
            return 1, 1

    prefetcher = Prefetcher(threads=1, window=4, max_decoded_bytes=1 << 20)
    samples = [Sample(str(h), "", "", save(smooth(h, 8), "JPEG")) for h in (8, 16, 24)]
    prepared = list(prefetcher.stream(samples, FailingPreprocess(), REDUCED))
    assert [item.error and item.error.code for item in prepared] == [None, code, None]
    assert prepared[2].value == (24, 8)
