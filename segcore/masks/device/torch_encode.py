"""Chunks of masks by operations of torch: the reference, and what works on any device."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from segcore.masks.device.edges import DeviceAxes, DeviceCrops, find_edges, scan_samples
from segcore.masks.device.plan import ChunkSizes
from segcore.masks.device.strings import DeviceStrings, write_strings
from segcore.masks.device.transfers import upload


class TorchChunk:
    """Masks of a chunk, begun: what is in `totals` is on its way.

    Attributes:
        totals: (3,) int64 on the device: candidates summed over all result columns; 1 where all
            samples are finite, else 0; candidates.
    """

    entry_bytes = 288  # held at most for each entry of the ragged array of `find_edges`

    def __init__(
        self, logits: Tensor, axes: DeviceAxes, fields: np.ndarray, sizes: ChunkSizes
    ) -> None:
        self._axes = axes
        self._crops = DeviceCrops(*upload(fields, logits.device).unbind())
        self._sizes = sizes
        self._scan = scan_samples(logits, axes, self._crops, sizes)
        self.totals = self._scan.totals

    def write_strings(self, n_line_candidates: int, n_candidates: int) -> DeviceStrings:
        """Strings of the crops. Waits once, for their total length.

        Args:
            n_line_candidates, n_candidates: Of `totals`, both at least 1.
        """
        totals = n_candidates, n_line_candidates
        keys = find_edges(self._scan, self._axes, self._crops, totals, self._sizes.halvings)
        del self._scan
        return write_strings(keys, self._crops, self._sizes.pixels)
