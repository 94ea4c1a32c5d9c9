"""Reads the labelme export with labelme's own loader; runs in the environment that has it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

from expected import Expected, Found, build_folder, run_checks

BUILD = build_folder()
WANTED = Expected(BUILD)


def labelme() -> str:
    import io

    from labelme._label_file import LabelFile
    from PIL import Image

    found: Found = {}
    for name in WANTED.images:
        file = LabelFile(str((BUILD / "labelme/images" / name).with_suffix(".json")))
        with Image.open(io.BytesIO(file.imageData)) as shown:  # turned by its EXIF orientation
            width, height = shown.size
        ones = found.setdefault(name, [])
        for shape in file.shapes:
            (x1, y1), (x2, y2) = np.array(shape["points"]).astype(int)
            whole = np.zeros((height, width), bool)
            whole[y1 : y2 + 1, x1 : x2 + 1] = shape["mask"]
            ones.append((whole, shape["label"]))
    return WANTED.compare(found)


if __name__ == "__main__":
    sys.exit(run_checks({"labelme: LabelFile": labelme}))
