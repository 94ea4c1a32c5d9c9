"""Corrections that are small as a file and large in memory, or that make a library raise."""

from __future__ import annotations

import io
import tracemalloc
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from segcore.corrections.objects import Box, to_rle
from segcore.corrections.readers import cvat
from segcore.corrections.sources import read_corrections
from segcore.errors import UsageError
from segcore.evaluation.remarks import Remarks
from segcore.evaluation.truth_masks import Unusable
from segcore.storage import Storage
from tests.support.jobs import write_files

_SIDE = 1 << 14
_LARGE_MASK = (
    f'<mask label="a" left="0" top="0" width="{_SIDE}" height="{_SIDE}" rle="{_SIDE * _SIDE}"/>'
)


def _read_all(path: Path, form: str = "auto") -> tuple[list, Remarks]:
    remarks = Remarks()
    return list(read_corrections(Storage(), str(path), form, ["a"], remarks)), remarks


def test_many_large_masks_take_the_memory_of_their_text() -> None:
    xml = f'<annotations><image name="x">{_LARGE_MASK * 200}</image></annotations>'.encode()
    tracemalloc.start()
    (image,) = cvat.read_cvat(io.BytesIO(xml), "x.xml", Remarks())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(image.objects) == 200
    assert peak < 16 << 20  # a single one of them has 256 Mi pixels
    with pytest.raises(Unusable, match="much larger than its image"):
        to_rle(image.objects[0].shape, 40, 60, None)


def test_what_a_mask_may_have_grows_with_its_image() -> None:
    allowed: list[int] = []

    def draw(max_pixels: int) -> np.ndarray:
        allowed.append(max_pixels)
        return np.ones((5, 5), bool)

    for height, width in ((10, 10), (4000, 3000)):
        to_rle(Box(draw, 0, 0), height, width, None)
    assert allowed == [1 << 20, 48_000_000]


def test_an_element_and_an_image_of_xml_have_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cvat, "_BLOCK_BYTES", 1000)
    monkeypatch.setattr(cvat, "_MAX_ELEMENT_BYTES", 10_000)
    monkeypatch.setattr(cvat, "_MAX_IMAGE_CHARACTERS", 1000)
    long = f'<annotations><image name="{"x" * 20_000}"/></annotations>'
    with pytest.raises(UsageError, match="an element of over 10,000 bytes"):
        list(cvat.read_cvat(io.BytesIO(long.encode()), "x.xml", Remarks()))
    polygon = '<polygon label="a" group_id="1" points="0,0;5,0;5,5"/>'
    many = f'<annotations><image name="x">{polygon * 1000}</image></annotations>'
    remarks = Remarks()
    (image,) = cvat.read_cvat(io.BytesIO(many.encode()), "x.xml", remarks)
    assert len(image.objects[0].shape) < 100
    assert any("beyond 1,000 characters in an image" in line for line in remarks.sentences())


@pytest.mark.parametrize("encoding", ["utf-7", "nonsense", "shift_jis", "idna", "rot13"])
def test_an_encoding_that_xml_cannot_have_is_refused(tmp_path: Path, encoding: str) -> None:
    text = f'<?xml version="1.0" encoding="{encoding}"?><annotations/>'
    write_files(tmp_path, {"x.xml": text.encode()})
    with pytest.raises(UsageError, match="is not whole XML"):
        _read_all(tmp_path / "x.xml")


def test_entities_are_refused_before_they_mean_anything(tmp_path: Path) -> None:
    laughs = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 20))
    for inner in (f'<!ENTITY l0 "ha">{laughs}', '<!ENTITY l19 SYSTEM "file:///etc/passwd">'):
        text = f"<?xml version='1.0'?><!DOCTYPE a [{inner}]><annotations>&l19;</annotations>"
        write_files(tmp_path, {"x.xml": text.encode()})
        with pytest.raises(UsageError, match="DOCTYPE"):
            _read_all(tmp_path / "x.xml")


def test_a_damaged_zip_is_refused_in_a_sentence(tmp_path: Path) -> None:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("annotations.xml", b"<annotations>" + b"<x/>" * 5000 + b"</annotations>")
    whole = sink.getvalue()
    rng = np.random.default_rng(5)
    for _ in range(200):
        data = np.frombuffer(whole, np.uint8).copy()
        places = rng.integers(0, data.size, 3)
        data[places] = rng.integers(0, 256, places.size)
        (tmp_path / "x.zip").write_bytes(data.tobytes())
        with suppress(UsageError):
            _read_all(tmp_path / "x.zip")


@pytest.mark.parametrize(
    "names",
    [
        "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{f'*a{i - 1},' * 9}]\n" for i in range(1, 30)),
        "names: !!bool maybe\n",
        "names: 2001-99-99\n",
        "names: " + "[" * 100_000,
        "#" * (2 << 20),
    ],
    ids=["laughs", "bool", "date", "deep", "long"],
)
def test_names_of_yolo_labels_are_plain_yaml(tmp_path: Path, names: str) -> None:
    write_files(tmp_path, {"data.yaml": names.encode(), "labels/x.txt": b"0 0 0 1 0 1 1\n"})
    with pytest.raises(UsageError, match=r"data\.yaml: the text "):
        _read_all(tmp_path, "yolo-seg")
