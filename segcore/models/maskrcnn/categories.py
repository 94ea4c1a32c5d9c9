"""Labels of the published weights: the official COCO ids 1 to 90, ten of which are unused."""

from __future__ import annotations

# fmt: off
_NAMES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "", "stop sign", "parking meter", "bench", "bird", "cat",
    "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "", "backpack",
    "umbrella", "", "", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "", "wine glass", "cup", "fork", "knife", "spoon", "bowl",
    "banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut",
    "cake", "chair", "couch", "potted plant", "bed", "", "dining table", "", "", "toilet", "",
    "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster",
    "sink", "refrigerator", "", "book", "clock", "vase", "scissors", "teddy bear", "hair drier",
    "toothbrush",
)
# fmt: on

COCO_LABELS = 91  # the background and 90 ids


def category_names(num_labels: int) -> list[str]:
    """Names of labels 1, 2, ...: COCO's for 91 labels (background included), else ``class k``.

    The network can give ids that COCO does not use; they are named ``N/A id``.
    """
    if num_labels == COCO_LABELS:
        return [name or f"N/A {label}" for label, name in enumerate(_NAMES, 1)]
    return [f"class {label}" for label in range(1, num_labels)]
