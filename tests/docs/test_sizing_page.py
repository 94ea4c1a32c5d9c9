"""docs/sizing.md: the numbers that are computed follow from those that are stated."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import pytest

from tests.support import markdown

_IMAGES = (10**6, 10**8)
_ROWS = {
    line.split("|")[1].strip(): line.split("|")[2:4]
    for line in markdown.read("docs/sizing.md").splitlines()
    if line.startswith("| ") and line.count("|") == 5
}


@pytest.mark.parametrize(
    ("row", "formula"),
    [
        ("units of 256", lambda n: math.ceil(n / 256)),
        ("GPU hours at 259 images/s", lambda n: n / 259 / 3600),
        ("the same at 40 images/s, as for large photographs", lambda n: n / 40 / 3600),
        ("core hours at 5 images/s", lambda n: n / 5 / 3600),
        ("hours on 16 GPUs at 259 images/s", lambda n: n / 259 / 3600 / 16),
        ("PUT requests", lambda n: 2 * n / 256),
        ("their price at $0.005 for 1,000", lambda n: 2 * n / 256 * 0.005 / 1000),
        ("GET requests of loose images", lambda n: n),
        ("their price at $0.0004 for 1,000", lambda n: n * 0.0004 / 1000),
        ("GPU price at $4.00 an hour", lambda n: n / 259 / 3600 * 4),
        ("the same on spot, at a third", lambda n: n / 259 / 3600 * 4 / 3),
        ("instances, 20 an image: size of the tables", lambda n: n * 20 * 141 / 1e9),
    ],
)
def test_the_table_is_computed_rightly(row: str, formula: Callable[[int], float]) -> None:
    for cell, n_images in zip(_ROWS[row], _IMAGES, strict=True):
        number = re.search(r"[\d,]+(?:\.(\d+))?", cell)
        assert number is not None
        shown = 0.5 * 10 ** -len(number[1] or "")  # half of the last digit that is shown
        stated = float(number[0].replace(",", ""))
        assert stated == pytest.approx(formula(n_images), abs=shown + 1e-9)
