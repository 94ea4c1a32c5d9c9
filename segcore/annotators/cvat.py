"""A function for CVAT's auto-annotation that answers from an edition.

`cvat-cli task auto-annotate TASK --function-module segcore.annotators.cvat -p output=str:OUTPUT`
calls `create` with these parameters, and then the function for each image of the task.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from segcore.annotators.edition_images import Answer, EditionImages, NoAnswer
from segcore.annotators.task_names import TaskName
from segcore.config import load_config
from segcore.config.exports import ExportConfig
from segcore.errors import UsageError
from segcore.exports.formats import make_format
from segcore.exports.formats.base import ExportImage, Tally
from segcore.exports.shapes import row_runs
from segcore.output.results import open_results
from segcore.storage import Storage
from segcore.text import printable

if TYPE_CHECKING:
    from PIL.Image import Image

_LOGGER = logging.getLogger(__name__)
_MAX_WARNINGS = 50


def create(
    output: str,
    edition: str = "",
    dest: str = "",
    config: str = "",
    sets: str = "",
    whole_names: bool = False,
    on_unknown: str = "skip",
) -> EditionFunction:
    """The function for an edition; what CVAT's command line calls.

    Args:
        output: The OUTPUT of `segcore segment`.
        edition: Edition in it; "" for the published one.
        dest: DEST of the `segcore export` whose images the task has; "" if it has none.
        config: YAML file of `segcore export` with filters.
        sets: Options of it, separated by ";": ``export.min_score=0.5;export.min_area=20``.
        whole_names: The end of a name is not enough to find an image.
        on_unknown: "skip": an image without an answer stays as it is, with a warning; "error": it
            ends the command, and nothing is uploaded.

    Raises:
        UsageError: cvat-sdk is not installed, or a parameter is wrong.
    """
    if on_unknown not in ("skip", "error"):
        raise UsageError(f"on_unknown={on_unknown}: it is skip or error.")
    flags: dict[str, tuple[str | tuple[str, ...], object]] = {
        "output": ("output", output),
        "edition": ("edition", edition or None),
        "dest": ("dest", dest or None),
        "format": ("export.format", "cvat"),
    }
    assignments = [text.strip() for text in sets.split(";") if text.strip()]
    options = load_config(config or None, assignments, flags, schema=ExportConfig)
    results = open_results(
        Storage(options.storage),
        output,
        options.edition,
        include_unlisted=options.include_unlisted,
    )
    images = EditionImages(results, options.export, dest=options.dest, whole_names=whole_names)
    for sentence in (*results.edition_notes, *results.remarks()):
        _LOGGER.warning("%s", sentence)
    return EditionFunction(images, is_strict=on_unknown == "error")


class EditionFunction:
    """Gives CVAT the masks that an edition has of an image; see cvat_sdk.auto_annotation.

    Attributes:
        spec: The labels, as CVAT asks for them.
        n_answered, n_unknown: Images so far.
    """

    def __init__(self, images: EditionImages, *, is_strict: bool = False) -> None:
        """Take the images of an edition.

        Raises:
            UsageError: cvat-sdk is not installed.
        """
        self._api = _import_api()
        self._images = images
        self._is_strict = is_strict
        self._lock = threading.Lock()
        self.n_answered = self.n_unknown = 0
        self._form = make_format(images.context)
        kind = "mask" if images.context.options.are_exact else "polygon"
        self.spec = self._api.DetectionFunctionSpec(
            labels=[
                self._api.label_spec(printable(label.name), number, type=kind)
                for number, label in enumerate(images.context.labels)
            ]
        )

    def detect(self, context: Any, image: Image) -> list[Any]:
        """The masks of one image of the task, as shapes of CVAT.

        Args:
            context: Of CVAT: `frame_name`, `conf_threshold`, and whether masks are to be polygons.
            image: Its pixels, as CVAT shows them; only their size is looked at.

        Raises:
            UsageError: The edition has no answer, and that is to be an error.
        """
        try:
            answer = self._images.answer(TaskName(context.frame_name), image.size)
        except NoAnswer as reason:
            self._refuse(context.frame_name, str(reason))
            return []
        with self._lock:
            self.n_answered += 1
        if getattr(context, "conv_mask_to_poly", False) or not self._are_masks:
            make = self._polygons
        else:
            make = self._masks
        tally = Tally()
        lowest = context.conf_threshold or 0.0
        shapes = make(answer.image, tally, lowest)
        self._tell(context.frame_name, answer, tally)
        return shapes

    @property
    def _are_masks(self) -> bool:
        return self._images.context.options.are_exact

    def _masks(self, image: ExportImage, tally: Tally, lowest: float) -> list[Any]:
        shapes = []
        for place, bitmap in self._form.bitmaps(image, tally):
            if image.scores[place] >= lowest:
                right, bottom = bitmap.left + bitmap.width - 1, bitmap.top + bitmap.height - 1
                runs = row_runs(bitmap).tolist()
                points = [*runs, bitmap.left, bitmap.top, right, bottom]
                shapes.append(
                    self._api.shape(
                        image.labels[place], type="mask", points=list(map(float, points))
                    )
                )
        return shapes

    def _polygons(self, image: ExportImage, tally: Tally, lowest: float) -> list[Any]:
        """Each part of a mask as a polygon; the parts of one mask are a group."""
        shapes = []
        for place, outline in self._form.outlines(image, tally):
            if image.scores[place] < lowest:
                continue
            group = place + 1 if len(outline.rings) > 1 else 0
            for ring in outline.rings:
                points = np.clip(ring, 0, (image.width, image.height)).ravel().tolist()
                shapes.append(
                    self._api.shape(image.labels[place], type="polygon", points=points, group=group)
                )
        return shapes

    def _refuse(self, name: str, reason: str) -> None:
        with self._lock:
            self.n_unknown += 1
            number = self.n_unknown
        if self._is_strict:
            raise UsageError(f"{name}: {reason}. Nothing was uploaded.")
        if number <= _MAX_WARNINGS:
            _LOGGER.warning("%s: %s; nothing was annotated.", printable(name), reason)
        elif number == _MAX_WARNINGS + 1:
            _LOGGER.warning("Further images without an answer are not named.")

    def _tell(self, name: str, answer: Answer, tally: Tally) -> None:
        if lost := answer.losses(tally):
            _LOGGER.warning("%s: %s.", printable(name), "; ".join(lost))


def _import_api() -> Any:
    try:
        import cvat_sdk.auto_annotation as api
    except ImportError:
        raise UsageError(
            "cvat-sdk is not installed.", "Install it: pip install 'segcore[cvat]'"
        ) from None
    return api
