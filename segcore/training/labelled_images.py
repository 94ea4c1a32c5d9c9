"""A COCO file and its images, read and checked together: labels and pixels belong to each other."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from segcore.errors import ImageError, UsageError
from segcore.evaluation.ground_truth import GroundTruth, Id, TruthImage
from segcore.evaluation.remarks import shorten
from segcore.evaluation.truth_file import load_ground_truth
from segcore.images import decode_image
from segcore.text import plural
from segcore.training.config import DataConfig, ExifLabels

_MAX_IMAGE_BYTES = 512 * 1024**2
_MAX_FOLDERS = 32  # that may be dropped from a name
_ORIENTATION = 0x0112  # EXIF tag


@dataclass(frozen=True)
class LabelledSet:
    """A COCO file and its images, decoded.

    Attributes:
        truth: The checked ground truth; its canvases are those of `images`.
        images: (H, W, 3) uint8 RGB by image id, in the order of the file.
        notes: Sentences for people: what was left out or taken otherwise than written.
    """

    truth: GroundTruth
    images: dict[Id, np.ndarray]
    notes: tuple[str, ...]


def read_labelled_set(annotations: Path, data: DataConfig) -> LabelledSet:
    """Read a COCO file and all of its images.

    Raises:
        UsageError: A file is missing or damaged, a size disagrees, or no annotation can be used.
    """
    truth = read_coco(annotations)
    files = find_files(truth.images.values(), data.images, annotations)
    images = {}
    for image_id, path in files.items():
        encoded = _read_file(path, annotations)
        try:
            images[image_id] = decode_image(encoded)
        except ImageError as error:
            raise UsageError(
                f"cannot read the image {path}, which is listed in {annotations}: {error}"
            ) from None
        _agree_on_size(truth, image_id, encoded, images[image_id], data.exif_labels)
    truth.require_objects(images)
    notes = truth.remarks.sentences()
    n_moved = sum(not _is_as_written(truth.images[i].file_name, path) for i, path in files.items())
    if n_moved:
        notes.append(f"{plural(n_moved, 'image')} found in {data.images} under fewer folders.")
    return LabelledSet(truth, images, tuple(f"{annotations}: {note}" for note in notes))


def read_coco(path: Path) -> GroundTruth:
    """The annotation file, checked as `segcore evaluate` checks it.

    Raises:
        UsageError: It cannot be read, is not JSON, or is not a COCO data set.
    """
    try:
        if path.exists() and not path.is_file():
            raise UsageError(f"cannot read the annotations {path}: this is not a file")
        return load_ground_truth(path.read_bytes(), str(path))
    except OSError as error:
        raise UsageError(f"cannot read the annotations {path}: {error.strerror}") from None


def find_files(images: Iterable[TruthImage], folder: Path, annotations: Path) -> dict[Id, Path]:
    """The file of each image, by its id.

    A file name is a path inside `folder`. Where there is no such file, backslashes count as
    slashes, and then leading folders are dropped one by one; two images never share a file.

    Raises:
        UsageError: A name leads out of `folder`, or two images have the same file.
    """
    files: dict[Id, Path] = {}
    names: dict[Path, str] = {}
    for image in images:
        path = _find_file(folder, image.file_name, annotations)
        if path in names:
            raise UsageError(
                f"Two images of {annotations} would have the pixels of {path}: "
                f"{shorten(names[path])} and {shorten(image.file_name)}.",
                "data.images must be the folder that the file names are relative to.",
            )
        names[path] = image.file_name
        files[image.id] = path
    return files


def _find_file(folder: Path, name: str, annotations: Path) -> Path:
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    candidates = [folder / name, folder.joinpath(*parts)]
    candidates += [folder.joinpath(*parts[start:]) for start in range(1, len(parts))][
        -_MAX_FOLDERS:
    ]
    inside = [
        path for path in map(_normalize, candidates) if path.is_relative_to(_normalize(folder))
    ]
    for path in inside:
        if os.path.isfile(path):
            return path
    if not inside:
        raise UsageError(
            f"{annotations} names an image outside of {folder}: {shorten(name)}.",
            "data.images must be the folder that holds all images.",
        )
    raise UsageError(
        f"cannot read the image {shorten(str(inside[0]), 300)}, which is listed in {annotations}: "
        "there is no such file"
    )


def _is_as_written(name: str, path: Path) -> bool:
    return str(path).replace("\\", "/").endswith(os.path.normpath(name.replace("\\", "/")))


def _normalize(path: Path) -> Path:
    return Path(os.path.normpath(path))


def _read_file(path: Path, annotations: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_IMAGE_BYTES + 1)
    except OSError as error:
        raise UsageError(
            f"cannot read the image {path}, which is listed in {annotations}: {error.strerror}"
        ) from None
    return data  # the decoder refuses what is over its limit


def _agree_on_size(
    truth: GroundTruth, image_id: Id, data: bytes, pixels: np.ndarray, exif_labels: ExifLabels
) -> None:
    """Give the image the canvas on which its masks are drawn, or refuse it."""
    image = truth.images[image_id]
    height, width = pixels.shape[:2]
    shown = (width, height)
    orientation = read_orientation(data)
    stored = shown[::-1] if orientation >= 5 else shown
    canvas = stored if exif_labels == "stored" else shown
    size = (image.width or canvas[0], image.height or canvas[1])
    if None in (image.width, image.height) and size == canvas:
        truth.remarks.add("image", "without a size: that of the pixels was taken", image_id)
    if exif_labels == "stored" and size == stored:
        truth.set_size(image_id, *stored, orientation)
        if orientation != 1:
            truth.remarks.add("image", "with labels turned by the EXIF orientation", image_id)
        return
    if size == shown and exif_labels != "stored":
        truth.set_size(image_id, *shown)
        return
    if size == stored and exif_labels == "shown":
        truth.remarks.add("image", "with the size before EXIF rotation: labels as shown", image_id)
        truth.set_size(image_id, *shown)
        return
    hint = "Is this the annotation file of these images?"
    if size == stored:
        hint = (
            "The file has the size before EXIF rotation. Set data.exif_labels: shown if the labels "
            "lie on the image as viewers show it, stored if they lie on its pixels as stored."
        )
    raise UsageError(
        f"{shorten(image.file_name, 200)} is {width} x {height} pixels as shown "
        f"(EXIF orientation {orientation}), but {truth.name} says {size[0]} x {size[1]}.",
        hint,
    )


def read_orientation(data: bytes) -> int:
    """EXIF orientation of an image that has been decoded, 1 to 8; 1 where it has none."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # broken metadata does not make the pixels wrong
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1
