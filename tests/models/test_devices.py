"""Devices, precisions, and settings for exact arithmetic."""

from __future__ import annotations

import pytest
import torch

from segcore.errors import UsageError
from segcore.models.devices import exact, pick_device, pick_precision


def test_devices_that_are_not_on_this_machine_are_refused() -> None:
    assert pick_device("cpu").type == "cpu"
    with pytest.raises(UsageError, match="no device named 'gpu'"):
        pick_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="'cuda:3' is not on this machine"):
            pick_device("cuda:3")


def test_precisions_that_a_device_does_not_have_are_refused() -> None:
    with pytest.raises(UsageError, match="float16 is for GPUs"):
        pick_precision("float16", torch.device("cpu"))
    for precision in ("float16", "bfloat16"):
        with pytest.raises(UsageError, match="not been tested on mps"):
            pick_precision(precision, torch.device("mps"))
    assert pick_precision("float32", torch.device("mps")) == torch.float32
    assert pick_precision("float16", torch.device("cuda")) == torch.float16


def test_auto_is_float32_except_on_cuda() -> None:
    for device, on_cuda, dtype in (
        ("cpu", "float16", torch.float32),
        ("mps", "float16", torch.float32),
        ("cuda", "float16", torch.float16),
        ("cuda", "float32", torch.float32),
    ):
        assert pick_precision("auto", torch.device(device), on_cuda) == dtype  # type: ignore[arg-type]


def test_exact_settings_last_until_the_last_thread_leaves() -> None:
    """The settings are the process's; they can be made without a GPU."""
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32, cudnn.deterministic, torch.backends.cuda.matmul.allow_tf32
    first, second = exact(torch.device("cuda")), exact(torch.device("cuda"))
    try:
        torch.backends.cuda.matmul.allow_tf32 = True
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert not cudnn.allow_tf32
        assert cudnn.deterministic
        assert not torch.backends.cuda.matmul.allow_tf32
        second.__exit__(None, None, None)
        assert (cudnn.allow_tf32, cudnn.deterministic) == before[:2]
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before[2]
