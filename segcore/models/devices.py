"""Devices: choosing one, and having it compute the same numbers every time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from segcore.errors import UsageError


def pick_device(name: str) -> torch.device:
    """The device of a name; ``auto`` takes cuda, else mps, else cpu.

    Raises:
        UsageError: No such device, or none here.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(
            f"There is no device named {name!r}.", "Use auto, cpu, cuda, cuda:0 or mps."
        ) from None
    here = {
        "cpu": True,
        "cuda": (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not here.get(device.type, False):
        raise UsageError(f"The device {name!r} is not on this machine.", "Use --device auto.")
    return device


@contextlib.contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """Full float32 and deterministic kernels on CUDA, whatever the process has set."""
    if device.type != "cuda":
        yield
        return
    flags = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    before = torch.backends.cuda.matmul.allow_tf32
    with flags:
        torch.backends.cuda.matmul.allow_tf32 = False
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before
