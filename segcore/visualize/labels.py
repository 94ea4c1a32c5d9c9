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
    font = _font(shape)
    sizes = (font.getbbox(_shown(text)) for text in texts)
    covered = sum((right - left + 2 * _PADDING) * (bottom - top + 2 * _PADDING)
                  for left, top, right, bottom in sizes)  # fmt: skip
    return len(texts) <= _ALWAYS_DRAWN or covered <= _MAX_COVERED * shape[0] * shape[1]


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


def _shown(text: str) -> str:
    return printable(text)[:_MAX_LETTERS]


def draw_labels(image: np.ndarray, texts: Sequence[str], boxes: np.ndarray) -> np.ndarray:
    """Write a text at the top-left corner of each box, on the colour of its mask in `overlay`.

    The texts of the first instances, which have the highest scores, lie on top. A text that would
    reach over the border of the image is moved inside.

    Args:
        image: (H, W, 3) uint8 RGB; not changed.
        boxes: (N, 4): x, y, width, height in pixels of `image`.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    picture = Image.fromarray(image)
    width = image.shape[1]
    draw = ImageDraw.Draw(picture)
    font = _font(image.shape)
    for number in reversed(range(len(texts))):
        text = _shown(texts[number])
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
        text_width, text_height = right - left + 2 * _PADDING, bottom - top + 2 * _PADDING
        x = max(0.0, min(float(boxes[number, 0]), width - text_width))
        y = max(0.0, float(boxes[number, 1]) - text_height)
        colour = COLOURS[number % len(COLOURS)]
        draw.rectangle((x, y, x + text_width, y + text_height), fill=colour)
        draw.text((x + _PADDING - left, y + _PADDING - top), text, fill=(0, 0, 0), font=font)
    return np.asarray(picture)
