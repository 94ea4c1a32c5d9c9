"""Model names -> models: bundled, published, local files, links and classes of the user."""

from __future__ import annotations

import difflib
import importlib
import os
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from segcore.errors import CheckpointError, SegcoreError, UsageError
from segcore.models import downloads
from segcore.models.base import Category, Model, ModelInfo, ModelOptions
from segcore.models.bundled_weights import BUNDLED, bundled_names
from segcore.models.checkpoints import (
    Checkpoint,
    CheckpointFile,
    parse_checkpoint_file,
    read_checkpoint_file,
)
from segcore.models.devices import PROBE_DEVICE, unknown_device
from segcore.models.families import ModelFamily
from segcore.models.huggingface.model import HuggingFaceModel
from segcore.models.maskrcnn.model import MASK_RCNN
from segcore.models.yolo.model import YOLO11_SEG
from segcore.text import redact_link

FAMILIES: tuple[ModelFamily, ...] = (YOLO11_SEG, MASK_RCNN)
MARKS = tuple(mark for family in FAMILIES for mark in family.marks)
PUBLISHED = {model.name: model for family in FAMILIES for model in family.published}
_CHECKPOINT_SUFFIXES = (".safetensors", ".pt", ".pth")
_CLASS_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")  # package.module:Class
_HTTP_LINK = re.compile(r"https?://", re.IGNORECASE)
_OBJECT_URI = re.compile(r"(s3|gs|az)://")


def known_names() -> list[str]:
    """All names that `load_model` takes besides paths, links and classes."""
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
        CheckpointError: There is no such model, or its file is missing, damaged, unsafe or of an
            unsupported kind.
        UsageError: The device is not on this machine, an option does not apply, or the class
            cannot be used.
    """
    if options.device == PROBE_DEVICE:
        raise unknown_device(options.device)
    return _load_model(name_or_path, options, data)


def probe_model(
    name_or_path: str, options: ModelOptions = ModelOptions(), data: bytes | None = None
) -> Model:
    """As `load_model`, for a process that needs what the model says and how it preprocesses only.

    `forward` may not be called. The device of `options` need not be on this machine, and the
    precision need not be one that this machine computes in. Classes of the user and folders of
    Hugging Face get the device ``cpu``.
    """
    return open_probe(name_or_path, data)(options)


def open_probe(name_or_path: str, data: bytes | None = None) -> Callable[[ModelOptions], Model]:
    """`probe_model` for several options of one model, whose checkpoint is read only once.

    Raises:
        CheckpointError: See `load_model`.
    """
    if data is None and (_is_class(name_or_path) or _is_folder(name_or_path)):
        return lambda options: _load_model(name_or_path, _on_device(options, "cpu"), None)
    checkpoint = (
        load_checkpoint(name_or_path) if data is None else parse_checkpoint(data, name_or_path)
    )
    return lambda options: _load_checkpoint_model(checkpoint, _on_device(options, PROBE_DEVICE))


def _on_device(options: ModelOptions, device: str) -> ModelOptions:
    return options.model_copy(update={"device": device})


def _load_model(name_or_path: str, options: ModelOptions, data: bytes | None) -> Model:
    if data is not None:
        return _load_checkpoint_model(parse_checkpoint(data, name_or_path), options)
    if _is_class(name_or_path):
        return _load_user_class(name_or_path, options)
    if _is_folder(name_or_path):
        return HuggingFaceModel(name_or_path, options)
    return _load_checkpoint_model(load_checkpoint(name_or_path), options)


def _is_class(name: str) -> bool:
    return _CLASS_PATH.fullmatch(name) is not None and not os.path.exists(name)


def _is_folder(name: str) -> bool:
    return os.path.isdir(name) and name not in known_names()


def load_checkpoint(name_or_path: str) -> Checkpoint:
    """The checkpoint of a known name, a path or an https:// link; see `load_model`."""
    if name_or_path in bundled_names():
        return read_checkpoint(BUNDLED / f"{name_or_path}.safetensors")
    if name_or_path in PUBLISHED:
        published = PUBLISHED[name_or_path]
        path = downloads.fetch(
            published.url, published.cached_path, published.sha256, licence=published.licence
        )
        checkpoint = read_checkpoint(path)
        known = {"name": published.name, "licence": published.licence}
        return replace(checkpoint, meta=checkpoint.meta.model_copy(update=known))
    if _HTTP_LINK.match(name_or_path):
        return read_checkpoint(downloads.fetch(name_or_path, _cached_path(name_or_path)))
    if _OBJECT_URI.match(name_or_path):
        raise CheckpointError(
            f"The checkpoint {redact_link(name_or_path)} lies in an object store, and here it can "
            "only be a name, a local file or an https:// link.",
            hint="Copy it to this machine and give its path.",
        )
    if os.path.exists(name_or_path) or _looks_like_path(name_or_path):
        return read_checkpoint(name_or_path)
    raise _unknown_model(name_or_path)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """The checkpoint in a local file.

    Raises:
        CheckpointError: The file is missing, of the wrong kind, damaged or unsafe; one sentence
            with its name.
    """
    return _identify(read_checkpoint_file(path, MARKS))


