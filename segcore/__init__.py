"""segcore: segment archives of images, masks as Parquet with COCO RLE.

These are the public names; everything else may change between versions:

    config = segcore.load_config(sets=["input=photos/", "output=masks/"])
    report = segcore.segment(config)      # runs the job; report.exit_code, report.to_dict()
    results = segcore.open_results(segcore.Storage(), "masks/")
    for table in results.instances(): ... # one pyarrow table per unit
    scores = segcore.evaluate(segcore.Storage(), "masks/", "instances_val.json").scores

    model = segcore.load_model("nuclei-yolo11n")
    model.predict("photo.jpg").plot()     # a picture of the masks of one image

Whatever goes wrong with the input, the configuration or the infrastructure is a `SegcoreError`
with a `message`, a `hint` and an `exit_code`. The folder ``jobs/`` of the repository has complete
scripts to copy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segcore.config import Config as Config
    from segcore.config import load_config as load_config
    from segcore.errors import SegcoreError as SegcoreError
    from segcore.evaluation.evaluate import evaluate as evaluate
    from segcore.output.results import open_results as open_results
    from segcore.prediction import load_model as load_model
    from segcore.run.segment import segment as segment
    from segcore.storage import Storage as Storage
    from segcore.training.config import TrainConfig as TrainConfig
    from segcore.training.train import train as train

__version__ = "0.1.0"  # pyproject.toml takes it from here

_MODULES = {
    "Config": "segcore.config",
    "SegcoreError": "segcore.errors",
    "Storage": "segcore.storage",
    "TrainConfig": "segcore.training.config",
    "evaluate": "segcore.evaluation.evaluate",
    "load_config": "segcore.config",
    "load_model": "segcore.prediction",
    "open_results": "segcore.output.results",
    "segment": "segcore.run.segment",
    "train": "segcore.training.train",
}
__all__ = [
    "Config",
    "SegcoreError",
    "Storage",
    "TrainConfig",
    "evaluate",
    "load_config",
    "load_model",
    "open_results",
    "segment",
    "train",
]


def __getattr__(name: str) -> Any:
    # Imported on first use, so that `segcore --help` and the workers import only what they need.
    if name not in _MODULES:
        raise AttributeError(f"module 'segcore' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
