"""Large JPEGs decoded at what the model sees: which pixels come out, and what of results."""

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
from segcore.testing.synthetic import render
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


def reduced(data: bytes, height: int, width: int) -> DecodedImage:
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
        ((480, 640), (60, 80), (60, 80)),  # as many as are needed, not one more
        ((480, 640), (60, 81), (120, 160)),
        ((480, 640), (240, 320), (240, 320)),
        ((480, 640), (241, 320), (480, 640)),
        ((480, 640), (9, 12), (60, 80)),  # no more than 8
        ((475, 633), (60, 80), (60, 80)),  # a part of a pixel counts
        ((475, 633), (100, 100), (119, 159)),
        ((640, 1), (80, 1), (80, 1)),
        ((1, 640), (1, 100), (1, 160)),
        ((15, 16), (1, 1), (2, 2)),
    ],
)
def test_the_smallest_that_has_the_pixels_needed(size, needed, shape):
    image = smooth(*size)
    found = reduced(save(image, "JPEG", quality=95, subsampling=0), *needed)
    assert found.pixels.shape == (*shape, 3)
    assert (found.height, found.width) == size
    assert found.pixels.dtype == np.uint8
    assert found.pixels.flags.c_contiguous
    assert found.pixels.flags.writeable
    factor = round(max(size) / max(shape))
    assert np.abs(found.pixels - block_means(image, factor)).mean() < 3


FILES = corpus()


@pytest.mark.parametrize("name", FILES)
def test_all_kinds_but_jpeg_come_in_full(name):
    image = decode_image(FILES[name])
    found = reduced(FILES[name], 1, 1)
    assert (found.height, found.width) == image.shape[:2]
    if name.startswith("jpeg"):
        assert found.pixels.shape == (6, 8, 3)
        mean = block_means(image, 8)
        assert np.abs(found.pixels[:5, :7] - mean[:5, :7]).mean() < 8
    else:
        assert (found.pixels == image).all()


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("jpeg")])
def test_images_that_are_not_large_enough_are_decoded_as_ever(name):
    assert (reduced(FILES[name], 23, 32).pixels == decode_image(FILES[name])).all()


