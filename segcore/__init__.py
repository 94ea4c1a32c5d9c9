"""segcore: segment archives of images, masks as Parquet with COCO RLE.

These are the public names; everything else may change between versions:

    model = segcore.load_model("nuclei-yolo11n")
    model.predict("photo.jpg").plot()                        # a picture of the masks of one image

    report = segcore.segment("photos/", "masks/")            # runs the job; resumes if run again
    results = segcore.open_results("masks/")
    masks = results.to_pandas("instances", ["image_id", "category", "score"])
    results.plot("photo.jpg")                                # a picture of the masks of an image
    scores = segcore.evaluate("masks/", "instances_val.json").scores
    segcore.compare("masks/", "other-masks/").totals.changes
    segcore.rank("masks/", "uncertain").ranking.rows         # which images to look at first
    segcore.report("masks/", "report.html")                  # one HTML file about all of it

    config = segcore.load_config("job.yaml", sets=["input=photos/", "output=masks/"])
    report = segcore.segment(config)

Whatever goes wrong with the input, the configuration or the infrastructure is a `SegcoreError`
with a `message`, a `hint` and an `exit_code`. The folder ``jobs/`` of the repository has complete
scripts to copy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from segcore.version import __version__ as __version__

if TYPE_CHECKING:
    from segcore.api.exchange import export as export
    from segcore.api.exchange import import_corrections as import_corrections
    from segcore.api.jobs import prelabel as prelabel
    from segcore.api.jobs import reprocess as reprocess
    from segcore.api.jobs import segment as segment
    from segcore.api.quality import compare as compare
    from segcore.api.quality import evaluate as evaluate
    from segcore.api.quality import rank as rank
    from segcore.api.quality import report as report
    from segcore.api.results import open_results as open_results
    from segcore.config import Config as Config
    from segcore.config import load_config as load_config
    from segcore.config.exports import PrelabelConfig as PrelabelConfig
    from segcore.config.reprocess import ReprocessConfig as ReprocessConfig
    from segcore.errors import SegcoreError as SegcoreError
    from segcore.prediction import load_model as load_model
    from segcore.storage import Storage as Storage
    from segcore.storage import StorageOptions as StorageOptions
    from segcore.training.config import TrainConfig as TrainConfig
    from segcore.training.train import train as train

_MODULES = {
    "Config": "segcore.config",
    "PrelabelConfig": "segcore.config.exports",
    "ReprocessConfig": "segcore.config.reprocess",
    "SegcoreError": "segcore.errors",
    "Storage": "segcore.storage",
    "StorageOptions": "segcore.storage",
    "TrainConfig": "segcore.training.config",
    "compare": "segcore.api.quality",
    "evaluate": "segcore.api.quality",
    "export": "segcore.api.exchange",
    "import_corrections": "segcore.api.exchange",
    "load_config": "segcore.config",
    "load_model": "segcore.prediction",
    "open_results": "segcore.api.results",
    "prelabel": "segcore.api.jobs",
    "rank": "segcore.api.quality",
    "report": "segcore.api.quality",
    "reprocess": "segcore.api.jobs",
    "segment": "segcore.api.jobs",
    "train": "segcore.training.train",
}
__all__ = [
    "Config",
    "PrelabelConfig",
    "ReprocessConfig",
    "SegcoreError",
    "Storage",
    "StorageOptions",
    "TrainConfig",
    "compare",
    "evaluate",
    "export",
    "import_corrections",
    "load_config",
    "load_model",
    "open_results",
    "prelabel",
    "rank",
    "report",
    "reprocess",
    "segment",
    "train",
]


def __getattr__(name: str) -> Any:
    # Imported on first use, so that `segcore --help` and the workers import only what they need.
    if name not in _MODULES:
        raise AttributeError(f"module 'segcore' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
