"""Instance masks as COCO run-length encodings: from logits, bitmaps and polygons, and back.

A mask is a COCO compressed RLE string (`bytes`) on a canvas of (height, width): runs of zeros and
ones in column-major order, zeros first. Nothing here knows Ray, storage or configuration, and
only `segcore.masks.device.encode`, which is imported by name, knows torch.
"""

from segcore.masks.edges import EncodedMasks
from segcore.masks.from_logits import FULL, Window, encode_logits, implementation
from segcore.masks.polygons import from_polygons, to_polygons
from segcore.masks.rle import area, bbox, counts_to_string, decode, encode, string_to_counts

__all__ = [
    "FULL",
    "EncodedMasks",
    "Window",
    "area",
    "bbox",
    "counts_to_string",
    "decode",
    "encode",
    "encode_logits",
    "from_polygons",
    "implementation",
    "string_to_counts",
    "to_polygons",
]
