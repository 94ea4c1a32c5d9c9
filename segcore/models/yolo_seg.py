"""YOLO11-seg behind the adapter contract: pixels -> canvas -> raw outputs -> instances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from segcore.instances import Instances
from segcore.masks import encode_logits
from segcore.models.base import Category, ModelInfo, ModelOptions
from segcore.models.checkpoints import Checkpoint
from segcore.models.devices import exact, pick_device
from segcore.models.fusion import fuse, fuse_for_cpu
from segcore.models.letterbox import PADDING_VALUE, Letterbox
from segcore.models.nms import CLASS_OFFSET, MAX_CANDIDATES, Detections, detect
from segcore.models.yolo11 import RawOutputs

RESULT_VERSION = 2  # bump when the same weights and options give other results
# A batch of one keeps a CPU as busy as a larger one, and needs no padding (measured).
_DEFAULT_BATCH = {"cpu": 1, "mps": 8, "cuda": 32}
_REACH = 1024  # pixels: boxes reach less far than this outside of the input


@dataclass(frozen=True)
class PreparedImage:
    """An image on the model's canvas.

    Attributes:
        pixels: (3, canvas height, canvas width) uint8 RGB.
        letterbox: Where the image lies on it.
    """

    pixels: np.ndarray
    letterbox: Letterbox


@dataclass(frozen=True)
class RawGroup:
    """Raw outputs of those images of a batch that went through the network together.

    Attributes:
        places: Of the images in the batch, ascending.
        outputs: Of these images, in this order, on the device.
    """

    places: tuple[int, ...]
    outputs: RawOutputs


class YoloSegModel:
    """An instance-segmentation model of the YOLO11-seg family (see `segcore.models.base.Model`).

    Results do not depend on the batch, to the last bit. On a CPU, where larger batches are not
    faster (measured), each image goes through alone: kernels treat the ends of a tensor in another
    way than its middle, so its place in a batch would show. Elsewhere images with the same canvas
    go through together, and the network always gets `batch_size` images: what is missing is filled
    up, so that the same kernels are chosen.

    Args:
        checkpoint: Weights; fused and moved to the device here.
        options: None fields take the checkpoint's defaults.

    Raises:
        CheckpointError: The weights do not fit their architecture.
        UsageError: The device does not exist here.
    """

    def __init__(self, checkpoint: Checkpoint, options: ModelOptions = ModelOptions()) -> None:
        meta = checkpoint.meta
        self.device = pick_device(options.device)
        self.batch_size = options.batch_size or _DEFAULT_BATCH.get(self.device.type, 1)
        self._imgsz = options.imgsz or meta.imgsz
        self._shape = options.shape or meta.shape
        self._conf = meta.conf if options.conf is None else options.conf
        self._iou = options.iou or meta.iou
        self._max_det = options.max_det or meta.max_det
        self.info = ModelInfo(
            name=meta.name,
            architecture=meta.architecture,
            weights_sha256=checkpoint.sha256,
            licence=meta.licence,
            categories=tuple(Category(c.id, c.name) for c in meta.categories),
            parameters={
                "imgsz": self._imgsz,
                "shape": self._shape,
                "conf": self._conf,
                "iou": self._iou,
                "max_det": self._max_det,
                "max_candidates": MAX_CANDIDATES,
                "letterbox_value": PADDING_VALUE,
                "sppf_activation": meta.sppf_activation,
                "precision": "float32",
            },
            result_version=RESULT_VERSION,
        )
        self._ids = np.array([c.id for c in meta.categories], np.int32)
        self._one_by_one = self.device.type == "cpu"
        network = (fuse_for_cpu if self._one_by_one else fuse)(checkpoint.network())
        self._layout = torch.channels_last
        # The overload for layouts is missing from torch's types.
        self._network = network.to(self.device).to(memory_format=self._layout)  # type: ignore[call-overload]

    def preprocess(self, image: np.ndarray) -> PreparedImage:
        """(H, W, 3) uint8 RGB -> the image on the canvas. Thread-safe."""
        letterbox = Letterbox.fit(image.shape[0], image.shape[1], self._imgsz, self._shape)
        return PreparedImage(letterbox.apply(image), letterbox)

    @torch.inference_mode()
    def forward(self, prepared: Sequence[PreparedImage]) -> list[RawGroup]:
        """1 to `batch_size` images -> raw outputs on the device, for these images only."""
        if not 1 <= len(prepared) <= self.batch_size:
            raise ValueError(f"expected 1 to {self.batch_size} images, got {len(prepared)}")
        if self._one_by_one:
            return [RawGroup((i,), self._run(p.pixels[None])) for i, p in enumerate(prepared)]
        groups = []
        for places in _by_canvas(prepared):
            canvas = prepared[places[0]].pixels.shape
            pixels = np.full((self.batch_size, *canvas), PADDING_VALUE, np.uint8)
            for row, place in enumerate(places):
                pixels[row] = prepared[place].pixels
            outputs = (tensor[: len(places)] for tensor in self._run(pixels))
            groups.append(RawGroup(places, RawOutputs(*outputs)))
        return groups

    def _run(self, pixels: np.ndarray) -> RawOutputs:
        """(B, 3, H, W) uint8 -> raw outputs."""
        batch = torch.from_numpy(pixels).to(self.device).float().div_(255)
        with exact(self.device):
            return RawOutputs(*self._network(batch.contiguous(memory_format=self._layout)))

    @torch.inference_mode()
    def postprocess(
        self, raw: Sequence[RawGroup], prepared: Sequence[PreparedImage]
    ) -> list[Instances]:
        """Raw outputs -> the instances of each image, best score first, none without a pixel."""
        found: dict[int, Instances] = {}
        for group in raw:
            images = [prepared[place] for place in group.places]
            instances = self._postprocess_group(group.outputs, images)
            found.update(zip(group.places, instances, strict=True))
        return [found[place] for place in range(len(prepared))]

    def _postprocess_group(
        self, raw: RawOutputs, prepared: Sequence[PreparedImage]
    ) -> list[Instances]:
        """The instances of images that went through the network together."""
        found = detect(
            raw.boxes,
            raw.class_logits,
            self._conf,
            self._iou,
            self._max_det,
            class_offset=max(CLASS_OFFSET, self._imgsz + _REACH),
        )
        return [
            self._instances(raw, i, detections, image.letterbox)
            for i, (detections, image) in enumerate(zip(found, prepared, strict=True))
        ]

    def _instances(
        self, raw: RawOutputs, index: int, found: Detections, letterbox: Letterbox
    ) -> Instances:
        canvas = (letterbox.height, letterbox.width)
        if not len(found.anchors):
            return Instances.empty(*canvas)
        boxes = letterbox.boxes_to_image(raw.boxes[index, found.anchors].float().cpu().numpy())
        prototypes = raw.prototypes[index].float()
        coefficients = raw.coefficients[index, found.anchors].float()
        with exact(self.device):
            logits = (coefficients @ prototypes.flatten(1)).unflatten(1, prototypes.shape[1:])
        masks = encode_logits(logits.cpu().numpy(), boxes, canvas, letterbox.mask_window())
        boxes = boxes[masks.keep]
        boxes[:, 2:] -= boxes[:, :2]
        return Instances(
            height=letterbox.height,
            width=letterbox.width,
            boxes=boxes,
            scores=found.scores.float().cpu().numpy()[masks.keep],
            category_ids=self._ids[found.classes.cpu().numpy()[masks.keep]],
            areas=masks.areas,
            counts=masks.counts,
        )


def _by_canvas(prepared: Sequence[PreparedImage]) -> list[tuple[int, ...]]:
    """Places of the images with the same canvas, canvases in the order in which they come."""
    places: dict[tuple[int, ...], list[int]] = {}
    for place, image in enumerate(prepared):
        places.setdefault(image.pixels.shape, []).append(place)
    return [tuple(group) for group in places.values()]
