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
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "tifffile==2026.*",
    "imagecodecs==2026.*",
    "pillow-heif==1.*",
    "pi-heif==1.*",
    "hotcoco==1.*",
)


def environment() -> Path:
    """Python of an environment with the readers, beside the packages of this one."""
    folder = ROOT / ".venv-grid"
    python, complete = folder / "bin" / "python", folder / "complete"
    if not complete.exists():
        print("making .venv-grid (a minute)", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        purelib = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
        (purelib / "own.pth").write_text(sysconfig.get_path("purelib") + "\n")
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--no-deps", *PACKAGES], check=True)
        complete.touch()
    return python


if __name__ == "__main__":
    command = [str(environment()), "-m", "tests.grid.run", *sys.argv[1:]]
    sys.exit(subprocess.run(command, cwd=ROOT, check=False).returncode)
