"""Mask2Former and MaskFormer of Hugging Face `transformers`, from a local folder.

The network and the image processor are those of `transformers`. Queries become instances as in its
`post_process_instance_segmentation`, but masks are brought to the size of the image one at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from segcore import masks
from segcore.errors import CheckpointError
from segcore.instances import Instances
from segcore.models.base import Category, ModelInfo, ModelOptions
from segcore.models.checks import check_batch, check_image, refuse_option, refuse_reduced_precision
from segcore.models.devices import exact, pick_device
from segcore.models.huggingface.folder import ModelFolder, read_folder
from segcore.models.huggingface.loading import import_transformers, load_network, load_processor
from segcore.models.huggingface.queries import detect_queries, nearest_indices

RESULT_VERSION = 1  # raise when the same weights and options give different results
_DEFAULT_CONF = 0.5  # of transformers: the score from which a query is an instance
# The processor of Mask2Former resizes all logits to this grid first; that of MaskFormer does not.
_GRIDS: dict[str, tuple[int, int] | None] = {"Mask2Former": (384, 384), "MaskFormer": None}


class PreparedImage(NamedTuple):
    """An image as the network takes it, and its original size.

    Attributes:
        pixels: (3, h, w) float32.
        height, width: Of the original image, pixels.
    """

    pixels: np.ndarray
    height: int
    width: int

    @property
    def seen_size(self) -> tuple[int, int]:
        """See `segcore.models.base.ResizedInput`."""
        return self.pixels.shape[1], self.pixels.shape[2]


class RawImage(NamedTuple):
    """Logits of one image.

    Attributes:
        classes: (Q, C + 1); the last class is "no object".
        masks: (Q, h, w).
    """

    classes: Tensor
    masks: Tensor


class HuggingFaceModel:
    """A Mask2Former or MaskFormer checkpoint in a folder (see `segcore.models.base.Model`).

    Each image goes through the network alone: padding to the largest image of a batch would change
    results.

    Args:
        path: A folder with config.json, preprocessor_config.json and model.safetensors.
        options: None fields take the defaults of `transformers`: threshold 0.5, all queries.
            `imgsz` is the shorter side, or both where the checkpoint asks for a square.

    Raises:
        CheckpointError: The folder holds no model that can be used.
        UsageError: `transformers` is not installed, an option does not apply, or the device is not
            on this machine.
    """

    def __init__(self, path: str, options: ModelOptions = ModelOptions()) -> None:
        folder = read_folder(path)
        source = str(folder.path)
        refuse_option(options, "iou", source, f"{folder.model_type} suppresses nothing")
        refuse_option(options, "shape", source, "its preprocessing decides")
        refuse_reduced_precision(options, source)
        self.device = pick_device(options.device)
        self.batch_size = options.batch_size or 1
        self._conf = _DEFAULT_CONF if options.conf is None else options.conf
        self._max_det = options.max_det
        preprocessing = folder.preprocessing
        if options.imgsz is not None:
            preprocessing = preprocessing.resized(options.imgsz, source)
        self._grid = _GRIDS[preprocessing.family]
        transformers = import_transformers()
        self._processor = load_processor(transformers, preprocessing)
        self._check_processor(folder)
        network = load_network(transformers, folder)
        class_names = network.config.id2label
        self.info = ModelInfo(
            name=folder.path.name,
            architecture=folder.model_type,
            weights_sha256=folder.weights_sha256,
            licence=folder.licence,
            categories=tuple(Category(i, str(class_names[i])) for i in range(len(class_names))),
            parameters={
                "conf": self._conf,
                "max_det": self._max_det,
                "mask_grid": self._grid,
                "config_sha256": folder.config_sha256,
                "preprocessing": preprocessing.explicit_fields(),
                "precision": "float32",
            },
            result_version=RESULT_VERSION,
        )
        self._network = network.to(self.device)

    def preprocess(self, image: np.ndarray) -> PreparedImage:
        """(H, W, 3) uint8 RGB -> resized and normalised as the checkpoint asks. Thread-safe."""
        check_image(image)
        batch = self._processor(image, input_data_format="channels_last", return_tensors="np")
        pixels = np.ascontiguousarray(batch["pixel_values"][0], np.float32)
        return PreparedImage(pixels, image.shape[0], image.shape[1])

    @torch.inference_mode()
    def forward(self, prepared: Sequence[PreparedImage]) -> list[RawImage]:
        """1 to `batch_size` images -> logits of each, on the device."""
        check_batch(prepared, self.batch_size)
        with exact(self.device):
            return [self._run(image.pixels) for image in prepared]

    def _run(self, pixels: np.ndarray) -> RawImage:
        outputs = self._network(pixel_values=torch.from_numpy(pixels[None]).to(self.device))
        return RawImage(outputs.class_queries_logits[0], outputs.masks_queries_logits[0])

    @torch.inference_mode()
    def postprocess(
        self, raw: Sequence[RawImage], prepared: Sequence[PreparedImage]
    ) -> list[Instances]:
        """Logits -> the instances of each image, best score first; empty masks are dropped."""
        with exact(self.device):
            return [
                self._instances(logits, image) for logits, image in zip(raw, prepared, strict=True)
            ]

    def _instances(self, raw: RawImage, image: PreparedImage) -> Instances:
        height, width = image.height, image.width
        detections = detect_queries(raw.classes, raw.masks, self._conf, self._grid)
        rows = nearest_indices(detections.masks.shape[1], height)
        columns = nearest_indices(detections.masks.shape[2], width)
        kept, counts, areas = [], [], []
        for i, small_mask in enumerate(detections.masks):
            mask = small_mask[rows][:, columns]
            if area := int(np.count_nonzero(mask)):
                kept.append(i)
                areas.append(area)
                counts.append(masks.encode(mask))
            if len(kept) == self._max_det:
                break
        if not kept:
            return Instances.empty(height, width)
        return Instances(
            height=height,
            width=width,
            boxes=np.array([masks.bbox(rle, height, width) for rle in counts], np.float32),
            scores=detections.scores[kept],
            category_ids=detections.labels[kept].astype(np.int32),
            areas=np.array(areas, np.int64),
            counts=counts,
        )

    def _check_processor(self, folder: ModelFolder) -> None:
        """Raises for sizes that contradict each other: the folder is wrong, not every image."""
        try:
            self.preprocess(np.zeros((64, 64, 3), np.uint8))
        except Exception as error:
            raise CheckpointError(
                f"{folder.path}/preprocessor_config.json cannot be used: {error}."
            ) from error
