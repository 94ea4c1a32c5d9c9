"""How labels of images with an EXIF orientation are taken; imports nothing heavy."""

from __future__ import annotations

from enum import StrEnum


class ExifLabels(StrEnum):
    """What becomes of images whose width and height are swapped in the ground truth.

    Tools that ignore the EXIF orientation of an image write its size like this.
    """

    REFUSE = "refuse"
    SHOWN = "shown"  # the masks lie on the image as viewers show it
    LEAVE_OUT = "leave-out"
