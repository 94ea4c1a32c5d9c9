"""Whether the tensors of a file are those of a network."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from segcore.errors import CheckpointError


def check_tensors(
    given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: str, network: str
) -> None:
    """Compare names and shapes of `given` with those of `wanted`; values must be finite.

    Args:
        source: The file, for messages.
        network: What it should fit, for messages.

    Raises:
        CheckpointError: The first difference, in words.
    """
    what = f"{source} does not fit {network}"
    missing, surplus = sorted(set(wanted) - set(given)), sorted(set(given) - set(wanted))
    if missing:
        raise CheckpointError(f"{what}: {len(missing)} tensors are missing, e.g. {missing[0]}.")
    if surplus:
        raise CheckpointError(f"{what}: {len(surplus)} tensors are unknown, e.g. {surplus[0]}.")
    for name, tensor in given.items():
        if tensor.shape != wanted[name].shape:
            raise CheckpointError(
                f"{what}: {name} has shape {tuple(tensor.shape)} instead of "
                f"{tuple(wanted[name].shape)}."
            )
        if wanted[name].is_floating_point() and not tensor.is_floating_point():
            raise CheckpointError(f"{what}: {name} holds {tensor.dtype}, not {wanted[name].dtype}.")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"{source} is damaged: {name} holds NaN or infinity.")
