"""The part of the mask logits that shows the image."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from segcore.masks.rle import MAX_CANVAS

NOT_FINITE = "mask logits are not finite (NaN or infinity)"


class Window(NamedTuple):
    """The part of the logits that shows the image, in samples of the (upsampled) logits.

    Rows [top, bottom) and columns [left, right) after upsampling by `upsample` (1, 2 or 4).
    """

    top: int
    left: int
    bottom: int
    right: int
    upsample: int = 1

    @classmethod
    def of_letterbox(cls, top: int, left: int, bottom: int, right: int, stride: int = 4) -> Window:
        """Window of content rows [top, bottom) and columns [left, right) of the model's input.

        Padding must end at the border of a sample, each `stride` input pixels wide. Where it does
        not, the logits are upsampled by the smallest of 1, 2 and 4 that makes it so.

        Raises:
            ValueError: No such factor exists.
        """
        for factor in (1, 2, 4):
            borders = np.array([top, left, bottom, right]) * factor
            if not (borders % stride).any():
                y0, x0, y1, x1 = (borders // stride).tolist()
                return cls(y0, x0, y1, x1, factor)
        raise ValueError(
            f"content {top, left, bottom, right} is not on a quarter of stride {stride}"
        )


def resolve_window(
    shape: tuple[int, ...], boxes: np.ndarray, canvas: tuple[int, int], window: Window | None
) -> Window:
    """The window of logits of shape (N, h, w), after all shapes were checked; None means all of it.

    Raises:
        ValueError: Shapes disagree, or the window is not inside the logits.
    """
    n, h, w = shape
    if boxes.shape != (n, 4):
        raise ValueError(f"boxes are (N, 4) with N = {n} as the logits, got {boxes.shape}")
    if canvas[0] < 1 or canvas[1] < 1 or canvas[0] * canvas[1] > MAX_CANVAS:
        raise ValueError(f"canvas (H, W) has 1..{MAX_CANVAS} pixels, got {canvas}")
    window = Window(0, 0, h, w) if window is None else window
    top, left, bottom, right, factor = window
    inside = 0 <= top < bottom <= h * factor and 0 <= left < right <= w * factor
    if factor not in (1, 2, 4) or not inside:
        raise ValueError(f"{window} is empty or not inside logits of {h}x{w}")
    return window
