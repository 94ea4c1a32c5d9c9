"""Letterbox geometry: an image on the model's canvas, and the way back for boxes and masks.

This is how the published models are used; their results are only reproduced if every pixel agrees.
The image is scaled by ``r = min(S / H, S / W)``, up or down, to ``round(W r) x round(H r)``;
resized bilinearly by OpenCV, and only if the size changes; centred on a canvas of value 114. The
canvas is S x S, or each of its sides is just the next multiple of 32 that holds the scaled image.
An odd pixel of padding goes to the right or the bottom. Boxes go back by the scale of each axis.
Masks are read from the prototypes without the padding: where that is not a whole number of
prototype pixels, the mask logits are first upsampled bilinearly by 2 or 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from segcore.masks import Window
from segcore.models.base import InputShape

PADDING_VALUE = 114
STRIDE = 32  # pixels, the coarsest of the network: sides of the canvas are multiples of it
PROTO_STRIDE = 4  # input pixels for each prototype pixel


@dataclass(frozen=True)
class Letterbox:
    """Where an image of (height, width) is placed on a canvas of (canvas_height, canvas_width).

    Attributes:
        height, width: Of the original image, pixels.
        canvas_height, canvas_width: Pixels, multiples of 32.
        content_height, content_width: Of the scaled image, at least 1.
        top, left, bottom, right: Padding on each side, pixels.
    """

    height: int
    width: int
    canvas_height: int
    canvas_width: int
    content_height: int
    content_width: int
    top: int
    left: int
    bottom: int
    right: int

    @classmethod
    def fit(cls, height: int, width: int, size: int, shape: InputShape = "square") -> Letterbox:
        """Geometry for an image of (height, width), both at least 1; it depends on nothing else.

        Args:
            height, width: Of the image, pixels.
            size: Longest side of the canvas, pixels, a multiple of 32.
            shape: ``square``: both sides are `size`. ``rect``: as little padding as possible.
        """
        ratio = min(size / height, size / width)
        # At least one pixel, so that something of very long images is visible.
        content_height = max(1, round(height * ratio))
        content_width = max(1, round(width * ratio))
        pad_y, pad_x = size - content_height, size - content_width
        if shape == "rect":
            pad_y, pad_x = pad_y % STRIDE, pad_x % STRIDE
        return cls(
            height=height,
            width=width,
            canvas_height=content_height + pad_y,
            canvas_width=content_width + pad_x,
            content_height=content_height,
            content_width=content_width,
            top=pad_y // 2,
            left=pad_x // 2,
            bottom=pad_y - pad_y // 2,
            right=pad_x - pad_x // 2,
        )

    def apply(self, image: np.ndarray) -> np.ndarray:
        """(height, width, 3) uint8 -> (3, canvas_height, canvas_width) uint8.

        Channels keep their order; in memory they stay last, as our networks take them.

        Args:
            image: The original, or the original reduced by 2, 4 or 8 (see
                `segcore.images.decode_image_reduced`) that is on each side at least as large as the
                scaled image.
        """
        factor = self._reduction_factor(image)
        content_size = (self.content_width, self.content_height)
        if factor > 1:
            image = self._scale_reduced(image, factor)
        elif content_size != (self.width, self.height):
            image = cv2.resize(image, content_size, interpolation=cv2.INTER_LINEAR)
        canvas = np.full((self.canvas_height, self.canvas_width, 3), PADDING_VALUE, np.uint8)
        content = canvas[
            self.top : self.top + self.content_height,
            self.left : self.left + self.content_width,
        ]
        content[:] = image
        return canvas.transpose(2, 0, 1)

    def _reduction_factor(self, image: np.ndarray) -> int:
        """The factor by which `image` is reduced; 1 for the original."""
        if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
            height, width = image.shape[:2]
            is_large_enough = height >= self.content_height and width >= self.content_width
            for factor in (1, 2, 4, 8):
                reduced_size = (-(-self.height // factor), -(-self.width // factor))
                if (height, width) == reduced_size and (factor == 1 or is_large_enough):
                    return factor
        raise ValueError(
            f"expected uint8 pixels of shape {(self.height, self.width, 3)}, "
            f"got {image.dtype} of shape {image.shape}"
        )

    def _scale_reduced(self, image: np.ndarray, factor: int) -> np.ndarray:
        """The scaled image from a reduced one, whose last pixels may extend beyond the original."""
        step_x = self.width / factor / self.content_width  # reduced pixels per scaled pixel
        step_y = self.height / factor / self.content_height
        scaled_to_reduced = np.array([[step_x, 0, step_x / 2 - 0.5], [0, step_y, step_y / 2 - 0.5]])
        return cv2.warpAffine(
            image,
            scaled_to_reduced,
            (self.content_width, self.content_height),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )

    def boxes_to_image(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes (N, 4) x1 y1 x2 y2 on the canvas -> float32 on the original, clipped to it."""
        out = boxes.astype(np.float32, copy=True)
        out -= np.array([self.left, self.top, self.left, self.top], np.float32)
        # Per axis: rounding to whole pixels makes the two scales differ a little from the ratio.
        scale_x, scale_y = self.content_width / self.width, self.content_height / self.height
        out /= np.array([scale_x, scale_y, scale_x, scale_y], np.float32)
        limits = np.array([self.width, self.height, self.width, self.height], np.float32)
        return np.clip(out, np.float32(0), limits, out=out)

    def mask_window(self) -> Window:
        """The part of the mask logits (a quarter of the canvas size) that shows the image."""
        bottom, right = self.canvas_height - self.bottom, self.canvas_width - self.right
        return Window.of_letterbox(self.top, self.left, bottom, right, PROTO_STRIDE)
