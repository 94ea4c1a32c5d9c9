"""What `segcore show` makes: picture files of single images, or one contact sheet."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from segcore.errors import SegcoreError, UsageError
from segcore.output.image_rows import ImageRecord
from segcore.output.results import Results
from segcore.visualize.overlays import Tile, contact_sheet
from segcore.visualize.pictures import Picture, draw_picture, draw_tile, read_pictures

_MAX_STEM_CHARS = 100
_MAX_SHEET_IMAGES = 400
_SHEET_COLUMNS = 4


@dataclass(frozen=True)
class Drawing:
    """How pictures are drawn; see `draw_picture`.

    Attributes:
        why: image_id -> what is said below an image on a sheet, in place of its instances.
    """

    labels: bool | None = None
    as_read: bool = False
    side: int = 340  # of a picture of a sheet, pixels
    why: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ShownImage:
    """One image that was asked for, and what became of it.

    Attributes:
        file: The picture of this image alone, or the sheet that it is on.
        problem: Why a segmented image could not be shown.
    """

    record: ImageRecord
    file: str
    problem: str

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        record = self.record
        return {
            "image_id": record.image_id,
            "status": record.status,
            "error_code": record.error_code,
            "error_message": record.error_message,
            "width": record.width,
            "height": record.height,
            "n_instances": record.n_instances,
            "file": self.file,
            "problem": self.problem or None,
        }


def write_files(
    results: Results, records: Sequence[ImageRecord], folder: Path, drawing: Drawing
) -> list[ShownImage]:
    """A PNG file for each image, at the size of the image; small ones are enlarged.

    Raises:
        SegcoreError: A file cannot be written, or the output cannot be read.
    """
    names = _file_names(records)
    shown = {}
    for picture in read_pictures(results, records):
        target = folder / names[picture.record.image_id]
        _save(_draw(picture, drawing), target)
        shown[picture.record.image_id] = ShownImage(picture.record, str(target), picture.problem)
    return [shown[record.image_id] for record in records]


def write_picture(
    results: Results, record: ImageRecord, target: Path, drawing: Drawing
) -> list[ShownImage]:
    """One image as a file, at its own size or enlarged; errors as for `write_files`."""
    picture = next(iter(read_pictures(results, [record])))
    _save(_draw(picture, drawing), target)
    return [ShownImage(record, str(target), picture.problem)]


def write_sheet(
    results: Results,
    records: Sequence[ImageRecord],
    target: Path,
    drawing: Drawing,
    title: str,
    note: str = "",
) -> list[ShownImage]:
    """All images on one sheet, in the order of `records`; errors as for `write_files`."""
    if len(records) > _MAX_SHEET_IMAGES:
        raise UsageError(
            f"{len(records):,} images are too many for one sheet of at most {_MAX_SHEET_IMAGES}.",
            "Give --out the name of a folder: each image becomes a file of its own.",
        )
    tiles, problems = draw_tiles(results, records, drawing)
    _save(contact_sheet(tiles, title, note, _SHEET_COLUMNS, drawing.side), target)
    return [
        ShownImage(record, str(target), problem)
        for record, problem in zip(records, problems, strict=True)
    ]


def draw_tiles(
    results: Results,
    records: Sequence[ImageRecord],
    drawing: Drawing,
    subtitle: Callable[[Picture], str] | None = None,
) -> tuple[list[Tile], list[str]]:
    """Tiles of images in the order of `records`, and what kept each from being shown ("")."""
    tiles: dict[str, tuple[Tile, str]] = {}
    for picture in read_pictures(results, records):
        tile = draw_tile(picture, drawing.side, labels=drawing.labels, as_read=drawing.as_read)
        if subtitle is not None and picture.image is not None:
            tile = replace(tile, subtitle=subtitle(picture))
        if (why := drawing.why.get(picture.record.image_id)) is not None:
            tile = replace(tile, subtitle=why)
        tiles[picture.record.image_id] = tile, picture.problem
    ordered = [tiles[record.image_id] for record in records]
    return [tile for tile, _ in ordered], [problem for _, problem in ordered]


def picture_name(record: ImageRecord) -> str:
    """The file for the picture of one image: the stem of its name, and -masks.png."""
    base = re.split(r"[/\\]", record.key)[-1]
    page = f"-page{record.page}" if record.page and record.page > 1 else ""
    stem = base.removesuffix(f"#page={record.page}").rpartition(".")[0] or base
    safe = re.sub(r"[^\w.-]+", "_", stem).strip("._")[:_MAX_STEM_CHARS] or "image"
    return f"{safe}{page}-masks.png"


def _file_names(records: Sequence[ImageRecord]) -> dict[str, str]:
    """image_id -> file name; equal names get numbers."""
    names: dict[str, str] = {}
    used: set[str] = set()
    for record in records:
        name, number = picture_name(record), 1
        while name.lower() in used:
            number += 1
            name = picture_name(record).replace("-masks.png", f"-{number}-masks.png")
        used.add(name.lower())
        names[record.image_id] = name
    return names


def _draw(picture: Picture, drawing: Drawing) -> np.ndarray:
    return draw_picture(picture, labels=drawing.labels, as_read=drawing.as_read)


def _save(image: np.ndarray, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(target)
    except (OSError, ValueError) as error:  # ValueError: Pillow knows no such format
        raise SegcoreError(f"{target} cannot be written: {error}.") from None
