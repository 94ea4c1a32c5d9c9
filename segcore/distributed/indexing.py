"""Indexing tar shards too large for one unit, where the run works: on the nodes of a cluster."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from segcore.config.schema import RayOptions
from segcore.distributed import cluster
from segcore.errors import ClusterError, SegcoreError
from segcore.sources.tar_index import IndexTask, keep_index
from segcore.text import format_bytes, plural

_THREADS = 8
_TASKS_PER_CPU = 2  # in flight: one is read while the next one waits
_MAX_RETRIES = 3


def index_shards(
    tasks: list[IndexTask], options: RayOptions, notify: Callable[[str], None]
) -> None:
    """Build the indexes of these shards and keep them.

    What a run that died has kept is not built again. Without a cluster, threads of this process do
    it.

    Raises:
        ClusterError: The cluster cannot be reached, or a task died again and again.
        StorageError: A shard cannot be read, or an index not be written.
    """
    total = format_bytes(sum(task.size for task in tasks))
    target = cluster.find_target(options)
    notify(f"Indexing {plural(len(tasks), 'large tar shard')} ({total}), which is done once.")
    if target.is_local:
        with ThreadPoolExecutor(_THREADS, "segcore-index") as pool:
            for _ in pool.map(keep_index, tasks):
                pass
        return
    with cluster.connected(options):
        n_cpus = sum(node.cpus for node in cluster.live_nodes())
        _index_on_cluster(tasks, max(1, int(n_cpus)) * _TASKS_PER_CPU)


def _index_on_cluster(tasks: list[IndexTask], max_in_flight: int) -> None:
    import ray

    build = ray.remote(num_cpus=1, max_retries=_MAX_RETRIES, scheduling_strategy="SPREAD")(_keep)
    waiting = list(reversed(tasks))
    running: list[Any] = []
    try:
        while waiting or running:
            while waiting and len(running) < max_in_flight:
                running.append(build.remote(waiting.pop()))
            (finished,), running = ray.wait(running, num_returns=1)
            ray.get(finished)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, SegcoreError):
            raise error.cause from None
        raise ClusterError(f"Indexing tar shards failed: {error.cause!r}") from error
    except ray.exceptions.RayError as error:
        raise ClusterError(f"Indexing tar shards on the cluster failed: {error}") from error
    finally:
        for reference in running:
            ray.cancel(reference)


def _keep(task: IndexTask) -> None:
    """As `keep_index`; the index itself stays in storage."""
    keep_index(task)
