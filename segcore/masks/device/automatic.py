"""The fastest exact way to encode masks on a device: by Triton where that works, else by torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from segcore.masks.device.encode import ImageMasks, StartChunk, encode_images
from segcore.masks.device.kernel_choice import KernelChoice
from segcore.masks.device.torch_encode import TorchChunk
from segcore.masks.window import Window


def pick_encoding(device: torch.device) -> StartChunk:
    """What `encode_images` should take as `start_chunk` on this device."""
    if not MASK_KERNELS.uses_triton(device):
        return TorchChunk
    from segcore.masks.device.triton_encode import TritonChunk

    return TritonChunk


def kernels_agree(device: torch.device, **options: Any) -> bool:
    """Whether both ways give the same strings for `sample_images`.

    Args:
        options: Of `TritonChunk`, for tests.
    """
    from segcore.masks.device.triton_encode import TritonChunk

    def start_chunk(*args: Any) -> TritonChunk:
        return TritonChunk(*args, **options)

    by_torch, by_triton = (
        encode_images(sample_images(device), start_chunk=start)
        for start in (TorchChunk, start_chunk)
    )
    return all(
        a.counts == b.counts and np.array_equal(a.areas, b.areas) and np.array_equal(a.keep, b.keep)
        for a, b in zip(by_torch, by_triton, strict=True)
    )


def sample_images(device: torch.device) -> list[ImageMasks]:
    """Masks that show how numbers are rounded: sign changes everywhere, ties, exact zeros."""
    rng = np.random.default_rng(0)
    images = []
    for canvas, window in (
        ((60, 80), None),
        ((201, 333), Window(8, 0, 152, 160, 4)),
        ((17, 9), Window(0, 3, 40, 37)),
    ):
        noise = rng.standard_normal((6, 40, 40)).astype(np.float32)
        noise[:2] = rng.integers(-2, 3, (2, 40, 40))
        noise[2:4] += np.float32(2)
        corners = rng.uniform(-0.1, 0.6, (6, 2)) * canvas[::-1]
        boxes = np.concatenate((corners, corners + rng.uniform(0, 0.6, (6, 2)) * canvas[::-1]), 1)
        boxes[::3] = (0, 0, canvas[1], canvas[0])
        planes = torch.from_numpy(noise).to(device)
        images.append(ImageMasks(planes, None, boxes.astype(np.float32), canvas, window))
    return images


MASK_KERNELS = KernelChoice("masks", kernels_agree)
