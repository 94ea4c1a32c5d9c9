"""Instance masks as COCO run-length encodings: from logits, bitmaps and polygons, and back.

A mask is a COCO compressed RLE string (`bytes`) on a canvas of (height, width): runs of zeros and
ones in column-major order, zeros first. Nothing here imports Ray, storage or configuration. Only
`segcore.masks.device` imports torch, and importing this package does not import it.

    window, crops     which logits show the image, and which pixels of each mask are computed
    from_logits       logits -> strings on the CPU, by one of two kernels:
      numpy_kernel      NumPy
      numba_kernel      the same, compiled
    device/           logits -> strings on a torch device
    bilinear, edges   the interpolation and the last step that these have in common
    rle               strings <-> runs <-> bitmaps
    measure           area and box of many strings at once
    overlap           pixels that pairs of masks have in common, and their IoU
    polygons          strings <-> polygons
"""

from segcore.masks.edges import EncodedMasks
from segcore.masks.from_logits import default_backend, encode_logits
from segcore.masks.polygons import from_polygons, to_polygons
from segcore.masks.rle import (
    area,
    bbox,
    counts_to_string,
    decode,
    decode_columns,
    encode,
    string_to_counts,
)
from segcore.masks.window import Window

__all__ = [
    "EncodedMasks",
    "Window",
    "area",
    "bbox",
    "counts_to_string",
    "decode",
    "decode_columns",
    "default_backend",
    "encode",
    "encode_logits",
    "from_polygons",
    "string_to_counts",
    "to_polygons",
]
