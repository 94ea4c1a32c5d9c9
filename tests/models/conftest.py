"""Weights that several test files of the models read and none changes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from segcore.models.yolo.network import YOLO11Seg, build_network
from tests.support.checkpoint_files import half


@pytest.fixture(scope="session")
def yolo_network() -> YOLO11Seg:
    """yolo11n-seg with 3 classes and random weights."""
    torch.manual_seed(3)
    return build_network("yolo11n-seg", 3, sppf_activation=True).eval()


@pytest.fixture(scope="session")
def yolo_weights(yolo_network: YOLO11Seg) -> dict[str, Tensor]:
    """Its state dict in float16, as official files hold it."""
    return half(yolo_network.state_dict())
