"""Fused and folded networks compute what the plain ones do."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from segcore.models.yolo.blocks import Proto
from segcore.models.yolo.fusion import FoldedProto, fuse, fuse_for_cpu
from segcore.models.yolo.network import build_network


def randomized(network: nn.Module) -> nn.Module:
    """In eval mode, with norms and biases that make a difference."""
    generator = torch.Generator().manual_seed(3)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                tensor.data = 0.5 + torch.rand(tensor.shape, generator=generator).to(tensor)
            for tensor in (module.bias, module.running_mean):
                tensor.data = torch.randn(tensor.shape, generator=generator).to(tensor)
    return network.eval()


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (2, 2), (5, 4), (7, 10)])
def test_folding_the_upsampling_changes_nothing(size):
    torch.manual_seed(0)
    proto = randomized(Proto(6, 5, 3).double())
    nn.init.normal_(proto.upsample.bias)
    x = torch.randn(2, 6, *size, dtype=torch.float64)
    with torch.inference_mode():
        expected = proto(x)
        folded = FoldedProto(fuse(proto))
        for layout in (torch.contiguous_format, torch.channels_last):
            result = folded.to(memory_format=layout)(x.contiguous(memory_format=layout))
            assert result.shape == expected.shape
            torch.testing.assert_close(result, expected, rtol=1e-11, atol=1e-12)


def test_the_network_for_a_cpu_computes_what_the_plain_one_does():
    torch.manual_seed(0)
    network = randomized(build_network("yolo11n-seg", 2))
    x = torch.rand(1, 3, 64, 96)
    with torch.inference_mode():
        expected = network(x)
        result = fuse_for_cpu(network).to(memory_format=torch.channels_last)(x)
    assert isinstance(network.head.proto, FoldedProto)
    assert not any(isinstance(m, nn.BatchNorm2d | nn.ConvTranspose2d) for m in network.modules())
    for a, b in zip(result, expected, strict=True):
        assert (a - b).abs().max() < 1e-5 * b.abs().max()
