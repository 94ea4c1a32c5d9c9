from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from segcore.errors import UsageError
from segcore.sources import SourceOptions, open_source
from segcore.storage import Storage, StorageOptions, join
from tests.support.archives import codes, image_bytes, open_and_read

storage = Storage(StorageOptions(retries=1))


def _coco_json(*names: str) -> bytes:
    images = [{"id": i, "file_name": name, "width": 9, "height": 8} for i, name in enumerate(names)]
    return json.dumps({"images": images, "annotations": [], "categories": []}).encode()


@pytest.mark.parametrize(
    ("document", "images"),
    [
        ("instances.json", ""),
        ("instances.json", "images/"),
        ("annotations/instances.json", "images/"),
        ("annotations/instances_val2017.json", "val2017/"),
        ("instances_val.json", "val/"),
    ],
)
def test_the_folder_of_the_images_is_found(folder: str, document: str, images: str) -> None:
    storage.write(join(folder, document), _coco_json("x.png", "sub/y.png", "missing.png"))
    for seed, name in enumerate(("x.png", "sub/y.png", "not-in-the-json.png")):
        storage.write(join(folder, images + name), image_bytes(seed))
    source, samples = open_and_read(join(folder, document), storage)
    assert source.kind == "coco"
    assert {s.image_id: s.data for s in samples} == {
        join(folder, images + "x.png"): image_bytes(0),
        join(folder, images + "sub/y.png"): image_bytes(1),
        join(folder, images + "missing.png"): None,
    }
    assert codes(samples) == {join(folder, images + "missing.png"): "not_found"}


def test_the_folder_can_be_set(folder: str) -> None:
    storage.write(join(folder, "a.json"), _coco_json("x.png"))
    storage.write(join(folder, "images/x.png"), b"found without the option")
    storage.write(join(folder, "far/away/x.png"), b"of the set folder")
    _, samples = open_and_read(
        join(folder, "a.json"), storage, coco_images=join(folder, "far/away")
    )
    assert [s.data for s in samples] == [b"of the set folder"]


def test_a_set_folder_is_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write(str(tmp_path / "json" / "a.json"), _coco_json("x.png"))
    storage.write(str(tmp_path / "far" / "x.png"), b"of the set folder")
    monkeypatch.chdir(tmp_path)
    _, samples = open_and_read("json/a.json", storage, coco_images="far")
    assert [s.data for s in samples] == [b"of the set folder"]
    with pytest.raises(UsageError, match=r"'x\.png'\) was found in .*/json") as caught:
        open_and_read("json/a.json", storage, coco_images="json")
    assert "source.coco_images" in caught.value.hint


def test_no_folder_with_the_images_is_an_error(folder: str) -> None:
    storage.write(join(folder, "a.json"), _coco_json("x.png"))
    with pytest.raises(UsageError, match=r"'x\.png'\) was found in ") as caught:
        open_source(join(folder, "a.json"), SourceOptions(), storage)
    assert "source.coco_images" in caught.value.hint


def test_file_names_may_not_lead_outside_the_folder(folder: str) -> None:
    storage.write(join(folder, "set/a.json"), _coco_json("x.png", "../secret.png", "/etc/passwd"))
    storage.write(join(folder, "set/x.png"), b"x")
    storage.write(join(folder, "secret.png"), b"secret")
    _, samples = open_and_read(join(folder, "set/a.json"), storage, allowed_schemes=("s3",))
    assert codes(samples) == {"../secret.png": "unsafe_uri", "/etc/passwd": "unsafe_uri"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[]", "no list 'images'"),
        (b'{"images": 3}', "no list 'images'"),
        (b'{"images": []}', "names no images"),
        (b'{"images": [{"id": 1}]}', r"images\[0\] has no 'file_name'"),
    ],
)
def test_a_bad_file_is_a_readable_error(tmp_path: object, content: bytes, message: str) -> None:
    storage.write(f"{tmp_path}/a.json", content)
    with pytest.raises(UsageError, match=message):
        open_source(f"{tmp_path}/a.json", SourceOptions(), storage)


def test_labelled_data_sets_are_read_completely(shared_data: Path) -> None:
    image_counts: list[tuple[str, int]] = [
        ("nuclei/instances_val.json", 64),
        ("coco-sample/instances_val2017.json", 50),
    ]
    for name, count in image_counts:
        document: dict[str, Any] = json.loads((shared_data / name).read_text())
        source, samples = open_and_read(str(shared_data / name), storage)
        assert source.notes == []
        assert len(samples) == count
        assert {s.image_id.rpartition("/")[2] for s in samples} == {
            image["file_name"] for image in document["images"]
        }
        assert all(s.data for s in samples)
