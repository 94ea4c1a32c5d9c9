"""What tests of whole jobs share: a configuration, an input, and the tables that come out."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import Any

import pyarrow.parquet as pq

from segcore.config import Config, load_config
from segcore.output.layout import EditionLayout, Table
from segcore.storage import Storage

BRIGHT_MODEL = "tests.support.fake_models:BrightModel"
THRESHOLD_MODEL = "tests.support.threshold_model:Threshold"


def job_config(source: object, output: object, *sets: str, model: str = BRIGHT_MODEL) -> Config:
    """The configuration of `segcore segment SOURCE OUTPUT --model MODEL --set ...`."""
    flags = {
        "input": ("input", str(source)),
        "output": ("output", str(output)),
        "model": ("model.name", model),
    }
    return load_config(sets=list(sets), flags=flags)


def write_files(folder: object, contents: Mapping[str, bytes]) -> str:
    """Write files by name into a folder, on disk or in a store; returns the folder."""
    storage = Storage()
    for name, data in contents.items():
        storage.write(f"{folder}/{name}", data)
    return str(folder)


def part_bytes(prefix: str) -> dict[str, bytes]:
    """Bytes of all parts in both tables of an edition, by their name below its prefix."""
    storage, layout = Storage(), EditionLayout(prefix)
    return {
        info.uri.removeprefix(prefix): storage.read(info.uri)
        for folder in (layout.parts_folder("images"), layout.parts_folder("instances"))
        for info in storage.list(folder)
    }


def part_bytes_by_unit(prefix: str) -> dict[str, bytes]:
    """Like `part_bytes`, without the generations in the names."""
    files = part_bytes(prefix)
    by_unit = {re.sub(r"-g\d+\.", ".", name): data for name, data in files.items()}
    assert len(by_unit) == len(files)
    return by_unit


def table_rows(prefix: str, table: Table) -> list[dict[str, Any]]:
    """All rows of `images` or `instances` below an edition's prefix, part by part."""
    storage = Storage()
    return [
        row
        for info in storage.list(EditionLayout(prefix).parts_folder(table))
        for row in pq.read_table(io.BytesIO(storage.read(info.uri))).to_pylist()
    ]


def image_rows(prefix: str) -> dict[str, dict[str, Any]]:
    """The rows of `images` by file name, which must differ: no image is there twice."""
    rows = table_rows(prefix, "images")
    by_name = {row["image_id"].replace("#", "/").rpartition("/")[2]: row for row in rows}
    assert len(by_name) == len(rows)
    return by_name
