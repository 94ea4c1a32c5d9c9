"""Synthetic fluorescence nuclei with exactly known masks, and an archive of them.

Nuclei are ellipses with a wavy outline, a texture and a darker rim, drawn one after another so
that they may touch but never share a pixel. The image is then blurred by a Gaussian point-spread
function and gets haze, an uneven background, shot noise and read noise. The mask is the drawn
shape before the blur. Everything follows from the seed and the index of the image: the same call
with the same library versions gives the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True)
class Style:
    """One kind of experiment: lengths in pixels, brightness as a share of the grey range.

    Pairs are the limits (lowest, highest) of a uniform draw, once per image or per nucleus.
    """

    height: int
    width: int
    share: float  # of the archive
    count: tuple[int, int]
    radius: tuple[float, float]  # mean radius of the nuclei of one image
    elongation: tuple[float, float]
    waviness: float
    texture: float
    texture_scale: float
    clustering: float  # probability that a nucleus is placed beside another
    psf: tuple[float, float]


STYLES = (
    # small ovals at low magnification
    Style(256, 256, 0.30, (12, 60), (5.0, 7.5), (1.15, 1.6), 0.04, 0.10, 2.0, 0.25, (0.6, 0.9)),
    # round nuclei with bright spots, in clumps
    Style(256, 256, 0.25, (15, 55), (8.0, 10.5), (1.0, 1.25), 0.05, 0.25, 1.8, 0.65, (0.7, 1.2)),
    # large ovals at high magnification
    Style(360, 360, 0.25, (8, 26), (19.0, 26.0), (1.1, 1.7), 0.06, 0.10, 3.0, 0.35, (0.9, 1.6)),
    # a well-filled wide field
    Style(520, 696, 0.12, (60, 150), (11.0, 14.5), (1.1, 1.6), 0.05, 0.12, 2.5, 0.45, (0.9, 1.4)),
    Style(520, 696, 0.08, (18, 45), (22.0, 27.0), (1.1, 1.6), 0.06, 0.12, 3.0, 0.35, (0.9, 1.6)),
)

_MIN_VISIBLE_PIXELS = 24  # of a nucleus, after the image's edge and neighbours have cut it
_MAX_HIDDEN_FRACTION = 0.12  # of a nucleus, cut off by its neighbours


@dataclass(frozen=True)
class Scene:
    """One rendered image.

    Attributes:
        pixels: (H, W) uint8 grey.
        labels: (H, W) int32; 0 is background; nuclei are numbered from 1 without gaps.
    """

    pixels: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class _Nucleus:
    """Centre x, y and semi-axes in pixels, angle in radians, brightness relative to the image's."""

    x: float
    y: float
    axes: tuple[float, float]
    angle: float
    waves: tuple[tuple[float, float], ...]  # (amplitude, phase) of orders 2, 3, ... of the outline
    brightness: float


def render_scene(seed: int, index: int) -> Scene:
    """Render the image with this index in the archive with this seed."""
    rng = np.random.default_rng([seed, index])
    style = STYLES[int(rng.choice(len(STYLES), p=[s.share for s in STYLES]))]
    labels, light = _draw_nuclei(rng, style)
    return Scene(_simulate_camera(rng, style, light), labels)


def _draw_nuclei(rng: np.random.Generator, style: Style) -> tuple[np.ndarray, np.ndarray]:
    """Place nuclei until the target count is reached or there is no room.

    Returns:
        Labels (H, W) int32 and light (H, W) float32.
    """
    labels = np.zeros((style.height, style.width), np.int32)
    light = np.zeros((style.height, style.width), np.float32)
    grain = _smooth_noise(rng, labels.shape, style.texture_scale)
    target_count = int(rng.integers(style.count[0], style.count[1], endpoint=True))
    radius = float(rng.uniform(*style.radius))
    placed: list[_Nucleus] = []
    for _ in range(4 * target_count):
        if len(placed) == target_count:
            break
        nucleus = _propose_nucleus(rng, style, radius, placed)
        window, inside, depth = _rasterise(nucleus, labels.shape)
        free = inside & (labels[window] == 0)
        if not _is_visible_enough(inside, free):
            continue
        placed.append(nucleus)
        labels[window][free] = len(placed)
        surface = 0.70 + 0.30 * np.sqrt(depth)  # a dome, darker at the rim, makes seams visible
        surface *= 1 + style.texture * grain[window]
        light[window][free] = (nucleus.brightness * surface)[free]
    return labels, light


