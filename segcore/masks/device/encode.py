"""Mask logits that are on a GPU -> COCO RLE, computed there: only strings cross the bus.

Definition and method are those of `segcore.masks.from_logits`; the same logits give the same
strings. All instances of a batch are encoded together, in chunks of bounded memory. The host waits
once or twice for each chunk and once for the result, however many images there are. The device
needs float64, which MPS lacks. CPU tensors work too, for tests: `segcore.masks.encode_logits` is
faster there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from segcore.errors import NotFinite
from segcore.masks.device.edges import DeviceAxes
from segcore.masks.device.plan import DevicePlan
from segcore.masks.device.strings import DeviceStrings, empty_strings
from segcore.masks.device.torch_encode import TorchChunk
from segcore.masks.device.transfers import download, upload
from segcore.masks.edges import EncodedMasks
from segcore.masks.window import NOT_FINITE, Window, resolve_window

BYTE_LIMIT = 1 << 29
StartChunk = Callable[..., Any]  # begins a chunk: see `TorchChunk` and `TritonChunk`


class ImageMasks(NamedTuple):
    """Instances of one image.

    Attributes:
        prototypes: (P, h, w) float32; where `coefficients` is None, the (N, h, w) logits.
        coefficients: (N, P) float32; logits are coefficients x prototypes. The shape of this
            product depends on the image alone, and so does its rounding.
        boxes: (N, 4) x1, y1, x2, y2 in pixels of the original image; may extend beyond it.
        canvas: (H, W) of the original image.
        window: Part of the logits that shows the image; None: all of it.
    """

    prototypes: Tensor
    coefficients: Tensor | None
    boxes: np.ndarray
    canvas: tuple[int, int]
    window: Window | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, h, w) of the logits."""
        instances = self.prototypes if self.coefficients is None else self.coefficients
        return (len(instances), *self.prototypes.shape[1:])


def encode_images(
    images: Sequence[ImageMasks], byte_limit: int = BYTE_LIMIT, start_chunk: StartChunk = TorchChunk
) -> list[EncodedMasks]:
    """RLE strings of the instances of each image, as `segcore.masks.encode_logits` returns them.

    Args:
        images: All on one device; canvases, windows and sizes may differ.
        byte_limit: Most memory taken at once on the device, about: for the logits, and again for
            what is computed from them. One image's logits and one instance's steps may take more.
        start_chunk: What computes them: `TorchChunk`, or on CUDA `TritonChunk`, which is faster.

    Raises:
        NotFinite: A logit is not.
        ValueError: Shapes or types disagree, or a window is not inside its logits.
    """
    windows = [_checked_window(image) for image in images]
    if not images:
        return []
    chunks: list[DeviceStrings] = []
    masks: list[np.ndarray] = []
    start = n_masks = 0
    for stop in _group_ends(images, byte_limit):
        group = images[start:stop]
        plan = DevicePlan.build(
            [image.shape for image in group],
            [image.boxes for image in group],
            [image.canvas for image in group],
            windows[start:stop],
        )
        masks.append(plan.mask + n_masks)
        if len(plan.mask):
            encoder = _GroupEncoder(plan, group, byte_limit, start_chunk)
            for span in plan.chunks(byte_limit):
                chunks += encoder.encode(*span)
        n_masks += sum(image.shape[0] for image in group)
        start = stop
    return _split_by_image(chunks, np.concatenate(masks), [image.shape[0] for image in images])


def _checked_window(image: ImageMasks) -> Window:
    for tensor in (image.prototypes, image.coefficients):
        if tensor is not None and tensor.dtype != torch.float32:
            raise ValueError(f"logits, prototypes and coefficients are float32, got {tensor.dtype}")
    planes, coefficients = image.prototypes, image.coefficients
    if planes.ndim != 3 or (
        coefficients is not None
        and (coefficients.ndim != 2 or coefficients.shape[1] != planes.shape[0])
    ):
        shape = None if coefficients is None else tuple(coefficients.shape)
        raise ValueError(
            "expected logits (N, h, w), or prototypes (P, h, w) with coefficients (N, P), got "
            f"{tuple(planes.shape)} with {shape}"
        )
    return resolve_window(image.shape, image.boxes, image.canvas, image.window)


