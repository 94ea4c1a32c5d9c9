"""Mask2Former and MaskFormer of Hugging Face `transformers`, from a local folder (extra ``hf``).

The network and the image processor are those of `transformers`. Queries become instances as its
`post_process_instance_segmentation` does it, but masks reach the size of the image one at a time.
"""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from segcore import masks
from segcore.errors import CheckpointError, UsageError
from segcore.instances import Instances
from segcore.models.base import Category, ModelInfo, ModelOptions
from segcore.models.devices import exact, only_float32, pick_device
from segcore.models.huggingface.folder import ModelFolder, read_folder

RESULT_VERSION = 1  # bump when the same weights and options give other results
_THRESHOLD = 0.5  # of transformers: the score from which a query is an instance
_OLDEST = (5, 23)  # of transformers; the oldest tried, and early 5.x wants torchvision
_CHUNK = 16  # queries whose logits are resized together: bounds memory
# The processor of Mask2Former resizes all logits to this grid first; that of MaskFormer does not.
_GRIDS: dict[str, tuple[int, int] | None] = {"Mask2Former": (384, 384), "MaskFormer": None}
_NETWORKS = {
    "mask2former": ("Mask2FormerConfig", "Mask2FormerForUniversalSegmentation"),
    "maskformer": ("MaskFormerConfig", "MaskFormerForInstanceSegmentation"),
}


class PreparedImage(NamedTuple):
    """An image as the network takes it, and its size before.

    Attributes:
        pixels: (3, h, w) float32.
        height, width: Of the original image, pixels.
    """

    pixels: np.ndarray
    height: int
    width: int


class RawImage(NamedTuple):
    """Logits of one image: (Q, C + 1) of classes, the last is no object, and (Q, h, w) of masks."""

    classes: Tensor
    masks: Tensor


class QueryDetections(NamedTuple):
    """Instances before their masks are at full size, best score first.

    Attributes:
        scores: (N,) float32.
        labels: (N,) int64, positions in the list of classes.
        masks: (N, h, w) bool, on the grid of the logits.
    """

    scores: np.ndarray
    labels: np.ndarray
    masks: np.ndarray


