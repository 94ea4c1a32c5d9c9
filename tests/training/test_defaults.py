"""What a configuration leaves open is taken from the model that training starts from."""

from __future__ import annotations

import pytest

from segcore.errors import CheckpointError
from segcore.models.base import ModelOptions
from segcore.models.registry import load_model
from segcore.training.config import TrainConfig
from segcore.training.defaults import with_defaults


def test_without_a_model_to_start_from_there_are_fixed_defaults(tiny_config: TrainConfig) -> None:
    config = with_defaults(tiny_config)
    measured = config.validation
    assert (measured.imgsz, measured.iou, measured.max_det, config.conf) == (640, 0.6, 500, 0.25)


def test_a_fine_tuned_model_runs_at_the_settings_of_the_one_it_started_from(
    tiny_config: TrainConfig,
) -> None:
    """Else the scores of the two could not be compared."""
    config = with_defaults(tiny_config.model_copy(update={"init": "nuclei-yolo11n"}))
    start = load_model("nuclei-yolo11n", ModelOptions(device="cpu")).info.parameters
    for name in ("imgsz", "iou", "max_det"):
        assert getattr(config.validation, name) == start[name], name
    assert config.conf == start["conf"]


def test_what_the_file_says_is_kept(tiny_config: TrainConfig) -> None:
    validation = tiny_config.validation.model_copy(update={"imgsz": 96, "iou": 0.5})
    chosen = {"init": "nuclei-yolo11n", "validation": validation, "conf": 0.0}
    config = with_defaults(tiny_config.model_copy(update=chosen))
    assert (config.validation.imgsz, config.validation.iou, config.conf) == (96, 0.5, 0.0)
    assert config.validation.max_det is not None


def test_a_model_that_is_not_there_is_an_error(tiny_config: TrainConfig) -> None:
    with pytest.raises(CheckpointError, match="no-such-model"):
        with_defaults(tiny_config.model_copy(update={"init": "no-such-model"}))
