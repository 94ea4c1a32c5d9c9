"""The picture of the demo: masks over images spread evenly over the archive."""

from __future__ import annotations

import json

from segcore.output.results import Results
from segcore.storage import Storage
from segcore.testing.synthetic_archive import SyntheticArchive
from segcore.visualize.sample import sample_sheet

_N_TILES = 12


def draw_contact_sheet(results: Results, archive: SyntheticArchive) -> bytes:
    """Masks found over some images of the archive, beside the number drawn, as a PNG file."""
    drawn = count_drawn_nuclei(results.storage, archive)
    return sample_sheet(
        results,
        _N_TILES,
        title=f"segcore demo: masks found in {_N_TILES} of {archive.n_images:,} images",
        note="Each colour is one mask. Synthetic fluorescence microscopy, "
        "dark images are brightened here.",
        subtitle=lambda name, n_masks: f"{n_masks} nuclei found, {drawn[name]} drawn",
    )


def count_drawn_nuclei(storage: Storage, archive: SyntheticArchive) -> dict[str, int]:
    """The number of nuclei in each readable image, by file name."""
    truth = json.loads(storage.read(archive.ground_truth))
    counts = {image["id"]: 0 for image in truth["images"]}
    for annotation in truth["annotations"]:
        counts[annotation["image_id"]] += 1
    return {image["file_name"]: counts[image["id"]] for image in truth["images"]}
