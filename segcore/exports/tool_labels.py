"""The labels that an annotation tool has already, read from its own configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from segcore.errors import UsageError
from segcore.exports.label_studio_config import MaskControl, find_control
from segcore.exports.options import ExportOptions
from segcore.plain_yaml import parse_yaml
from segcore.storage import Storage, normalize
from segcore.text import parse_json, redact

_MAX_BYTES = 16 << 20
_FORMATS = "label-studio, cvat, labelme or yolo-seg"


@dataclass(frozen=True)
class ToolLabels:
    """The labels of a tool.

    Attributes:
        names: Each name by which the tool knows a label -> the one that stands in its files.
        numbers: Of each name in its files, where a format has numbers (yolo-seg).
        control: The tag that takes the masks (label-studio).
        file: The file that they were read from, and its text.
    """

    names: Mapping[str, str]
    file: str
    text: str
    numbers: Mapping[str, int] = field(default_factory=dict)
    control: MaskControl | None = None

    @property
    def options(self) -> dict[str, str]:
        """Options of the export that follow from the configuration."""
        if self.control is None:
            return {}
        return {"masks": "exact" if self.control.kind == "brush" else "polygons"}


def read_tool_labels(storage: Storage, options: ExportOptions) -> ToolLabels | None:
    """What `label_config` says; None without one.

    Raises:
        UsageError: The file is not of the tool, has no labels, or no place for such masks.
        ObjectNotFound: It does not exist.
    """
    if options.label_config is None:
        return None
    uri = normalize(options.label_config)
    file = redact(uri)
    try:
        text = storage.read(uri, _MAX_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError(f"{file} is not UTF-8 text.") from None
    readers = {
        "label-studio": _label_studio,
        "cvat": _cvat,
        "labelme": _labelme,
        "yolo-seg": _yolo,
    }
    if options.format not in readers:
        raise UsageError(
            f"label_config: {options.format} has no configuration of labels.",
            f"It is for {_FORMATS}.",
        )
    try:
        labels = readers[options.format](text, file, options)
    except UsageError as error:
        raise UsageError(f"{file}: {error.message}", error.hint) from None
    if not labels.names:
        raise UsageError(f"{file} has no labels.")
    return labels


def _label_studio(text: str, file: str, options: ExportOptions) -> ToolLabels:
    control = find_control(text, options.are_exact)
    wanted = {"exact": "brush", "polygons": "polygon"}.get(options.masks)
    if wanted not in (None, control.kind):
        raise UsageError(
            f"The labelling configuration has no {wanted.capitalize()}Labels, which "
            f"--masks {options.masks} needs.",
            "Leave out --masks, or add the tag.",
        )
    return ToolLabels(control.labels, file, text, control=control)


def _cvat(text: str, file: str, options: ExportOptions) -> ToolLabels:
    """The labels of a task as its constructor shows them under Raw."""
    try:
        entries = parse_json(text)
    except ValueError:
        entries = None
    if not isinstance(entries, list):
        raise UsageError("This is no list of labels in JSON.", "Copy the labels from the tab Raw.")
    fitting = ("any", "mask") if options.are_exact else ("any", "polygon")
    names = {}
    for entry in entries:
        name = entry.get("name") if isinstance(entry, dict) else None
        if isinstance(name, str) and entry.get("type", "any") in fitting:
            names[name] = name
    return ToolLabels(names, file, text)


def _labelme(text: str, file: str, options: ExportOptions) -> ToolLabels:
    """The file that `labelme --labels` takes: a label on each line."""
    lines = (line.strip() for line in text.splitlines())
    return ToolLabels({line: line for line in lines if line}, file, text)


def _yolo(text: str, file: str, options: ExportOptions) -> ToolLabels:
    names = read_class_names(text)
    numbers = {name: number for number, name in reversed(names.items())}
    return ToolLabels({name: name for name in numbers}, file, text, numbers=numbers)


def read_class_names(text: str) -> dict[int, str]:
    """The classes in a ``data.yaml``.

    Raises:
        UsageError: It has none.
    """
    document = parse_yaml(text, "the text")
    names = document.get("names") if isinstance(document, dict) else None
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names:
        raise UsageError("This has no `names`.")
    return {
        int(k): str(v)
        for k, v in names.items()
        if isinstance(k, int) and isinstance(v, str | int | float) and str(v).strip()
    }
