"""Checks that several model families make: of options, images, batches and tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from segcore.errors import CheckpointError, NotFinite, UsageError
from segcore.models.base import ModelOptions
from segcore.text import plural


def refuse_option(options: ModelOptions, name: str, model: str, reason: str) -> None:
    """For an option that a model does not have.

    Args:
        options: What the user has set.
        name: Field of `options`.
        model: The model, for the message.
        reason: A clause that says why the option does not apply.

    Raises:
        UsageError: The option is set, and not to its default.
    """
    value = getattr(options, name)
    if value != ModelOptions.model_fields[name].default:
        raise _does_not_apply(name, value, model, reason)


def refuse_reduced_precision(options: ModelOptions, model: str) -> None:
    """For a model that computes in float32 only.

    Raises:
        UsageError: Another precision was asked for.
    """
    if options.precision not in ("auto", "float32"):
        raise _does_not_apply("precision", options.precision, model, "it computes in float32")


def _does_not_apply(name: str, value: object, model: str, reason: str) -> UsageError:
    return UsageError(
        f"model.{name}={value} does not apply to {model}: {reason}.", f"Leave model.{name} out."
    )


def check_image(image: np.ndarray) -> None:
    """Images are (H, W, 3) uint8 with at least one pixel.

    Raises:
        ValueError: This one is not.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ValueError(f"expected (H, W, 3) uint8, got {image.shape} {image.dtype}")


def check_batch(prepared: Sequence[Any], batch_size: int) -> None:
    """A batch has 1 to `batch_size` images.

    Raises:
        ValueError: This one has not.
    """
    if not 1 <= len(prepared) <= batch_size:
        raise ValueError(f"expected 1 to {batch_size} images, got {len(prepared)}")


def check_tensors(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str, network: str
) -> None:
    """Compares names and shapes of `tensors` with those of `expected`; values must be usable.

    That is: finite in the type that `expected` has, and variances not negative.

    Args:
        tensors: What the file holds.
        expected: What the network has.
        source: The file, for messages.
        network: The network, for messages.

    Raises:
        CheckpointError: The first difference, in words.
    """
    misfit = f"{source} does not fit {network}"
    missing, unknown = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
    if missing:
        raise CheckpointError(
            f"{misfit}: it lacks {plural(len(missing), 'tensor')}, e.g. {missing[0]}."
        )
    if unknown:
        raise CheckpointError(
            f"{misfit}: it has {plural(len(unknown), 'unknown tensor')}, e.g. {unknown[0]}."
        )
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise CheckpointError(
                f"{misfit}: {name} has shape {tuple(tensor.shape)} instead of "
                f"{tuple(expected[name].shape)}."
            )
        if expected[name].is_floating_point() and not tensor.is_floating_point():
            raise CheckpointError(
                f"{misfit}: {name} holds {tensor.dtype}, not {expected[name].dtype}."
            )
        _check_values(name, tensor, expected[name].dtype, source)


def _check_values(name: str, tensor: Tensor, dtype: torch.dtype, source: str) -> None:
    if not tensor.is_floating_point():
        return
    values = tensor.to(dtype if dtype.is_floating_point else torch.float32)
    if not bool(torch.isfinite(values).all()):
        if bool(torch.isfinite(tensor.double()).all()):
            raise CheckpointError(
                f"{source} is damaged: {name} holds a number that {_short(values.dtype)} cannot "
                "hold."
            )
        raise CheckpointError(f"{source} is damaged: {name} holds NaN or infinity.")
    if name.endswith("running_var") and bool((values < 0).any()):
        raise CheckpointError(f"{source} is damaged: {name} holds a negative variance.")


def check_computed_weights(network: nn.Module, source: str) -> None:
    """The weights that a network computes with, in the precision that it computes in, are finite.

    Finite weights become infinite where norms are folded into them or where they are rounded to a
    type of less range.

    Raises:
        CheckpointError: One is not.
    """
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            dtype = _short(tensor.dtype)
            raise CheckpointError(
                f"{source} cannot be used in {dtype}: {name}, with its norm folded in, is beyond "
                f"what {dtype} holds.",
                "Use model.precision=float32, or bfloat16." if dtype == "float16" else "",
            )


def check_finite(what: str, *outputs: Tensor) -> None:
    """What a network gave for an image is finite. Waits for the device once.

    Raises:
        NotFinite: It is not, and would silently count as "nothing found".
    """
    if not bool(torch.stack([torch.isfinite(tensor).all() for tensor in outputs]).all()):
        raise NotFinite(f"the network gave {what} that are not finite (NaN or infinity)")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
