"""The formats: one module each.

base            what they share
coco            instances and results
yolo, cvat, label_studio, labelme
hf              Hugging Face datasets
overlays        pictures of the masks
"""

from __future__ import annotations

from segcore.exports.formats.base import Context, Format
from segcore.exports.formats.coco import Coco, CocoResults
from segcore.exports.formats.cvat import Cvat
from segcore.exports.formats.hf import HuggingFace
from segcore.exports.formats.label_studio import LabelStudio
from segcore.exports.formats.labelme import Labelme
from segcore.exports.formats.overlays import Overlays
from segcore.exports.formats.yolo import YoloSeg

_FORMATS: dict[str, type[Format]] = {
    form.name: form
    for form in (Coco, CocoResults, YoloSeg, Cvat, LabelStudio, Labelme, HuggingFace, Overlays)
}


def make_format(context: Context) -> Format:
    """The format that the options name."""
    return _FORMATS[context.options.format](context)