def _propose_nucleus(
    rng: np.random.Generator, style: Style, radius: float, placed: list[_Nucleus]
) -> _Nucleus:
    """Draw a nucleus at random: beside one that is there, or anywhere in the image."""
    size = radius * float(rng.lognormal(0.0, 0.14))
    stretch = float(np.sqrt(rng.uniform(*style.elongation)))
    axes = (size * stretch, size / stretch)
    waves = tuple(
        (float(rng.normal(0, style.waviness / (k - 1))), float(rng.uniform(0, 2 * np.pi)))
        for k in (2, 3, 4)
    )
    if placed and rng.random() < style.clustering:
        neighbour = placed[int(rng.integers(len(placed)))]
        direction = rng.uniform(0, 2 * np.pi)
        distance = (np.sqrt(neighbour.axes[0] * neighbour.axes[1]) + size) * rng.uniform(0.95, 1.15)
        x = neighbour.x + float(np.cos(direction) * distance)
        y = neighbour.y + float(np.sin(direction) * distance)
    else:
        x, y = float(rng.uniform(0, style.width)), float(rng.uniform(0, style.height))
    brightness = float(rng.lognormal(0.0, 0.22))
    if rng.random() < 0.03:  # about to divide: smaller, condensed, bright
        axes, brightness = (axes[0] * 0.8, axes[1] * 0.6), brightness * 1.7
    return _Nucleus(x, y, axes, float(rng.uniform(0, np.pi)), waves, brightness)


def _rasterise(
    nucleus: _Nucleus, canvas: tuple[int, ...]
) -> tuple[tuple[slice, slice], np.ndarray, np.ndarray]:
    """Rasterise one nucleus: its window on the canvas, (h, w) inside, (h, w) depth in [0, 1]."""
    extent = max(nucleus.axes) * (1 + sum(abs(a) for a, _ in nucleus.waves)) + 1
    top, left = max(0, int(nucleus.y - extent)), max(0, int(nucleus.x - extent))
    bottom = max(top, min(canvas[0], int(nucleus.y + extent) + 1))
    right = max(left, min(canvas[1], int(nucleus.x + extent) + 1))
    dy = np.arange(top, bottom, dtype=np.float32)[:, None] + np.float32(0.5 - nucleus.y)
    dx = np.arange(left, right, dtype=np.float32)[None, :] + np.float32(0.5 - nucleus.x)
    rotated = (dx + 1j * dy) * np.complex64(np.exp(-1j * nucleus.angle))
    u, v = rotated.real / nucleus.axes[0], rotated.imag / nucleus.axes[1]
    distance = u * u + v * v
    direction = (u + 1j * v) / np.sqrt(np.maximum(distance, 1e-6))
    edge = np.ones_like(distance)
    power = direction
    for amplitude, phase in nucleus.waves:  # cos(k theta + phase) from powers of the direction
        power = power * direction
        edge += (power * np.complex64(amplitude * np.exp(1j * phase))).real
    depth = 1 - distance / (edge * edge)
    return (slice(top, bottom), slice(left, right)), depth > 0, np.clip(depth, 0, 1)


def _is_visible_enough(inside: np.ndarray, free: np.ndarray) -> bool:
    """Whether enough of a nucleus is visible, in one piece.

    Args:
        inside: (h, w) bool: its pixels.
        free: (h, w) bool: those of them that no other nucleus has taken.
    """
    visible = int(free.sum())
    if visible < _MIN_VISIBLE_PIXELS or visible < (1 - _MAX_HIDDEN_FRACTION) * int(inside.sum()):
        return False
    return cv2.connectedComponents(free.astype(np.uint8), connectivity=4)[0] == 2


def _simulate_camera(rng: np.random.Generator, style: Style, light: np.ndarray) -> np.ndarray:
    """Apply optics and noise: light (H, W) float32 -> grey (H, W) uint8."""
    height, width = light.shape
    image = cv2.GaussianBlur(light, (0, 0), float(rng.uniform(*style.psf)))
    reduced = cv2.resize(light, (width // 8, height // 8), interpolation=cv2.INTER_AREA)
    haze = cv2.GaussianBlur(reduced, (0, 0), style.radius[1] / 6)
    image = image + float(rng.uniform(0.01, 0.06)) * cv2.resize(haze, (width, height))
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    slope = rng.normal(0, 0.3, 2)
    unevenness = 1 + float(slope[0]) * x + float(slope[1]) * y
    background = float(rng.uniform(2, 12)) / 255 * np.clip(unevenness, 0.3, 1.7)
    peak = float(rng.uniform(0.22, 0.75))
    photons = float(rng.uniform(250, 1200))  # at full scale
    read_noise = float(rng.uniform(0.002, 0.006))
    signal = np.maximum(peak * image + background, 0)
    # Shot noise: a Poisson count of so many photons is nearly normal, which is far faster to draw.
    deviation = np.sqrt(signal / photons + read_noise * read_noise)
    image = signal + rng.standard_normal(light.shape, dtype=np.float32) * deviation
    return np.clip(np.rint(image * 255), 0, 255).astype(np.uint8)


def _smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], scale: float) -> np.ndarray:
    """Smooth noise of unit variance; `scale` is the sigma of its grain, in pixels."""
    field = cv2.GaussianBlur(rng.standard_normal(shape, dtype=np.float32), (0, 0), scale)
    return field / float(field.std())
