"""Edges of masks, where runs of set pixels begin and end -> RLE strings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from segcore.masks.rle import counts_to_strings


@dataclass(frozen=True)
class EncodedMasks:
    """The masks that have at least one pixel, in the order in which they were given.

    Attributes:
        counts: K compressed RLE strings.
        areas: (K,) int64 set pixels, all > 0.
        keep: (K,) int64 indices into the N masks given.
    """

    counts: list[bytes]
    areas: np.ndarray
    keep: np.ndarray

    @classmethod
    def joined(cls, pieces: Sequence[EncodedMasks], starts: Sequence[int]) -> EncodedMasks:
        """The masks of several pieces; `starts` has the index of the first mask given in each."""
        return cls(
            [text for piece in pieces for text in piece.counts],
            np.concatenate([piece.areas for piece in pieces]),
            np.concatenate(
                [piece.keep + start for piece, start in zip(pieces, starts, strict=True)]
            ),
        )


def encode_edges(edges: np.ndarray, pixels: int) -> EncodedMasks:
    """Edges of many masks -> their strings.

    Args:
        edges: (E,) int64 in any order, one for each beginning and each end of a run of set
            pixels: mask * (pixels + 1) + position, where position is the column-major index of
            the run's first pixel or of the first pixel after it. An even number of edges at one
            position cancel out: runs that touch, and runs without a pixel.
        pixels: Pixels of the canvas, H * W.
    """
    edges = np.sort(edges, kind="stable")
    group_starts = np.flatnonzero(np.diff(edges, prepend=-1))
    edges = edges[group_starts[np.diff(group_starts, append=edges.size) % 2 == 1]]
    mask, position = np.divmod(edges, pixels + 1)
    keep, first_run = np.unique(mask[::2], return_index=True)
    if keep.size == 0:
        return EncodedMasks([], keep, keep)
    areas = np.add.reduceat(position[1::2] - position[::2], first_run)
    edge_ends = 2 * np.append(first_run[1:], position.size // 2)
    has_tail = position[edge_ends - 1] < pixels  # zeros up to the end of the canvas follow
    position = np.insert(position, edge_ends[has_tail], pixels)
    lengths = np.diff(edge_ends, prepend=0) + has_tail
    runs = np.diff(position, prepend=0)
    first = np.cumsum(lengths) - lengths
    runs[first] = position[first]
    return EncodedMasks(counts_to_strings(runs, lengths), areas, keep)
