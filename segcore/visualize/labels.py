"""Category and score, written beside the boxes of instances."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from segcore.text import printable
from segcore.visualize.overlays import COLOURS, brighten, overlay, picture_scale

MAX_LABELS = 60  # on a picture, unless asked for; more hide the masks
_MAX_COVERED = 0.2  # share of a picture that labels may hide, unless asked for
_ALWAYS_DRAWN = 3  # so few, unless asked not to
_MIN_SIZE, _SHARE_OF_IMAGE = 11.0, 1 / 45  # height of the letters, pixels
_PADDING = 2
_MAX_LETTERS = 40


def labels_fit(texts: Sequence[str], shape: tuple[int, ...], max_labels: int = MAX_LABELS) -> bool:
    """Whether labels leave the masks to be seen: they are few, and small beside the picture.

    Args:
        shape: Height and width of the picture.
    """
    if len(texts) > max_labels:
        return False
    covered = np.prod(_sizes(_letters(texts, _font(shape))), axis=1).sum()
    return len(texts) <= _ALWAYS_DRAWN or bool(covered <= _MAX_COVERED * shape[0] * shape[1])


def draw_instances(
    image: np.ndarray,
    counts: Sequence[str | bytes],
    texts: Sequence[str],
    boxes: np.ndarray,
    *,
    scale: float | None = None,
    labels: bool | None = None,
    as_read: bool = False,
    max_labels: int = MAX_LABELS,
) -> np.ndarray:
    """Masks over an image, with a text beside each.

    Args:
        image: (H, W, 3) uint8 RGB.
        counts: RLE strings of N masks.
        texts: N texts.
        boxes: (N, 4) x, y, width, height in pixels of the image.
        scale: Size of the picture relative to the image; None: that of the image, but small
            images are enlarged.
        labels: Write the texts; None: where there are at most `max_labels`, and they leave the
            masks to be seen.
        as_read: Do not brighten a dark image.

    Returns:
        (h, w, 3) uint8 RGB.
    """
    scale = picture_scale(image, scale)
    drawn = overlay(image if as_read else brighten(image), counts, scale)
    if labels is None:
        labels = labels_fit(texts, drawn.shape, max_labels)
    return draw_labels(drawn, texts, boxes * scale) if labels else drawn


def _font(shape: tuple[int, ...]) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(max(_MIN_SIZE, min(shape[:2]) * _SHARE_OF_IMAGE))


def _letters(
    texts: Sequence[str], font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> np.ndarray:
    """(N, 4) left, top, right, bottom of the texts, written at the origin."""
    return np.array([font.getbbox(_shown(text)) for text in texts]).reshape(-1, 4)


def _sizes(letters: np.ndarray) -> np.ndarray:
    """(N, 2) width and height of labels with these letters."""
    return letters[:, 2:] - letters[:, :2] + 2 * _PADDING


def _shown(text: str) -> str:
    return printable(text)[:_MAX_LETTERS]


def draw_labels(image: np.ndarray, texts: Sequence[str], boxes: np.ndarray) -> np.ndarray:
    """Write a text beside each box, on the colour of its mask in `overlay`.

    It lies above the top-left corner of the box or, where another text is, at another corner. The
    texts of the first instances, which have the highest scores, choose first and lie on top. A
    text that would reach over the border of the image is moved inside.

    Args:
        image: (H, W, 3) uint8 RGB; not changed.
        boxes: (N, 4): x, y, width, height in pixels of `image`.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    font = _font(image.shape)
    letters = _letters(texts, font)
    sizes = _sizes(letters)
    corners = _place(boxes, sizes, (image.shape[1], image.shape[0]))
    for number in reversed(range(len(texts))):
        x, y = corners[number]
        width, height = sizes[number]
        colour = COLOURS[number % len(COLOURS)]
        draw.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)
        start = x + _PADDING - letters[number, 0], y + _PADDING - letters[number, 1]
        draw.text(start, _shown(texts[number]), fill=(0, 0, 0), font=font)
    return np.asarray(picture)


def _place(boxes: np.ndarray, sizes: np.ndarray, canvas: tuple[int, int]) -> np.ndarray:
    """Where each text goes: of the places around its box the one that other texts cover least.

    Args:
        boxes: (N, 4) x, y, width, height.
        sizes: (N, 2) width, height of the texts.
        canvas: Width and height of the picture.

    Returns:
        (N, 2) x, y of the texts' top-left corners.
    """
    corners, ends = np.zeros((2, len(boxes), 2))
    for number, (box, size) in enumerate(zip(np.rint(boxes), sizes, strict=True)):
        start, end = box[:2], box[:2] + box[2:]
        above, below = start[1] - size[1], end[1]
        right, left_of = end[0] - size[0], start[0] - size[0]
        places = [
            *((start[0], above), (right, above), (start[0], below), (right, below)),
            *((end[0], start[1]), (left_of, start[1]), tuple(start), (right, start[1])),
        ]
        places_inside = np.clip(places, 0, np.maximum(np.array(canvas) - size, 0))
        places_end, others, others_end = places_inside + size, corners[:number], ends[:number]
        overlap = np.minimum(places_end[:, None], others_end)
        overlap -= np.maximum(places_inside[:, None], others)
        covered = np.prod(np.maximum(overlap, 0), axis=2).sum(axis=1)
        best = np.argmin(covered)
        corners[number], ends[number] = places_inside[best], places_end[best]
    return corners
