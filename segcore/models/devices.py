"""Devices: choosing one and a precision, and making it compute the same numbers every time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch

from segcore.errors import UsageError
from segcore.models.base import Precision

# Of a model that is only described, not run: see `segcore.models.registry.probe_model`.
PROBE_DEVICE = "meta"


def pick_device(name: str) -> torch.device:
    """The device with this name; ``auto`` takes cuda, else mps, else cpu.

    `PROBE_DEVICE` is torch's device of tensors without values.

    Raises:
        UsageError: There is no such device, or not on this machine.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise unknown_device(name) from None
    available = {
        "cpu": True,
        PROBE_DEVICE: True,
        "cuda": (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not available.get(device.type, False):
        raise UsageError(f"The device {name!r} is not on this machine.", "Use --device auto.")
    return device


def unknown_device(name: str) -> UsageError:
    """What to raise for a name that no device has."""
    return UsageError(f"There is no device named {name!r}.", "Use auto, cpu, cuda, cuda:0 or mps.")


def pick_precision(name: str, device: torch.device, on_cuda: Precision = "float32") -> torch.dtype:
    """The type of a network's weights and activations.

    Args:
        name: As in `ModelOptions.precision`.
        on_cuda: What ``auto`` means on CUDA; elsewhere it is float32.

    Raises:
        UsageError: The device does not compute in it, or so slowly that it is of no use.
    """
    if name == "auto":
        name = on_cuda if device.type == "cuda" else "float32"
    if name == "float32":
        return torch.float32
    if device.type == "cpu" and name == "float16":
        raise UsageError(
            "precision float16 is for GPUs: on a CPU it is several times slower than float32.",
            "Use model.precision=float32, or bfloat16.",
        )
    if device.type == "mps":
        raise UsageError(
            f"precision {name} has not been tested on mps.", "Use model.precision=float32 there."
        )
    if device.type == "cuda" and name == "bfloat16":
        with torch.cuda.device(device):
            if not torch.cuda.is_bf16_supported(including_emulation=False):
                raise UsageError(
                    f"{torch.cuda.get_device_name()} does not compute in bfloat16.",
                    "Use model.precision=float16, or float32.",
                )
    return {"float16": torch.float16, "bfloat16": torch.bfloat16}[name]


class _ExactSettings:
    """Settings of the whole process for `exact`: the last thread that leaves restores them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads_inside = 0
        self._restore = contextlib.ExitStack()

    def enter(self) -> None:
        with self._lock:
            if self._threads_inside == 0:
                matmul = torch.backends.cuda.matmul
                self._restore.callback(setattr, matmul, "allow_tf32", matmul.allow_tf32)
                flags = torch.backends.cudnn.flags(
                    enabled=True, benchmark=False, deterministic=True, allow_tf32=False
                )
                self._restore.enter_context(flags)
                matmul.allow_tf32 = False
            self._threads_inside += 1

    def leave(self) -> None:
        with self._lock:
            self._threads_inside -= 1
            if self._threads_inside == 0:
                self._restore.close()


_exact_settings = _ExactSettings()


@contextlib.contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """Full float32 and deterministic kernels on CUDA, whatever the process has set.

    Several threads may be inside at once; none of them ends it for another.
    """
    if device.type != "cuda":
        yield
        return
    _exact_settings.enter()
    try:
        yield
    finally:
        _exact_settings.leave()
