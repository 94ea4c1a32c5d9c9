"""Bundles of units: what one task of Ray Data works through, one unit after the other.

A task costs the driver some 10 ms, whatever is in it. So a task takes many units as long as there
are many, and single ones at the end, where a worker with a full bundle would keep the others
waiting.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from segcore.sources.packed_members import inline_members

_BUNDLE_UNITS = 16  # more would lose more where a process dies,
_SMALL_BUNDLE_IMAGES = 256  # but for units that have together no more images than a usual one
MAX_BUNDLE_UNITS = 128
_ROUNDS_LEFT = 8  # bundles that each worker still gets when the largest one is handed out


def max_bundle_units(units: pa.Table) -> int:
    """How many of these units one bundle may have: 16, or more of a few images each."""
    images = units["n_images"]
    if not len(images) or images.null_count:
        return _BUNDLE_UNITS
    largest = max(1, pc.max(images).as_py())
    return max(_BUNDLE_UNITS, min(MAX_BUNDLE_UNITS, _SMALL_BUNDLE_IMAGES // largest))


def bundle_sizes(n_units: int, slots: int, max_bundle_units: int) -> list[int]:
    """How many units are in each bundle, larger ones first; sums up to `n_units`.

    Guided self-scheduling (Polychronopoulos and Kuck, 1987): the share of what is left.

    Args:
        n_units: All units.
        slots: Bundles that are worked on at the same time.
        max_bundle_units: Limit of a bundle.
    """
    sizes = []
    while n_units:
        size = max(1, min(max_bundle_units, n_units // (slots * _ROUNDS_LEFT)))
        sizes.append(size)
        n_units -= size
    return sizes


class Bundles:
    """The rows of `units` in pieces of these sizes, each complete in itself.

    Each loop over them cuts anew, so that they never lie in memory together: the images of a large
    plan do not either.
    """

    def __init__(self, units: pa.Table, sizes: Sequence[int]) -> None:
        self._units = units
        self._sizes = sizes

    def __len__(self) -> int:
        return len(self._sizes)

    def __iter__(self) -> Iterator[pa.Table]:
        start = 0
        for size in self._sizes:
            yield inline_members(self._units.slice(start, size))
            start += size
