"""Failed rows for the images of a unit that nobody could read, because each process died."""

from __future__ import annotations

from collections.abc import Sequence

from segcore.errors import ImageError
from segcore.output.tables import ImageResult
from segcore.sources import lone_page, page_image_id
from segcore.sources.units import Unit


def unread_rows(
    unit: Unit,
    rows: Sequence[ImageResult],
    pages_after: int,
    error: ImageError,
    *,
    has_pages: bool = False,
) -> list[ImageResult]:
    """A failed row for each image of a unit that has none yet; `rows` are its first.

    In a shard nobody knows the names of unread images, so they are numbered; where their number is
    unknown, too, one row stands for all of them.

    Args:
        pages_after: Pages after the last of `rows`, in the same file.
        has_pages: Whether pages are told apart (`decode.pages: all`).
    """
    unread = _unread_pages(rows[-1], pages_after, error) if pages_after else []
    if unit.kind == "objects":
        n_done = len({row.file_id for row in rows})
        names = [(member.image_id, member.uri, member.etag) for member in unit.members[n_done:]]
    else:
        n_done = len(rows) + len(unread)
        n_remaining = 1 if unit.n_images is None else unit.n_images - n_done
        names = [
            (f"{unit.shard}#{unit.start}-unread{n_done + i}", unit.shard, unit.etag)
            for i in range(n_remaining)
        ]
    for file_id, uri, etag in names:
        page = lone_page(file_id) if has_pages else None
        image_id = page_image_id(file_id, page)
        unread.append(ImageResult(image_id, uri, etag, error=error, page=page))
    return unread


def _unread_pages(last: ImageResult, pages_after: int, error: ImageError) -> list[ImageResult]:
    """A failed row for each page after `last`."""
    assert last.page is not None, "only a page has pages after it"
    pages = range(last.page + 1, last.page + pages_after + 1)
    return [
        ImageResult(page_image_id(last.file_id, page), last.uri, last.etag, error=error, page=page)
        for page in pages
    ]
