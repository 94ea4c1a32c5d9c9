"""Why a pool of actors failed as a whole, and which nodes are to blame for it."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress

from segcore.errors import ClusterError
from segcore.text import one_line

_ANSWER_TIMEOUT_S = 60.0


class PoolFailed(ClusterError):
    """Actors could not begin at all, on one node or on all."""

    @classmethod
    def because(cls, error: BaseException) -> PoolFailed:
        """With what went wrong inside Ray: the last line of the worker's traceback."""
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[-1] if lines else type(error).__name__
        return cls(
            f"The actor pool failed: {reason[:500]}",
            hint="Does every machine have the same versions of segcore, Ray and Python?",
        )


def find_other_code(nodes: Collection[str], code: str) -> dict[str, str]:
    """The nodes that have another segcore than the driver, or none, found by a task on each.

    Where a module is missing, an actor cannot even begin, and Ray does not tell on which node.

    Args:
        nodes: Ids of living nodes.
        code: The driver's `code_version`.

    Returns:
        Node id -> what is wrong there, for people. Nodes that do not answer are left out.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def read_code() -> str:  # Ray sends its text, because the node may not have this module
        try:
            from segcore.distributed.code_version import code_version
        except ImportError as error:
            return f"no segcore ({error})"
        return f"segcore {code_version()}"

    task = ray.remote(num_cpus=0, max_retries=0)(read_code)
    answers = {
        node: task.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
        ).remote()
        for node in nodes
    }
    ready, _ = (
        ray.wait(list(answers.values()), num_returns=len(answers), timeout=_ANSWER_TIMEOUT_S)
        if answers
        else ([], [])
    )
    found = {}
    for node, answer in answers.items():
        if answer in ready:
            with suppress(ray.exceptions.RayError):
                version = one_line(ray.get(answer), 300)
                if version != f"segcore {code}":
                    found[node] = f"This node has {version}, the driver segcore {code}."
    return found
