"""Decodes a generated grid of images with segcore and with independent readers, and compares.

    python -m tests.grid             # the first run makes an environment (300 MB)
    python -m tests.grid png tiff    # these formats only
    python -m tests.grid coco        # scores of odd ground truth against hotcoco

For each format the rows hold each possible pair of layout, samples, compression, colours,
orientation and container once. The readers (OpenCV, Pillow, tifffile, imagecodecs) and the encoders
are oracles, never dependencies, so they lie in an environment of their own; that of HEIC is GPL.
The exit code is 1 if two readers agree with each other and not with segcore, or if nobody agrees
with it.
"""

from __future__ import annotations

import subprocess
import sys

from tests.support.environments import environment
from tests.support.paths import ROOT

PACKAGES = (
    "tifffile==2026.*",
    "imagecodecs==2026.*",
    "pillow-heif==1.*",
    "pi-heif==1.*",
    "hotcoco==1.*",
)


if __name__ == "__main__":
    python = environment(".venv-grid", ("--no-deps", *PACKAGES), sees_this_one=True)
    command = [str(python), "-m", "tests.grid.run", *sys.argv[1:]]
    sys.exit(subprocess.run(command, cwd=ROOT, check=False).returncode)