class HuggingFaceModel:
    """A Mask2Former or MaskFormer checkpoint in a folder (see `segcore.models.base.Model`).

    Each image goes through the network alone: padding to the largest of a batch would show.

    Args:
        path: A folder with config.json, preprocessor_config.json and model.safetensors.
        options: None fields take the defaults of `transformers`: threshold 0.5, all queries.
            `imgsz` is the shorter side, or both where the checkpoint asks for a square.

    Raises:
        CheckpointError: The folder holds no model that can be used.
        UsageError: `transformers` is not installed, an option does not apply, or the device does
            not exist here.
    """

    def __init__(self, path: str, options: ModelOptions = ModelOptions()) -> None:
        folder = read_folder(path)
        if options.iou is not None:
            raise UsageError(
                f"iou does not apply to {folder.path}: {folder.model_type} suppresses nothing.",
                "Leave model.iou out.",
            )
        if options.shape is not None:
            raise UsageError(
                f"shape does not apply to {folder.path}: its preprocessing decides.",
                "Leave model.shape out.",
            )
        only_float32(options.precision, str(folder.path))
        self.device = pick_device(options.device)
        self.batch_size = options.batch_size or 1
        self._conf = _THRESHOLD if options.conf is None else options.conf
        self._max_det = options.max_det
        preprocessing = folder.preprocessing
        if options.imgsz is not None:
            preprocessing = preprocessing.resized(options.imgsz, str(folder.path))
        self._grid = _GRIDS[preprocessing.family]
        transformers = _transformers()
        self._processor = _processor(transformers, preprocessing.family, preprocessing.stated())
        self._check_processor(folder)
        network = _network(transformers, folder)
        names = network.config.id2label
        self.info = ModelInfo(
            name=folder.path.name,
            architecture=folder.model_type,
            weights_sha256=folder.weights_sha256,
            licence=folder.licence,
            categories=tuple(Category(i, str(names[i])) for i in range(len(names))),
            parameters={
                "conf": self._conf,
                "max_det": self._max_det,
                "mask_grid": self._grid,
                "config_sha256": folder.config_sha256,
                "preprocessing": preprocessing.stated(),
                "precision": "float32",
            },
            result_version=RESULT_VERSION,
        )
        self._network = network.to(self.device)

    def preprocess(self, image: np.ndarray) -> PreparedImage:
        """(H, W, 3) uint8 RGB -> resized and normalised as the checkpoint asks. Thread-safe."""
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise ValueError(f"expected (H, W, 3) uint8, got {image.shape} {image.dtype}")
        batch = self._processor(image, input_data_format="channels_last", return_tensors="np")
        pixels = np.ascontiguousarray(batch["pixel_values"][0], np.float32)
        return PreparedImage(pixels, image.shape[0], image.shape[1])

    @torch.inference_mode()
    def forward(self, prepared: Sequence[PreparedImage]) -> list[RawImage]:
        """1 to `batch_size` images -> logits of each, on the device."""
        if not 1 <= len(prepared) <= self.batch_size:
            raise ValueError(f"expected 1 to {self.batch_size} images, got {len(prepared)}")
        with exact(self.device):
            return [self._run(image.pixels) for image in prepared]

    def _run(self, pixels: np.ndarray) -> RawImage:
        outputs = self._network(pixel_values=torch.from_numpy(pixels[None]).to(self.device))
        return RawImage(outputs.class_queries_logits[0], outputs.masks_queries_logits[0])

    @torch.inference_mode()
    def postprocess(
        self, raw: Sequence[RawImage], prepared: Sequence[PreparedImage]
    ) -> list[Instances]:
        """Logits -> the instances of each image, best score first, none without a pixel."""
        with exact(self.device):
            return [self._instances(one, image) for one, image in zip(raw, prepared, strict=True)]

    def _instances(self, raw: RawImage, image: PreparedImage) -> Instances:
        height, width = image.height, image.width
        found = detect(raw.classes, raw.masks, self._conf, self._grid)
        rows = nearest(found.masks.shape[1], height)
        columns = nearest(found.masks.shape[2], width)
        kept, counts, areas = [], [], []
        for i, small in enumerate(found.masks):
            mask = small[rows][:, columns]
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
            boxes=np.array([masks.bbox(one, height, width) for one in counts], np.float32),
            scores=found.scores[kept],
            category_ids=found.labels[kept].astype(np.int32),
            areas=np.array(areas, np.int64),
            counts=counts,
        )

    def _check_processor(self, folder: ModelFolder) -> None:
        """Sizes that contradict each other are the folder's fault, not that of every image."""
        try:
            self.preprocess(np.zeros((64, 64, 3), np.uint8))
        except Exception as error:
            raise CheckpointError(
                f"{folder.path}/preprocessor_config.json cannot be used: {error}."
            ) from error


