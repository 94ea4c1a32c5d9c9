from __future__ import annotations

import pytest
import torch

from segcore.models import torch_runtime


def test_one_thread_restores_the_number_of_threads_even_after_an_error():
    threads_inside = []

    def fail() -> None:
        with torch_runtime.one_thread():
            threads_inside.append(torch.get_num_threads())
            raise ValueError("no")

    threads_before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with pytest.raises(ValueError, match="no"):
            fail()
        assert threads_inside == [1]
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads_before)


def test_a_cpu_has_no_peak_and_nothing_to_wait_for():
    assert torch_runtime.peak_device_memory_bytes("cpu") is None
    torch_runtime.device_synchronizer("cpu")()


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_without_cuda_there_is_no_device_and_freeing_does_nothing():
    assert torch_runtime.cuda_device_count() == 0
    assert torch_runtime.cuda_device_name() == ""
    torch_runtime.free_cached_device_memory()
