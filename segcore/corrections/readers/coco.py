"""COCO instances files."""

from __future__ import annotations

from collections.abc import Iterator

from segcore.corrections.objects import CorrectedImage, CorrectedObject
from segcore.corrections.readers.json_files import items, mapping, parse, text
from segcore.errors import UsageError
from segcore.evaluation.remarks import Remarks
from segcore.evaluation.truth_file import check_ground_truth
from segcore.evaluation.truth_masks import Unusable, read_mask


def read_coco(data: bytes, name: str, remarks: Remarks) -> Iterator[CorrectedImage]:
    """The images of a COCO file.

    Raises:
        UsageError: It is no COCO file.
    """
    try:
        document = parse(data)
    except Unusable as error:
        raise UsageError(f"{name} is not a COCO file: {error.detail or error.reason}.") from None
    truth = check_ground_truth(document, name)
    labels = {category.id: category.name for category in truth.categories}
    own_names = {
        row["id"]: text(row.get("segcore_image_id"))
        for row in map(mapping, items(mapping(document).get("images")))
        if isinstance(row.get("id"), int | str)
    }
    for image in truth.images.values():
        read = CorrectedImage(
            own_names.get(image.id) or image.file_name, width=image.width, height=image.height
        )
        for annotation in truth.annotations.get(image.id, ()):
            if annotation.is_crowd:
                remarks.leave_out("annotation", "of a crowd", annotation.name)
                continue
            if image.width is None or image.height is None:
                remarks.leave_out("annotation", "of an image without a size", annotation.name)
                continue
            try:
                rle, _ = read_mask(annotation.segmentation, image.height, image.width)
            except Unusable as error:
                remarks.leave_out("annotation", error.reason, annotation.name, error.detail)
                continue
            read.objects.append(CorrectedObject(labels[annotation.category_id], rle))
        yield read
    for sentence in truth.remarks.sentences():
        remarks.add("file", f"with a remark: {sentence}", name)
