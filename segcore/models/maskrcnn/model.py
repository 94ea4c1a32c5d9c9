"""Mask R-CNN behind the adapter contract: pixels -> detections -> instances."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from segcore.instances import Instances
from segcore.models.base import ModelOptions
from segcore.models.checkpoints import Checkpoint
from segcore.models.checks import check_batch, check_image, refuse_option, refuse_reduced_precision
from segcore.models.devices import exact, pick_device
from segcore.models.families import ModelFamily
from segcore.models.maskrcnn.checkpoint import MARKS, PUBLISHED, describe, load_network
from segcore.models.maskrcnn.geometry import Frame, boxes_to_image, to_input
from segcore.models.maskrcnn.heads import RegionDetections, Thresholds
from segcore.models.maskrcnn.network import ARCHITECTURES
from segcore.models.maskrcnn.paste import paste

RESULT_VERSION = 1  # raise when the same weights and options give different results
# The network takes one image at a time: a batch only lets the masks of one image be encoded while
# the next is in the network.
_DEFAULT_BATCH_SIZE = {"cpu": 1, "mps": 1, "cuda": 4}


class PreparedImage(NamedTuple):
    """An image and its sizes; it is resized on the device.

    Attributes:
        pixels: (H, W, 3) uint8 RGB, C-contiguous.
        frame: Its sizes.
    """

    pixels: np.ndarray
    frame: Frame

    @property
    def seen_size(self) -> tuple[int, int]:
        """See `segcore.models.base.ResizedInput`."""
        return self.frame.resized_height, self.frame.resized_width


class RawImage(NamedTuple):
    """Outputs of the network for one image.

    Attributes:
        detections: N boxes, on the device.
        masks: (N, 28, 28) mask probabilities over the boxes, on the device.
    """

    detections: RegionDetections
    masks: Tensor


class MaskRCNNModel:
    """Mask R-CNN in one of its two layouts (see `segcore.models.base.Model`).

    Args:
        checkpoint: Weights, with metadata as from `segcore.models.maskrcnn.checkpoint.describe`.
        options: None fields take the checkpoint's defaults. `imgsz` is the length of the shorter
            side; the longer is limited to 1333 / 800 of it.

    Raises:
        CheckpointError: The weights do not fit their architecture, or the classes the weights.
        UsageError: The device is not on this machine, or an option does not apply.
    """

    def __init__(self, checkpoint: Checkpoint, options: ModelOptions = ModelOptions()) -> None:
        meta = checkpoint.meta.with_options(options)
        refuse_option(options, "shape", meta.architecture, "its input always follows the image")
        refuse_reduced_precision(options, meta.architecture)
        self.device = pick_device(options.device)
        self.batch_size = options.batch_size or _DEFAULT_BATCH_SIZE.get(self.device.type, 1)
        self._min_size, self._max_size = meta.imgsz, round(meta.imgsz * 1333 / 800)
        self._thresholds = Thresholds(meta.conf, meta.iou, meta.max_det)
        network = load_network(checkpoint)
        parameters = {
            "min_size": self._min_size,
            "max_size": self._max_size,
            **self._thresholds._asdict(),
            "norm_eps": network.shape.norm_eps,
            "precision": "float32",
        }
        self.info = checkpoint.model_info(parameters, RESULT_VERSION)
        # By label of the network, whose label 0 is the background and never detected.
        self._category_ids = np.array([-1, *(c.id for c in meta.categories)], np.int32)
        self._network = network.to(self.device)

    def preprocess(self, image: np.ndarray) -> PreparedImage:
        """(H, W, 3) uint8 RGB -> the image with its sizes. Thread-safe."""
        check_image(image)
        height, width = image.shape[:2]
        frame = Frame.fit(height, width, self._min_size, self._max_size)
        return PreparedImage(np.ascontiguousarray(image), frame)

    @torch.inference_mode()
    def forward(self, prepared: Sequence[PreparedImage]) -> list[RawImage]:
        """1 to `batch_size` images -> the detections in each, on the device."""
        check_batch(prepared, self.batch_size)
        with exact(self.device):
            return [
                RawImage(
                    *self._network(to_input(pixels, frame, self.device), frame, self._thresholds)
                )
                for pixels, frame in prepared
            ]

    @torch.inference_mode()
    def postprocess(
        self, raw: Sequence[RawImage], prepared: Sequence[PreparedImage]
    ) -> list[Instances]:
        """Detections -> the instances of each image, best score first; empty masks are dropped."""
        return [
            self._instances(outputs, image.frame)
            for outputs, image in zip(raw, prepared, strict=True)
        ]

    def _instances(self, raw: RawImage, frame: Frame) -> Instances:
        detections = raw.detections
        boxes = boxes_to_image(detections.boxes, frame).cpu().numpy()
        masks = paste(raw.masks.cpu().numpy(), boxes, (frame.height, frame.width))
        boxes = boxes[masks.keep]
        boxes[:, 2:] -= boxes[:, :2]
        return Instances(
            height=frame.height,
            width=frame.width,
            boxes=boxes,
            scores=detections.scores.cpu().numpy()[masks.keep],
            category_ids=self._category_ids[detections.labels.cpu().numpy()[masks.keep]],
            areas=masks.areas,
            counts=masks.counts,
        )


MASK_RCNN = ModelFamily(
    architectures=ARCHITECTURES,
    marks=MARKS,
    describe=describe,
    load=MaskRCNNModel,
    published=PUBLISHED,
)
