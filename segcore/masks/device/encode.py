"""Mask logits that are on a GPU -> COCO RLE, computed there: only strings cross the bus.

Definition and method are those of `segcore.masks.from_logits`; the same logits give the same strings.
All instances of a batch are encoded together, in chunks of bounded memory. The host waits twice for
each chunk and once for the result, however many images there are. Needs float64 on the device,
which MPS has not. It runs on CPU tensors too, for tests: `segcore.masks.encode_logits` is faster
there.

This module and its parts `device_edges` and `device_text` are the only ones of masks that know
torch; importing `segcore.masks` does not import them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from segcore.masks.device import edges as device_edges
from segcore.masks.device import strings as device_text
from segcore.masks.device.edges import Axes, Crops
from segcore.masks.device.plan import DevicePlan
from segcore.masks.device.strings import Text
from segcore.masks.edges import EncodedMasks
from segcore.masks.from_logits import NOT_FINITE, Window, checked_window

BYTE_LIMIT = 1 << 29
_ITEM_BYTES = 288  # held at most for each entry of the ragged array of `device_edges.edges`


class ImageMasks(NamedTuple):
    """Instances of one image.

    Attributes:
        prototypes: (P, h, w) float32; where `coefficients` is None, the (N, h, w) logits.
        coefficients: (N, P) float32; logits are coefficients x prototypes. This product is of a
            shape that depends on the image alone, and so is its rounding.
        boxes: (N, 4) x1, y1, x2, y2 in pixels of the original image; may reach outside of it.
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
        many = self.prototypes if self.coefficients is None else self.coefficients
        return (len(many), *self.prototypes.shape[1:])


def encode_images(images: Sequence[ImageMasks], byte_limit: int = BYTE_LIMIT) -> list[EncodedMasks]:
    """RLE strings of the instances of each image, as `segcore.masks.encode_logits` gives them.

    Args:
        images: All on one device; canvases, windows and sizes may differ.
        byte_limit: Most memory taken at once on the device, about: for the logits, and again for
            what is computed from them. One image's logits and one instance's steps may take more.

    Raises:
        ValueError: Shapes or types disagree, a window is not inside its logits, or a logit is not
            finite.
    """
    windows = [_checked(image) for image in images]
    if not images:
        return []
    texts: list[Text] = []
    masks: list[np.ndarray] = []
    start = seen = 0
    for stop in _groups(images, byte_limit):
        group = images[start:stop]
        plan = DevicePlan.of(
            [i.shape for i in group],
            [i.boxes for i in group],
            [i.canvas for i in group],
            windows[start:stop],
        )
        masks.append(plan.mask + seen)
        if len(plan.mask):
            work = _Work(plan, group, byte_limit)
            texts += [text for span in plan.chunks(byte_limit) for text in work.encode(*span)]
        seen += sum(i.shape[0] for i in group)
        start = stop
    return _split(texts, np.concatenate(masks), [i.shape[0] for i in images])


def download(tensor: Tensor) -> np.ndarray:
    """A copy on the host, by pinned memory; waits for what it needs and for nothing later."""
    if tensor.device.type != "cuda":
        return tensor.cpu().numpy()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    ready = torch.cuda.Event()
    ready.record(torch.cuda.current_stream(tensor.device))
    ready.synchronize()
    return host.numpy()


def upload(array: np.ndarray, device: torch.device) -> Tensor:
    """A copy on the device; on CUDA by pinned memory, without waiting."""
    host = torch.from_numpy(array)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host


def _checked(image: ImageMasks) -> Window:
    for tensor in (image.prototypes, image.coefficients):
        if tensor is not None and tensor.dtype != torch.float32:
            raise ValueError(f"logits, prototypes and coefficients are float32, got {tensor.dtype}")
    planes, coefficients = image.prototypes, image.coefficients
    if planes.ndim != 3 or (
        coefficients is not None
        and (coefficients.ndim != 2 or coefficients.shape[1] != planes.shape[0])
    ):
        given = None if coefficients is None else tuple(coefficients.shape)
        raise ValueError(
            "expected logits (N, h, w), or prototypes (P, h, w) with coefficients (N, P), got "
            f"{tuple(planes.shape)} with {given}"
        )
    return checked_window(image.shape, image.boxes, image.canvas, image.window)


def _groups(images: Sequence[ImageMasks], byte_limit: int) -> Iterator[int]:
    """Where groups of images end whose logits fit in the limit, with one image at least."""
    used = 0
    for stop, image in enumerate(images):
        size = 4 * int(np.prod(image.shape, dtype=np.int64))
        if used and used + size > byte_limit:
            yield stop
            used = 0
        used += size
    yield len(images)


def _logits(images: Sequence[ImageMasks]) -> Tensor:
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


def _split(texts: list[Text], index: np.ndarray, counts: list[int]) -> list[EncodedMasks]:
    """Chunks' strings -> each image's; `index` is the mask, counted over all images, of each."""
    none = np.zeros(0, np.int64)
    if not texts:
        return [EncodedMasks([], none, none) for _ in counts]
    numbers = torch.cat([torch.stack((t.lengths, t.areas), dim=1).flatten() for t in texts])
    # One transfer: numbers first, where they are aligned, then the strings.
    data = download(torch.cat([numbers.view(torch.uint8), *(t.chars for t in texts)]))
    lengths, areas = data[: 8 * len(numbers)].view(np.int64).reshape(-1, 2).T
    text = data[8 * len(numbers) :].tobytes()
    ends = np.cumsum(lengths)
    kept = np.flatnonzero(lengths)
    kept = kept[np.argsort(index[kept], kind="stable")]
    spans = zip((ends - lengths)[kept].tolist(), ends[kept].tolist(), strict=True)
    strings = [text[a:b] for a, b in spans]
    edges = np.cumsum([0, *counts])
    cuts = np.searchsorted(index[kept], edges).tolist()
    return [
        EncodedMasks(strings[a:b], areas[kept[a:b]], index[kept[a:b]] - first)
        for a, b, first in zip(cuts[:-1], cuts[1:], edges[:-1].tolist(), strict=True)
    ]


class _Work:
    """A plan, its tables and its logits on the device."""

    def __init__(self, plan: DevicePlan, images: Sequence[ImageMasks], byte_limit: int) -> None:
        self._plan = plan
        self._limit = byte_limit
        self._logits = _logits(images)
        self._axes = Axes(*(upload(table, self._logits.device) for table in plan.tables))

    def encode(self, first: int, end: int) -> list[Text]:
        """Strings of crops [first, end)."""
        numbers, sizes = self._plan.part(first, end)
        crops = Crops(*upload(numbers, self._logits.device).unbind())
        scan = device_edges.scan(self._logits, self._axes, crops, sizes)
        candidates, items, finite = download(scan.sizes).tolist()
        if not finite:
            raise ValueError(NOT_FINITE)
        if not items:
            return [device_text.no_text(end - first, self._logits.device)]
        if items * _ITEM_BYTES > self._limit and end - first > 1:  # more ragged than masks are
            del scan
            middle = (first + end) // 2
            return self.encode(first, middle) + self.encode(middle, end)
        keys = device_edges.edges(scan, self._axes, crops, (candidates, items), sizes.steps)
        del scan
        return [device_text.write(keys, crops, sizes.pixels)]
