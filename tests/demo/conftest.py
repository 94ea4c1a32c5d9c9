"""One finished demo for all tests of the demo."""

from __future__ import annotations

import pytest

from segcore.demo.run import DemoOptions, DemoReport, run_demo
from tests.support import serial_run

MODEL = "tests.support.threshold_model:Threshold"


@pytest.fixture(scope="session")
def demo_report(tmp_path_factory: pytest.TempPathFactory) -> DemoReport:
    """A demo of 60 images by a model that needs no training, without Ray."""
    folder = tmp_path_factory.mktemp("demo")
    options = DemoOptions(folder, str(folder), 60, MODEL, ap50_floor=0.3)
    return run_demo(options, run_segment=serial_run.segment)
