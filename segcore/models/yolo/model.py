"""YOLO11-seg behind the adapter contract: pixels -> canvas -> raw outputs -> instances."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from segcore.instances import Instances
from segcore.masks import EncodedMasks, encode_logits
from segcore.masks.device.encode import ImageMasks, download, encode_images
from segcore.models.base import Category, InputShape, ModelInfo, ModelOptions
from segcore.models.checkpoints import Checkpoint
from segcore.models.devices import exact, pick_device, pick_precision
from segcore.models.nms import CLASS_OFFSET, MAX_CANDIDATES, Detections, detect, detect_batch
from segcore.models.yolo.fusion import fuse, fuse_for_cpu
from segcore.models.yolo.letterbox import PADDING_VALUE, Letterbox
from segcore.models.yolo.network import HeadOutputs

RESULT_VERSION = 3  # bump when the same weights and options give other results
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
class Preprocess:
    """Puts images on the model's canvas; takes reduced ones, too (`ReducedPreprocess`).

    Attributes:
        imgsz: Longest side of the canvas, pixels.
        shape: Of the canvas; see `Letterbox.fit`.
    """

    imgsz: int
    shape: InputShape

    def __call__(self, image: np.ndarray, size: tuple[int, int] | None = None) -> PreparedImage:
        """(H, W, 3) uint8 RGB, of an image of `size` (None: H, W) -> it on the canvas."""
        height, width = size or image.shape[:2]
        letterbox = Letterbox.fit(height, width, self.imgsz, self.shape)
        return PreparedImage(letterbox.apply(image), letterbox)

    def content_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) at which the network sees an image of (`height`, `width`)."""
        letterbox = Letterbox.fit(height, width, self.imgsz, self.shape)
        return letterbox.content_height, letterbox.content_width


