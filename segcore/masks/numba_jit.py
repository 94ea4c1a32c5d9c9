"""How functions are compiled by numba here."""

from __future__ import annotations

from typing import Any

import numba


def jit(signature: Any = None) -> Any:
    """numba.njit as the compiled kernels need it.

    What has a signature is compiled at import, what it calls within it, and cached on disk.
    """

    def decorate(function: Any) -> Any:
        njit: Any = numba.njit
        options = {"nogil": True, "error_model": "numpy", "fastmath": False}
        if signature is None:
            return njit(**options)(function)
        try:
            return njit(signature, cache=True, **options)(function)
        except Exception:
            # No writable folder, or a file there that is damaged or of another version: numba
            # writes an index before its data, so a process that starts meanwhile reads old data.
            return njit(signature, **options)(function)

    return decorate
