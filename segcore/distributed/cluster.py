"""Ray: connecting to it without output of its own, and what its nodes offer."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from segcore.config import RayOptions
from segcore.distributed import quiet
from segcore.errors import ClusterError
from segcore.signals import SignalShield
from segcore.worker import memory

_MAX_LOCAL_START_ATTEMPTS = 3
_LISTENING_TIMEOUT_S = 10
_ADDRESS_HINT = (
    "Check --address (host:port, ray://host:port or auto) and that both sides run the same version "
    "of Ray. A cluster with a token needs RAY_AUTH_MODE=token and the token (RAY_AUTH_TOKEN or "
    "~/.ray/auth_token) here."
)
_LOCAL_START_HINT = "Is the machine overloaded, or short of memory or of disk space in /tmp?"


@dataclass(frozen=True)
class NodeResources:
    """What one machine of the cluster offers to Ray.

    Attributes:
        node_id: Ray's id of it.
        address: IP address.
        host: Name of the machine.
    """

    cpus: float
    gpus: float
    node_id: str = ""
    address: str = ""
    host: str = ""

    def label(self) -> str:
        """The node for people; several may be on one machine."""
        return f"{self.host} ({self.address}, node {self.node_id[:8]})"


@contextmanager
def connected(options: RayOptions) -> Iterator[None]:
    """A Ray connection for the block: the caller's if there is one, else a new one, closed after.

    Without an address a local Ray is started, unless the environment names a cluster
    (RAY_ADDRESS, as inside a submitted job).

    Raises:
        ClusterError: Ray does not start or the cluster cannot be reached.
    """
    quiet.set_environment()
    # An interrupt in the middle of Ray's import or start is swallowed there, or makes Ray abort
    # the process at its end, or leaves processes behind.
    shield = SignalShield()
    ray = shield.run(_import_ray)
    connect_here = not ray.is_initialized()
    with quiet.no_ray_output():
        try:
            if connect_here:
                shield.run(lambda: _connect(ray, options))
            yield
        finally:
            if connect_here:
                shield.run(ray.shutdown)  # it prints, too


def live_nodes() -> list[NodeResources]:
    """The living nodes of the connected cluster."""
    import ray

    return [_node_resources(node) for node in ray.nodes() if node["Alive"]]


def all_nodes() -> list[NodeResources]:
    """The nodes of the connected cluster, dead ones too."""
    import ray

    return [_node_resources(node) for node in ray.nodes()]


def away_from(nodes: Iterable[str]) -> dict[str, Any]:
    """Options of an actor that must not be on these nodes, given by their ids."""
    excluded = ",".join(sorted(nodes))
    return {"label_selector": {"ray.io/node-id": f"!in({excluded})"}} if excluded else {}


def _node_resources(node: dict[str, Any]) -> NodeResources:
    return NodeResources(
        cpus=node["Resources"].get("CPU", 0.0),
        gpus=node["Resources"].get("GPU", 0.0),
        node_id=node["NodeID"],
        address=node["NodeManagerAddress"],
        host=node["NodeManagerHostname"],
    )


def _import_ray() -> ModuleType:
    import ray
    import ray.data

    return ray


def _connect(ray: ModuleType, options: RayOptions) -> None:
    """Start a local Ray or connect to a cluster.

    Raises:
        ClusterError: See `connected`.
    """
    address = options.address or os.environ.get("RAY_ADDRESS") or "local"
    is_local = address == "local"
    if is_local:
        memory.limit_malloc_arenas()
    else:
        _check_listening(address)
    attempts = _MAX_LOCAL_START_ATTEMPTS if is_local else 1
    for attempt in range(1, attempts + 1):
        try:
            with quiet.no_native_stderr():
                ray.init(
                    address=address,
                    log_to_driver=False,
                    logging_level=logging.CRITICAL,
                    runtime_env=_code_to_ship() if options.ship_code else None,
                    **({"include_dashboard": False} if is_local else {}),
                )
            return
        except Exception as error:  # Ray raises bare ones, too
            ray.shutdown()
            if is_local and "timed out" in str(error) and attempt < attempts:
                continue  # Ray gives itself 30 s, which may not be enough on a busy machine
            target = "a local Ray" if is_local else f"the Ray cluster at {address}"
            raise ClusterError(
                f"Cannot connect to {target}: {' '.join(str(error).split())[:300]}",
                hint=_LOCAL_START_HINT if is_local else _ADDRESS_HINT,
            ) from None


def _check_listening(address: str) -> None:
    """Refuse an address where nothing listens; Ray itself would try for minutes.

    Raises:
        ClusterError: Nothing listens there.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return  # "auto" and the like
    try:
        server = (host.strip("[]"), int(port))
        socket.create_connection(server, timeout=_LISTENING_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"Cannot connect to the Ray cluster at {address}: {error}.", hint=_ADDRESS_HINT
        ) from None


def _code_to_ship() -> dict[str, list[str]]:
    """Ray's runtime environment with this package, for clusters whose image does not hold it."""
    package_folder = Path(__file__).resolve().parents[1]  # .../segcore
    return {"py_modules": [str(package_folder)]}