def parse_checkpoint(data: bytes, source: str) -> Checkpoint:
    """The checkpoint in the bytes of a file; `source` is its name. Raises as `read_checkpoint`."""
    source = redact_link(source) if _HTTP_LINK.match(source) else source
    return _identify(parse_checkpoint_file(data, source, MARKS))


def _identify(file: CheckpointFile) -> Checkpoint:
    """With the metadata of the file, or else with what a family reads from its tensors."""
    if file.meta is not None:
        return file.to_checkpoint(file.meta)
    for family in FAMILIES:
        if family.recognises(file.tensors):
            return file.to_checkpoint(family.describe(file))
    raise CheckpointError(
        f"{file.source} is not a checkpoint of a supported model: {file.summary()}.",
        f"Supported are {', '.join(_architectures())}.",
    )


def _load_checkpoint_model(checkpoint: Checkpoint, options: ModelOptions) -> Model:
    architecture = checkpoint.meta.architecture
    for family in FAMILIES:
        if architecture in family.architectures:
            return family.load(checkpoint, options)
    raise CheckpointError(
        f"{checkpoint.source} is for the architecture {architecture!r}, which is unknown.",
        f"Known are {', '.join(_architectures())}.",
    )


def _architectures() -> list[str]:
    return [architecture for family in FAMILIES for architecture in family.architectures]


def _looks_like_path(name: str) -> bool:
    return os.sep in name or name.endswith(_CHECKPOINT_SUFFIXES)


def _cached_path(url: str) -> Path:
    """Each link has a folder of its own in the cache, and its file a name that people recognise."""
    file_name = re.sub(r"[^\w.-]", "_", urlsplit(url).path.rsplit("/", 1)[-1])[-80:] or "model"
    return downloads.cache_dir() / "links" / downloads.short_hash(url) / file_name


def _unknown_model(name: str) -> CheckpointError:
    known = known_names()
    similar = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    suggestion = f"Did you mean {similar[0]}? " if similar else ""
    return CheckpointError(
        f"There is no model and no file named {redact_link(name)!r}.",
        f"{suggestion}Known names are {', '.join(known)}. You can also give the path of a "
        ".safetensors, .pt or .pth file or of a folder of transformers, an https:// link, or "
        "package.module:Class.",
    )


def _load_user_class(name: str, options: ModelOptions) -> Model:
    module_name, _, class_name = name.partition(":")
    # Console scripts do not look into the working folder; `python -m` does. Both must find it.
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UsageError(
            f"Cannot import {module_name!r} for the model {name}: {error}.",
            "Run the command where the module can be imported, or install its package.",
        ) from error
    model_class = getattr(module, class_name, None)
    if model_class is None:
        raise UsageError(f"The module {module_name!r} has no {class_name!r} (model {name}).")
    try:
        model = model_class(options)
    except SegcoreError:
        raise
    except Exception as error:
        raise UsageError(f"The model {name} cannot be created: {error!r}.") from error
    if not isinstance(model, Model):
        required = ("info", "batch_size", "preprocess", "forward", "postprocess")
        missing = [attribute for attribute in required if not hasattr(model, attribute)]
        raise UsageError(f"{name} is not a model of segcore: it has no {', '.join(missing)}.")
    if problem := _find_problem_of_info(model):
        raise UsageError(f"The model {name} cannot be used: {problem}.")
    return model


def _find_problem_of_info(model: Model) -> str:
    """What is wrong with what a class of the user says about itself; "" if nothing is."""
    info, batch_size = model.info, model.batch_size
    if not isinstance(info, ModelInfo):
        return f"its info is of type {type(info).__name__}, not ModelInfo"
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        return f"its batch_size is {batch_size!r:.50}, not a whole number from 1"
    if not info.categories:
        return "its info has no categories"
    for category in info.categories:
        if not isinstance(category, Category) or not isinstance(category.name, str):
            return f"{category!r:.100} is not a Category with a name"
        if not isinstance(category.id, int) or not 0 <= category.id < 1 << 31:
            return f"the id of {category!r:.100} is not a whole number from 0 to 2,147,483,647"
    ids = [category.id for category in info.categories]
    if len(set(ids)) < len(ids):
        return "two of its categories have the same id"
    return ""
