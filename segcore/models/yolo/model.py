"""YOLO11-seg behind the adapter contract: pixels -> canvas -> raw outputs -> instances."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from segcore.errors import NotFinite
from segcore.instances import Instances
from segcore.masks import EncodedMasks, encode_logits
from segcore.masks.device.automatic import MASK_KERNELS, pick_encoding
from segcore.masks.device.encode import ImageMasks, encode_images
from segcore.masks.device.transfers import download
from segcore.models.base import InputShape, ModelOptions, Precision
from segcore.models.checkpoints import Checkpoint
from segcore.models.checks import check_batch, check_computed_weights
from segcore.models.devices import PROBE_DEVICE, exact, pick_device, pick_precision
from segcore.models.families import ModelFamily
from segcore.models.nms import CLASS_OFFSET, MAX_CANDIDATES, Detections, detect, detect_batch
from segcore.models.nms_kernels import NMS_KERNELS, pick_find_kept
from segcore.models.yolo.checkpoint import MARKS, PUBLISHED, describe, load_network
from segcore.models.yolo.fusion import fuse, fuse_for_cpu
from segcore.models.yolo.letterbox import PADDING_VALUE, Letterbox
from segcore.models.yolo.network import ARCHITECTURES, HeadOutputs

RESULT_VERSION = 3  # raise when the same weights and options give different results
# A batch of one keeps a CPU as busy as a larger one, and needs no padding (measured).
_DEFAULT_BATCH_SIZE = {"cpu": 1, "mps": 8, "cuda": 32}
_MAX_LOGIT_BYTES = 256 << 20  # of the masks that a CPU computes together
_MIN_PIECE_ROWS = 16
_MAX_OVERHANG = 1024  # pixels: boxes extend less than this beyond the input


@dataclass(frozen=True)
class PreparedImage:
    """An image on the model's canvas.

    Attributes:
        pixels: (3, canvas height, canvas width) uint8 RGB.
        letterbox: Where the image is placed on it.
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
        """(H, W, 3) uint8 RGB -> the image on the canvas.

        Args:
            image: The original, or the original reduced.
            size: (height, width) of the original; None: that of `image`.
        """
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
        indices: Of the images in the batch, ascending.
        outputs: Of these images, in this order, on the device.
    """

    indices: tuple[int, ...]
    outputs: HeadOutputs


class YoloSegModel:
    """An instance-segmentation model of the YOLO11-seg family (see `segcore.models.base.Model`).

    Results do not depend on the batch, to the last bit. On a CPU, where larger batches are not
    faster (measured), each image goes through the network alone: kernels treat the ends of a tensor
    differently from its middle, so the position of an image in a batch would change its result.
    Elsewhere images with the same canvas go through together, and the network always gets
    `batch_size` images: batches are filled up, so that the same kernels are chosen. On another GPU,
    with another version of torch or another `batch_size`, the last bits may differ.

    Args:
        checkpoint: Weights; fused and moved to the device here.
        options: None fields take the checkpoint's defaults.

    Raises:
        CheckpointError: The weights do not fit their architecture.
        UsageError: The device is not on this machine, or does not compute in this precision.
    """

    thread_safe = True
    # Mask AP of float16 on an H200 is that of float32 within 0.0001 (docs/models.md).
    cuda_precision: Precision = "float16"

    def __init__(self, checkpoint: Checkpoint, options: ModelOptions = ModelOptions()) -> None:
        meta = checkpoint.meta.with_options(options)
        self.device = pick_device(options.device)
        self._dtype = pick_precision(options.precision, self.device, self.cuda_precision)
        self.batch_size = options.batch_size or _DEFAULT_BATCH_SIZE.get(self.device.type, 1)
        self._max_batch_size = self.batch_size
        self.preprocess = Preprocess(meta.imgsz, meta.shape)
        self._thresholds = meta.conf, meta.iou, meta.max_det
        self._class_offset = max(CLASS_OFFSET, meta.imgsz + _MAX_OVERHANG)
        parameters = {
            "imgsz": meta.imgsz,
            "shape": meta.shape,
            "conf": meta.conf,
            "iou": meta.iou,
            "max_det": meta.max_det,
            "max_candidates": MAX_CANDIDATES,
            "letterbox_value": PADDING_VALUE,
            "sppf_activation": meta.sppf_activation,
            "precision": str(self._dtype).removeprefix("torch."),
        }
        self.info = checkpoint.model_info(parameters, RESULT_VERSION)
        self._category_ids = np.array([c.id for c in meta.categories], np.int32)
        self._one_by_one = self.device.type == "cpu"
        is_probe = self.device.type == PROBE_DEVICE
        for_cpu = self._one_by_one or (is_probe and self._dtype is not torch.float16)
        network = (fuse_for_cpu if for_cpu else fuse)(load_network(checkpoint))
        self._memory_format = torch.channels_last
        network = network.to("cpu" if is_probe else self.device, self._dtype)
        check_computed_weights(network, checkpoint.source)
        network = network.to(self.device)
        # The overload for memory formats is missing from torch's types.
        self._network = network.to(memory_format=self._memory_format)  # type: ignore[call-overload]

    def batch_key(self, prepared: PreparedImage) -> tuple[int, ...]:
        """Images with canvases of the same shape go through the network together."""
        return prepared.pixels.shape

    def describe_kernels(self) -> str:
        """What follows the network on CUDA, for people; compiles and checks it on first use."""
        choices = (MASK_KERNELS.describe(self.device), NMS_KERNELS.describe(self.device))
        return ", ".join(filter(None, choices))

    @torch.inference_mode()
    def forward(self, prepared: Sequence[PreparedImage]) -> list[RawGroup]:
        """Raw outputs on the device, for these images only.

        Args:
            prepared: 1 to `batch_size` images, or as many as that was before it was lowered.
        """
        check_batch(prepared, self._max_batch_size)
        if self._one_by_one:
            # Torch warns of read-only arrays, which these are where another process made them.
            arrays = (np.require(image.pixels[None], requirements="W") for image in prepared)
            canvases = (torch.from_numpy(array) for array in arrays)
            return [RawGroup((i,), self._run(pixels)) for i, pixels in enumerate(canvases)]
        groups = []
        batch_size = self.batch_size  # may be lowered meanwhile
        for indices in _group_by_canvas(prepared, batch_size):
            pixels = self._empty_canvases(batch_size, *prepared[indices[0]].pixels.shape[1:])
            rows = pixels.numpy()
            for row, index in enumerate(indices):
                rows[row] = prepared[index].pixels
            outputs = (tensor[: len(indices)] for tensor in self._run(pixels))
            groups.append(RawGroup(indices, HeadOutputs(*outputs)))
        return groups

    def _empty_canvases(self, count: int, height: int, width: int) -> torch.Tensor:
        """Grey canvases of a batch on the host, channels last; pinned if a GPU is to copy them."""
        size = (count, height, width, 3)
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
            outputs: HeadOutputs = self._network(
                batch.contiguous(memory_format=self._memory_format)
            )
        return outputs

    @torch.inference_mode()
    def postprocess(
        self, raw: Sequence[RawGroup], prepared: Sequence[PreparedImage]
    ) -> list[Instances]:
        """Raw outputs -> the instances of each image, best score first; empty masks are dropped.

        On CUDA all of it runs there, for the whole batch; only strings, boxes and scores are
        copied. Elsewhere it goes image by image, and masks are made on the CPU. The same raw
        outputs give the same masks either way.
        """
        on_cuda = self.device.type == "cuda"
        postprocess = self._postprocess_on_device if on_cuda else self._postprocess_one_by_one
        by_index = dict(postprocess(raw, [image.letterbox for image in prepared]))
        return [by_index[index] for index in range(len(prepared))]

    def _postprocess_one_by_one(
        self, raw: Sequence[RawGroup], letterboxes: Sequence[Letterbox]
    ) -> Iterator[tuple[int, Instances]]:
        """Index in the batch and instances of each image, in any order."""
        for group in raw:
            outputs = group.outputs
            detections = detect(
                outputs.boxes,
                outputs.class_logits,
                *self._thresholds,
                class_offset=self._class_offset,
            )
            for row, index in enumerate(group.indices):
                yield index, self._instances(outputs, row, detections[row], letterboxes[index])

    def _postprocess_on_device(
        self, raw: Sequence[RawGroup], letterboxes: Sequence[Letterbox]
    ) -> Iterator[tuple[int, Instances]]:
        """As `_postprocess_one_by_one`; the masks of all images are encoded together."""
        tables: list[tuple[int, np.ndarray]] = []
        jobs: list[ImageMasks] = []
        for group in raw:
            padded_tables, coefficients = self._detect_on_device(group.outputs)
            prototypes = group.outputs.prototypes.float()
            for row, index in enumerate(group.indices):
                table = padded_tables[row][np.isfinite(padded_tables[row, :, 4])]
                letterbox = letterboxes[index]
                if not len(table):
                    yield index, Instances.empty(letterbox.height, letterbox.width)
                    continue
                table[:, :4] = letterbox.boxes_to_image(_finite(table[:, :4]))
                tables.append((index, table))
                jobs.append(
                    ImageMasks(
                        prototypes[row],
                        coefficients[row, : len(table)],
                        table[:, :4],
                        (letterbox.height, letterbox.width),
                        letterbox.mask_window(),
                    )
                )
        with exact(self.device):
            encoded = encode_images(jobs, start_chunk=pick_encoding(self.device))
        for (index, table), masks in zip(tables, encoded, strict=True):
            boxes, scores, classes = table[:, :4], table[:, 4], table[:, 5].astype(np.int64)
            yield index, self._assemble(letterboxes[index], boxes, scores, classes, masks)

    def _detect_on_device(self, outputs: HeadOutputs) -> tuple[np.ndarray, torch.Tensor]:
        """Detections of a group of images, and their mask coefficients.

        Returns:
            (B, D, 6) float32 on the host: box, score (-inf in the padding), class; and
            (B, D, 32) float32 on the device.
        """
        detections = detect_batch(
            outputs.boxes,
            outputs.class_logits,
            *self._thresholds,
            class_offset=self._class_offset,
            find_kept=pick_find_kept(self.device),
        )
        columns = (
            detections.boxes,
            detections.scores.unsqueeze(-1),
            detections.classes.unsqueeze(-1).float(),
        )
        index = detections.anchors.unsqueeze(-1).expand(-1, -1, outputs.coefficients.shape[-1])
        return download(torch.cat(columns, dim=2)), outputs.coefficients.gather(1, index).float()

    def _instances(
        self, outputs: HeadOutputs, row: int, detections: Detections, letterbox: Letterbox
    ) -> Instances:
        """Instances of the image in this row of `outputs`; masks are encoded on the CPU."""
        canvas = (letterbox.height, letterbox.width)
        if not len(detections.anchors):
            return Instances.empty(*canvas)
        boxes = letterbox.boxes_to_image(_finite(detections.boxes.cpu().numpy()))
        prototypes = outputs.prototypes[row].float()
        coefficients = outputs.coefficients[row, detections.anchors].float()
        pieces: list[EncodedMasks] = []
        slices = _slices(len(boxes), prototypes[0].numel())
        for piece in slices:
            with exact(self.device):
                logits = (coefficients[piece] @ prototypes.flatten(1)).cpu().numpy()
            planes = logits.reshape(-1, *prototypes.shape[1:])
            pieces.append(encode_logits(planes, boxes[piece], canvas, letterbox.mask_window()))
        masks = EncodedMasks.joined(pieces, [piece.start for piece in slices])
        scores = detections.scores.float().cpu().numpy()
        classes = detections.classes.cpu().numpy()
        return self._assemble(letterbox, boxes, scores, classes, masks)

    def _assemble(
        self,
        letterbox: Letterbox,
        boxes: np.ndarray,
        scores: np.ndarray,
        classes: np.ndarray,
        masks: EncodedMasks,
    ) -> Instances:
        """Instances with a mask that has a pixel; `boxes` are x1 y1 x2 y2 on the image."""
        boxes = boxes[masks.keep]
        boxes[:, 2:] -= boxes[:, :2]
        return Instances(
            height=letterbox.height,
            width=letterbox.width,
            boxes=boxes,
            scores=scores[masks.keep],
            category_ids=self._category_ids[classes[masks.keep]],
            areas=masks.areas,
            counts=masks.counts,
        )


def _slices(n_detections: int, plane_pixels: int) -> list[slice]:
    """Detections whose logits are computed together, in bounded memory.

    All slices have about the same length and no few rows: matrix products round differently for a
    few rows, and results must be those of one product.
    """
    rows = max(_MIN_PIECE_ROWS, _MAX_LOGIT_BYTES // (4 * plane_pixels))
    n_slices = max(1, min(-(-n_detections // rows), n_detections // _MIN_PIECE_ROWS))
    ends = [n_detections * i // n_slices for i in range(n_slices + 1)]
    return [slice(start, end) for start, end in pairwise(ends)]


def _finite(boxes: np.ndarray) -> np.ndarray:
    """The boxes. NotFinite if one is not: its mask would silently be empty."""
    if not np.isfinite(boxes).all():
        raise NotFinite("the network gave boxes that are not finite (NaN or infinity)")
    return boxes


def _group_by_canvas(prepared: Sequence[PreparedImage], most: int) -> list[tuple[int, ...]]:
    """Indices of at most so many images with the same canvas shape, in the order of their first."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, image in enumerate(prepared):
        groups.setdefault(image.pixels.shape, []).append(index)
    return [
        tuple(group[start : start + most])
        for group in groups.values()
        for start in range(0, len(group), most)
    ]


YOLO11_SEG = ModelFamily(
    architectures=ARCHITECTURES,
    marks=MARKS,
    describe=describe,
    load=YoloSegModel,
    published=PUBLISHED,
)
