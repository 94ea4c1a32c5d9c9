"""A contact sheet of a sample of results, for a first look at a run."""

from __future__ import annotations

from collections.abc import Callable

from segcore.errors import UsageError
from segcore.output.results import Results
from segcore.sources import SourceOptions
from segcore.visualize.originals import read_originals
from segcore.visualize.overlays import Tile, contact_sheet, to_png


def _count(name: str, found: int) -> str:
    return f"{found} mask{'' if found == 1 else 's'}"


def sample_sheet(
    results: Results,
    n_images: int,
    title: str,
    note: str = "",
    subtitle: Callable[[str, int], str] = _count,
    source: SourceOptions = SourceOptions(),
) -> bytes:
    """Overlays of images spread evenly over the archive, as a PNG file.

    The same results always give the same images.

    Args:
        subtitle: From the image's key (or path) and its number of masks.
        source: As in the run; where and how originals are read.

    Raises:
        UsageError: No image was segmented, or the archive is gone.
        ImageError: An image cannot be read any more.
    """
    keys = _keys(results)
    if not keys:
        raise UsageError(f"{results.prefix} has no segmented image to show.")
    names = sorted(keys, key=lambda image_id: (keys[image_id], image_id))
    picked = {round(k * (len(names) - 1) / max(1, n_images - 1)) for k in range(n_images)}
    chosen = [names[k] for k in sorted(picked)]
    masks: dict[str, list[str]] = {image_id: [] for image_id in chosen}
    for table in results.instances(["image_id", "counts"]):
        for row in table.to_pylist():
            if row["image_id"] in masks:
                masks[row["image_id"]].append(row["counts"])
    images = read_originals(results, chosen, source)
    tiles = [Tile(images[i], masks[i], keys[i], subtitle(keys[i], len(masks[i]))) for i in chosen]
    return to_png(contact_sheet(tiles, title, note))


def _keys(results: Results) -> dict[str, str]:
    """image_id -> key in its shard, or path, of every segmented image."""
    keys = {}
    for table in results.images(["image_id", "shard", "status"]):
        for row in table.to_pylist():
            if row["status"] == "ok":
                keys[row["image_id"]] = row["image_id"].removeprefix(f"{row['shard']}#")
    return keys
