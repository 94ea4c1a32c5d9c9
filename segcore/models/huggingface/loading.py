"""A folder -> the network and the image processor of `transformers`, which is the extra ``hf``."""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Iterator
from typing import Any

import torch

from segcore.errors import CheckpointError, UsageError
from segcore.models.checks import check_tensors
from segcore.models.huggingface.folder import ModelFolder, Preprocessing
from segcore.text import plural, printable

_MIN_VERSION = (5, 23)  # of transformers; the oldest tested, and early 5.x requires torchvision
_CLASSES = {  # by `model_type`: configuration, network
    "mask2former": ("Mask2FormerConfig", "Mask2FormerForUniversalSegmentation"),
    "maskformer": ("MaskFormerConfig", "MaskFormerForInstanceSegmentation"),
}


def import_transformers() -> Any:
    """The module `transformers`.

    Raises:
        UsageError: It is not installed, or too old.
    """
    try:
        importlib.import_module("scipy.optimize")  # transformers needs it to build these networks
        transformers = importlib.import_module("transformers")
    except ImportError as error:
        raise UsageError(
            f"A folder with config.json is a model of Hugging Face transformers, and {error.name} "
            "is not installed.",
            "pip install 'segcore[hf]'",
        ) from None
    if tuple(map(int, re.findall(r"\d+", transformers.__version__)[:2])) < _MIN_VERSION:
        raise UsageError(
            f"transformers {transformers.__version__} is too old for segcore.",
            "pip install --upgrade 'segcore[hf]'",
        )
    return transformers


def load_processor(transformers: Any, preprocessing: Preprocessing) -> Any:
    """The image processor that needs no torchvision: it resizes with Pillow."""
    processor_class = getattr(transformers, f"{preprocessing.family}ImageProcessorPil")
    return processor_class(**preprocessing.explicit_fields())


def load_network(transformers: Any, folder: ModelFolder) -> Any:
    """The network of a folder: float32, on the CPU, in eval mode.

    Raises:
        CheckpointError: Configuration and weights do not fit each other, or are damaged.
    """
    config_class, network_class = (getattr(transformers, n) for n in _CLASSES[folder.model_type])
    try:
        config = config_class(**_config_arguments(transformers, config_class, folder.config))
        _check_size(network_class, config, folder)
        with _hidden_progress_bar(transformers):
            network, report = network_class.from_pretrained(
                str(folder.path),
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except CheckpointError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines() or [repr(error)]
        raise CheckpointError(
            f"transformers cannot load the model in {folder.path}: {printable(reason[0])[:500]}"
        ) from error
    _check_network(network, report, folder)
    return network.eval().requires_grad_(False)


def _check_size(network_class: Any, config: Any, folder: ModelFolder) -> None:
    """Before memory is taken: weights of n bytes are of at most n parameters."""
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in network_class(config).parameters())
    if count > folder.weights_bytes:
        raise CheckpointError(
            f"{folder.path}/config.json describes a network of {count:,} parameters, but the "
            f"weights have {folder.weights_bytes:,} bytes."
        )


def _check_network(network: Any, report: Any, folder: ModelFolder) -> None:
    # Tensors that only training uses (the loss) are in some files and not in others.
    missing = sorted(n for n in report["missing_keys"] if not n.startswith("criterion."))
    if missing:
        raise CheckpointError(
            f"{folder.path} lacks {plural(len(missing), 'tensor')} of {folder.model_type}, "
            f"e.g. {missing[0]}."
        )
    tensors = dict((*network.named_parameters(), *network.named_buffers()))
    check_tensors(tensors, tensors, str(folder.path), folder.model_type)
    if sorted(network.config.id2label) != list(range(network.config.num_labels)):
        raise CheckpointError(
            f"{folder.path}/config.json does not number its classes from 0 without gaps (id2label)."
        )


def _config_arguments(
    transformers: Any, config_class: Any, document: dict[str, Any]
) -> dict[str, Any]:
    """Only those entries of a config that describe this architecture.

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
            nested_arguments = _config_arguments(transformers, nested_class, nested)
            if key == "decoder_config":
                nested_arguments.pop("backbone_config", None)  # DETR's; MaskFormer never builds it
            arguments[key] = {**nested_arguments, "model_type": nested["model_type"]}
    return arguments


@contextlib.contextmanager
def _hidden_progress_bar(transformers: Any) -> Iterator[None]:
    logging = transformers.utils.logging
    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()
