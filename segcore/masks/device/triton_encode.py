"""Chunks of masks by the kernels of `segcore.masks.device.triton_kernels`.

Eight launches for a chunk, whatever its masks are, and one wait: for the number of edges.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from segcore.masks.device import triton_kernels as kernels
from segcore.masks.device.edges import DeviceAxes, DeviceCrops
from segcore.masks.device.plan import ChunkSizes
from segcore.masks.device.strings import DeviceStrings, max_chars_of_numbers
from segcore.masks.device.transfers import upload
from segcore.masks.rle import MAX_CHARS

EXACT = {"enable_fp_fusion": False}  # options of each launch: products and sums are rounded apart
_ALIGNED_INTS = 2  # kernels are compiled anew for pointers that are not aligned to 16 bytes


class Tiles(NamedTuple):
    """What one program does at a time; powers of 2. Results do not depend on them.

    Attributes:
        samples: Samples that are gathered.
        lines, borders: Result columns, and borders between source rows.
        edges: Edges that are placed.
        crop_edges: Edges of a crop that are cancelled and written.
    """

    samples: int = 1024
    lines: int = 64
    borders: int = 16
    edges: int = 256
    crop_edges: int = 512


class TritonChunk:
    """Masks of a chunk, begun: what is in `totals` is on its way.

    Attributes:
        totals: (2,) int64 on the device: edges, and 1 where all samples are finite, else 0.
    """

    entry_bytes = 40  # held at most for each edge

    def __init__(
        self,
        logits: Tensor,
        axes: DeviceAxes,
        fields: np.ndarray,
        sizes: ChunkSizes,
        tiles: Tiles = Tiles(),
    ) -> None:
        self._tiles = tiles
        self._sizes = sizes
        self._n_crops = fields.shape[1]
        crops: Any = DeviceCrops(*fields)  # arrays of the host here
        sample_tiles = _list_tiles(crops.rows * crops.columns, tiles.samples)
        line_tiles = _list_tiles(crops.x1 - crops.x0, tiles.lines)
        self._fields, on_device, self._line_tiles = _upload_together(
            (fields, sample_tiles, line_tiles), logits.device
        )
        self._n_line_tiles = len(line_tiles)
        self._axes = axes
        self._block = logits.new_empty(sizes.block)
        self._line_counts = torch.empty(sizes.lines, dtype=torch.int32, device=logits.device)
        is_finite = torch.ones(1, dtype=torch.int64, device=logits.device)
        kernels.gather_samples[(len(sample_tiles),)](
            logits, self._block, is_finite, self._fields, self._n_crops, on_device, *axes[:4],
            UPSAMPLED=sizes.upsampled, SAMPLES=tiles.samples, **EXACT,
        )  # fmt: skip
        kernels.count_edges[(self._n_line_tiles,)](
            self._block, self._line_counts, self._fields, self._n_crops, self._line_tiles,
            *axes[:4], LINES=tiles.lines, BORDERS=tiles.borders, **EXACT,
        )  # fmt: skip
        self._line_ends = self._line_counts.cumsum(0, dtype=torch.int64)
        self.totals = torch.cat((self._line_ends[-1:], is_finite))

    def write_strings(self, n_edges: int) -> DeviceStrings:
        """Strings of the crops, without waiting for anything.

        Args:
            n_edges: The first of `totals`, at least 1.
        """
        device, tiles, n_crops = self._block.device, self._tiles, self._n_crops
        listed = [torch.empty(n_edges, dtype=torch.int32, device=device) for _ in range(3)]
        kernels.list_edges[(self._n_line_tiles,)](
            self._block, self._line_counts, self._line_ends, *listed,
            self._fields, n_crops, self._line_tiles, *self._axes[:4],
            LINES=tiles.lines, BORDERS=tiles.borders, **EXACT,
        )  # fmt: skip
        keys = torch.empty(n_edges, dtype=torch.int64, device=device)
        kernels.place_edges[(-(-n_edges // tiles.edges),)](
            self._block, keys, n_edges, *listed, self._fields, n_crops, *self._axes,
            self._sizes.halvings, EDGES=tiles.edges, **EXACT,
        )  # fmt: skip
        del listed
        kept_keys = torch.empty_like(keys)
        kept_counts = torch.empty(n_crops, dtype=torch.int32, device=device)
        of_lines = self._line_counts, self._line_ends, self._fields, n_crops
        kernels.cancel_edges[(n_crops,)](
            keys, kept_keys, kept_counts, *of_lines, EDGES=tiles.crop_edges, **EXACT
        )
        max_chars = max_chars_of_numbers(self._sizes.pixels)
        places = (n_edges + n_crops) * max_chars
        chars = torch.empty(places, dtype=torch.uint8, device=device)
        numbers = torch.empty((n_crops, 3), dtype=torch.int64, device=device)
        kernels.write_strings[(n_crops,)](
            kept_keys, kept_counts, chars, numbers, *of_lines, max_chars,
            EDGES=tiles.crop_edges, MAX_CHARS=MAX_CHARS, **EXACT,
        )  # fmt: skip
        return DeviceStrings(chars, *numbers.unbind(1))


def _list_tiles(sizes: np.ndarray, tile: int) -> np.ndarray:
    """(n, 2) int64: the crop of each tile and its number there, of crops of so many entries."""
    counts = -(-sizes // tile)
    crop = np.repeat(np.arange(len(counts)), counts)
    return np.stack((crop, np.arange(len(crop)) - np.repeat(np.cumsum(counts) - counts, counts)), 1)


def _upload_together(arrays: tuple[np.ndarray, ...], device: torch.device) -> list[Tensor]:
    """Flat int64 copies on the device by one transfer, each aligned as a tensor of its own is."""
    starts = np.cumsum([0] + [_rounded_up(array.size) for array in arrays])
    host = np.zeros(starts[-1], np.int64)
    for start, array in zip(starts, arrays, strict=False):
        host[start : start + array.size] = array.ravel()
    whole: Any = upload(host, device)
    return [
        whole[start : start + array.size]
        for start, array in zip(starts.tolist(), arrays, strict=False)
    ]


def _rounded_up(size: int) -> int:
    return -(-size // _ALIGNED_INTS) * _ALIGNED_INTS
