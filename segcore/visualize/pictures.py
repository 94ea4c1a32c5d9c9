"""Pictures of the results of single images: masks, labels and scores, or why there are none."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw, ImageFont

from segcore.output.image_rows import ImageRecord, read_instances
from segcore.output.results import Results
from segcore.text import plural, printable
from segcore.visualize.labels import MAX_LABELS, draw_instances
from segcore.visualize.originals import iter_originals
from segcore.visualize.overlays import Tile

INSTANCE_COLUMNS = (
    "image_id", "category", "score", "bbox_x", "bbox_y", "bbox_w", "bbox_h", "counts", "height",
    "width",
)  # fmt: skip
_MAX_LABELS_OF_TILE = 8  # more hide the masks
_CARD_SIZE = 640, 480  # width, height of the picture of an image that is not there
_CARD, _CARD_BORDER, _CARD_TEXT = (238, 238, 238), (190, 60, 50), (40, 40, 40)  # RGB
_MAX_REASON_CHARS = 400


@dataclass(frozen=True)
class Picture:
    """One image of an edition with its instances.

    Attributes:
        image: (H, W, 3) uint8 RGB as the job read it; None for an image that failed, or that can
            not be read today.
        problem: Why a segmented image cannot be shown; "" otherwise.
        instances: With the columns `INSTANCE_COLUMNS`.
    """

    record: ImageRecord
    image: np.ndarray | None
    problem: str
    instances: pa.Table

    @property
    def reason(self) -> str:
        """Why there is no image: it failed, or what `problem` says; "" where there is one."""
        if self.record.status != "ok":
            return f"{self.record.error_code}: {self.record.error_message}"
        return self.problem

    def counts(self) -> list[str]:
        """The masks as COCO compressed RLE, in descending order of score."""
        values: list[str] = self.instances["counts"].to_pylist()
        return values

    def labels(self) -> list[str]:
        """Category and score of each instance."""
        columns = (self.instances[name].to_pylist() for name in ("category", "score"))
        return [f"{category} {score:.2f}" for category, score in zip(*columns, strict=True)]

    def boxes(self) -> np.ndarray:
        """(N, 4) float32 x, y, width, height in pixels."""
        names = ("bbox_x", "bbox_y", "bbox_w", "bbox_h")
        return np.stack([self.instances[name].to_numpy() for name in names], axis=1)


def read_pictures(results: Results, records: Sequence[ImageRecord]) -> Iterator[Picture]:
    """The pictures of some images, one at a time; those of one unit follow one another.

    Images that failed come without pixels, and so do those that cannot be read today, or whose
    masks cannot be read.
    """
    nothing = pa.table({name: pa.array([], pa.string()) for name in INSTANCE_COLUMNS})
    for record in records:
        if record.status != "ok":
            yield Picture(record, None, "", nothing)
    segmented = [record for record in records if record.status == "ok"]
    read = read_instances(results, segmented)
    instances = {record.image_id: (rows, damage) for record, rows, damage in read}
    for original in iter_originals(results, segmented):
        rows, damage = instances[original.record.image_id]
        pixels, problem = original.pixels, original.problem
        if damage:
            pixels, problem = None, f"Its masks cannot be read: {damage}"
        elif pixels is not None and not _fits(rows, pixels):
            pixels, problem = None, "Its masks are on another canvas than the image."
        yield Picture(original.record, pixels, problem, rows)


def _fits(rows: pa.Table, pixels: np.ndarray) -> bool:
    height, width = pixels.shape[:2]
    sizes = zip(rows["height"].to_pylist(), rows["width"].to_pylist(), strict=True)
    return all(size == (height, width) for size in sizes)


def draw_picture(
    picture: Picture,
    *,
    scale: float | None = None,
    labels: bool | None = None,
    as_read: bool = False,
    max_labels: int = MAX_LABELS,
) -> np.ndarray:
    """Masks, labels and scores over an image; a card with the reason where there is none.

    Args:
        scale: Size of the picture relative to the image; None: that of the image, but small
            images are enlarged.
        labels: Write category and score beside each instance; None: where there are at most
            `max_labels`, and they leave the masks to be seen.
        as_read: Do not brighten a dark image.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    if picture.image is None:
        return draw_card(picture.reason, picture.record.status == "ok")
    return draw_instances(
        picture.image,
        picture.counts(),
        picture.labels(),
        picture.boxes(),
        scale=scale,
        labels=labels,
        as_read=as_read,
        max_labels=max_labels,
    )


def draw_tile(
    picture: Picture, side: int, *, labels: bool | None = None, as_read: bool = False
) -> Tile:
    """The same for a contact sheet whose pictures fit into a square of `side` pixels."""
    record = picture.record
    if picture.image is None:
        drawn = draw_card(picture.reason, record.status == "ok", (side, side))
        return Tile(drawn, [], record.key, "failed" if record.status != "ok" else "not readable",
                    is_drawn=True)  # fmt: skip
    scale = side / max(picture.image.shape[:2])
    drawn = draw_picture(
        picture, scale=scale, labels=labels, as_read=as_read, max_labels=_MAX_LABELS_OF_TILE
    )
    return Tile(drawn, [], record.key, describe_instances(picture.instances), is_drawn=True)


def describe_instances(instances: pa.Table) -> str:
    """How many there are, and the range of their scores."""
    if not instances.num_rows:
        return "nothing found"
    scores = instances["score"].to_numpy()
    text = plural(instances.num_rows, "instance")
    low, high = f"{scores.min():.2f}", f"{scores.max():.2f}"
    return f"{text}, score {low}" + (f" to {high}" if low != high else "")


def draw_card(reason: str, is_missing: bool, size: tuple[int, int] = _CARD_SIZE) -> np.ndarray:
    """What stands for an image without pixels: the reason, in words.

    Args:
        is_missing: It was segmented, but is not in the archive any more.
        size: (width, height).

    Returns:
        (height, width, 3) uint8 RGB.
    """
    width, height = size
    card = Image.new("RGB", size, _CARD)
    draw = ImageDraw.Draw(card)
    draw.rectangle((0, 0, width - 1, height - 1), outline=_CARD_BORDER, width=3)
    small, large = max(9.0, width / 26), max(11.0, width / 18)
    margin = round(width / 16)
    heading = "cannot be read today" if is_missing else "failed"
    draw.text((margin, margin), heading, fill=_CARD_BORDER, font=ImageFont.load_default(large))
    font = ImageFont.load_default(small)
    n_letters = max(8, int((width - 2 * margin) / max(1.0, font.getlength("n"))))
    words = textwrap.fill(printable(reason)[:_MAX_REASON_CHARS], n_letters)
    draw.multiline_text((margin, margin + 2 * large), words, fill=_CARD_TEXT, font=font)
    return np.asarray(card)
