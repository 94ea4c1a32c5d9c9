"""Low-resolution mask logits -> COCO RLE of the original image, exactly, without full-size masks.

Definition (what the result equals, bit for bit): upsample the logits where the window asks for it,
cut the window, resize it bilinearly to (H, W) in fp32 (`segcore.masks.bilinear`), threshold `> 0`,
clear what lies outside [ceil x1, ceil x2) x [ceil y1, ceil y2), drop masks without a pixel.

Method: along one column of the result the logit is piecewise linear between source rows, and its
fp32 value is monotone between two source rows of different sign, because every rounding is. So each
such pair has exactly one crossing. Only the box's columns are interpolated, at source rows; the
crossing is estimated, then moved until the exact formula agrees. The cost grows with box width
times source rows and not with pixels.

`segcore.masks.numpy_kernel` does this in NumPy. Where numba is installed,
`segcore.masks.numba_kernel` does the same, to the byte, several times faster.
"""

from __future__ import annotations

import importlib.util
import warnings
from functools import cache
from itertools import pairwise
from types import ModuleType
from typing import Literal

import numpy as np

from segcore.errors import NotFinite
from segcore.masks import numpy_kernel
from segcore.masks.bilinear import resample_axis
from segcore.masks.crops import Crops, Grid, crops_of_boxes
from segcore.masks.edges import EncodedMasks
from segcore.masks.window import NOT_FINITE, Window, resolve_window

Backend = Literal["numpy", "compiled"]


def encode_logits(
    logits: np.ndarray,
    boxes: np.ndarray,
    canvas: tuple[int, int],
    window: Window | None = None,
    backend: Backend | None = None,
) -> EncodedMasks:
    """Mask logits -> RLE strings on the original image. Thread-safe.

    Args:
        logits: (N, h, w) float32, finite: coefficients x prototypes of one image.
        boxes: (N, 4) x1, y1, x2, y2 in pixels of the original image; may extend beyond it.
        canvas: (H, W) of the original image.
        window: Part of the logits that shows the image; None: all of it.
        backend: Which implementation to use; None: the compiled one where numba is installed. The
            results are equal to the byte.

    Raises:
        NotFinite: A logit is not.
        ValueError: Shapes disagree, or the window is not inside the logits.
        RuntimeError: The compiled implementation was asked for and is not available.
    """
    if logits.ndim != 3 or logits.dtype != np.float32:
        raise ValueError(f"logits are (N, h, w) float32, got {logits.shape} {logits.dtype}")
    window = resolve_window(logits.shape, boxes, canvas, window)
    grid = Grid(
        rows=resample_axis(window.bottom - window.top, canvas[0]),
        columns=resample_axis(window.right - window.left, canvas[1]),
    )
    crops = crops_of_boxes(boxes, grid)
    if (backend or default_backend()) == "compiled":
        return _encode_compiled(logits, crops, grid, window)
    return numpy_kernel.encode_crops(logits, crops, grid, window)


def default_backend() -> Backend:
    """The implementation that `encode_logits` uses where none is asked for."""
    return "numpy" if _compiled_kernel() is None else "compiled"


@cache
def _compiled_kernel() -> ModuleType | None:
    """The module of the compiled implementation; None where numba is not installed."""
    if importlib.util.find_spec("numba") is None:
        return None
    try:
        from segcore.masks import numba_kernel
    except Exception as error:  # a numba of the wrong version may raise anything
        warnings.warn(
            f"numba is installed but does not work ({type(error).__name__}: {error}); masks are "
            "encoded by NumPy, more slowly and with the same result. Upgrade or remove numba.",
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return numba_kernel


def _encode_compiled(logits: np.ndarray, crops: Crops, grid: Grid, window: Window) -> EncodedMasks:
    kernel = _compiled_kernel()
    if kernel is None:
        raise RuntimeError("the compiled masks need numba: pip install 'segcore[fast]'")
    _, h, w = logits.shape
    upsampling = Grid(
        rows=resample_axis(h, h * window.upsample), columns=resample_axis(w, w * window.upsample)
    )
    result = kernel.encode_crops(logits, crops.table(), grid, upsampling, (window.top, window.left))
    if not result.finite:
        raise NotFinite(NOT_FINITE)
    text = result.text.tobytes()
    spans = list(pairwise(np.append(0, result.ends).tolist()))
    kept = np.flatnonzero(result.areas)
    counts = [text[start:end] for start, end in (spans[i] for i in kept.tolist())]
    return EncodedMasks(counts, result.areas[kept], crops.index[kept])
