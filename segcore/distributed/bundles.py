"""Bundles of units: what one task of Ray Data works through, one unit after the other.

A task costs the driver some 15 ms, whatever is in it. So a task takes many units as long as there
are many, and single ones at the end, where a worker with a full bundle would keep the others
waiting.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from segcore.sources.packed_members import inline_members

MAX_BUNDLE_UNITS = 16  # more would lose more where a process dies
_ROUNDS_LEFT = 8  # bundles that each worker still gets when the largest one is handed out


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


def cut_bundles(units: pa.Table, sizes: Sequence[int]) -> list[pa.Table]:
    """The rows of `units` in pieces of these sizes, each complete in itself."""
    bundles = []
    start = 0
    for size in sizes:
        bundles.append(inline_members(units.slice(start, size)))
        start += size
    return bundles
