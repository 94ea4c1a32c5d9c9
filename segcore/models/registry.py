"""Model names -> models: bundled, published, local files, links and a user's own classes."""

from __future__ import annotations

import difflib
import importlib
import os
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from segcore.errors import CheckpointError, SegcoreError, UsageError
from segcore.models import downloads
from segcore.models.base import Model, ModelOptions
from segcore.models.checkpoints import Checkpoint, parse_checkpoint, read_checkpoint
from segcore.models.huggingface.model import HuggingFaceModel
from segcore.models.maskrcnn.model import MaskRCNNModel
from segcore.models.maskrcnn.network import ARCHITECTURES as MASKRCNN
from segcore.models.yolo.model import YoloSegModel

BUNDLED = Path(__file__).parent / "bundled"
_RELEASE = "https://github.com/ultralytics/assets/releases/download/v8.3.0"
_TORCHVISION = "https://download.pytorch.org/models"
_ADAPTER = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_REMOTE = re.compile(r"(s3|gs|az)://")


@dataclass(frozen=True)
class PublishedModel:
    """Weights published by others; they are never part of this package.

    Attributes:
        name: What `load_model` takes.
        url: Where they are fetched from, once.
        licence: Of the weights.
        published_ap: Mask AP on COCO val2017 as published, percent.
        sha256: Pinned here, or None: pinned on first use, beside the cached file.
    """

    name: str
    url: str
    licence: str
    published_ap: float
    sha256: str | None = None

    @property
    def file(self) -> str:
        """Name of the file in the cache."""
        return self.url.rsplit("/", 1)[1]

    @property
    def cached(self) -> Path:
        """Where the file lies, or would lie."""
        return downloads.cache_dir() / self.file


PUBLISHED = {
    f"yolo11{size}-seg": PublishedModel(
        f"yolo11{size}-seg", f"{_RELEASE}/yolo11{size}-seg.pt", "AGPL-3.0", ap
    )
    for size, ap in (("n", 32.0), ("s", 37.8), ("m", 41.5), ("l", 42.9), ("x", 43.8))
} | {
    name: PublishedModel(name, f"{_TORCHVISION}/{file}.pth", "BSD-3-Clause", ap)
    for name, file, ap in (
        ("maskrcnn-resnet50-fpn", "maskrcnn_resnet50_fpn_coco-bf2d0c1e", 34.6),
        ("maskrcnn-resnet50-fpn-v2", "maskrcnn_resnet50_fpn_v2_coco-73cbd019", 41.8),
    )
}


def bundled_names() -> list[str]:
    """Models whose weights are in this package."""
    return sorted(path.stem for path in BUNDLED.glob("*.safetensors"))


def known_names() -> list[str]:
    """All names that `load_model` takes beside paths, links and classes."""
    return [*bundled_names(), *PUBLISHED]


def load_model(
    name_or_path: str, options: ModelOptions = ModelOptions(), data: bytes | None = None
) -> Model:
    """Loads a model, ready to run on its device.

    Args:
        name_or_path: A known name; the path of a .safetensors, .pt or .pth file; an https:// link
            to one (cached); a folder that Hugging Face transformers saved; a class of the user,
            ``package.module:Class``, that takes `options` and is a `segcore.models.base.Model`; or
            any name, where `data` is given.
        options: None fields keep the model's own defaults.
        data: The bytes of the checkpoint, where the caller has read them (an object of a store).

    Raises:
        CheckpointError: No such model, or its file is missing, damaged, unsafe or of another kind.
        UsageError: The device is not here, or the class cannot be used.
    """
    if data is None and _ADAPTER.fullmatch(name_or_path) and not os.path.exists(name_or_path):
        return _load_adapter(name_or_path, options)
    if data is None and os.path.isdir(name_or_path) and name_or_path not in known_names():
        return HuggingFaceModel(name_or_path, options)
    checkpoint = (
        parse_checkpoint(data, name_or_path) if data is not None else load_checkpoint(name_or_path)
    )
    if checkpoint.meta.architecture in MASKRCNN:
        return MaskRCNNModel(checkpoint, options)
    return YoloSegModel(checkpoint, options)


def load_checkpoint(name_or_path: str) -> Checkpoint:
    """The checkpoint of a known name, a path or an https:// link; see `load_model`."""
    bundled = BUNDLED / f"{name_or_path}.safetensors"
    if name_or_path in bundled_names():
        return read_checkpoint(bundled)
    if name_or_path in PUBLISHED:
        published = PUBLISHED[name_or_path]
        path = downloads.fetch(
            published.url, published.cached, published.sha256, licence=published.licence
        )
        checkpoint = read_checkpoint(path)
        stated = {"name": published.name, "licence": published.licence}
        return replace(checkpoint, meta=checkpoint.meta.model_copy(update=stated))
    if re.match(r"https?://", name_or_path):
        return read_checkpoint(downloads.fetch(name_or_path, _cached_link(name_or_path)))
    if _REMOTE.match(name_or_path):
        raise CheckpointError(
            f"The checkpoint {name_or_path} must be read by the caller and handed in as data."
        )
    if os.path.exists(name_or_path) or _looks_like_path(name_or_path):
        return read_checkpoint(name_or_path)
    raise _unknown(name_or_path)


def _looks_like_path(name: str) -> bool:
    return os.sep in name or name.endswith((".safetensors", ".pt", ".pth"))


def _cached_link(url: str) -> Path:
    """A file of its own for each link, with a name that people recognise."""
    base = re.sub(r"[^\w.-]", "_", urlsplit(url).path.rsplit("/", 1)[-1])[-80:] or "model"
    return downloads.cache_dir() / "links" / downloads.short_hash(url) / base


def _unknown(name: str) -> CheckpointError:
    known = known_names()
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    hint = f"Did you mean {close[0]}? " if close else ""
    return CheckpointError(
        f"There is no model and no file named {name!r}.",
        f"{hint}Known are {', '.join(known)}; or give the path of a .safetensors, .pt or .pth "
        "file or of a folder of transformers, an https:// link, or package.module:Class.",
    )


def _load_adapter(name: str, options: ModelOptions) -> Model:
    module_name, _, class_name = name.partition(":")
    # Console scripts do not look into the working folder; `python -m` does. Same answer for both.
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UsageError(
            f"Cannot import {module_name!r} for the model {name}: {error}.",
            "Run where the module can be imported, or install its package.",
        ) from error
    factory = getattr(module, class_name, None)
    if factory is None:
        raise UsageError(f"The module {module_name!r} has no {class_name!r} (model {name}).")
    try:
        model = factory(options)
    except SegcoreError:
        raise
    except Exception as error:
        raise UsageError(f"The model {name} cannot be made: {error!r}.") from error
    if not isinstance(model, Model):
        needed = ("info", "batch_size", "preprocess", "forward", "postprocess")
        missing = [attribute for attribute in needed if not hasattr(model, attribute)]
        raise UsageError(f"{name} is not a model of segcore: it has no {', '.join(missing)}.")
    return model
