"""Settings that a configuration leaves open: those of the model that training starts from."""

from __future__ import annotations

from segcore.models.registry import load_checkpoint
from segcore.training.config import TrainConfig

_WITHOUT_INIT = {"imgsz": 640, "iou": 0.6, "max_det": 500, "conf": 0.25}


def with_defaults(config: TrainConfig) -> TrainConfig:
    """The configuration with input size and thresholds filled in.

    A fine-tuned model that ran at other settings than the one that it started from could not be
    compared with it.

    Raises:
        CheckpointError: There is no model `config.init`, or it cannot be read.
    """
    defaults = _WITHOUT_INIT
    if config.init is not None:
        meta = load_checkpoint(config.init).meta
        defaults = {name: getattr(meta, name) for name in defaults}
    validation = config.validation.model_dump()
    validation |= {name: defaults[name] for name in defaults if validation[name] is None}
    conf = defaults["conf"] if config.conf is None else config.conf
    return config.model_copy(
        update={"conf": conf, "validation": type(config.validation).model_validate(validation)}
    )
