"""Why a pool of actors failed as a whole, and which nodes are to blame for it."""

from __future__ import annotations

from collections.abc import Collection

from segcore.distributed import cluster
from segcore.errors import ClusterError
from segcore.text import one_line

_ANSWER_TIMEOUT_S = 60.0  # a busy machine takes half a minute to start a process


class PoolFailed(ClusterError):
    """Actors could not begin at all, on one node or on all."""

    @classmethod
    def because(cls, error: BaseException) -> PoolFailed:
        """With what went wrong inside Ray."""
        return cls(
            f"The actor pool failed: {_last_line(error)}",
            hint="Does every machine have the same versions of segcore, Ray and Python?",
        )


def find_broken_nodes(nodes: Collection[str], code: str) -> dict[str, str]:
    """The nodes that run no task, or have another segcore than the driver; one task tries each.

    Where a module is missing or the disk is full, an actor cannot even begin, and Ray does not tell
    on which node.

    Args:
        nodes: Ids of living nodes.
        code: The driver's `code_version`.

    Returns:
        Node id -> what is wrong there, for people. Nodes that do not answer in time are left out.
    """
    import ray

    if not nodes:
        return {}

    def read_code() -> str:  # Ray sends its text, because the node may not have this module
        try:
            from segcore.distributed.code_version import code_version
        except ImportError as error:
            return f"no segcore ({error})"
        return f"segcore {code_version()}"

    task = ray.remote(num_cpus=0, max_retries=0)(read_code)
    answers = {task.options(**cluster.on_node(node)).remote(): node for node in nodes}
    ready, _ = ray.wait(list(answers), num_returns=len(answers), timeout=_ANSWER_TIMEOUT_S)
    broken = {}
    for answer in ready:
        try:
            version = one_line(ray.get(answer), 300)
        except ray.exceptions.RayError as error:
            broken[answers[answer]] = f"No process can be started there: {_last_line(error)}"
            continue
        if version != f"segcore {code}":
            broken[answers[answer]] = f"This node has {version}, the driver segcore {code}."
    return broken


def _last_line(error: BaseException) -> str:
    """What went wrong inside Ray, in one line: the last of the worker's traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return one_line(lines[-1] if lines else type(error).__name__, 500)
