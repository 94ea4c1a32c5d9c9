"""The state of torch in a process, for packages that may not import it: threads, GPUs, memory.

Only models/, masks/device/ and training/ import torch; all others call these functions. They
import torch when they are called, so that a process which does not need it starts without it.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from segcore.models.base import Model


def use_one_thread() -> None:
    """Let torch compute every operation on one CPU thread in this process from now on."""
    import torch

    torch.set_num_threads(1)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on one CPU thread within the block, then on as many as before."""
    import torch

    threads_before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads_before)


def cuda_device_count() -> int:
    """CUDA devices that this process sees."""
    import torch

    return int(torch.cuda.device_count())


def cuda_device_name() -> str:
    """Name of the current CUDA device; "" where there is none."""
    import torch

    return str(torch.cuda.get_device_name()) if torch.cuda.is_available() else ""


def describe_runtime(device: str, model: Model) -> str:
    """What decides the last bits of a network's outputs besides the edition, for people.

    For example ``NVIDIA H200, torch 2.11.0+cu130, batches of 32, masks by Triton 3.6.0``.

    Args:
        device: As in `ModelOptions.device`.
        model: On this device; its `describe_kernels`, if it has one, adds what it says.
    """
    import torch

    on_cuda = device.startswith("cuda")
    name = cuda_device_name() if on_cuda else device
    if device == "cpu":
        name += f" ({torch.backends.cpu.get_cpu_capability()})"
    kernels = model.describe_kernels() if hasattr(model, "describe_kernels") else ""
    text = f"{name}, torch {torch.__version__}, batches of {model.batch_size:,}"
    return f"{text}, {kernels}" if kernels else text


def limit_device_memory(share: float) -> None:
    """Let this process take no more than a share (0 to 1) of the memory of its CUDA device."""
    import torch

    torch.cuda.set_per_process_memory_fraction(share)


def free_cached_device_memory() -> None:
    """Collect garbage and give the blocks that torch caches back to the CUDA device, if any."""
    gc.collect()
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def peak_device_memory_bytes(device: str) -> int | None:
    """Most bytes that torch has held on a CUDA device in this process; None for other devices.

    Args:
        device: As in `ModelOptions.device`, for example ``cuda:0``.
    """
    import torch

    return int(torch.cuda.max_memory_allocated()) if device.startswith("cuda") else None


def device_synchronizer(device: str) -> Callable[[], None]:
    """A function that waits until `device` has completed its queued work; does nothing on a CPU."""
    if not device.startswith("cuda"):
        return lambda: None
    import torch

    return torch.cuda.synchronize
