"""segcore: segment archives of images, masks as Parquet with COCO RLE.

The public names; everything else may change between versions:

    config = segcore.load_config(sets=["input=photos/", "output=masks/"])
    report = segcore.segment(config)      # runs the job; report.exit_code, report.to_dict()
    results = segcore.open_results(segcore.Storage(), "masks/")
    for table in results.instances(): ... # pyarrow tables, one a unit
    model = segcore.load_model("nuclei-yolo11n")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segcore.config import Config as Config
    from segcore.config import load_config as load_config
    from segcore.errors import SegcoreError as SegcoreError
    from segcore.models.registry import load_model as load_model
    from segcore.output.results import open_results as open_results
    from segcore.run.segment import segment as segment
    from segcore.storage import Storage as Storage

_HOME = {
    "Config": "segcore.config",
    "SegcoreError": "segcore.errors",
    "Storage": "segcore.storage",
    "load_config": "segcore.config",
    "load_model": "segcore.models.registry",
    "open_results": "segcore.output.results",
    "segment": "segcore.run.segment",
}
__all__ = [
    "Config",
    "SegcoreError",
    "Storage",
    "load_config",
    "load_model",
    "open_results",
    "segment",
]


def __getattr__(name: str) -> Any:
    # On first use, so that `segcore --help` and the workers import no more than they need.
    if name not in _HOME:
        raise AttributeError(f"module 'segcore' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
