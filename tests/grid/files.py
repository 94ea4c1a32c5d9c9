"""What a file of the grid is, and the picture that all of them show."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class GridFile:
    """One generated file.

    Attributes:
        format: As in docs/formats.md, in lower case.
        row: The choices that it was made by.
        data: Its bytes.
        drawn: (H, W, 3) uint8, what segcore must give by docs/formats.md, where the file keeps
            its pixels exactly (within `tolerance`); None for a lossy file.
        tolerance: By how much pixels may differ from those of another reader.
    """

    format: str
    row: dict[str, Any]
    data: bytes
    drawn: np.ndarray | None
    tolerance: int = 0
    tags: frozenset[str] = field(default_factory=frozenset)

    @property
    def name(self) -> str:
        choices = ",".join(f"{name}={value}" for name, value in self.row.items())
        return f"{self.format}:{choices}"


def picture(size: tuple[int, int], channels: int, bits: int = 8) -> np.ndarray:
    """(H, W, channels) samples of so many bits: gradients, and a patch of noise."""
    height, width = size
    y, x, c = np.mgrid[:height, :width, :channels]
    ramp = (x * 4 + y * 5 * (c + 1) + c * 37) % 256
    rng = np.random.default_rng(height * 1000 + width * 10 + channels)
    patch = slice(height // 4, height // 2 + 1), slice(width // 4, width // 2 + 1)
    ramp[patch] = rng.integers(0, 256, ramp[patch].shape)
    if bits <= 8:
        return (ramp >> (8 - bits)).astype(np.uint8)
    low = rng.integers(0, 1 << (bits - 8), ramp.shape)
    return ((ramp << (bits - 8)) | low).astype(np.uint16 if bits <= 16 else np.uint32)


def eight_bits(samples: np.ndarray, bits: int) -> np.ndarray:
    """Samples as 8 bits: the high byte, or scaled to 255."""
    if bits >= 8:
        return (samples >> (bits - 8)).astype(np.uint8)
    return (samples.astype(np.uint16) * 255 // ((1 << bits) - 1)).astype(np.uint8)


def as_rgb(grey_or_rgb: np.ndarray) -> np.ndarray:
    """(H, W, 1 to 4) -> (H, W, 3): grey is repeated, alpha dropped."""
    if grey_or_rgb.ndim == 2:
        grey_or_rgb = grey_or_rgb[..., None]
    if grey_or_rgb.shape[2] < 3:
        return np.repeat(grey_or_rgb[..., :1], 3, axis=2)
    return grey_or_rgb[..., :3]


def turned(image: np.ndarray, orientation: int) -> np.ndarray:
    """As stored -> as displayed; written down case by case, on purpose."""
    return {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: np.rot90(a, 2),
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
        8: lambda a: np.rot90(a, 1),
    }[orientation or 1](image)


def exif(orientation: int, order: str = "II") -> bytes:
    """A TIFF directory with one tag."""
    end = "little" if order == "II" else "big"
    number = lambda value, size: value.to_bytes(size, end)  # noqa: E731
    entry = number(0x0112, 2) + number(3, 2) + number(1, 4) + number(orientation, 2) + b"\0\0"
    return order.encode() + number(42, 2) + number(8, 4) + number(1, 2) + entry + bytes(4)


def inks_to_rgb(inks: np.ndarray) -> np.ndarray:
    """(H, W, 4) amounts of ink -> RGB, each colour times black, rounded."""
    light = 255 - inks.astype(np.uint32)
    return ((light[..., :3] * light[..., 3:] + 127) // 255).astype(np.uint8)


SIZES = [(45, 61), (1, 1), (16, 32), (7, 3), (33, 1)]
ORIENTATIONS = [0, 1, 2, 3, 4, 5, 6, 7, 8]
