"""Category and score, written beside the boxes of instances."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from segcore.text import printable
from segcore.visualize.overlays import COLOURS

MAX_LABELS = 60  # on a picture, unless asked for; more hide the masks
_MIN_SIZE, _SHARE_OF_IMAGE = 11.0, 1 / 45  # height of the letters, pixels
_PADDING = 2
_MAX_LETTERS = 40


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
    height, width = image.shape[:2]
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(max(_MIN_SIZE, min(height, width) * _SHARE_OF_IMAGE))
    for number in reversed(range(len(texts))):
        text = printable(texts[number])[:_MAX_LETTERS]
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
        text_width, text_height = right - left + 2 * _PADDING, bottom - top + 2 * _PADDING
        x = max(0.0, min(float(boxes[number, 0]), width - text_width))
        y = max(0.0, float(boxes[number, 1]) - text_height)
        colour = COLOURS[number % len(COLOURS)]
        draw.rectangle((x, y, x + text_width, y + text_height), fill=colour)
        draw.text((x + _PADDING - left, y + _PADDING - top), text, fill=(0, 0, 0), font=font)
    return np.asarray(picture)
