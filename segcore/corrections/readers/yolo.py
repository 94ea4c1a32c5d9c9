"""YOLO segmentation labels: a text file for each image."""

from __future__ import annotations

import math
from collections.abc import Sequence

from segcore.corrections.objects import MAX_OBJECTS, CorrectedImage, CorrectedObject
from segcore.evaluation.remarks import Remarks


def read_labels(
    data: bytes, name: str, labels: dict[int, str] | Sequence[str], remarks: Remarks
) -> CorrectedImage:
    """The objects of one image; lines that cannot be used are left out and counted.

    Args:
        name: The label file, relative to the folder of labels.
    """
    image = CorrectedImage(name.rpartition(".")[0], scale=1.0)
    known = labels if isinstance(labels, dict) else dict(enumerate(labels))
    lines = data.decode("utf-8", "replace").splitlines()
    for number, line in enumerate(lines[:MAX_OBJECTS], start=1):
        words = line.split()
        if not words:
            continue
        where = f"{name} line {number}"
        try:
            category = int(words[0])
            values = [float(word) for word in words[1:]]
        except ValueError:
            remarks.leave_out("line", "that is no class and numbers", where, line)
            continue
        if category not in known:
            remarks.leave_out("line", "of a class without a name", where, words[0])
        elif len(values) == 4:
            remarks.leave_out("line", "with a box and no outline", where)
        elif len(values) < 6 or len(values) % 2 or not all(map(math.isfinite, values)):
            remarks.leave_out("line", "without 3 or more points", where)
        else:
            image.objects.append(CorrectedObject(known[category], [values]))
    if len(lines) > MAX_OBJECTS:
        remarks.leave_out("file", f"with over {MAX_OBJECTS:,} lines, whose rest was", name)
    return image
