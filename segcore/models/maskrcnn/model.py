"""Mask R-CNN behind the adapter contract: pixels -> detections -> instances."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from segcore.errors import CheckpointError, UsageError
from segcore.instances import Instances
from segcore.models.base import Category, ModelInfo, ModelOptions
from segcore.models.checkpoints import Checkpoint
from segcore.models.devices import exact, only_float32, pick_device
from segcore.models.maskrcnn.checkpoint import build_network
from segcore.models.maskrcnn.geometry import Frame, boxes_to_image, to_input
from segcore.models.maskrcnn.heads import RegionDetections, Thresholds
from segcore.models.maskrcnn.paste import paste

RESULT_VERSION = 1  # bump when the same weights and options give other results
# The network takes one image at a time: a batch only lets masks of one be encoded beside the next.
_DEFAULT_BATCH = {"cpu": 1, "mps": 1, "cuda": 4}


class PreparedImage(NamedTuple):
    """An image and its sizes; resizing is done on the device.

    Attributes:
        pixels: (H, W, 3) uint8 RGB, C-contiguous.
        frame: Its sizes.
    """

    pixels: np.ndarray
    frame: Frame


class RawImage(NamedTuple):
    """What the network found in one image: `RegionDetections`, and (N, 28, 28) mask probabilities."""

    found: RegionDetections
    masks: Tensor


class MaskRCNNModel:
    """Mask R-CNN in one of its two layouts (see `segcore.models.base.Model`).

    Args:
        checkpoint: Weights with metadata as of `segcore.models.maskrcnn.checkpoint.describe`;
            category k of its list belongs to label k + 1 of the network.
        options: None fields take the checkpoint's defaults. `imgsz` is the length of the shorter
            side; the longer is limited to 1333 / 800 of it.

    Raises:
        CheckpointError: The weights do not fit their architecture, or the classes the weights.
        UsageError: The device does not exist here, or an option does not apply.
    """

    def __init__(self, checkpoint: Checkpoint, options: ModelOptions = ModelOptions()) -> None:
        meta = checkpoint.meta
        if options.shape is not None:
            raise UsageError(
                f"shape does not apply to {meta.architecture}: its input always follows the image.",
                "Leave model.shape out.",
            )
        only_float32(options.precision, meta.architecture)
        self.device = pick_device(options.device)
        self.batch_size = options.batch_size or _DEFAULT_BATCH.get(self.device.type, 1)
        self._min_size = options.imgsz or meta.imgsz
        self._max_size = round(self._min_size * 1333 / 800)
        self._limits = Thresholds(
            meta.conf if options.conf is None else options.conf,
            options.iou or meta.iou,
            options.max_det or meta.max_det,
        )
        eps = _norm_eps(checkpoint)
        network = build_network(checkpoint.state_dict, checkpoint.source, eps)
        labels = network.shape.num_labels
        if len(meta.categories) != labels - 1 or meta.architecture != network.shape.architecture:
            raise CheckpointError(
                f"{checkpoint.source} says it is {meta.architecture} with {len(meta.categories)} "
                f"classes, but its tensors are {network.shape.architecture} with {labels - 1}."
            )
        self.info = ModelInfo(
            name=meta.name,
            architecture=meta.architecture,
            weights_sha256=checkpoint.sha256,
            licence=meta.licence,
            categories=tuple(Category(c.id, c.name) for c in meta.categories),
            parameters={
                "min_size": self._min_size,
                "max_size": self._max_size,
                **self._limits._asdict(),
                "norm_eps": eps,
                "precision": "float32",
            },
            result_version=RESULT_VERSION,
        )
        self._ids = np.array([-1, *(c.id for c in meta.categories)], np.int32)
        self._network = network.to(self.device)

    def preprocess(self, image: np.ndarray) -> PreparedImage:
        """(H, W, 3) uint8 RGB -> the image with its sizes. Thread-safe."""
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise ValueError(f"expected (H, W, 3) uint8, got {image.shape} {image.dtype}")
        height, width = image.shape[:2]
        frame = Frame.fit(height, width, self._min_size, self._max_size)
        return PreparedImage(np.ascontiguousarray(image), frame)

    @torch.inference_mode()
    def forward(self, prepared: Sequence[PreparedImage]) -> list[RawImage]:
        """1 to `batch_size` images -> what was found in each, on the device."""
        if not 1 <= len(prepared) <= self.batch_size:
            raise ValueError(f"expected 1 to {self.batch_size} images, got {len(prepared)}")
        with exact(self.device):
            return [
                RawImage(*self._network(to_input(pixels, frame, self.device), frame, self._limits))
                for pixels, frame in prepared
            ]

    @torch.inference_mode()
    def postprocess(
        self, raw: Sequence[RawImage], prepared: Sequence[PreparedImage]
    ) -> list[Instances]:
        """What was found -> the instances of each image, best score first, none without a pixel."""
        return [self._instances(one, image.frame) for one, image in zip(raw, prepared, strict=True)]

    def _instances(self, raw: RawImage, frame: Frame) -> Instances:
        boxes = boxes_to_image(raw.found.boxes, frame).cpu().numpy()
        masks = paste(raw.masks.cpu().numpy(), boxes, (frame.height, frame.width))
        boxes = boxes[masks.keep]
        boxes[:, 2:] -= boxes[:, :2]
        return Instances(
            height=frame.height,
            width=frame.width,
            boxes=boxes,
            scores=raw.found.scores.cpu().numpy()[masks.keep],
            category_ids=self._ids[raw.found.labels.cpu().numpy()[masks.keep]],
            areas=masks.areas,
            counts=masks.counts,
        )


def _norm_eps(checkpoint: Checkpoint) -> float:
    eps = (checkpoint.meta.model_extra or {}).get("norm_eps", 1e-5)
    if not isinstance(eps, int | float) or not 0 <= eps <= 1:
        raise CheckpointError(f"{checkpoint.source} has wrong metadata: norm_eps is {eps!r}.")
    return float(eps)
