"""Points of polygons as text: each coordinate of an image is formatted once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

_MAX_ENTRIES = 1 << 18  # of all tables that are kept; some 70 bytes each


class PointTexts:
    """Writes the points of outlines.

    Outlines run on a grid of half pixels, so images of one size have few different coordinates,
    and formatting each of them anew took most of the time of a format.

    Args:
        x_form, y_form: How an x and a y are written, as for ``%``.
        separator: Between two numbers.
        whole: Coordinates are shares of the width and height, which are so much; None: pixels.
    """

    def __init__(
        self, x_form: str, y_form: str, separator: str, whole: float | None = None
    ) -> None:
        self._forms = x_form, y_form
        self._separator = separator
        self._whole = whole
        self._tables: dict[tuple[int, str], np.ndarray] = {}
        self._n_entries = 0

    def write(
        self, shapes: Sequence[Sequence[np.ndarray]], width: int, height: int
    ) -> Iterator[list[str]]:
        """Of each shape of an image its rings as text.

        Args:
            shapes: Of each shape its rings, each (K, 2) float64 x, y in pixels.
        """
        rings = [ring for shape in shapes for ring in shape]
        if not rings:
            return
        points = np.concatenate(rings)
        texts = [""] * points.size
        for axis, side in enumerate((width, height)):
            texts[axis::2] = self._coordinates(points[:, axis], side, self._forms[axis])
        start = 0
        for shape in shapes:
            written = []
            for ring in shape:
                stop = start + 2 * len(ring)
                written.append(self._separator.join(texts[start:stop]))
                start = stop
            yield written

    def _coordinates(self, values: np.ndarray, side: int, form: str) -> list[str]:
        places = np.clip((values * 2).astype(np.int64), 0, 2 * side)
        if 2 * side >= _MAX_ENTRIES:
            return self._format(places, side, form)
        table = self._table(side, form)
        found: list[str] = table[places].tolist()
        if None in found:
            unique = np.unique(places)
            table[unique] = self._format(unique, side, form)
            found = table[places].tolist()
        return found

    def _table(self, side: int, form: str) -> np.ndarray:
        """The text of each number of half pixels; None where it was not needed yet."""
        table = self._tables.get((side, form))
        if table is None:
            self._n_entries += 2 * side + 1
            if self._n_entries > _MAX_ENTRIES:
                self._tables.clear()
                self._n_entries = 2 * side + 1
            table = self._tables[side, form] = np.full(2 * side + 1, None, object)
        return table

    def _format(self, places: np.ndarray, side: int, form: str) -> list[str]:
        values = places / 2
        if self._whole is not None:
            values = values / side * self._whole
        return [form % value for value in values.tolist()]
