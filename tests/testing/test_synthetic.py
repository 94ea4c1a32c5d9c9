"""Synthetic nuclei: exact masks, the same bytes each time, and members broken as promised."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from segcore.errors import ErrorCode, ImageError, UsageError
from segcore.images import DecodeOptions, decode_image
from segcore.storage import Storage
from segcore.testing.synthetic import STYLES, render_scene
from segcore.testing.synthetic_archive import (
    BREAKAGES,
    SyntheticArchive,
    encode_labels,
    write_archive,
)


def _write(folder: Path, **options: int) -> tuple[SyntheticArchive, dict[str, bytes]]:
    archive = write_archive(Storage(), str(folder), **options)
    files = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    return archive, files


def _members(files: dict[str, bytes]) -> dict[str, bytes]:
    members: dict[str, bytes] = {}
    for name, data in files.items():
        if name.endswith(".tar"):
            with tarfile.open(fileobj=io.BytesIO(data)) as tar:
                for info in tar:
                    file = tar.extractfile(info)
                    assert file is not None
                    members[info.name] = file.read()
    return members


@pytest.mark.parametrize("index", range(12))
def test_nuclei_are_whole_bright_and_share_no_pixel(index: int) -> None:
    scene = render_scene(5, index)
    assert scene.pixels.dtype == np.uint8
    assert scene.pixels.shape == scene.labels.shape
    assert scene.labels.shape in {(s.height, s.width) for s in STYLES}
    count = int(scene.labels.max())
    assert count >= 5
    for label in range(1, count + 1):  # no gap in the numbers, each in one piece
        mask = (scene.labels == label).astype(np.uint8)
        assert mask.sum() >= 20
        assert cv2.connectedComponents(mask, connectivity=4)[0] == 2
    inside = scene.pixels[scene.labels > 0]
    outside = scene.pixels[scene.labels == 0]
    assert np.median(inside) > np.percentile(outside, 90)


def test_some_nuclei_touch() -> None:
    touching = 0
    for index in range(6):
        labels = render_scene(5, index).labels
        left, right = labels[:, :-1], labels[:, 1:]
        touching += int(((left > 0) & (right > 0) & (left != right)).any())
    assert touching >= 3


def test_an_image_depends_on_seed_and_index_alone() -> None:
    np.testing.assert_array_equal(render_scene(5, 3).pixels, render_scene(5, 3).pixels)
    assert not np.array_equal(
        render_scene(5, 3).pixels[:256, :256], render_scene(6, 3).pixels[:256, :256]
    )
    assert not np.array_equal(
        render_scene(5, 3).pixels[:256, :256], render_scene(5, 4).pixels[:256, :256]
    )


def test_rles_decode_to_the_labels() -> None:
    labels = render_scene(5, 0).labels
    rles = encode_labels(labels)
    assert len(rles) == labels.max()
    for label, rle in enumerate(rles, start=1):
        np.testing.assert_array_equal(coco_mask.decode(rle).astype(bool), labels == label)
    assert encode_labels(np.zeros((4, 5), np.int32)) == []
    full = encode_labels(np.ones((4, 5), np.int32))
    assert coco_mask.area(full[0]) == 20


@pytest.mark.slow
def test_the_same_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    first, files = _write(tmp_path / "a", n_images=14, n_broken=7, per_shard=5)
    second, again = _write(tmp_path / "b", n_images=14, n_broken=7, per_shard=5)
    assert files == again
    assert first.broken == second.broken
    assert first.n_shards == 3
    _, other = _write(tmp_path / "c", n_images=14, n_broken=7, per_shard=5, seed=1)
    assert all(other[name] != files[name] for name in files if name.endswith(".tar"))


@pytest.mark.slow
def test_ground_truth_describes_every_readable_member(tmp_path: Path) -> None:
    archive, files = _write(tmp_path, n_images=24, n_broken=3, per_shard=10)
    members = _members(files)
    truth = json.loads(files["ground_truth.json"])
    assert len(members) == archive.n_images == 24
    assert set(members) == {i["file_name"] for i in truth["images"]} | set(archive.broken)
    assert len(archive.broken) == 3
    assert json.loads(files["broken.json"]) == archive.broken
    assert len(truth["annotations"]) == archive.n_instances
    assert any(name.endswith(".jpg") for name in members)
    by_image: dict[int, list[dict]] = {}
    for annotation in truth["annotations"]:
        by_image.setdefault(annotation["image_id"], []).append(annotation)
    for image in truth["images"]:
        pixels = decode_image(members[image["file_name"]], DecodeOptions())
        assert pixels.shape == (image["height"], image["width"], 3)
        n_masks = np.zeros(pixels.shape[:2], int)
        for annotation in by_image[image["id"]]:
            mask = coco_mask.decode(annotation["segmentation"])
            assert annotation["area"] == mask.sum()
            n_masks += mask
        assert n_masks.max() == 1
        assert pixels[n_masks > 0].mean() > pixels[n_masks == 0].mean()


@pytest.mark.parametrize("breakage", range(len(BREAKAGES)))
def test_broken_members_fail_with_the_promised_code(tmp_path: Path, breakage: int) -> None:
    archive, files = _write(tmp_path, n_images=len(BREAKAGES), n_broken=len(BREAKAGES))
    code = BREAKAGES[breakage].code
    names = [name for name, expected in archive.broken.items() if expected == code]
    assert names
    for name in names:
        if code is ErrorCode.EMPTY:
            assert _members(files)[name] == b""
        with pytest.raises(ImageError) as caught:
            decode_image(_members(files)[name], DecodeOptions())
        assert caught.value.code == code, name


def test_impossible_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="5 of them broken"):
        write_archive(Storage(), str(tmp_path), n_images=4, n_broken=5)
    with pytest.raises(UsageError, match="0 images"):
        write_archive(Storage(), str(tmp_path), n_images=0, n_broken=0)
