"""CVAT's auto-annotation with the function of an edition; runs where cvat-sdk lies beside segcore.

CVAT's own driver checks the labels and shapes; the server, which takes more than loopback and a
process, is replaced by one class.
"""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import cvat_sdk.auto_annotation as cvataa
import numpy as np
from cvat_sdk import models
from cvat_sdk.auto_annotation import driver
from PIL import Image, ImageOps

sys.path.insert(0, str(Path(__file__).parent))

from expected import Expected, Found, build_folder, filled, run_checks

from segcore.annotators import cvat
from segcore.errors import UsageError

BUILD = build_folder()
WANTED = Expected(BUILD)
LABELS = ["cat", "dog & <b>", "tree"]


class Task:
    """A task with the images of an export, as CVAT would have them, and no server behind it."""

    def __init__(
        self, folder: str, labels: list[str], *, turn: bool = True, kind: str = "any"
    ) -> None:
        self.labels = [
            models.Label(name=name, id=100 + i, attributes=[], sublabels=[], type=kind)
            for i, name in enumerate(labels)
        ]
        self.uploaded: Any = None
        root = BUILD / folder / "images"
        self.samples = []
        for number, name in enumerate(sorted(WANTED.images)):
            image = Image.open(root / name)
            shown = ImageOps.exif_transpose(image) if turn else image
            self.samples.append(
                SimpleNamespace(
                    frame_name=name,
                    frame_index=number,
                    media=SimpleNamespace(load_image=lambda shown=shown: shown),
                )
            )
        api = SimpleNamespace(partial_update_annotations=self._upload)
        self.client = SimpleNamespace(
            logger=logging.getLogger("cvat"), tasks=SimpleNamespace(api=api)
        )

    def _upload(self, action: str, task: int, *, patched_labeled_data_request: Any) -> None:
        assert action == "create", "annotations that are there stay"
        self.uploaded = patched_labeled_data_request.shapes

    def annotate(self, function: Any, **options: Any) -> Found:
        """Run CVAT's driver; the masks that it uploads."""
        with mock.patch.object(driver, "TaskDataset", return_value=self):
            cvataa.annotate_task(self.client, 1, function, **options)
        found: Found = {sample.frame_name: [] for sample in self.samples}
        names = {label.id: label.name for label in self.labels}
        for shape in self.uploaded:
            assert shape.source == "auto"
            sample = self.samples[shape.frame]
            width, height = sample.media.load_image().size
            mask = _mask_of(shape, height, width)
            found[sample.frame_name].append((mask, names[shape.label_id]))
        return found


def _mask_of(shape: Any, height: int, width: int) -> np.ndarray:
    if shape.type.value == "polygon":
        from pycocotools import mask as coco

        points = [float(value) for value in shape.points]
        return np.asarray(coco.decode(coco.frPyObjects([points], height, width))[..., 0], bool)
    *runs, left, top, right, bottom = map(int, shape.points)
    box = np.repeat(np.arange(len(runs)) % 2, runs).reshape(bottom - top + 1, right - left + 1)
    mask = np.zeros((height, width), bool)
    mask[top : bottom + 1, left : right + 1] = box
    return mask


def _create(**parameters: Any) -> Any:
    return cvat.create(str(BUILD / "out"), dest=str(BUILD / "cvat"), **parameters)


def _error_of(call: Callable[[], object]) -> str:
    """What an error says that must come."""
    try:
        call()
    except (UsageError, cvataa.BadFunctionError) as error:
        return str(error)
    return "no error"


def masks_are_exact() -> str:
    return WANTED.compare(Task("cvat", LABELS).annotate(_create()))


