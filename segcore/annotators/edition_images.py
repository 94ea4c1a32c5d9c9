"""The images of an edition by the names that tasks give them, with the masks to hand out."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict, defaultdict
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from segcore.annotators.task_names import TaskName, upload_name
from segcore.errors import NothingFound, UsageError
from segcore.evaluation.paths import PathIndex
from segcore.exports.archive import Archive, ArchivedImage, MaskColumns
from segcore.exports.formats.base import Context, ExportImage, Tally
from segcore.exports.options import ExportOptions
from segcore.exports.selection import NO_MASKS, Selection, read_image_list
from segcore.exports.state import DestLayout, read_manifest, read_state
from segcore.exports.summary import MEANINGS
from segcore.output.results import Results
from segcore.storage import normalize
from segcore.text import printable, redact

_UNITS_IN_MEMORY = 4
_MAX_NAMES_SHOWN = 3
_LOSSES = (
    "masks_over_the_limit_per_image",
    "masks_of_a_part_of_a_huge_image",
    "unreadable_masks",
    "masks_with_filled_holes",
    "polygons_simplified_to_the_limit",
)


class NoAnswer(Exception):
    """There are no masks to give for an image; `str` says why, and may quote names from tasks."""


class _Unit(NamedTuple):
    records: dict[str, ArchivedImage]
    masks: MaskColumns


@dataclass(frozen=True)
class Answer:
    """The masks of an image.

    Attributes:
        left_out: Masks that filters or limits left out, by reason; see `exports.summary`.
    """

    image: ExportImage
    left_out: Counter[str]

    def losses(self, tally: Tally) -> list[str]:
        """What was lost of the masks though nobody asked for that, in words.

        Args:
            tally: What happened to the masks on their way into the shapes of the tool.
        """
        counts = tally.counts + self.left_out
        return [f"{counts[key]:,} {MEANINGS[key]}" for key in _LOSSES if counts[key]]


class EditionImages:
    """Finds the image that a task means, and its masks. Can be called by several threads.

    An image is found by its id; by its path in the archive, or by its name in an export; or by the
    end of one, from a slash on. A name that several images could have is no answer, whether or not
    these failed or are left out.

    Attributes:
        context: Options, labels and model.
    """

    def __init__(
        self,
        results: Results,
        options: ExportOptions,
        *,
        dest: str | None = None,
        whole_names: bool = False,
    ) -> None:
        """Read the names of all images.

        Args:
            options: Which images and masks there are to give.
            dest: DEST of an export of these results: its images alone are known, and by the names
                that it gave them.
            whole_names: The end of a name is not enough.

        Raises:
            UsageError: `dest` is no export of this edition, or an option is wrong.
            NothingFound: There is no image.
        """
        if options.label_config is not None:
            raise UsageError("label_config is for exports: here the tool says which labels it has.")
        listed = read_image_list(results.storage, options)
        self._selection = Selection(options, results.categories, listed)
        model = results.model_text
        self.context = Context(options, self._selection.labels, model, results.name)
        self._archive = Archive(results)
        self._whole_names = whole_names
        self._lock = threading.Lock()
        self._units: OrderedDict[str, _Unit] = OrderedDict()
        self._ids: list[str] = []
        self._unit_numbers: list[int] = []
        self._names: list[str] = []
        self._withheld: dict[str, str] = {}  # id -> why it has no masks to give
        self._read_names()
        if dest is not None:
            self._take_export_names(results, DestLayout(normalize(dest)))
        if not self._ids:
            raise NothingFound(f"{results.prefix} has no image to hand out masks of.")
        self._rows = {image_id: row for row, image_id in enumerate(self._ids)}
        self._index = PathIndex(self._names)
        self._uploads: dict[str, list[int]] | None = None

    def __len__(self) -> int:
        return len(self._ids)

    def _read_names(self) -> None:
        for number, unit in enumerate(self._archive.unit_ids):
            for record in self._archive.images(unit):
                self._ids.append(record.image_id)
                self._names.append(record.path)
                self._unit_numbers.append(number)
                if not self._selection.takes(record):
                    why = "is left out by the filters" if record.is_ok else "failed in the run"
                    self._withheld[record.image_id] = f"the image {why}"

    def _take_export_names(self, results: Results, layout: DestLayout) -> None:
        """Leave the images that were exported, under the names that they have there."""
        manifest = read_manifest(results.storage, layout)
        if manifest is None or manifest.get("edition") != results.name:
            what = "no export of segcore" if manifest is None else "an export of another edition"
            raise UsageError(f"{redact(layout.uri)} is {what}.", "Name the DEST of one of these.")
        names = {
            image.image_id: image.name for image in read_state(results.storage, layout).images()
        }
        rows = [row for row, image_id in enumerate(self._ids) if image_id in names]
        self._ids = [self._ids[row] for row in rows]
        self._unit_numbers = [self._unit_numbers[row] for row in rows]
        self._names = [names[image_id] for image_id in self._ids]

    def answer_id(self, image_id: str) -> Answer:
        """The masks of the image with this id.

        Raises:
            NoAnswer: There is none to hand out.
        """
        row = self._rows.get(image_id)
        if row is None:
            raise NoAnswer("the edition has no image of this id")
        return self._answer(row)

    def answer(self, name: TaskName, size: tuple[int, int] | None = None) -> Answer:
        """The masks of the image that a task names so.

        Args:
            size: (width, height) of the image as the tool has it; None if it does not say.

        Raises:
            NoAnswer: There is no such image, several could be meant, or its size is another.
        """
        rows = self._find(name)
        if not rows:
            raise NoAnswer("no image of the edition has this name")
        if len(rows) > 1:
            names = {printable(self._names[row]) for row in rows[:_MAX_NAMES_SHOWN] if row >= 0}
            such = f", such as {', '.join(sorted(names))}" if names else ""
            raise NoAnswer(f"several images of the edition could be meant{such}")
        found = self._answer(rows[0])
        ours = (found.image.width, found.image.height)
        if size is not None and size != ours:
            text = f"{size[0]} x {size[1]} pixels, and in the edition {ours[0]} x {ours[1]}"
            if size == ours[::-1]:
                text += ": the tool ignored its EXIF orientation"
            raise NoAnswer(f"the image has {text}")
        return found

    def _find(self, name: TaskName) -> list[int]:
        """The rows of the images that can be meant; -1 for one of several with the same end."""
        if name.text in self._rows:
            return [self._rows[name.text]]
        if name.is_upload:
            return self._by_upload_name().get(name.text, [])
        find = self._index.find_whole if self._whole_names else self._index.find
        return find(name.text)

    def _by_upload_name(self) -> dict[str, list[int]]:
        with self._lock:
            if self._uploads is None:
                uploads: dict[str, list[int]] = defaultdict(list)
                for row, name in enumerate(self._names):
                    uploads[upload_name(name)].append(row)
                self._uploads = dict(uploads)
            return self._uploads

    def _answer(self, row: int) -> Answer:
        image_id = self._ids[row]
        if image_id in self._withheld:
            raise NoAnswer(self._withheld[image_id])
        with self._lock:
            unit = self._unit(self._archive.unit_ids[self._unit_numbers[row]])
            record = unit.records[image_id]
            width, height = record.width or 0, record.height or 0
            before = self._selection.left_out.copy()
            chosen = self._selection.choose(unit.masks, {image_id: (width, height)})
            left_out = self._selection.left_out - before
        masks = chosen.get(image_id, NO_MASKS)
        image = ExportImage(
            number=row + 1,
            name=record.path,
            image_id=image_id,
            link="",
            width=width,
            height=height,
            first_annotation=1,
            labels=masks.labels,
            scores=masks.scores,
            counts=masks.counts,
            boxes=np.asarray(masks.boxes),
            areas=masks.areas,
        )
        return Answer(image, left_out)

    def _unit(self, unit_id: str) -> _Unit:
        """The rows of a unit; those of the last few stay in memory, as tasks follow the archive."""
        if unit_id in self._units:
            self._units.move_to_end(unit_id)
            return self._units[unit_id]
        records = {record.image_id: record for record in self._archive.images(unit_id)}
        unit = _Unit(records, self._archive.masks(unit_id))
        self._units[unit_id] = unit
        if len(self._units) > _UNITS_IN_MEMORY:
            self._units.popitem(last=False)
        return unit