@dataclass(frozen=True)
class RawGroup:
    """Raw outputs of those images of a batch that went through the network together.

    Attributes:
        places: Of the images in the batch, ascending.
        outputs: Of these images, in this order, on the device.
    """

    places: tuple[int, ...]
    outputs: HeadOutputs


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
        UsageError: The device does not exist here, or does not compute in this precision.
    """

    thread_safe = True

    def __init__(self, checkpoint: Checkpoint, options: ModelOptions = ModelOptions()) -> None:
        meta = checkpoint.meta
        self.device = pick_device(options.device)
        self._dtype = pick_precision(options.precision, self.device)
        self.batch_size = options.batch_size or _DEFAULT_BATCH.get(self.device.type, 1)
        imgsz, shape = options.imgsz or meta.imgsz, options.shape or meta.shape
        self.preprocess = Preprocess(imgsz, shape)
        conf = meta.conf if options.conf is None else options.conf
        self._limits = conf, options.iou or meta.iou, options.max_det or meta.max_det
        self._class_offset = max(CLASS_OFFSET, imgsz + _REACH)
        self.info = ModelInfo(
            name=meta.name,
            architecture=meta.architecture,
            weights_sha256=checkpoint.sha256,
            licence=meta.licence,
            categories=tuple(Category(c.id, c.name) for c in meta.categories),
            parameters={
                "imgsz": imgsz,
                "shape": shape,
                **dict(zip(("conf", "iou", "max_det"), self._limits, strict=True)),
                "max_candidates": MAX_CANDIDATES,
                "letterbox_value": PADDING_VALUE,
                "sppf_activation": meta.sppf_activation,
                "precision": options.precision,
            },
            result_version=RESULT_VERSION,
        )
        self._ids = np.array([c.id for c in meta.categories], np.int32)
        self._one_by_one = self.device.type == "cpu"
        network = (fuse_for_cpu if self._one_by_one else fuse)(checkpoint.network())
        self._layout = torch.channels_last
        # The overload for layouts is missing from torch's types.
        network = network.to(self.device, self._dtype)
        self._network = network.to(memory_format=self._layout)  # type: ignore[call-overload]

    def batch_key(self, prepared: PreparedImage) -> tuple[int, ...]:
        """Images with canvases of one shape go through the network together."""
        return prepared.pixels.shape

    @torch.inference_mode()
    def forward(self, prepared: Sequence[PreparedImage]) -> list[RawGroup]:
        """1 to `batch_size` images -> raw outputs on the device, for these images only."""
        if not 1 <= len(prepared) <= self.batch_size:
            raise ValueError(f"expected 1 to {self.batch_size} images, got {len(prepared)}")
        if self._one_by_one:
            alone = (torch.from_numpy(image.pixels[None]) for image in prepared)
            return [RawGroup((i,), self._run(pixels)) for i, pixels in enumerate(alone)]
        groups = []
        for places in _by_canvas(prepared):
            pixels = self._canvases(*prepared[places[0]].pixels.shape[1:])
            rows = pixels.numpy()
            for row, place in enumerate(places):
                rows[row] = prepared[place].pixels
            outputs = (tensor[: len(places)] for tensor in self._run(pixels))
            groups.append(RawGroup(places, HeadOutputs(*outputs)))
        return groups

    def _canvases(self, height: int, width: int) -> torch.Tensor:
        """Grey canvases of a batch on the host, channels last; from where a GPU can fetch them."""
        size = (self.batch_size, height, width, 3)
        canvases = torch.empty(size, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        return canvases.fill_(PADDING_VALUE).permute(0, 3, 1, 2)

    def _run(self, pixels: torch.Tensor) -> HeadOutputs:
        """(B, 3, H, W) uint8 on the host -> raw outputs; on CUDA it does not wait for the copy."""
        return self.infer(pixels.to(self.device, non_blocking=self.device.type == "cuda"))

    @torch.inference_mode()
    def infer(self, pixels: torch.Tensor) -> HeadOutputs:
        """Canvases (B, 3, H, W) uint8 on the device -> raw outputs; `forward` without the host."""
        batch = pixels.float().div_(255).to(self._dtype)
        with exact(self.device):
            outputs: HeadOutputs = self._network(batch.contiguous(memory_format=self._layout))
        return outputs

    @torch.inference_mode()
    def postprocess(
        self, raw: Sequence[RawGroup], prepared: Sequence[PreparedImage]
    ) -> list[Instances]:
        """Raw outputs -> the instances of each image, best score first, none without a pixel.

        On CUDA all of it runs there, for the whole batch; only strings, boxes and scores leave it.
        Elsewhere it goes image by image, and masks are made on the CPU. The same raw outputs give
        the same masks either way.
        """
        where = self._on_device if self.device.type == "cuda" else self._one_after_another
        found: dict[int, Instances] = {}
        for place, image in where(raw, [image.letterbox for image in prepared]):
            found[place] = image
        return [found[place] for place in range(len(prepared))]

    def _one_after_another(
        self, raw: Sequence[RawGroup], letterboxes: Sequence[Letterbox]
    ) -> Iterator[tuple[int, Instances]]:
        for group in raw:
            outputs = group.outputs
            found = detect(
                outputs.boxes,
                outputs.class_logits,
                *self._limits,
                class_offset=self._class_offset,
            )
            for i, place in enumerate(group.places):
                yield place, self._instances(outputs, i, found[i], letterboxes[place])

    def _on_device(
        self, raw: Sequence[RawGroup], letterboxes: Sequence[Letterbox]
    ) -> Iterator[tuple[int, Instances]]:
        tables: list[tuple[int, np.ndarray]] = []
        jobs: list[ImageMasks] = []
        for group in raw:
            table, coefficients = self._found_on_device(group.outputs)
            for i, place in enumerate(group.places):
                found = table[i][np.isfinite(table[i, :, 4])]
                box = letterboxes[place]
                if not len(found):
                    yield place, Instances.empty(box.height, box.width)
                    continue
                found[:, :4] = box.boxes_to_image(found[:, :4])
                tables.append((place, found))
                jobs.append(
                    ImageMasks(
                        group.outputs.prototypes[i].float(),
                        coefficients[i, : len(found)],
                        found[:, :4],
                        (box.height, box.width),
                        box.mask_window(),
                    )
                )
        with exact(self.device):
            masks = encode_images(jobs)
        for (place, found), mask in zip(tables, masks, strict=True):
            boxes, scores, classes = found[:, :4], found[:, 4], found[:, 5].astype(np.int64)
            yield place, self._assembled(letterboxes[place], boxes, scores, classes, mask)

    def _found_on_device(self, raw: HeadOutputs) -> tuple[np.ndarray, torch.Tensor]:
        """Detections of a group: (B, D, 6) box, score (-inf: none), class; their coefficients."""
        found = detect_batch(
            raw.boxes, raw.class_logits, *self._limits, class_offset=self._class_offset
        )

        columns = found.boxes, found.scores.unsqueeze(-1), found.classes.unsqueeze(-1).float()
        rows = found.anchors.unsqueeze(-1).expand(-1, -1, raw.coefficients.shape[-1])
        return download(torch.cat(columns, dim=2)), raw.coefficients.gather(1, rows).float()

    def _instances(
        self, raw: HeadOutputs, index: int, found: Detections, letterbox: Letterbox
    ) -> Instances:
        canvas = (letterbox.height, letterbox.width)
        if not len(found.anchors):
            return Instances.empty(*canvas)
        boxes = letterbox.boxes_to_image(found.boxes.cpu().numpy())
        prototypes = raw.prototypes[index].float()
        coefficients = raw.coefficients[index, found.anchors].float()
        with exact(self.device):
            logits = (coefficients @ prototypes.flatten(1)).unflatten(1, prototypes.shape[1:])
        masks = encode_logits(logits.cpu().numpy(), boxes, canvas, letterbox.mask_window())
        scores, classes = found.scores.float().cpu().numpy(), found.classes.cpu().numpy()
        return self._assembled(letterbox, boxes, scores, classes, masks)

    def _assembled(
        self,
        letterbox: Letterbox,
        boxes: np.ndarray,
        scores: np.ndarray,
        classes: np.ndarray,
        masks: EncodedMasks,
    ) -> Instances:
        boxes = boxes[masks.keep]
        boxes[:, 2:] -= boxes[:, :2]
        return Instances(
            height=letterbox.height,
            width=letterbox.width,
            boxes=boxes,
            scores=scores[masks.keep],
            category_ids=self._ids[classes[masks.keep]],
            areas=masks.areas,
            counts=masks.counts,
        )


def _by_canvas(prepared: Sequence[PreparedImage]) -> list[tuple[int, ...]]:
    """Places of the images with the same canvas, canvases in the order in which they come."""
    places: dict[tuple[int, ...], list[int]] = {}
    for place, image in enumerate(prepared):
        places.setdefault(image.pixels.shape, []).append(place)
    return [tuple(group) for group in places.values()]
