"""Random crops: scaled, rotated, mirrored, recoloured, blurred."""

from __future__ import annotations

import math

import cv2
import numpy as np

from segcore.training.config import AugmentConfig

PADDING = 114  # grey level; inference pads with the same


def random_crop(
    image: np.ndarray, labels: np.ndarray, config: AugmentConfig, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """One random crop of an image and its labels.

    Args:
        image: (H, W, 3) uint8 RGB.
        labels: (H, W) int32.
        config: Sizes and probabilities.
        rng: Source of all randomness.

    Returns:
        (S, S, 3) uint8 and (S, S) int32; outside the image 114 and 0.
    """
    matrix = _random_transform(image.shape[1], image.shape[0], config, rng)
    size = (config.crop, config.crop)
    crop = cv2.warpAffine(
        image, matrix, size, flags=cv2.INTER_LINEAR, borderValue=(PADDING, PADDING, PADDING)
    )
    # float32 holds labels exactly up to 2**24; warpAffine has no int32.
    crop_labels = cv2.warpAffine(
        labels.astype(np.float32), matrix, size, flags=cv2.INTER_NEAREST, borderValue=0
    ).astype(np.int32)
    if rng.random() < config.colour:
        crop = _recolour(crop, rng)
    if rng.random() < config.noise:
        crop = _blur_or_add_noise(crop, rng)
    return crop, crop_labels


def _random_transform(
    width: int, height: int, config: AugmentConfig, rng: np.random.Generator
) -> np.ndarray:
    """(2, 3) matrix from source pixel indices to crop pixel indices."""
    side = math.exp(rng.uniform(math.log(config.min_side), math.log(config.max_side)))
    scale = side / max(width, height)
    stretch = math.exp(rng.uniform(-0.1, 0.1))
    angle = math.pi / 2 * int(rng.integers(4))
    if rng.random() < config.rotate:
        angle += rng.uniform(-math.pi / 4, math.pi / 4)
    mirror = -1.0 if rng.random() < 0.5 else 1.0
    linear = np.array(
        [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    ) @ np.diag([scale * stretch * mirror, scale / stretch])
    # The crop's centre is drawn so that most of the crop lies inside the image.
    half_crop = config.crop / 2 / scale
    centre = []
    for length in (width, height):
        low, high = min(half_crop, length / 2), max(length - half_crop, length / 2)
        centre.append(rng.uniform(low, high) + rng.uniform(-0.25, 0.25) * half_crop)
    # Pixel centres are at index + 0.5.
    shift = config.crop / 2 - linear @ np.array(centre)
    shift += linear @ np.array([0.5, 0.5]) - 0.5
    return np.concatenate((linear, shift[:, None]), axis=1)


def _recolour(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gamma, contrast and brightness; hue and saturation of coloured images."""
    red, green, blue = (image[..., channel] for channel in range(3))
    is_grey = bool((red == green).all() and (green == blue).all())
    if not is_grey:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        hue = (hsv[..., 0].astype(np.int16) + int(rng.integers(-12, 13))) % 180
        saturation = hsv[..., 1] * math.exp(rng.uniform(-0.5, 0.4))
        hsv[..., 0] = hue
        hsv[..., 1] = np.clip(saturation, 0, 255)
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
        if rng.random() < 0.1:
            image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    levels = np.arange(256) / 255
    levels = levels ** math.exp(rng.uniform(-0.5, 0.5))
    levels = levels * rng.uniform(0.6, 1.4) + rng.uniform(-0.08, 0.08)
    return cv2.LUT(image, np.clip(levels * 255, 0, 255).astype(np.uint8))


def _blur_or_add_noise(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A little of one or the other."""
    if rng.random() < 0.5:
        return cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.5))
    noise = rng.normal(0, rng.uniform(1, 8), image.shape[:2])[..., None]
    return np.clip(image + noise, 0, 255).astype(np.uint8)
