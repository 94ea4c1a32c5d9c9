"""Large tars are indexed by tasks of the cluster; the driver reads the indexes alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from segcore.config.schema import RayOptions
from segcore.distributed.indexing import index_shards
from segcore.errors import ObjectNotFound
from segcore.sources import SourceOptions
from segcore.sources.tar_index import IndexTask, build_index, read_index
from segcore.storage import Storage
from tests.support.archives import tar_bytes


def _tasks(folder: Path, n: int) -> list[IndexTask]:
    storage = Storage()
    tasks = []
    for number in range(n):
        uri = f"{folder}/{number}.tar"
        storage.write(uri, tar_bytes([(f"{i}.png", b"1" * 900) for i in range(number)]))
        info = storage.stat(uri)
        index_uri = f"{folder}/indexes/{number}.parquet"
        tasks.append(
            IndexTask(uri, info.etag, info.size, "png", storage, SourceOptions(), index_uri)
        )
    return tasks


def _check(tasks: list[IndexTask]) -> None:
    notes: list[str] = []
    index_shards(tasks, RayOptions(), notes.append)
    assert notes[0].startswith(f"Indexing {len(tasks)} large tar shards (")
    for task in tasks:
        index = read_index(task)
        assert index is not None
        assert index.entries.equals(build_index(task).entries)
    Storage().delete(tasks[1].uri)
    with pytest.raises(ObjectNotFound, match=r"1\.tar does not exist"):
        index_shards(tasks, RayOptions(), notes.append)


def test_this_machine_indexes_with_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segcore.distributed.cluster.find_target", lambda options: _Local)
    _check(_tasks(tmp_path, 4))


class _Local:
    is_local = True


@pytest.mark.usefixtures("ray_session")
def test_a_cluster_indexes_with_tasks(tmp_path: Path) -> None:
    _check(_tasks(tmp_path, 6))
