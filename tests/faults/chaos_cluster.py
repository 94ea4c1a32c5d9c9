"""A Ray cluster of several nodes on this machine, whose nodes can be killed.

It lives in a process of its own, so that the tests' process never touches Ray, and so that all
its processes can be found and ended as descendants of that one.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from tests.support.commands import kill_trees
from tests.support.paths import ROOT

NODES = 2
_MAX_START_ATTEMPTS = 4

# A lost node is noticed within seconds, not half a minute; a busy machine still answers in time.
HEALTH = {
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "4",
}


class RealCluster:
    """A head node without CPUs, where drivers connect, and worker nodes with one CPU each.

    Attributes:
        address: For `--address`.
        environment: What a driver needs besides the address: the cluster's token.
        nodes: How many worker nodes should be alive.
    """

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        self.environment = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            # makes Ray take 127.0.0.1 for this machine's address, on Linux, too
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        }
        with log.open("w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.chaos_cluster"],
                cwd=ROOT,
                env={**os.environ, **environment, **HEALTH, **self.environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                start_new_session=True,
            )
        self._log = log
        self.nodes = NODES
        self.address = str(self._read_answer()["address"])

    def remove_node(self, index: int) -> None:
        """Kill a worker node with all that runs on it."""
        self.nodes = self._request(remove=index)["nodes"]

    def add_node(self, environment: Mapping[str, str] | None = None) -> None:
        """Add a worker node, with an environment of its own; returns when the cluster knows it."""
        self.nodes = self._request(add=dict(environment or {}))["nodes"]

    def workers(self) -> list[psutil.Process]:
        """All processes below the cluster: its own, actors and tasks."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def stop(self) -> None:
        """Ask it to end, and kill what is left after half a minute."""
        processes = [psutil.Process(self.process.pid), *self.workers()]
        if self.process.poll() is None and self.process.stdin is not None:
            self.process.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(30)
        kill_trees(processes)
        self.process.wait()

    def _request(self, **request: int | dict[str, str]) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._read_answer()

    def _read_answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"The Ray cluster ended:\n{self._log.read_text()[-3000:]}")
        return dict(json.loads(line))


def _patiently(start: Callable[[], Any]) -> Any:
    """What `start` gives: Ray gives itself 30 s, which may not be enough on a busy machine."""
    for _ in range(_MAX_START_ATTEMPTS - 1):
        with suppress(Exception):  # Ray raises bare ones
            return start()
    return start()


def main() -> None:
    """Keep a cluster up until stdin ends; each line of stdin is a request in JSON."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Ray prints; answers must stay JSON
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False}
    cluster = _patiently(lambda: Cluster(initialize_head=True, head_node_args=head))
    nodes = [_patiently(lambda: cluster.add_node(num_cpus=1)) for _ in range(NODES)]

    def answer(**values: str | int) -> None:
        out.write(json.dumps(values) + "\n")
        out.flush()

    answer(address=cluster.address)
    for line in sys.stdin:
        request = json.loads(line)
        if "remove" in request:
            cluster.remove_node(nodes.pop(request["remove"] % len(nodes)), allow_graceful=False)
        else:
            variables = request["add"] or None
            nodes.append(_patiently(lambda v=variables: cluster.add_node(num_cpus=1, env_vars=v)))
        answer(nodes=len(nodes))
    cluster.shutdown()


if __name__ == "__main__":
    main()