def _group_ends(images: Sequence[ImageMasks], byte_limit: int) -> Iterator[int]:
    """Where groups of images end whose logits fit in the limit; at least one image each."""
    used_bytes = 0
    for stop, image in enumerate(images):
        logit_bytes = 4 * int(np.prod(image.shape, dtype=np.int64))
        if used_bytes and used_bytes + logit_bytes > byte_limit:
            yield stop
            used_bytes = 0
        used_bytes += logit_bytes
    yield len(images)


def _compute_logits(images: Sequence[ImageMasks]) -> Tensor:
    """All planes of a group, one after another: (T,) float32."""
    if len(images) == 1 and images[0].coefficients is None:
        return images[0].prototypes.reshape(-1)
    sizes = [int(np.prod(image.shape, dtype=np.int64)) for image in images]
    flat = images[0].prototypes.new_empty(sum(sizes))
    for image, part in zip(images, flat.split(sizes), strict=True):
        if image.coefficients is None:
            part.view(image.shape).copy_(image.prototypes)
        elif len(part):
            out = part.view(image.shape[0], -1)
            torch.mm(image.coefficients, image.prototypes.flatten(1), out=out)
    return flat


def _split_by_image(
    chunks: list[DeviceStrings], mask: np.ndarray, counts: list[int]
) -> list[EncodedMasks]:
    """Strings of chunks -> those of each image.

    Args:
        chunks: Strings of all crops.
        mask: The mask of each crop, counted over all images.
        counts: Masks of each image.
    """
    none = np.zeros(0, np.int64)
    if not chunks:
        return [EncodedMasks([], none, none) for _ in counts]
    chunk_starts = np.cumsum([0] + [len(c.chars) for c in chunks])[:-1].tolist()
    numbers = torch.cat(
        [
            torch.stack((c.starts + first, c.lengths, c.areas), dim=1).flatten()
            for c, first in zip(chunks, chunk_starts, strict=True)
        ]
    )
    # One transfer: numbers first, where they are aligned, then the strings.
    data = download(torch.cat([numbers.view(torch.uint8), *(c.chars for c in chunks)]))
    starts, lengths, areas = data[: 8 * len(numbers)].view(np.int64).reshape(-1, 3).T
    text = data[8 * len(numbers) :].tobytes()
    kept = np.flatnonzero(lengths)
    kept = kept[np.argsort(mask[kept], kind="stable")]
    spans = zip(starts[kept].tolist(), (starts + lengths)[kept].tolist(), strict=True)
    strings = [text[start:end] for start, end in spans]
    first_masks = np.cumsum([0, *counts])
    borders = np.searchsorted(mask[kept], first_masks).tolist()
    return [
        EncodedMasks(strings[start:end], areas[kept[start:end]], mask[kept[start:end]] - first_mask)
        for (start, end), first_mask in zip(
            pairwise(borders), first_masks[:-1].tolist(), strict=True
        )
    ]


class _GroupEncoder:
    """A plan, its tables and its logits on the device."""

    def __init__(
        self,
        plan: DevicePlan,
        images: Sequence[ImageMasks],
        byte_limit: int,
        start_chunk: StartChunk,
    ) -> None:
        self._plan = plan
        self._byte_limit = byte_limit
        self._start_chunk = start_chunk
        self._logits = _compute_logits(images)
        self._axes = DeviceAxes(*(upload(table, self._logits.device) for table in plan.tables))

    def encode(self, start: int, stop: int) -> list[DeviceStrings]:
        """Strings of crops [start, stop)."""
        chunk = self._start_chunk(self._logits, self._axes, *self._plan.chunk(start, stop))
        n_entries, is_finite, *others = download(chunk.totals).tolist()
        if not is_finite:
            raise NotFinite(NOT_FINITE)
        if not n_entries:
            return [empty_strings(stop - start, self._logits.device)]
        if n_entries * chunk.entry_bytes > self._byte_limit and stop - start > 1:
            del chunk  # these masks are more ragged than usual: halve the chunk
            middle = (start + stop) // 2
            return self.encode(start, middle) + self.encode(middle, stop)
        return [chunk.write_strings(n_entries, *others)]
