"""Label Studio: tasks with predictions, and the labelling configuration that these need."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, BinaryIO
from xml.sax.saxutils import quoteattr

from segcore.exports.formats.base import Context, Encoded, ExportImage, Format, Tally, score_text
from segcore.exports.formats.coordinates import PointTexts
from segcore.exports.formats.rle_pack import pack_masks
from segcore.exports.label_studio_config import MaskControl
from segcore.exports.shapes import canvas_row_runs
from segcore.text import printable

_OWN_CONTROLS = {
    kind: MaskControl(kind, kind, "image", "image", {}) for kind in ("brush", "polygon")
}
_COLOURS = ("#ff6347", "#40c4ff", "#ffd600", "#69f0ae", "#ea80fc", "#ffab40", "#8c9eff", "#b2ff59")


class LabelStudio(Format):
    """Polygons in percent of width and height, or brush masks; as predictions, not annotations."""

    name = "label-studio"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        own = _OWN_CONTROLS["brush" if context.options.are_exact else "polygon"]
        tool = context.tool
        self._control = tool.control if tool and tool.control else own
        self._points = PointTexts("[%.8g", "%.8g]", ", ", whole=100.0)
        names = {"from_name": self._control.from_name, "to_name": self._control.to_name}
        self._names = json.dumps(names, ensure_ascii=False)[1:-1]
        self._label_texts = [
            json.dumps(printable(label.name), ensure_ascii=False) for label in context.labels
        ]

    def encode_masks(self, image: ExportImage, tally: Tally) -> tuple[int, Any]:
        """One line of JSON: the task."""
        n_masks, prediction = self._prediction(image, tally)
        link = {self._control.variable: image.link or image.name}
        names = {
            "name": image.name,
            "segcore_image_id": image.image_id,
            "segcore_number": image.number,
        }
        data = link | names | link  # the tool shows what its variable names, whatever that is
        head = json.dumps({"data": data}, ensure_ascii=False)[:-1]
        return n_masks, f'{head}, "predictions": [{prediction}]}}'

    def prediction(self, image: ExportImage, tally: Tally) -> dict[str, Any]:
        """The prediction of a task alone; also without an export."""
        return dict(json.loads(self._prediction(image, tally)[1]))

    def _prediction(self, image: ExportImage, tally: Tally) -> tuple[int, str]:
        """How many masks were written, and the prediction as JSON."""
        is_exact = self.context.options.are_exact
        masks = self._brushes(image, tally) if is_exact else self._polygons(image, tally)
        regions = list(masks)
        facts = {
            "model_version": self.context.model_version,
            "score": min(image.scores, default=0.0),
        }
        head = json.dumps(facts, ensure_ascii=False)[:-1]
        return len(regions), f'{head}, "result": [{", ".join(chain(*regions))}]}}'

    def file_name(self, name: str) -> str:
        """The file of a chunk."""
        return f"tasks-{name}.json"

    def write(self, file: BinaryIO, pieces: Iterable[Encoded]) -> None:
        """Write one file of tasks."""
        separator = b"[\n"
        for piece in pieces:
            file.write(separator + piece.body.encode())
            separator = b",\n"
        file.write(b"\n]\n")

    def extra_files(self) -> Mapping[str, bytes]:
        """The labelling configuration."""
        if self.context.tool:
            return {"config.xml": self.context.tool.text.encode()}
        control = self._control
        tag = f"{control.kind.capitalize()}Labels"
        labels = "".join(
            f"    <Label value={quoteattr(printable(label.name))} "
            f'background="{_COLOURS[place % len(_COLOURS)]}"/>\n'
            for place, label in enumerate(self.context.labels)
        )
        text = (
            f'<View>\n  <Image name="{control.to_name}" value="$image" zoom="true"/>\n'
            f'  <{tag} name="{control.from_name}" toName="{control.to_name}">\n'
            f"{labels}  </{tag}>\n</View>\n"
        )
        return {"config.xml": text.encode()}

    def _brushes(self, image: ExportImage, tally: Tally) -> Iterator[list[str]]:
        """The region of each mask."""
        found = list(self.bitmaps(image, tally))
        if not found:
            return
        places, bitmaps = zip(*found, strict=True)
        packed = pack_masks(*canvas_row_runs(bitmaps, image.height, image.width))
        for place, data in zip(places, packed, strict=True):
            value = f'"format": "rle", "rle": {list(data)}'
            yield [self._region(image, place, "brushlabels", value)]

    def _polygons(self, image: ExportImage, tally: Tally) -> Iterator[list[str]]:
        """The regions of each mask, one for each of its parts."""
        for place, rings in self.outline_texts(image, tally, self._points):
            regions = []
            for part, points in enumerate(rings):
                value = f'"points": [{points}], "closed": true'
                region = self._region(image, place, "polygonlabels", value, part)
                regions.append(region)
            yield regions

    def _region(
        self,
        image: ExportImage,
        place: int,
        kind: str,
        value: str,
        part: int = 0,
    ) -> str:
        """A region as JSON.

        Args:
            value: The members of its `value` but the label.
        """
        number = image.first_annotation + place
        label = self._label_texts[image.labels[place]]
        suffix = f"p{part}" if part else ""
        return (
            f'{{"id": "s{number}{suffix}", "type": "{kind}", {self._names}, '
            f'"original_width": {image.width}, '
            f'"original_height": {image.height}, "image_rotation": 0, '
            f'"score": {score_text(image.scores[place])}, "meta": {{"mask": {number}}}, '
            f'"value": {{{value}, "{kind}": [{label}]}}}}'
        )
