"""A YOLO11-seg checkpoint as ultralytics writes it, with random weights and varied detections.

    python -m tests.measure.gpu.make_checkpoint FILE.pt --photos PHOTOS [--size n]

Needs ultralytics; see `tests.measure.gpu`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.measure.gpu.peer import make_checkpoint


def main() -> None:
    """Write the checkpoint."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("--photos", type=Path, required=True, help="folder with JPEG photographs")
    parser.add_argument("--size", choices=("n", "s", "m", "l", "x"), default="n")
    options = parser.parse_args()
    photos = sorted(options.photos.glob("*.jpg"))[:8]
    if not photos:
        raise SystemExit(f"no *.jpg in {options.photos}")
    make_checkpoint(photos, options.file, options.size)
    print(f"wrote {options.file}")


if __name__ == "__main__":
    main()
