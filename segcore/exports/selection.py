"""Which images and masks are exported, and what was left out."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import translate

import numpy as np

from segcore.errors import UsageError
from segcore.exports.archive import ArchivedImage, MaskColumns
from segcore.exports.formats.base import Label
from segcore.exports.options import ExportOptions
from segcore.exports.tool_labels import ToolLabels
from segcore.storage import Storage, normalize
from segcore.text import plural, redact

_MAX_LIST_BYTES = 512 << 20
_MAX_NAMES_SHOWN = 10
_CSV_HEADINGS = ("image_id", "image", "file_name", "path", "id", "uri")


@dataclass(frozen=True)
class ImageMasks:
    """The masks of one image that are exported, by descending score; see `ExportImage`."""

    labels: list[int]
    scores: list[float]
    counts: list[str]
    boxes: np.ndarray
    areas: list[int]


NO_MASKS = ImageMasks([], [], [], np.zeros((0, 4), np.float32), [])


class Selection:
    """The filters of an export.

    Args:
        listed: Ids, paths or file names of the images to export; None for all.
        ranked: Ids of the images to export; None for all.
        tool: The labels that the tool has; None for all.

    Attributes:
        labels: The classes of the export, in the order of the model.
        lacking: Classes that the tool has no label for.
        left_out: What was left out, by reason.
    """

    def __init__(
        self,
        options: ExportOptions,
        categories: Mapping[int, str],
        listed: frozenset[str] | None,
        ranked: frozenset[str] | None = None,
        tool: ToolLabels | None = None,
    ) -> None:
        self.options = options
        self.left_out: Counter[str] = Counter()
        self._listed, self._ranked = listed, ranked
        self._unmatched = set(listed or ())
        self._include = _patterns(options.include)
        self._exclude = _patterns(options.exclude)
        _check_names(options, categories)
        chosen = options.categories or tuple(categories.values())
        self.labels: tuple[Label, ...] = ()
        by_name: dict[str, int] = {}
        labels: list[Label] = []
        self._label_of: dict[int, int] = {}
        self.lacking: dict[int, str] = {}
        for id_, name in sorted(categories.items()):
            if name in chosen:
                shown = options.rename.get(name, name)
                if tool is not None and shown not in tool.names:
                    self.lacking[id_] = shown
                    continue
                shown = tool.names[shown] if tool else shown
                if shown not in by_name:
                    by_name[shown] = len(labels)
                    labels.append(Label(id_, shown))
                self._label_of[id_] = by_name[shown]
        if tool is not None and not labels:
            raise UsageError(
                f"{tool.file} has a label for none of {', '.join(self.lacking.values())[:200]}.",
                f"Its labels: {', '.join(list(tool.names)[:_MAX_NAMES_SHOWN])}. "
                "Give classes the names of its labels with --rename CLASS=NAME.",
            )
        self.labels = tuple(labels)
        self._min_scores = {
            id_: np.float32(options.min_score_by_category.get(name, options.min_score))
            for id_, name in categories.items()
        }

    def takes(self, record: ArchivedImage) -> bool:
        """Whether an image is exported; failed images never are."""
        if not record.is_ok or not record.width or not record.height:
            self.left_out["failed_images"] += 1
            return False
        if self._include and not self._include.match(record.path):
            self.left_out["images_not_included"] += 1
            return False
        if self._exclude and self._exclude.match(record.path):
            self.left_out["images_excluded"] += 1
            return False
        if self._ranked is not None and record.image_id not in self._ranked:
            self.left_out["images_not_ranked"] += 1
            return False
        if self._listed is not None:
            names = {record.image_id, record.path, record.path.rpartition("/")[2]}
            found = names & self._listed
            if not found:
                self.left_out["images_not_listed"] += 1
                return False
            self._unmatched -= found
        return True

    @property
    def unmatched(self) -> list[str]:
        """Entries of the image list that no image had, sorted; complete after all images."""
        return sorted(self._unmatched)

    def choose(
        self, masks: MaskColumns, sizes: Mapping[str, tuple[int, int]]
    ) -> dict[str, ImageMasks]:
        """The masks of a unit to export, by image.

        Args:
            sizes: (width, height) of the images to export.
        """
        keep = self._filter(masks, sizes)
        rows = np.flatnonzero(keep)
        order = np.lexsort((rows, -masks.scores[rows], masks.image_codes[rows]))
        rows = rows[order]
        codes = masks.image_codes[rows]
        borders = np.flatnonzero(np.concatenate(([True], codes[1:] != codes[:-1])))
        chosen: dict[str, ImageMasks] = {}
        limit = self.options.most_per_image
        counts = masks.counts.take(rows).to_pylist()
        for start, stop in zip(borders, [*borders[1:], rows.size], strict=True):
            if start == stop:
                continue
            if limit is not None and stop - start > limit:
                self.left_out["masks_over_the_limit_per_image"] += int(stop - start - limit)
                self.left_out["images_over_the_limit"] += 1
                stop = start + limit
            mine = rows[start:stop]
            chosen[masks.ids[codes[start]]] = ImageMasks(
                labels=[self._label_of[id_] for id_ in masks.category_ids[mine].tolist()],
                scores=masks.scores[mine].tolist(),
                counts=counts[start:stop],
                boxes=masks.boxes[mine],
                areas=masks.areas[mine].tolist(),
            )
        return chosen

    def _filter(self, masks: MaskColumns, sizes: Mapping[str, tuple[int, int]]) -> np.ndarray:
        """(N,) bool: the masks that pass, before the limit of an image."""
        options = self.options
        wanted = np.array([id_ in sizes for id_ in masks.ids], bool)
        canvases = np.array([(*sizes.get(id_, (0, 0)), 0, 0) for id_ in masks.ids], np.int64)
        keep = wanted[masks.image_codes] if len(masks.ids) else np.zeros(0, bool)

        def drop(failing: np.ndarray, reason: str) -> None:
            nonlocal keep
            n_dropped = int((keep & failing).sum())
            if n_dropped:
                self.left_out[reason] += n_dropped
                keep = keep & ~failing

        if not keep.any():
            return keep
        is_lacking = np.isin(masks.category_ids, np.array(list(self.lacking), np.int64))
        drop(is_lacking, "masks_of_labels_that_the_tool_lacks")
        is_chosen = np.isin(masks.category_ids, np.array(list(self._label_of), np.int64))
        drop(~is_chosen, "masks_of_other_classes")
        ids, places = np.unique(masks.category_ids, return_inverse=True)
        lowest = np.array([self._min_scores.get(i, np.float32(0)) for i in ids.tolist()])
        drop(masks.scores < lowest[places], "masks_under_the_lowest_score")
        drop(masks.areas < options.min_area, "masks_under_the_smallest_area")
        if options.max_area is not None:
            drop(masks.areas > options.max_area, "masks_over_the_largest_area")
        is_other = (masks.canvases != canvases[masks.image_codes]).any(axis=1)
        drop(is_other, "masks_of_a_part_of_a_huge_image")
        return keep


def read_image_list(storage: Storage, options: ExportOptions) -> frozenset[str] | None:
    """The ids, paths or file names of `image_list`, the first `top` of them; None without a list.

    Raises:
        UsageError: The file has no entries, or is no text.
        ObjectNotFound: It does not exist.
    """
    if options.image_list is None:
        return None
    uri = normalize(options.image_list)
    try:
        text = storage.read(uri, _MAX_LIST_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"{redact(uri)} is not UTF-8 text.") from None
    if uri.lower().endswith(".csv"):
        entries = [row[0].strip() for row in csv.reader(io.StringIO(text)) if row]
        if entries and entries[0].lower() in _CSV_HEADINGS:
            entries = entries[1:]
    else:
        entries = [line.strip() for line in text.splitlines()]
    entries = [entry for entry in entries if entry][: options.top]
    if not entries:
        raise UsageError(f"{redact(uri)} lists no image.", "Write one id or path on each line.")
    return frozenset(entries)


def _check_names(options: ExportOptions, categories: Mapping[int, str]) -> None:
    known = set(categories.values())
    named = {
        "categories": options.categories,
        "rename": options.rename,
        "min_score_by_category": options.min_score_by_category,
    }
    for option, names in named.items():
        for name in names:
            if name not in known:
                shown = ", ".join(sorted(known)[:_MAX_NAMES_SHOWN])
                more = len(known) - _MAX_NAMES_SHOWN
                rest = f" and {plural(more, 'more class', 'more classes')}" if more > 0 else ""
                raise UsageError(
                    f"export.{option}: the model has no class {name!r}.",
                    f"Its classes: {shown}{rest}.",
                )


def _patterns(globs: tuple[str, ...]) -> re.Pattern[str] | None:
    return re.compile("|".join(map(translate, globs))) if globs else None
