"""Every difference between the rows of a run and the synthetic archive is named."""

from __future__ import annotations

import pyarrow as pa
import pytest

from segcore.demo.checks import check_rows
from segcore.errors import ErrorCode
from segcore.testing.synthetic_archive import SyntheticArchive

ARCHIVE = SyntheticArchive("", "", {"b.png": ErrorCode.EMPTY}, 1, 3, 9)
GOOD = [("s#a.png", "ok", None), ("s#b.png", "failed", "empty"), ("s#c.png", "ok", None)]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (GOOD, None),
        (GOOD[:2], "2 rows"),
        ([*GOOD, GOOD[0]], "4 rows"),
        ([GOOD[0], ("s#b.png", "ok", None), GOOD[2]], "b.png was broken as empty but was not"),
        ([GOOD[0], ("s#b.png", "failed", "corrupt"), GOOD[2]], "but failed as corrupt"),
        ([*GOOD[:2], ("s#c.png", "failed", "corrupt")], "c.png is a good image but failed"),
    ],
)
def test_rows_must_be_what_was_drawn_and_broken(rows: list[tuple], expected: str | None) -> None:
    columns = ["image_id", "status", "error_code"]
    table = pa.Table.from_pylist([dict(zip(columns, row, strict=True)) for row in rows])
    differences = check_rows(ARCHIVE, iter([table]))
    assert differences == [] if expected is None else expected in " ".join(differences)