def masks_are_as_cvat_encodes_them() -> str:
    """The same numbers as cvat-sdk's own encoder gives."""
    from cvat_sdk.masks import encode_mask

    task = Task("cvat", LABELS)
    task.annotate(_create())
    masks = [mask for _, ones in sorted(WANTED.images.items()) for mask, _ in ones]
    for shape, mask in zip(task.uploaded, masks, strict=True):
        rows, columns = np.nonzero(mask)
        box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert list(shape.points) == list(encode_mask(mask, [int(v) for v in box]))
    return f"{len(masks)} masks"


def polygons() -> str:
    """One polygon for each part, the parts of a mask in a group; holes are filled."""
    function = _create(sets="export.masks=polygons;export.tolerance=0")
    task = Task("cvat", LABELS, kind="polygon")
    task.annotate(function)
    other = Task("cvat", LABELS)
    other.annotate(_create(sets="export.tolerance=0"), conv_mask_to_poly=True)
    assert [shape.points for shape in other.uploaded] == [shape.points for shape in task.uploaded]
    place, n_masks = 0, 0
    for number, (_, wanted) in enumerate(sorted(WANTED.images.items())):
        shapes = [shape for shape in task.uploaded if shape.frame == number]
        place = 0
        for mask, _ in wanted:
            union = np.zeros_like(mask)
            group = shapes[place].group
            while place < len(shapes) and not (filled(mask) <= union).all():
                assert shapes[place].group == group
                union |= _mask_of(shapes[place], *mask.shape)
                place += 1
            assert (union == filled(mask)).all()
            n_masks += 1
        assert place == len(shapes)
    return f"{n_masks} masks in {len(task.uploaded)} polygons, equal but for their holes"


def labels_that_the_task_lacks() -> str:
    message = _error_of(lambda: Task("cvat", ["cat", "tree"]).annotate(_create()))
    assert "dog & <b>" in message, message
    found = Task("cvat", ["cat", "tree"]).annotate(_create(), allow_unmatched_labels=True)
    wanted = sum(label != "dog & <b>" for ones in WANTED.images.values() for _, label in ones)
    n_found = sum(map(len, found.values()))
    assert n_found == wanted, (n_found, wanted)
    renamed = _create(sets='export.rename={"dog & <b>": dog}')
    n_renamed = sum(map(len, Task("cvat", ["cat", "dog", "tree"]).annotate(renamed).values()))
    return f"refused; with allow_unmatched_labels {n_found} of {n_renamed} masks"


def images_that_are_not_turned() -> str:
    """The one with an EXIF orientation has another size then, and stays empty."""
    function = _create()
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logging.getLogger("segcore.annotators.cvat").addHandler(handler)
    found = Task("cvat", LABELS, turn=False).annotate(function)
    (empty,) = [n for n, ones in WANTED.images.items() if ones and not found[n]]
    assert "ignored its EXIF orientation" in stream.getvalue(), stream.getvalue()
    assert function.n_unknown == 1
    strict = _create(on_unknown="error")
    message = _error_of(lambda: Task("cvat", LABELS, turn=False).annotate(strict))
    assert "Nothing was uploaded" in message, message
    return f"{empty} stays empty, with a warning; on_unknown=error ends the command"


def thresholds() -> str:
    found = Task("cvat", LABELS).annotate(_create(), conf_threshold=0.6)
    lowest = sum(len(ones) for ones in found.values())
    by_set = Task("cvat", LABELS).annotate(_create(sets="export.min_score=0.6"))
    assert lowest == sum(len(ones) for ones in by_set.values()) > 0
    return f"conf_threshold and export.min_score leave the same {lowest} masks"


if __name__ == "__main__":
    sys.exit(
        run_checks(
            {
                "cvat function, masks: cvat-sdk's driver": masks_are_exact,
                "cvat function, masks: cvat-sdk's encoder": masks_are_as_cvat_encodes_them,
                "cvat function, polygons": polygons,
                "cvat function, labels": labels_that_the_task_lacks,
                "cvat function, EXIF": images_that_are_not_turned,
                "cvat function, scores": thresholds,
            }
        )
    )
