"""What Ray Data is told about a graph: how many actors, what each takes, what a loss means."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from segcore.distributed import cluster
from segcore.distributed.pool import PoolSize


def pool_options(
    min_actors: int, max_actors: int, pool: PoolSize | None, taken_out: Iterable[str]
) -> dict[str, Any]:
    """Arguments of `map_batches`: how many actors, what each takes of the cluster, and where.

    Args:
        pool: Size of one actor; None for actors that take no CPU.
        taken_out: Ids of the nodes on which no actor may be.
    """
    from ray.data import ActorPoolStrategy

    units_in_flight = pool.units_in_flight if pool else 1
    return {
        # No unit is queued at an actor: it would wait behind a slow one, and share its death.
        "compute": ActorPoolStrategy(
            min_size=min_actors,
            max_size=max_actors,
            max_tasks_in_flight_per_actor=units_in_flight,
            max_concurrent_calls_per_actor=units_in_flight,
            enable_true_multi_threading=units_in_flight > 1,
        ),
        "num_cpus": pool.cpus if pool else 0,
        "num_gpus": (pool.gpus or None) if pool else None,
        **cluster.away_from(taken_out),
    }


def data_context() -> Any:
    """Ray Data's settings for this graph: one bundle is one block, and no output."""
    from ray.data import DataContext

    context = DataContext.get_current().copy()
    context.target_max_block_size = None  # never split or merge bundles
    context.max_errored_blocks = -1  # a lost unit shows when the output is compared with the plan
    context.max_consecutive_actor_init_deaths = 2  # a lost machine is not a broken model
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.enable_auto_log_stats = False
    return context
