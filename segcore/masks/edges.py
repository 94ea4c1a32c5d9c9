"""Edges of masks -> RLE strings: where runs of set pixels begin and end, in any order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from segcore.masks.rle import counts_to_strings


@dataclass(frozen=True)
class EncodedMasks:
    """Masks that have at least one pixel, in the order they were given.

    Attributes:
        counts: K compressed RLE strings.
        areas: (K,) int64 set pixels, all > 0.
        keep: (K,) int64 indices into the N masks given.
    """

    counts: list[bytes]
    areas: np.ndarray
    keep: np.ndarray


def encode_edges(edges: np.ndarray, pixels: int) -> EncodedMasks:
    """Edges of many masks -> their strings.

    Args:
        edges: (E,) int64, one for each beginning and each end of a run of set pixels:
            mask * (pixels + 1) + place, where place is the column-major index of the run's first
            pixel or of the first pixel after it. An even number of edges in one place cancels
            out: runs that touch, and runs without a pixel.
        pixels: Of the canvas, H * W.
    """
    edges = np.sort(edges, kind="stable")
    starts = np.flatnonzero(np.diff(edges, prepend=-1))
    edges = edges[starts[np.diff(starts, append=edges.size) % 2 == 1]]
    mask, position = np.divmod(edges, pixels + 1)
    keep, first = np.unique(mask[::2], return_index=True)
    if keep.size == 0:
        return EncodedMasks([], keep, keep)
    areas = np.add.reduceat(position[1::2] - position[::2], first)
    ends = 2 * np.append(first[1:], position.size // 2)
    open_end = position[ends - 1] < pixels  # zeros up to the end of the canvas follow
    position = np.insert(position, ends[open_end], pixels)
    lengths = np.diff(ends, prepend=0) + open_end
    runs = np.diff(position, prepend=0)
    begin = np.cumsum(lengths) - lengths
    runs[begin] = position[begin]
    return EncodedMasks(counts_to_strings(runs, lengths), areas, keep)
