"""A contact sheet of a sample of results, for a first look at a run."""

from __future__ import annotations

from collections.abc import Callable

from segcore.errors import UsageError
from segcore.output.image_rows import ImageRecord
from segcore.output.results import Results
from segcore.text import plural
from segcore.visualize.overlays import contact_sheet, to_png
from segcore.visualize.selection import Selection, select_images
from segcore.visualize.sheet import Drawing, draw_tiles


def _mask_count(key: str, n_masks: int) -> str:
    return plural(n_masks, "mask")


def sample_sheet(
    results: Results,
    n_images: int,
    title: str,
    note: str = "",
    subtitle: Callable[[str, int], str] = _mask_count,
) -> bytes:
    """Overlays of random images, as a PNG file; the same results always give the same images.

    Args:
        n_images: How many to show, at most.
        title, note: The heading of the sheet.
        subtitle: An image's key (or path) and its number of masks -> the line below its name.

    Raises:
        UsageError: No image was segmented.
    """
    records = _in_order(select_images(results, Selection(limit=n_images)).records)
    if not records:
        raise UsageError(f"{results.prefix} has no segmented image to show.")
    drawing = Drawing(labels=False)
    tiles, _ = draw_tiles(
        results,
        records,
        drawing,
        lambda picture: subtitle(picture.record.key, picture.instances.num_rows),
    )
    return to_png(contact_sheet(tiles, title, note, side=drawing.side))


def _in_order(records: tuple[ImageRecord, ...]) -> list[ImageRecord]:
    return sorted(records, key=lambda record: (record.key, record.image_id))
