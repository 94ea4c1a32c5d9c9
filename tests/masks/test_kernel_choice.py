"""Kernels by Triton are used only where they prove their results; shown without a GPU."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch

from segcore.masks.device import kernel_choice
from segcore.masks.device.kernel_choice import KernelChoice

CUDA = torch.device("cuda:0")  # a name: nothing is computed there


def raise_error(error: Exception) -> bool:
    raise error


@pytest.mark.parametrize(
    ("agrees", "reason"),
    [
        (lambda _: False, "other results than torch for a fixed sample"),
        (lambda _: raise_error(ModuleNotFoundError("No module named 'triton'")), "be imported"),
        (lambda _: raise_error(RuntimeError("Failed to find C compiler")), "find C compiler"),
        (lambda _: raise_error(OSError("read-only file system")), "OSError: read-only"),
    ],
)
def test_torch_is_used_where_the_check_fails_and_a_warning_says_why(agrees, reason, caplog) -> None:
    calls = []
    choice = KernelChoice("masks", lambda device: calls.append(device) or agrees(device))
    with caplog.at_level(logging.WARNING):
        assert [choice.uses_triton(CUDA) for _ in range(3)] == [False] * 3
    assert calls == [CUDA]  # checked once
    (record,) = caplog.records
    assert reason in record.getMessage()
    assert "masks on cuda:0" in record.getMessage()
    assert choice.describe(CUDA) == "masks by torch"


def test_kernels_that_agree_are_used_and_named(monkeypatch, caplog) -> None:
    monkeypatch.setattr(
        kernel_choice.importlib, "import_module", lambda name: SimpleNamespace(__version__="3.6.0")
    )
    choice = KernelChoice("masks", lambda _: True)
    assert choice.uses_triton(CUDA)
    assert choice.describe(CUDA) == "masks by Triton 3.6.0"
    assert not caplog.records


def test_other_devices_have_no_choice() -> None:
    choice = KernelChoice("masks", lambda _: pytest.fail("nothing to check"))
    for name in ("cpu", "mps", "meta"):
        assert not choice.uses_triton(torch.device(name))
        assert choice.describe(torch.device(name)) == ""


def test_a_check_that_ran_out_of_memory_decides_nothing() -> None:
    errors = [torch.OutOfMemoryError("CUDA out of memory")]
    choice = KernelChoice("masks", lambda _: not errors or raise_error(errors.pop()))
    with pytest.raises(torch.OutOfMemoryError):
        choice.uses_triton(CUDA)
    assert choice.uses_triton(CUDA)
