"""Corrections of an export -> COCO ground truth with the images of the archive."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, BinaryIO, Literal

from segcore.corrections.objects import CorrectedImage, to_rle
from segcore.corrections.sources import FORMATS, read_corrections
from segcore.errors import UsageError
from segcore.evaluation.paths import PathIndex
from segcore.evaluation.remarks import Remarks
from segcore.evaluation.truth_masks import Unusable, mask_area, mask_box
from segcore.exports.state import (
    DestLayout,
    ExportedImage,
    ExportState,
    read_manifest,
    read_state,
)
from segcore.storage import Storage, normalize
from segcore.storage.spill import SpillBuffer
from segcore.storage.uris import parent
from segcore.text import align_columns, plural, redact

FileNames = Literal["archive", "export"]
_SPOOL_BYTES = 16 << 20
_EXPECTED = (
    "They are what a tool exports after somebody has corrected the images of --dest, or its own "
    "files: CVAT for images 1.1, JSON of Label Studio (not JSON-MIN), labelme, YOLO or COCO."
)


@dataclass
class ImportReport:
    """What an import read and wrote.

    Attributes:
        images, objects: In the ground truth.
        not_corrected: Images of the export that the corrections lack; not in the ground truth.
        new_classes: Classes that the export did not have.
        left_out: Entries of the corrections that could not be used.
        notes: Sentences for people.
    """

    truth: str
    format: str
    images: int = 0
    objects: int = 0
    not_corrected: int = 0
    new_classes: list[str] = field(default_factory=list)
    left_out: int = 0
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        return asdict(self)

    def text(self) -> str:
        """The report for people."""
        rows = [
            ("read", f"{plural(self.images, 'image')}, {plural(self.objects, 'object')}"),
            ("written to", self.truth),
        ]
        if self.not_corrected:
            rows.append(("not there", f"{plural(self.not_corrected, 'image')} of the export"))
        if self.new_classes:
            rows.append(("new classes", ", ".join(self.new_classes[:10])))
        return align_columns(rows)


def import_corrections(
    storage: Storage,
    source: str,
    truth: str,
    *,
    dest: str | None = None,
    form: str = "auto",
    file_names: FileNames = "archive",
    overwrite: bool = False,
) -> ImportReport:
    """Read corrections and write them as a COCO instances file.

    Args:
        source: File, zip or folder that a tool wrote; or the DEST of the export itself.
        truth: The JSON file to write.
        dest: DEST of the export; by default `source`, or the folder that it is in.
        form: One of `FORMATS`, or "auto".
        file_names: Whether ``file_name`` is the path in the archive, or the name in the export.
        overwrite: Replace `truth`.

    Raises:
        UsageError: There are no corrections, or none that belong to the export.
    """
    if form != "auto" and form not in FORMATS:
        raise UsageError(f"--format {form}: it is auto, {', '.join(FORMATS)}.")
    target = normalize(truth)
    if not overwrite and storage.exists(target):
        raise UsageError(f"{redact(target)} exists.", "Add --overwrite to replace it.")
    layout, manifest = _find_export(storage, source, dest)
    if form == "auto" and normalize(source) == layout.uri and manifest["format"] in FORMATS:
        form = manifest["format"]
    remarks = Remarks()
    report = ImportReport(redact(target), form)
    labels = [(int(entry["id"]), str(entry["name"])) for entry in manifest["labels"]]
    state = read_state(storage, layout)
    names = [name for _, name in labels]
    corrections = read_corrections(storage, source, form, names, remarks)
    writer = _TruthWriter(
        _Matcher(state), {name: id_ for id_, name in labels}, remarks, report, file_names
    )
    storage.write_with(target, lambda file: writer.write(file, corrections, manifest))
    report.not_corrected = len(state) - report.images
    report.left_out = remarks.n_left_out
    report.notes = remarks.sentences()
    return report


def _find_export(
    storage: Storage, source: str, dest: str | None
) -> tuple[DestLayout, dict[str, Any]]:
    uri = normalize(source)
    candidates = [normalize(dest)] if dest else [uri, parent(uri)]
    for candidate in candidates:
        layout = DestLayout(candidate)
        manifest = read_manifest(storage, layout)
        if manifest is not None:
            return layout, manifest
    raise UsageError(
        f"{redact(candidates[0])} is no export of segcore, so the images cannot be told apart.",
        "Name the DEST of `segcore export` with --dest.",
    )


class _Matcher:
    """Finds the exported image that a corrected one is."""

    def __init__(self, state: ExportState) -> None:
        self._images = list(state.images())
        self._by_id = {image.image_id: image for image in self._images}
        self._by_number = {image.number: image for image in self._images}
        self._index = PathIndex([image.name for image in self._images])

    def find(self, image: CorrectedImage) -> ExportedImage:
        """The exported image.

        Raises:
            Unusable: There is none, or several could be meant.
        """
        if image.number is not None and image.number in self._by_number:
            return self._by_number[image.number]
        if image.name in self._by_id:
            return self._by_id[image.name]
        found = self._index.find(image.name)
        if len(found) > 1:
            raise Unusable("whose name could be that of several images of the export")
        if not found:
            raise Unusable("that the export does not have")
        return self._images[found[0]]


class _TruthWriter:
    """Writes a COCO file image by image; annotations first, images behind them."""

    def __init__(
        self,
        matcher: _Matcher,
        category_ids: dict[str, int],
        remarks: Remarks,
        report: ImportReport,
        file_names: FileNames,
    ) -> None:
        self._matcher = matcher
        self._category_ids = category_ids
        self._remarks = remarks
        self._report = report
        self._file_names = file_names
        self._seen: set[int] = set()

    def write(
        self, file: BinaryIO, corrections: Iterator[CorrectedImage], manifest: dict[str, Any]
    ) -> None:
        """Write the file.

        Raises:
            UsageError: No image of the corrections can be used.
        """
        info = {
            "description": "corrected pre-labels by segcore",
            "version": manifest.get("edition", ""),
            "contributor": manifest.get("model", ""),
        }
        file.write(b'{"info": ' + json.dumps(info).encode() + b', "annotations": [')
        with SpillBuffer(_SPOOL_BYTES) as entries:
            add_annotation, add_image = _line_writer(file), _line_writer(entries)
            for image in corrections:
                self._add(image, add_annotation, add_image)
            if not self._report.images:
                reasons = self._remarks.sentences()
                first = "The corrections hold no image" + (" that can be used." if reasons else ".")
                raise UsageError([first, *reasons], _EXPECTED)
            file.write(b'\n], "images": [')
            entries.copy_to(file)
        categories = [{"id": id_, "name": name} for name, id_ in self._category_ids.items()]
        file.write(b'\n], "categories": ' + json.dumps(categories).encode() + b"}\n")

    def _add(
        self,
        image: CorrectedImage,
        add_annotation: Callable[[str], None],
        add_image: Callable[[str], None],
    ) -> None:
        try:
            exported = self._find(image)
        except Unusable as error:
            self._remarks.leave_out("image", error.reason, image.name, error.detail)
            return
        name = exported.path if self._file_names == "archive" else exported.name
        entry = {
            "id": exported.number,
            "file_name": name,
            "width": exported.width,
            "height": exported.height,
            "segcore_image_id": exported.image_id,
        }
        add_image(json.dumps(entry))
        self._report.images += 1
        for one in image.objects:
            label = one.label.strip()
            if not label:
                self._remarks.leave_out("object", "without a class", image.name)
                continue
            try:
                rle = to_rle(one.shape, exported.height, exported.width, image.scale)
            except Unusable as error:
                self._remarks.leave_out("object", error.reason, image.name, error.detail)
                continue
            self._report.objects += 1
            annotation = {
                "id": self._report.objects,
                "image_id": exported.number,
                "category_id": self._category(label),
                "iscrowd": 0,
                "area": mask_area(rle),
                "bbox": mask_box(rle),
                "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
            }
            add_annotation(json.dumps(annotation))

    def _find(self, image: CorrectedImage) -> ExportedImage:
        exported = self._matcher.find(image)
        size, expected = (image.width, image.height), (exported.width, exported.height)
        if None not in size and size != expected:
            detail = f"{size[0]} x {size[1]}, exported as {expected[0]} x {expected[1]}"
            if size == expected[::-1]:
                raise Unusable("with swapped sides: the tool ignored the EXIF orientation", detail)
            raise Unusable("of another size than exported", detail)
        if exported.number in self._seen:
            raise Unusable("that occurs more than once; the last file and its first entry count")
        self._seen.add(exported.number)
        return exported

    def _category(self, label: str) -> int:
        if label not in self._category_ids:
            self._category_ids[label] = max(self._category_ids.values(), default=0) + 1
            self._report.new_classes.append(label)
        return self._category_ids[label]


def _line_writer(file: Any) -> Callable[[str], None]:
    """A function that writes items of a JSON list, one on a line."""
    separator = b"\n"

    def add(line: str) -> None:
        nonlocal separator
        file.write(separator + line.encode())
        separator = b",\n"

    return add
