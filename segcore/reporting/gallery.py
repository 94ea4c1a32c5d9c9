"""Images of an edition with their masks as paths over a small picture, within a budget of bytes."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from PIL import Image

from segcore.comparison.truth import TruthImages
from segcore.evaluation.remarks import shorten
from segcore.output.image_rows import ImageRecord
from segcore.output.results import Results
from segcore.reporting.html import Content, Markup, element, join
from segcore.reporting.outlines import outline_path
from segcore.text import plural
from segcore.visualize.overlays import COLOURS, brighten
from segcore.visualize.pictures import Picture, describe_instances, read_pictures

MAX_TOGGLES = 20  # categories that can be hidden each by itself
_SIDE = 640  # of a picture, pixels
_MAX_THUMBNAIL_BYTES = 30_000
_QUALITIES = (82, 65, 45)  # of JPEG, tried in this order
_MAX_NAME_CHARS, _MAX_REASON_CHARS = 120, 400
_CAPTION_BYTES = 4000  # kept for what is around the masks
_TAG_BYTES = 80  # around a path


@dataclass(frozen=True)
class Shown:
    """An image in the gallery, ready but for the class of its category toggles.

    Attributes:
        svg_start: Size and small picture; "" for an image without pixels.
        paths: (category, score, number of its colour, path) of each mask that is drawn.
        n_left: Masks that there was no room for, known ones included.
        known: (category, title, path) of each known mask that is drawn.
        text: What is known about it, for people.
        reason: Why there is no picture; "" where there is one.
        problem: The same for an image that ought to have one.
    """

    record: ImageRecord
    size: tuple[int, int] = (0, 0)
    jpeg: str = ""
    paths: tuple[tuple[str, float, int, str], ...] = ()
    n_left: int = 0
    known: tuple[tuple[str, str, str], ...] = ()
    text: str = ""
    reason: str = ""
    problem: str = ""


@dataclass
class Gallery:
    """The images that are shown, each once.

    Attributes:
        shown: image_id -> what is shown of it.
        categories: Masks drawn, by category.
    """

    shown: dict[str, Shown] = field(default_factory=dict)
    categories: Counter[str] = field(default_factory=Counter)

    @cached_property
    def toggles(self) -> dict[str, int]:
        """Category that can be hidden -> number of its box, once all images are in the gallery.

        The most frequent is first.
        """
        frequent = self.categories.most_common(MAX_TOGGLES)
        return {name: number for number, (name, _) in enumerate(frequent)}

    def problems(self) -> list[str]:
        """Sentences about segmented images that cannot be shown."""
        return [f"{s.record.image_id}: {s.problem}" for s in self.shown.values() if s.problem]


def read_gallery(
    results: Results,
    records: Sequence[ImageRecord],
    max_bytes: int,
    known: TruthImages | None = None,
) -> Gallery:
    """Read these images from the archive and draw them, each within its share of the bytes."""
    unique = list({record.image_id: record for record in records}.values())
    gallery = Gallery()
    budget = max_bytes // max(len(unique), 1)
    for picture in read_pictures(results, unique):
        shown = _show(picture, budget, known)
        gallery.shown[picture.record.image_id] = shown
        gallery.categories.update(category for category, *_ in shown.paths)
    return gallery


def _show(picture: Picture, budget: int, known: TruthImages | None) -> Shown:
    record = picture.record
    if picture.image is None:
        return Shown(
            record, reason=shorten(picture.reason, _MAX_REASON_CHARS), problem=picture.problem
        )
    height, width = picture.image.shape[:2]
    jpeg = base64.b64encode(thumbnail(picture.image)).decode()
    room = _Room(budget - len(jpeg) - _CAPTION_BYTES, height, width)
    known_masks = known.masks(record.image_id, (height, width)) if known is not None else None
    # Half of the room is kept for known masks, so that neither side hides that the other is there.
    room.kept = room.left // 2 if known_masks else 0
    rows = picture.instances
    columns = [rows[name].to_pylist() for name in ("category", "score", "counts")]
    paths = []
    for number, (category, score, counts, box) in enumerate(
        zip(*columns, picture.boxes().tolist(), strict=True)
    ):
        if (path := room.path(counts, box, category)) is not None:
            paths.append((category, score, number, path))
    room.kept = 0
    drawn = []
    for mask in known_masks or ():
        title = f"known: {shorten(mask.category)}{' (crowd region)' if mask.is_crowd else ''}"
        if (path := room.path(mask.counts, mask.box, title)) is not None:
            drawn.append((mask.category, title, path))
    text = describe_instances(rows)
    if known_masks is not None:
        text += f"; {plural(len(known_masks), 'known object')}"
    return Shown(record, (width, height), jpeg, tuple(paths), room.n_left, tuple(drawn), text)


@dataclass
class _Room:
    """Draws masks while there is room for them.

    Attributes:
        left: Bytes.
        height, width: Of the canvas of the masks.
        kept: Of these, for what comes later.
        n_left: Masks that were not drawn.
    """

    left: int
    height: int
    width: int
    kept: int = 0
    n_left: int = 0

    def path(self, counts: str, box: Sequence[float], category: str) -> str | None:
        """The path of a mask; None where it cannot be drawn."""
        room = self.left - self.kept
        path = None
        if len(counts) < room:
            path = outline_path(counts, box, self.height, self.width)
        if path is None or len(path) > room:
            self.n_left += 1
            return None
        self.left -= len(path) + len(category.encode()) + _TAG_BYTES
        return path


def thumbnail(image: np.ndarray) -> bytes:
    """A JPEG of at most 30 kB of an image, brightened where it is dark.

    Args:
        image: (H, W, 3) uint8 RGB.
    """
    picture = Image.fromarray(brighten(image))
    picture.thumbnail((_SIDE, _SIDE))
    while True:
        for quality in _QUALITIES:
            sink = io.BytesIO()
            picture.save(sink, "JPEG", quality=quality, optimize=True)
            if sink.tell() <= _MAX_THUMBNAIL_BYTES:
                return sink.getvalue()
        picture.thumbnail((picture.width // 2, picture.height // 2))


@dataclass
class FigureWriter:
    """Writes figures, each image once: where it comes again, a link to its figure is written."""

    gallery: Gallery
    anchors: dict[str, str] = field(default_factory=dict)  # image_id -> id of its figure

    def group(
        self,
        heading: str,
        explanation: str,
        records: Sequence[ImageRecord],
        notes: Mapping[str, str] = {},
    ) -> Markup:
        """Images under a heading.

        Args:
            notes: image_id -> a sentence about the image.
        """
        again = [record for record in records if record.image_id in self.anchors]
        figures = [
            self.figure(record, notes.get(record.image_id, ""))
            for record in records
            if record.image_id not in self.anchors
        ]
        parts = [element("h3", heading), element("p", explanation, class_="note")]
        if figures:
            parts.append(element("div", *figures, class_="figures"))
        if again:
            links = [self._link(record, notes.get(record.image_id, "")) for record in again]
            parts += [element("p", "Shown above:"), element("ul", *links)]
        return element("section", *parts)

    def _link(self, record: ImageRecord, note: str) -> Markup:
        link = element("a", _title(record), href=f"#{self.anchors[record.image_id]}")
        return element("li", link, f" {note}" if note else "")

    def figure(self, record: ImageRecord, note: str) -> Markup:
        """One image with its masks, or the reason why there is none."""
        name = self.anchors[record.image_id] = f"figure-{len(self.anchors) + 1}"
        shown = self.gallery.shown[record.image_id]
        title = _title(record)
        lines: list[Content] = [element("strong", title)]
        if not shown.jpeg:
            heading = "failed" if record.status != "ok" else "cannot be read today"
            card = element("div", element("strong", heading), element("p", shown.reason),
                           class_="card")  # fmt: skip
            return element("figure", card, element("figcaption", *lines), id=name)
        text = f"{shown.text}, {shown.size[0]} x {shown.size[1]} pixels"
        if shown.n_left:
            text += f"; {plural(shown.n_left, 'mask')} not drawn: no room"
        lines += [element("span", text), *([element("span", note)] if note else [])]
        links = (
            element("a", "Enlarge", element("span", f" {title}", class_="hidden"),
                    href=f"#{name}", class_="enlarge"),
            element("a", "Make smaller", element("span", f" {title}", class_="hidden"),
                    href="#gallery", class_="smaller"),
        )  # fmt: skip
        caption = element("figcaption", *lines, element("span", *links, class_="links"))
        return element("figure", self._picture(shown, f"{title}: {text}"), caption, id=name)

    def _picture(self, shown: Shown, label: str) -> Markup:
        width, height = shown.size
        image = element(
            "image",
            href=f"data:image/jpeg;base64,{shown.jpeg}",
            width=width,
            height=height,
            preserveAspectRatio="none",
        )
        layers = [element("g", *self._paths(shown), class_="masks")]
        if shown.known:
            layers.append(element("g", *self._known_paths(shown), class_="known"))
        return element(
            "svg", image, *layers, role="img", aria_label=label, viewBox=f"0 0 {width} {height}"
        )

    def _paths(self, shown: Shown) -> Iterator[Markup]:
        # Those with the highest scores are drawn last, over the others.
        for category, score, number, path in reversed(shown.paths):
            classes = f"k{number % len(COLOURS)} {self._toggle(category)}"
            step = min(int(round(score, 4) * 10), 9)
            yield element(
                "path",
                element("title", f"{shorten(category)} {score:.2f}"),
                class_=f"{classes} s{step}",
                data_score=f"{score:.3f}",
                d=path,
            )

    def _known_paths(self, shown: Shown) -> Iterator[Markup]:
        for category, title, path in shown.known:
            yield element("path", element("title", title), class_=self._toggle(category), d=path)

    def _toggle(self, category: str) -> str:
        """The class by which the box of a category hides a mask."""
        return f"c{self.gallery.toggles.get(category, MAX_TOGGLES)}"


def _title(record: ImageRecord) -> str:
    return shorten(record.key.rpartition("/")[2] or record.key, _MAX_NAME_CHARS)


def controls(gallery: Gallery) -> Markup:
    """What hides masks: all, those of a category, those below a score. Works without a script."""
    boxes = [_checkbox("masks", "Masks")]
    if any(shown.known for shown in gallery.shown.values()):
        boxes.append(_checkbox("known", "Known masks (dashed)"))
    names = gallery.toggles
    if len(gallery.categories) > 1:
        boxes += [_checkbox(f"c{place}", shorten(name)) for name, place in names.items()]
        if len(gallery.categories) > len(names):
            boxes.append(_checkbox(f"c{MAX_TOGGLES}", "all other classes"))
    steps = [
        element("label", element("input", type="radio", name="score", id=f"score-{step}",
                                 checked=step == 0), f" {step / 10:.1f}" if step else " all")
        for step in range(10)
    ]  # fmt: skip
    shown = element("fieldset", element("legend", "Show"), *boxes)
    scores = element("fieldset", element("legend", "Lowest score"), *steps, id="score-steps")
    return element("div", shown, scores, class_="controls", role="group",
                   aria_label="What is drawn over the images")  # fmt: skip


def _checkbox(name: str, text: str) -> Markup:
    box = element("input", type="checkbox", id=f"show-{name}", checked=True)
    return element("label", box, join(" ", text))
