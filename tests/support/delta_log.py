"""Delta tables read by the protocol's specification alone, and by two engines of deltalake.

The specification: https://github.com/delta-io/delta/blob/master/PROTOCOL.md (readers of version 1).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segcore.storage import Storage
from segcore.storage.uris import basename

TABLES = ("images", "instances")


def delta_versions(output: str, table: str) -> list[dict[str, Any]]:
    """Each version of a table: its commit, `txn`, and `files`, the actions of what it holds."""
    storage, folder = Storage(), f"{output}/delta/{table}"
    logs = sorted(info.uri for info in storage.list(f"{folder}/_delta_log"))
    assert [basename(uri) for uri in logs] == [f"{n:020}.json" for n in range(len(logs))]
    files: dict[str, Any] = {}
    transactions: dict[str, int] = {}
    versions = []
    for uri in logs:
        actions = [json.loads(line) for line in storage.read(uri).splitlines()]
        kinds = [next(iter(action)) for action in actions]
        assert kinds.count("commitInfo") == 1
        assert {"protocol", "metaData"} <= set(kinds) or versions
        added = {a["add"]["path"]: a["add"] for a in actions if "add" in a}
        removed = {a["remove"]["path"]: a["remove"] for a in actions if "remove" in a}
        assert len(added) + len(removed) == kinds.count("add") + kinds.count("remove")
        assert not added.keys() & removed.keys(), "one commit must not do both"
        assert removed.keys() <= files.keys()
        assert not added.keys() & files.keys()
        assert all(action["dataChange"] for action in [*added.values(), *removed.values()])
        assert all(removed[path]["size"] == files[path]["size"] for path in removed)
        for action in actions:
            if "txn" in action:
                transactions[action["txn"]["appId"]] = action["txn"]["version"]
        files = {path: add for path, add in {**files, **added}.items() if path not in removed}
        commit = next(action["commitInfo"] for action in actions if "commitInfo" in action)
        versions.append({"commit": commit, "files": files, "txn": dict(transactions)})
    return versions


def delta_rows(output: str, *, by: str, version: int = -1) -> dict[str, list[dict[str, Any]]]:
    """Both tables, sorted and without the column `unit`; empty if they do not exist.

    Args:
        by: ``specification``, ``pyarrow``, ``query`` (DataFusion), or ``duckdb`` (on disk).
    """
    storage, tables = Storage(), {}
    for table in TABLES:
        folder = f"{output}/delta/{table}"
        if not any(storage.list(f"{folder}/_delta_log")):
            return {}
        rows = _read(output, folder, table, by, version).to_pylist()
        for row in rows:
            row.pop("unit", None)  # of images
        tables[table] = sorted(rows, key=lambda r: (r["image_id"], r.get("instance_index", 0)))
    return tables


def _read(output: str, folder: str, table: str, by: str, version: int) -> pa.Table:
    if by == "specification":
        files = delta_versions(output, table)[version]["files"]
        parts = [_read_file(folder, path, add) for path, add in files.items()]
        return pa.concat_tables(parts).replace_schema_metadata(None)
    import deltalake

    assert version == -1, "of the newest only"
    opened = deltalake.DeltaTable(folder, storage_options={"AWS_ALLOW_HTTP": "true"})
    if by == "pyarrow":
        return opened.to_pyarrow_table()
    if by == "query":
        query = deltalake.QueryBuilder().register("t", opened)
        counted = pa.table(query.execute("SELECT count(*) AS n FROM t").read_all())
        rows = pa.table(query.execute("SELECT * FROM t").read_all())
        assert counted["n"].to_pylist() == [rows.num_rows], "the first is from statistics alone"
        return rows
    uris = [uri.removeprefix("file://") for uri in opened.file_uris()]
    return duckdb.read_parquet(list(map(unquote, uris))).to_arrow_table()


def _read_file(folder: str, path: str, add: Mapping[str, Any]) -> pa.Table:
    """The rows of a file; what the log says of it is true."""
    name = unquote(path)
    assert not name.startswith("/")
    assert "://" not in name, "in the folder of its table"
    data = Storage().read(f"{folder}/{name}")
    assert len(data) == add["size"]
    rows = pq.read_table(pa.BufferReader(data))
    stats = json.loads(add["stats"])
    assert stats["numRecords"] == rows.num_rows
    if rows.num_rows:
        bounds = pc.min_max(rows["image_id"]).as_py()
        assert stats["minValues"]["image_id"] == bounds["min"]
        assert stats["maxValues"]["image_id"] == bounds["max"]
    return rows


def delta_files(output: Path) -> dict[str, bytes]:
    """The bytes of each file that any version of the tables has."""
    found = {}
    for table in TABLES:
        for version in delta_versions(str(output), table):
            for path in version["files"]:
                found[f"{table}/{path}"] = (output / "delta" / table / path).read_bytes()
    return found
