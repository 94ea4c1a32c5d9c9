"""What an export did, in numbers and for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from segcore.exports.formats.base import Tally
from segcore.text import align_columns, plural, printable

# What is counted, and how a line of the summary says it. In this order.
MEANINGS: Mapping[str, str] = {
    "failed_images": "images failed in the run and are left out",
    "images_not_included": "images match none of the patterns to include",
    "images_excluded": "images match a pattern to exclude",
    "images_not_listed": "images are not in the image list",
    "images_not_ranked": "images are not in the ranking, or not among its first (--top)",
    "images_without_masks": "images have no mask in the export",
    "empty_images_skipped": "images without a mask left out (--skip-empty)",
    "masks_of_other_classes": "masks of classes that were not asked for left out",
    "masks_of_labels_that_the_tool_lacks": "masks of labels that the tool lacks left out",
    "masks_under_the_lowest_score": "masks under the lowest score left out",
    "masks_under_the_smallest_area": "masks under the smallest area left out",
    "masks_over_the_largest_area": "masks over the largest area left out",
    "masks_over_the_limit_per_image": "masks over the limit of an image left out",
    "images_over_the_limit": "images had more masks than the limit",
    "masks_of_a_part_of_a_huge_image": "masks whose canvas is not the image left out",
    "masks_without_pictures": "masks were not drawn, because their image cannot be read",
    "unreadable_masks": "masks are empty, damaged or too large to draw and are left out",
    "masks_with_filled_holes": "masks lost holes, which their polygons do not have",
    "holes_filled": "holes were filled",
    "masks_cut_to_largest_part": "masks lost all parts but the largest",
    "parts_lost": "parts were lost (--set export.split_parts=true keeps them)",
    "polygons_simplified_to_the_limit": "polygons were simplified further, to the limit of points",
    "renamed_images": "images have another name in the export than in the archive",
    "pictures_written": "images written",
    "pictures_missing": "images could not be read any more; their masks are exported",
    "images_without_link": "images lie in tar or Parquet files, so that the tool has no link to "
    "them (--images copy or url:TEMPLATE gives one)",
    "changed_images": "images have changed: exported again under new annotation ids",
    "edited_files_kept": "files were edited by people and stay as they are",
    "images_no_longer_there": "images of earlier exports are not in the results any more; kept",
}


@dataclass
class ExportSummary:
    """The counts of one export.

    Attributes:
        images, masks: What was written by this call.
        images_before: Images that DEST had before and that stay as they were.
        files: Files of the format that were written.
        tolerance: Of polygons, pixels; None where there are none.
        polygons: How many were written.
        iou_measured: Masks whose polygons were compared with them.
        iou_median, iou_worst: Of these; None if there are none.
        worst: The image and annotation with the worst.
        counts: See `MEANINGS`.
        notes: Sentences for people.
    """

    format: str
    dest: str
    edition: str
    model: str
    images: int = 0
    masks: int = 0
    images_before: int = 0
    files: int = 0
    tolerance: float | None = None
    polygons: int = 0
    iou_measured: int = 0
    iou_median: float | None = None
    iou_worst: float | None = None
    worst: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    edition_notes: tuple[str, ...] = ()

    def add(self, tally: Tally, left_out: Counter[str], tolerance: float) -> None:
        """Take over what was counted."""
        counts = tally.counts + left_out
        self.masks = counts.pop("masks", 0)
        self.polygons = counts.pop("polygons", 0)
        self.counts = {name: counts[name] for name in MEANINGS if counts[name]}
        self.iou_measured = int(tally.iou.sum())
        self.tolerance = tolerance if self.polygons else None
        if self.iou_measured:
            self.iou_median = tally.median_iou
            self.iou_worst, self.worst = round(tally.worst[0], 6), tally.worst[1]

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        return asdict(self) | {"notes": list(self.notes), "edition_notes": list(self.edition_notes)}

    def text(self) -> str:
        """The summary for people."""
        rows = [
            ("format", self.format),
            ("written", f"{plural(self.images, 'image')}, {plural(self.masks, 'mask')}, "
             f"{plural(self.files, 'file')}"),
            ("to", self.dest),
        ]  # fmt: skip
        if self.images_before:
            rows.append(("there before", plural(self.images_before, "image")))
        if self.polygons:
            rows.append(("polygons", f"{self.polygons:,}, tolerance {self.tolerance:g} pixels"))
        if self.iou_median is not None:
            rows.append(
                (
                    "IoU to the mask",
                    f"median {self.iou_median:.3f}, worst {self.iou_worst:.3f} "
                    f"({self.worst}), measured on {self.iou_measured:,}",
                )
            )
        lines = [f"{count:,} {MEANINGS[name]}" for name, count in self.counts.items()]
        return "\n".join([align_columns(rows), *map(printable, lines)])