def detect(
    class_logits: Tensor, mask_logits: Tensor, conf: float, grid: tuple[int, int] | None
) -> QueryDetections:
    """Queries of one image -> instances with a score of at least `conf`.

    The rule of `post_process_instance_segmentation` in transformers: of all pairs of query and
    class take the Q most probable (softmax; no object left out); a mask is where the logit is
    over 0; the score is the probability of the class times the mean probability inside the mask.

    Args:
        class_logits: (Q, C + 1) float32.
        mask_logits: (Q, h, w) float32.
        conf: The least score.
        grid: Height and width to which logits are resized (bilinear) first, or None.
    """
    queries, classes = class_logits.shape[0], class_logits.shape[1] - 1
    probabilities = class_logits.softmax(-1)[:, :-1].flatten()
    # A stable sort in place of topk: the same pairs, and equal ones in one order everywhere.
    ranked, order = probabilities.sort(descending=True, stable=True)
    # No score is over the probability of its class, so that most queries need no mask.
    count = int((ranked[:queries].double() >= conf).sum())
    ranked, order = ranked[:count], order[:count]
    shape = grid or tuple(mask_logits.shape[1:])
    if not count:
        return QueryDetections(
            np.zeros(0, np.float32), np.zeros(0, np.int64), np.zeros((0, *shape), bool)
        )
    scores, bitmaps = [], []
    for chunk in (order // classes).split(_CHUNK):
        logits = mask_logits[chunk]
        if grid is not None:
            logits = interpolate(logits[None], size=grid, mode="bilinear", align_corners=False)[0]
        logits = logits.flatten(1)
        inside = logits > 0
        scores.append((logits.sigmoid() * inside).sum(1) / (inside.sum(1) + 1e-6))
        bitmaps.append(inside.cpu())
    final = (ranked * torch.cat(scores)).cpu()
    best = final.sort(descending=True, stable=True).indices
    best = best[final[best].double() >= conf]
    return QueryDetections(
        final[best].numpy(),
        (order.cpu()[best] % classes).numpy(),
        torch.cat(bitmaps)[best].unflatten(1, shape).numpy(),
    )


def nearest(source: int, target: int) -> np.ndarray:
    """(target,) int64: which of `source` pixels each of `target` takes, as torch's ``nearest``."""
    line = torch.arange(source, dtype=torch.float32)[None, None]
    return interpolate(line, size=target, mode="nearest")[0, 0].long().numpy()


def _transformers() -> Any:
    try:
        importlib.import_module("scipy.optimize")  # transformers wants it to build these networks
        transformers = importlib.import_module("transformers")
    except ImportError as error:
        raise UsageError(
            f"A folder with config.json is a model of Hugging Face transformers, and {error.name} "
            "is not installed.",
            "pip install 'segcore[hf]'",
        ) from None
    if tuple(map(int, re.findall(r"\d+", transformers.__version__)[:2])) < _OLDEST:
        raise UsageError(
            f"transformers {transformers.__version__} is too old for segcore.",
            "pip install --upgrade 'segcore[hf]'",
        )
    return transformers


def _processor(transformers: Any, family: str, stated: dict[str, Any]) -> Any:
    """The image processor that needs no torchvision: resizing is that of Pillow."""
    return getattr(transformers, f"{family}ImageProcessorPil")(**stated)


def _network(transformers: Any, folder: ModelFolder) -> Any:
    config_class, network_class = (getattr(transformers, n) for n in _NETWORKS[folder.model_type])
    try:
        config = config_class(**_arguments(transformers, config_class, folder.config))
        with _no_progress_bar(transformers):
            network, report = network_class.from_pretrained(
                str(folder.path),
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except Exception as error:
        reason = str(error).strip().splitlines() or [repr(error)]
        raise CheckpointError(
            f"transformers cannot load the model in {folder.path}: {reason[0][:500]}"
        ) from error
    # What only training uses (the loss) is in some files and not in others.
    missing = sorted(n for n in report["missing_keys"] if not n.startswith("criterion."))
    if missing:
        raise CheckpointError(
            f"{folder.path}: {len(missing)} tensors of {folder.model_type} are missing, "
            f"e.g. {missing[0]}."
        )
    for name, tensor in network.named_parameters():
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{folder.path} is damaged: {name} holds NaN or infinity.")
    if sorted(network.config.id2label) != list(range(network.config.num_labels)):
        raise CheckpointError(
            f"{folder.path}/config.json does not number its classes from 0 without gaps (id2label)."
        )
    return network.eval().requires_grad_(False)


def _arguments(transformers: Any, config_class: Any, document: dict[str, Any]) -> dict[str, Any]:
    """Of a config only what describes this architecture.

    Left out is what makes transformers look for other files, other code (attention kernels) or
    other number formats.
    """
    known = {*config_class.__annotations__, *config_class.attribute_map}
    known |= {"id2label", "out_features", "out_indices"}
    arguments = {key: value for key, value in document.items() if key in known - {"model_type"}}
    if isinstance(names := arguments.get("id2label"), dict):
        arguments["id2label"] = {int(key): str(name)[:1000] for key, name in names.items()}
    for key in ("backbone_config", "decoder_config"):
        if isinstance(nested := arguments.get(key), dict):
            nested_class = transformers.CONFIG_MAPPING[nested["model_type"]]
            inner = _arguments(transformers, nested_class, nested)
            if key == "decoder_config":
                inner.pop("backbone_config", None)  # of DETR; never built inside MaskFormer
            arguments[key] = {**inner, "model_type": nested["model_type"]}
    return arguments


@contextlib.contextmanager
def _no_progress_bar(transformers: Any) -> Iterator[None]:
    logging = transformers.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
