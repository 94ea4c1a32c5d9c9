"""Iceberg tables in a SQLite catalog and files, for tests of publishing; and what readers find."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb
import pytest

CATALOG, URL = "lake", "iceberg://lake/vision.nuclei"
TABLE_NAMES = {"images": "vision.nuclei_images", "instances": "vision.nuclei_instances"}


def use_catalog(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Have pyiceberg's configuration define `CATALOG` in a folder."""
    pytest.importorskip("pyiceberg.catalog", reason="the extra lakehouse")
    pytest.importorskip("sqlalchemy", reason="the extra lakehouse")
    folder.mkdir(parents=True, exist_ok=True)
    prefix = f"PYICEBERG_CATALOG__{CATALOG.upper()}__"
    patch.setenv(f"{prefix}TYPE", "sql")
    patch.setenv(f"{prefix}URI", f"sqlite:///{folder}/catalog.db")
    patch.setenv(f"{prefix}WAREHOUSE", f"file://{folder}")
    patch.setenv("PYICEBERG_HOME", str(folder))
    reload_config(patch)


def reload_config(patch: pytest.MonkeyPatch) -> None:
    """Have pyiceberg see what the environment says now."""
    from pyiceberg.utils.config import Config

    patch.setattr("pyiceberg.catalog._ENV_CONFIG", Config())


def lake_table(table: str) -> Any:
    """A table as pyiceberg opens it anew."""
    from pyiceberg.catalog import load_catalog

    return load_catalog(CATALOG).load_table(TABLE_NAMES[table])


def lake_rows(*, by: str = "pyiceberg") -> dict[str, list[dict[str, Any]]]:
    """Both tables, sorted and without the column `unit`; empty if they do not exist."""
    from pyiceberg.exceptions import NoSuchNamespaceError, NoSuchTableError

    tables = {}
    for name in TABLE_NAMES:
        try:
            table = lake_table(name)
        except (NoSuchTableError, NoSuchNamespaceError):
            return {}
        if by == "pyiceberg":
            rows = table.scan().to_arrow().to_pylist()
        else:  # DuckDB reads the very files that the table refers to
            files = data_files(table)
            rows = duckdb.read_parquet(files).to_arrow_table().to_pylist() if files else []
        for row in rows:
            row.pop("unit", None)
        tables[name] = sorted(rows, key=lambda r: (r["image_id"], r.get("instance_index", 0)))
    return tables


def data_files(table: Any) -> list[str]:
    """Paths of the files of the rows that readers find now."""
    return sorted(task.file.file_path.removeprefix("file://") for task in table.scan().plan_files())


def marks(table: str) -> Mapping[str, str]:
    """What the newest snapshot says about its rows."""
    snapshot = lake_table(table).current_snapshot()
    properties = snapshot.summary.additional_properties
    return {name: text for name, text in properties.items() if name.startswith("segcore.")}
