"""A contact sheet of a sample of results, for a first look at a run."""

from __future__ import annotations

from collections.abc import Callable

from segcore.errors import UsageError
from segcore.output.results import Results
from segcore.sources import SourceOptions
from segcore.text import plural
from segcore.visualize.originals import read_originals
from segcore.visualize.overlays import Tile, contact_sheet, to_png


def _mask_count(key: str, n_masks: int) -> str:
    return plural(n_masks, "mask")


def sample_sheet(
    results: Results,
    n_images: int,
    title: str,
    note: str = "",
    subtitle: Callable[[str, int], str] = _mask_count,
    source: SourceOptions = SourceOptions(),
) -> bytes:
    """Overlays of images spread evenly over the archive, as a PNG file.

    The same results always give the same images.

    Args:
        n_images: How many to show, at most.
        title, note: The heading of the sheet.
        subtitle: An image's key (or path) and its number of masks -> the line below its name.
        source: As in the run: where and how originals are read.

    Raises:
        UsageError: No image was segmented, or the archive has changed or is gone.
        ImageError: An image cannot be read any more.
    """
    keys = _segmented_keys(results)
    if not keys:
        raise UsageError(f"{results.prefix} has no segmented image to show.")
    ordered_ids = sorted(keys, key=lambda image_id: (keys[image_id], image_id))
    last = len(ordered_ids) - 1
    places = {round(k * last / max(1, n_images - 1)) for k in range(n_images)}
    sample_ids = [ordered_ids[place] for place in sorted(places)]
    masks: dict[str, list[str]] = {image_id: [] for image_id in sample_ids}
    for table in results.instances(["image_id", "counts"]):
        for row in table.to_pylist():
            if row["image_id"] in masks:
                masks[row["image_id"]].append(row["counts"])
    images = read_originals(results, sample_ids, source)
    tiles = [
        Tile(
            image=images[image_id],
            counts=masks[image_id],
            title=keys[image_id],
            subtitle=subtitle(keys[image_id], len(masks[image_id])),
        )
        for image_id in sample_ids
    ]
    return to_png(contact_sheet(tiles, title, note))


def _segmented_keys(results: Results) -> dict[str, str]:
    """image_id -> key in its shard, or path, of every segmented image."""
    keys = {}
    for table in results.images(["image_id", "shard", "status"]):
        for row in table.to_pylist():
            if row["status"] == "ok":
                keys[row["image_id"]] = row["image_id"].removeprefix(f"{row['shard']}#")
    return keys
