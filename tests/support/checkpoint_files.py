"""Checkpoint files as `torch.save` and others write them, for tests."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def torch_file(root: Any, legacy: bool = False) -> bytes:
    """What `torch.save` writes for this object, in the zip format or the one before it."""
    buffer = io.BytesIO()
    torch.save(root, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def half(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, floating point numbers as float16."""
    return {k: v.half() if v.is_floating_point() else v for k, v in state_dict.items()}
