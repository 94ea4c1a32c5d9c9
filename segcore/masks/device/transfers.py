"""Copies between the host and a torch device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def download(tensor: Tensor) -> np.ndarray:
    """A copy on the host, through pinned memory; waits for what it needs and for nothing later."""
    if tensor.device.type != "cuda":
        return tensor.cpu().numpy()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    ready = torch.cuda.Event()
    ready.record(torch.cuda.current_stream(tensor.device))
    ready.synchronize()
    return host.numpy()


def upload(array: np.ndarray, device: torch.device) -> Tensor:
    """A copy on the device; on CUDA through pinned memory, without waiting."""
    host = torch.from_numpy(array)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host
