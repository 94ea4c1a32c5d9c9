"""Where corrections lie: a file, a zip, or a folder; and which format it is."""

from __future__ import annotations

import lzma
import zipfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO, Literal, get_args

from segcore.corrections.objects import MAX_DOCUMENT_BYTES, CorrectedImage
from segcore.corrections.readers.coco import read_coco
from segcore.corrections.readers.cvat import read_cvat
from segcore.corrections.readers.json_files import parse
from segcore.corrections.readers.label_studio import read_label_studio
from segcore.corrections.readers.labelme import read_labelme
from segcore.corrections.readers.yolo import read_labels
from segcore.errors import UsageError
from segcore.evaluation.remarks import Remarks
from segcore.evaluation.truth_masks import Unusable
from segcore.exports.tool_labels import read_class_names
from segcore.storage import Storage, normalize
from segcore.storage.uris import basename
from segcore.text import redact

CorrectionFormat = Literal["coco", "yolo-seg", "cvat", "label-studio", "labelme"]
FORMATS: tuple[str, ...] = get_args(CorrectionFormat)
_MAX_SMALL_FILE = 256 << 20
_MAX_XML_IN_ZIP = 16 << 30
_ZIP_ERRORS = (
    zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, ValueError,
    zlib.error, lzma.LZMAError,
)  # fmt: skip
_ENDINGS = {"coco": ".json", "label-studio": ".json", "labelme": ".json", "cvat": ".xml"}
_READ = "CVAT for images 1.1 (zip or XML), JSON of Label Studio, labelme, YOLO labels, COCO"
_OWN_FILES = ("segcore-export.json", "segcore-summary.json")


def read_corrections(
    storage: Storage, source: str, form: str, labels: list[str], remarks: Remarks
) -> Iterator[CorrectedImage]:
    """The images that a tool gave back.

    Args:
        form: One of `FORMATS`, or "auto".
        labels: The classes of the export, for YOLO labels without a ``data.yaml``.

    Raises:
        UsageError: There is nothing of this format.
    """
    uri = normalize(source)
    if storage.exists(uri):
        yield from _read_file(storage, uri, form, labels, remarks)
        return
    folder = f"{uri}/"
    files = [
        info.uri
        for info in storage.list(uri)
        if basename(info.uri) not in _OWN_FILES and info.size >= 0
    ]
    if not files:
        raise UsageError(f"{redact(uri)} does not exist, or holds nothing.")
    form = _guess_folder(storage, files, uri) if form == "auto" else form
    if form == "yolo-seg":
        yield from _read_yolo(storage, folder, files, labels, remarks)
        return
    chosen = [file for file in files if file.lower().endswith(_ENDINGS[form])]
    if form == "coco":
        chosen = [f for f in chosen if not basename(f).startswith(("images-", "results-"))]
    if not chosen:
        raise UsageError(f"{redact(uri)} holds no {form} file ({_ENDINGS[form]}).")
    # An image that had changed is in a later file of an export, too; the first that is read counts.
    is_chunked = form not in ("labelme", "yolo-seg")
    for file in sorted(chosen, reverse=is_chunked):
        if form == "labelme":
            name = _below(file, folder)
            yield from _labelme(storage, file, name, remarks)
        else:
            yield from _read_file(storage, file, form, labels, remarks)


def _read_file(
    storage: Storage, uri: str, form: str, labels: list[str], remarks: Remarks
) -> Iterator[CorrectedImage]:
    name = redact(uri)
    if uri.lower().endswith(".zip"):
        with storage.open(uri) as file:
            yield from _read_zip(file, name, remarks)
        return
    if form in ("auto", "cvat") and uri.lower().endswith(".xml"):
        with storage.open(uri) as file:
            yield from read_cvat(file, name, remarks)
        return
    if form in ("auto", "yolo-seg") and uri.lower().endswith(".txt"):
        data = storage.read(uri, _MAX_SMALL_FILE)
        yield read_labels(data, basename(uri), labels, remarks)
        return
    form = _guess_json(storage, uri) if form == "auto" else form
    if form == "labelme":
        yield from _labelme(storage, uri, basename(uri), remarks)
    elif form == "label-studio":
        yield from read_label_studio(storage.read(uri, MAX_DOCUMENT_BYTES), name, remarks)
    elif form == "coco":
        yield from read_coco(storage.read(uri, MAX_DOCUMENT_BYTES), name, remarks)
    else:
        raise UsageError(f"{name} is no file of the format {form}.")


