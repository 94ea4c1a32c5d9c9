"""`segcore.evaluation.contested`, compiled by numba."""

from __future__ import annotations

from numba import types

from segcore.evaluation import contested
from segcore.masks.numba_jit import jit

match_contested = jit(
    types.void(
        types.int64[::1],
        types.int64[::1],
        types.float64[::1],
        types.boolean[::1],
        types.boolean[:, ::1],
        types.float64[::1],
        types.int64[:, :, ::1],
    )
)(contested.match_contested)
