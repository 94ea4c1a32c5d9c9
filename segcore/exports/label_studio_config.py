"""Which labels a project of Label Studio has for masks of images."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from xml.etree import ElementTree

from segcore.errors import UsageError

MAX_CONFIG_CHARS = 1 << 20
_VARIABLE = re.compile(r"\$([\w.-]+)\Z")
# Tags by what they hold; the first one counts.
_TAGS = {"BrushLabels": "brush", "PolygonLabels": "polygon"}


@dataclass(frozen=True)
class MaskControl:
    """The tag of a labelling configuration that takes masks.

    Attributes:
        kind: "brush" or "polygon".
        from_name, to_name: Names of the tag and of its image.
        variable: The member of a task's data that has the link of the image.
        labels: Each name by which the tool knows a label -> the one that stands in its results.
    """

    kind: str
    from_name: str
    to_name: str
    variable: str
    labels: Mapping[str, str]


def find_control(text: str, prefer_exact: bool) -> MaskControl:
    """The tag for masks in a labelling configuration.

    Args:
        prefer_exact: Take brush labels where there are both kinds.

    Raises:
        UsageError: There is none, or it is no XML.
    """
    if len(text) > MAX_CONFIG_CHARS or "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise UsageError("The labelling configuration is too long, or declares entities.")
    try:
        root = ElementTree.fromstring(text)  # without entities, see above
    except ElementTree.ParseError as error:
        raise UsageError(f"The labelling configuration is no XML: {error}.") from None
    images = {}
    for tag in root.iter("Image"):
        if match := _VARIABLE.match(tag.get("value", "")):
            images[tag.get("name", "")] = match[1]
    controls = list(_controls(root, images))
    if not controls:
        raise UsageError(
            "The labelling configuration has no BrushLabels or PolygonLabels for an Image.",
            "Add one of them with the classes of the model as labels.",
        )
    preferred = "brush" if prefer_exact else "polygon"
    return min(controls, key=lambda control: control.kind != preferred)


def _controls(root: ElementTree.Element, images: Mapping[str, str]) -> Iterator[MaskControl]:
    for tag in root.iter():
        kind = _TAGS.get(tag.tag)
        to_name = tag.get("toName", "")
        if kind is None or to_name not in images:
            continue
        labels = {}
        for label in tag.iter("Label"):
            value = label.get("value", "")
            shown = label.get("alias") or value
            labels[value] = labels[shown] = shown
        yield MaskControl(kind, tag.get("name", ""), to_name, images[to_name], labels)