def _labelme(storage: Storage, uri: str, name: str, remarks: Remarks) -> Iterator[CorrectedImage]:
    try:
        yield read_labelme(storage.read(uri, _MAX_SMALL_FILE), name, remarks)
    except Unusable as error:
        remarks.leave_out("file", error.reason, name, error.detail)


def _read_yolo(
    storage: Storage, folder: str, files: list[str], labels: list[str], remarks: Remarks
) -> Iterator[CorrectedImage]:
    names: dict[int, str] | list[str] = labels
    for file in files:
        if basename(file) in ("data.yaml", "data.yml"):
            try:
                names = read_class_names(storage.read(file, _MAX_SMALL_FILE).decode())
            except UnicodeDecodeError:
                raise UsageError(f"{redact(file)} is not UTF-8 text.") from None
            except UsageError as error:
                raise UsageError(f"{redact(file)}: {error.message}") from None
    texts = [file for file in files if file.lower().endswith(".txt")]
    inside = [file for file in texts if _below(file, folder).startswith("labels/")]
    for file in inside or texts:
        name = _below(file, folder).removeprefix("labels/")
        yield read_labels(storage.read(file, _MAX_SMALL_FILE), name, names, remarks)


def _read_zip(file: BinaryIO, name: str, remarks: Remarks) -> Iterator[CorrectedImage]:
    """The ``annotations.xml`` in the zip that CVAT exports."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = [m for m in archive.infolist() if m.filename.endswith("annotations.xml")]
            if len(members) != 1 or members[0].file_size > _MAX_XML_IN_ZIP:
                raise UsageError(
                    f"{name} does not hold one annotations.xml.",
                    "Export from CVAT as 'CVAT for images 1.1'. Of a zip of another format, name "
                    "the folder that you unpacked it to.",
                )
            with archive.open(members[0]) as xml:
                yield from read_cvat(xml, name, remarks)  # type: ignore[arg-type]
    except _ZIP_ERRORS as error:
        raise UsageError(f"{name} is not a zip that can be read: {error}.") from None


def _guess_folder(storage: Storage, files: list[str], uri: str) -> str:
    endings = {file.lower().rpartition(".")[2] for file in files}
    if "xml" in endings and not any(f.endswith("config.xml") for f in files):
        return "cvat"
    documents = [file for file in files if file.lower().endswith(".json")]
    if documents:
        return _guess_json(storage, documents[0])
    if "txt" in endings:
        return "yolo-seg"
    raise UsageError(
        f"{redact(uri)} holds nothing that looks like corrections.",
        f"Name the format with --format: {', '.join(FORMATS)}.",
    )


def _guess_json(storage: Storage, uri: str) -> str:
    try:
        document = parse(storage.read(uri, MAX_DOCUMENT_BYTES))
    except Unusable as error:
        raise UsageError(
            f"{redact(uri)} is no JSON: {error.detail or error.reason}.",
            f"What is read: {_READ}.",
        ) from None
    if isinstance(document, list):
        return "label-studio"
    if isinstance(document, dict) and "shapes" in document:
        return "labelme"
    if isinstance(document, dict) and "annotations" in document:
        return "coco"
    raise UsageError(
        f"{redact(uri)} is no file of COCO, Label Studio or labelme.",
        f"Name the format with --format: {', '.join(FORMATS)}.",
    )


def _below(uri: str, folder: str) -> str:
    return uri.removeprefix(folder)
