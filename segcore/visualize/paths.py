"""Masks as paths of SVG: exact to the pixel, with their holes."""

from __future__ import annotations

from segcore import masks


def svg_path(counts: bytes | str, height: int, width: int) -> str:
    """The `d` of a path that shows a mask with `fill-rule="evenodd"`; "" for an empty mask.

    Args:
        counts: Compressed RLE string on a canvas of (height, width), whose pixels are the units.

    Raises:
        ValueError: The string is malformed or does not fill the canvas.
    """
    pieces = []
    for ring in masks.to_outlines(counts, height, width):
        points = ring.tolist()
        (x0, y0), *rest = points
        piece = [f"M{x0} {y0}"]
        x, y = x0, y0
        for next_x, next_y in rest:
            piece.append(f"h{next_x - x}" if next_y == y else f"v{next_y - y}")
            x, y = next_x, next_y
        pieces.append("".join(piece) + "z")
    return "".join(pieces)