@pytest.mark.parametrize("mode", ["CMYK", "L"])
def test_colour_spaces(mode):
    data = save(Image.fromarray(smooth(480, 640)).convert(mode), "JPEG", quality=95)
    found = reduced(data, 100, 100).pixels
    assert np.abs(found - block_means(decode_image(data), 4)).max() < 6


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(480, 640), (475, 640), (480, 633), (475, 633)])
def test_exif_orientation_is_applied(orientation, size):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = save(smooth(*size), "JPEG", quality=95, subsampling=0, exif=exif)
    upright = decode_image(data)
    asked = []

    def content_size(height, width):
        asked.append((height, width))
        return (40, 60) if height < width else (60, 40)

    found = decode_image_reduced(data, content_size)
    assert asked == [upright.shape[:2]]
    assert (found.height, found.width) == upright.shape[:2]
    # what lies beyond the image must be at its end: a side seen in reverse is divided evenly
    rows, columns = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    ends = (found.height if rows else 0, found.width if columns else 0)
    factor = next(f for f in (8, 4, 2, 1) if all(end % f == 0 for end in ends))
    assert found.pixels.shape[:2] == tuple(-(-side // factor) for side in upright.shape[:2])
    assert np.abs(found.pixels - block_means(upright, factor)).max() < 25
    assert np.abs(found.pixels - block_means(upright, factor)).mean() < 2


def judged(decoder: Callable[[bytes], object], data: bytes) -> ErrorCode | None:
    try:
        decoder(data)
    except ImageError as error:
        return error.code
    return None


@pytest.mark.parametrize("needed", [(1, 1), (12, 16), (23, 31)])
def test_what_is_refused_in_full_is_refused_reduced(needed):
    jpegs = {name: data for name, data in FILES.items() if name.startswith("jpeg")}
    limits = DecodeOptions(max_pixels=2_000_000)
    cut = [data[:stop] for data in jpegs.values() for stop in range(0, len(data), 23)]
    damaged = [data for _, data in mutations(jpegs, per_file=80)]
    codes = set()
    for data in [*cut, *damaged]:
        in_full = judged(partial(decode_image, options=limits), data)
        less = partial(decode_image_reduced, content_size=lambda *size: needed, options=limits)
        assert judged(less, data) == in_full
        codes.add(in_full)
    assert {None, ErrorCode.CORRUPT, ErrorCode.TRUNCATED} <= codes


def test_limits_are_those_of_the_image_in_full():
    data = save(smooth(80, 80), "JPEG")
    options = DecodeOptions(max_pixels=80 * 80 - 1, scale="reduced")
    with pytest.raises(ImageError) as caught:
        decode_image_reduced(data, lambda *size: (10, 10), options)
    assert caught.value.code == ErrorCode.TOO_MANY_PIXELS
    assert decode_image(data, REDUCED).shape == (80, 80, 3)  # `decode_image` gives all there is


def nuclei(height: int, width: int) -> np.ndarray:
    """A rendered scene at this size: (height, width, 3) uint8."""
    grey = cv2.resize(render(7, 3).pixels, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.repeat(grey[..., None], 3, axis=2)


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model("nuclei-yolo11n", ModelOptions(device="cpu", imgsz=256, conf=0.2))


def instances(model: Model, data: bytes, options: DecodeOptions):
    preparation = Preprocessor(model.preprocess, options)
    prepared = [preparation.preprocess(preparation.decode(data))]
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
def test_results_are_on_the_canvas_of_the_image_in_full(model, orientation, size, decoded):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = save(nuclei(*size), "JPEG", quality=92, exif=exif)
    shape = decode_image(data).shape[:2]
    full, less = (instances(model, data, options) for options in (DecodeOptions(), REDUCED))
    assert Preprocessor(model.preprocess, REDUCED).decode(data).pixels.shape[:2] == decoded
    assert len(full) > 10
    assert abs(len(full) - len(less)) <= len(full) // 10
    assert (less.height, less.width) == shape
    ours, theirs = (
        [{"size": list(shape), "counts": counts} for counts in found.counts]
        for found in (less, full)
    )
    overlap = coco_mask.iou(ours, theirs, [0] * len(theirs))  # refuses masks of another canvas
    assert np.mean(overlap.max(axis=1) >= 0.85) > 0.8  # the same nuclei at the same places
    ends = less.boxes[:, :2] + less.boxes[:, 2:]
    assert (ends.max(axis=0) > 0.8 * np.array(shape[::-1])).all()  # over the whole image
    assert [coco_mask.area(mask) for mask in ours] == less.areas.tolist()


def a_unit(folder: Path, files: dict[str, bytes]) -> Unit:
    members = []
    for name, data in files.items():
        uri = str(folder / name)
        Storage().write(uri, data)
        info = Storage().stat(uri)
        members.append(Member(uri, uri, info.etag, info.size))
    many = len(members)
    return make_unit("objects", stop=many, n_images=many, n_bytes=1, members=members)


def test_tables_of_images_that_are_small_enough_are_identical(model, tmp_path):
    files = {
        "a.jpg": save(nuclei(300, 500), "JPEG"),
        "b.png": save(nuclei(600, 800), "PNG"),
        "c.jpg": save(nuclei(200, 250), "JPEG"),
        "d.jpg": b"\xff\xd8\xff\xe0 is no image",
    }
    unit = a_unit(tmp_path, files)
    tables = []
    for options in (DecodeOptions(), REDUCED):
        target = tmp_path / options.scale
        parts = Parts(Storage(), str(target), "e", "r", "CC0-1.0", ((1, "nucleus"),))
        reading = ReadOptions(Storage(), SourceOptions(), options, 2, 1 << 24)
        counts = UnitWorker(model, reading, parts).segment(unit)
        assert (counts.ok, counts.failed) == (3, 1)
        assert counts.instances > 20
        tables.append([path.read_bytes() for path in sorted(target.rglob("*.parquet"))])
    assert tables[0] == tables[1]
    assert len(tables[0]) == 2


def test_rows_have_the_size_of_the_image_in_full(model, tmp_path):
    unit = a_unit(tmp_path, {"a.jpg": save(nuclei(1200, 1601), "JPEG")})
    parts = Parts(Storage(), str(tmp_path / "out"), "e", "r", "CC0-1.0", ((1, "nucleus"),))
    reading = ReadOptions(Storage(), SourceOptions(), REDUCED, 2, 1 << 24)
    assert UnitWorker(model, reading, parts).segment(unit).instances > 10
    (row,) = pq.read_table(tmp_path / "out" / "images" / f"{unit.unit}.parquet").to_pylist()
    assert (row["height"], row["width"]) == (1200, 1601)


def test_a_model_that_sees_images_in_full_only_is_refused_before_anything_starts(tmp_path):
    (tmp_path / "in").mkdir()
    save_to = tmp_path / "in" / "a.jpg"
    save_to.write_bytes(save(smooth(40, 40), "JPEG"))
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
    assert job.edition.name != make_edition(job.info, DecodeOptions()).name


def test_readers_refuse_such_a_model_too():
    ahead = Prefetcher(threads=1, window=1, max_decoded_bytes=1 << 20)
    with pytest.raises(UsageError):
        next(ahead.stream([], BrightModel().preprocess, REDUCED))


@pytest.mark.parametrize(
    ("error", "code"),
    [(KeyError("no"), ErrorCode.MODEL_ERROR), (MemoryError(), ErrorCode.OUT_OF_MEMORY)],
)
def test_a_content_size_that_raises_is_the_models_error(error, code):
    @dataclasses.dataclass
    class Picky:
        def __call__(self, image, size=None):
            return size

        def content_size(self, height, width):
            if height == 16:
                raise error
            return 1, 1

    ahead = Prefetcher(threads=1, window=4, max_decoded_bytes=1 << 20)
    samples = [Sample(str(h), "", "", save(smooth(h, 8), "JPEG")) for h in (8, 16, 24)]
    found = list(ahead.stream(samples, Picky(), REDUCED))
    assert [item.error and item.error.code for item in found] == [None, code, None]
    assert found[2].value == (24, 8)
