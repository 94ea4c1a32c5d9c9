"""Rows for images that nobody could read, because each process that tried died."""

from __future__ import annotations

from segcore.distributed.unread_rows import unread_rows
from segcore.errors import ErrorCode, ImageError
from segcore.output.tables import ImageResult
from segcore.sources import page_image_id
from segcore.sources.units import Member, make_unit

ERROR = ImageError(ErrorCode.CRASHED, "the process died")


def test_files_that_have_rows_of_pages_are_not_repeated() -> None:
    members = [Member(name, name, "1", 1) for name in ("a.tif", "b.tif", "c.tif", "d.tif")]
    unit = make_unit("objects", stop=4, n_images=None, n_bytes=4, members=members)
    rows = [ImageResult(page_image_id("a.tif", page), "a.tif", "1", page=page) for page in (1, 2)]
    rows.append(ImageResult("b.tif", "b.tif", "1"))
    assert [row.image_id for row in unread_rows(unit, rows, 0, ERROR)] == ["c.tif", "d.tif"]


def test_one_row_stands_for_the_rest_of_a_shard_that_is_counted_when_read() -> None:
    unit = make_unit("tar", shard="s.tar", stop=9, n_images=None, n_bytes=9)
    rows = [ImageResult("s.tar#a.tif", "s.tar", "", page=1)]
    (row,) = unread_rows(unit, rows, 0, ERROR)
    assert row.image_id == "s.tar#0-unread1"
