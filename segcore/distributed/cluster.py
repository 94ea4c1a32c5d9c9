"""Ray: connecting to it without output of its own, and what its nodes offer."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from segcore.config import RayOptions
from segcore.distributed import quiet
from segcore.distributed.cluster_token import matching_token_mode
from segcore.distributed.code_version import code_to_ship
from segcore.distributed.local_token import own_token
from segcore.distributed.private_folder import RAY_FOLDER, private_folder
from segcore.errors import ClusterError, UsageError
from segcore.signals import SignalShield
from segcore.storage import is_remote
from segcore.text import plural, redact_link
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

    def is_on_this_machine(self) -> bool:
        """Whether this process is on the same machine: both its name and its address are ours."""
        if self.host != socket.gethostname():
            return False
        family = socket.AF_INET6 if ":" in self.address else socket.AF_INET
        try:
            with socket.socket(family) as probe:
                probe.bind((self.address, 0))  # the system refuses addresses of others
        except OSError:
            return False
        return True

    def label(self) -> str:
        """The node for people; several may be on one machine."""
        return f"{self.host} ({self.address}, node {self.node_id[:8]})"


@dataclass(frozen=True)
class RayTarget:
    """Which Ray a run uses.

    Attributes:
        address: Of the cluster; "" where a local Ray is started for the run.
        origin: Where the address comes from, for people; "" where no need to say.
        kept_folder: The folder of a local Ray, if it stays at the end.
    """

    address: str = ""
    origin: str = ""
    kept_folder: Path | None = None

    @property
    def is_local(self) -> bool:
        """Whether it is a Ray that we start on this machine."""
        return not self.address and not self.origin

    def describe(self, nodes: Sequence[NodeResources]) -> str:
        """What is used, as a sentence for people."""
        cpus = plural(sum(node.cpus for node in nodes), "CPU")
        gpus = sum(node.gpus for node in nodes)
        size = f"{cpus} and {plural(gpus, 'GPU')}" if gpus else cpus
        if self.is_local:
            kept = f" Its logs stay in {self.kept_folder}." if self.kept_folder else ""
            return f"Started a local Ray with {size}.{kept}"
        return f"Using {self.name()}: {plural(len(nodes), 'node')} with {size}."

    def name(self) -> str:
        """The cluster for people, without what may be secret in its address."""
        if not self.address:
            return f"the Ray cluster {self.origin}"
        address = redact_link(self.address)
        return f"the Ray cluster at {address}" + (f" ({self.origin})" if self.origin else "")


def find_target(options: RayOptions) -> RayTarget:
    """Which Ray `connected` uses: the caller's, a named one, or a new local one.

    Ray is not imported for this.
    """
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        return RayTarget(origin="that this process is connected to")
    if options.address:
        return RayTarget() if options.address == "local" else RayTarget(options.address)
    address = os.environ.get("RAY_ADDRESS") or "local"
    return RayTarget() if address == "local" else RayTarget(address, "RAY_ADDRESS")


@contextmanager
def connected(options: RayOptions, **resources: int) -> Iterator[RayTarget]:
    """A Ray connection for the block: the caller's if there is one, else a new one, closed after.

    Without an address a local Ray is started, unless the environment names a cluster
    (RAY_ADDRESS, as inside a submitted job).

    Args:
        resources: What a local Ray offers (num_cpus, num_gpus); by default what the machine has.

    Raises:
        ClusterError: Ray does not start or the cluster cannot be reached.
    """
    quiet.set_environment()
    # An interrupt in the middle of Ray's import or start is swallowed there, or makes Ray abort
    # the process at its end, or leaves processes behind.
    shield = SignalShield()
    ray = shield.run(_import_ray)
    target = find_target(options)
    connect_here = not ray.is_initialized()
    with ExitStack() as stack:
        stack.enter_context(quiet.no_ray_output())
        folder: Path | None = None
        if target.is_local:
            private = stack.enter_context(private_folder(keep=options.keep_logs))
            stack.enter_context(own_token(private))
            folder = private / RAY_FOLDER
            target = replace(target, kept_folder=folder if options.keep_logs else None)
        try:
            if connect_here:
                shield.run(lambda: _connect(ray, options, target, folder, resources))
            yield target
        finally:
            if connect_here:
                shield.run(ray.shutdown)  # it prints, too


@contextmanager
def local_ray_with_gpus(options: RayOptions, cpus: int, gpus: int) -> Iterator[None]:
    """A local Ray for the block that believes in so many CPUs and GPUs, whatever the machine has.

    Jobs within the block use it. What a worker finds on its GPU is another matter.

    Raises:
        ClusterError: Ray does not start.
    """
    options = options.model_copy(update={"address": "local"})
    with connected(options, num_cpus=cpus, num_gpus=gpus):
        yield


def nodes_elsewhere() -> list[NodeResources]:
    """The living nodes of the connected cluster that are not on this machine."""
    return [node for node in live_nodes() if not node.is_on_this_machine()]


def check_paths_shared(options: RayOptions, paths: Iterable[tuple[str, str]]) -> None:
    """Refuse local paths on a Ray cluster that has other machines.

    Args:
        paths: (what it is for people, URI).

    Raises:
        UsageError: A path is local, the cluster has other machines, and nothing says that they
            share it.
        ClusterError: The cluster cannot be reached.
    """
    local_paths = [(name, uri) for name, uri in paths if not is_remote(uri)]
    if not local_paths or options.shared_paths or find_target(options).is_local:
        return
    with connected(options) as target:
        others = nodes_elsewhere()
    if others:
        name, uri = local_paths[0]
        raise UsageError(
            f"The {name} {uri} is a local path, but {target.name()} has other machines, such as "
            f"{others[0].label()}.",
            hint="Use s3:// URIs, or --set ray.shared_paths=true when every machine sees "
            "the same files there.",
        )


def live_nodes() -> list[NodeResources]:
    """The living nodes of the connected cluster."""
    import ray

    return [_node_resources(node) for node in ray.nodes() if node["Alive"]]


def all_nodes() -> list[NodeResources]:
    """The nodes of the connected cluster, dead ones too."""
    import ray

    return [_node_resources(node) for node in ray.nodes()]


def this_node() -> str:
    """The id of the node that the calling process, driver or actor, is on."""
    import ray

    return str(ray.get_runtime_context().get_node_id())


def cpus_of_this_node() -> float:
    """The CPUs of the node that the calling actor is on."""
    node_id = this_node()
    return sum(node.cpus for node in live_nodes() if node.node_id == node_id)


def away_from(nodes: Iterable[str]) -> dict[str, Any]:
    """Options of an actor that must not be on these nodes, given by their ids."""
    excluded = ",".join(sorted(nodes))
    return {"label_selector": {"ray.io/node-id": f"!in({excluded})"}} if excluded else {}


def on_node(node_id: str) -> dict[str, Any]:
    """Options of an actor or a task that must be on this node."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node_id, soft=False)}


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


def _connect(
    ray: ModuleType,
    options: RayOptions,
    target: RayTarget,
    folder: Path | None,
    resources: dict[str, int],
) -> None:
    """Start a local Ray or connect to a cluster.

    Args:
        folder: For the temporary files of a local Ray.
        resources: What a local Ray offers.

    Raises:
        ClusterError: See `connected`.
    """
    is_local = target.is_local
    arguments: dict[str, Any] = {"include_dashboard": False, **resources}
    if is_local:
        memory.limit_malloc_arenas()
        arguments["_temp_dir"] = str(folder)
    else:
        _check_listening(target)
        arguments = {}
    attempts = _MAX_LOCAL_START_ATTEMPTS if is_local else 1
    for attempt in range(1, attempts + 1):
        try:
            wanted = "local" if is_local else target.address
            with matching_token_mode(wanted), quiet.no_native_stderr():
                ray.init(
                    address=wanted,
                    log_to_driver=False,
                    logging_level=logging.CRITICAL,
                    runtime_env=code_to_ship() if options.ship_code else None,
                    **arguments,
                )
            return
        except Exception as error:  # Ray raises bare ones, too
            ray.shutdown()
            if is_local and "timed out" in str(error) and attempt < attempts:
                continue  # Ray gives itself 30 s, which may not be enough on a busy machine
            name = "a local Ray" if is_local else target.name()
            raise ClusterError(
                f"Cannot connect to {name}: {' '.join(str(error).split())[:300]}",
                hint=_LOCAL_START_HINT if is_local else _ADDRESS_HINT,
            ) from None


def _check_listening(target: RayTarget) -> None:
    """Refuse an address where nothing listens; Ray itself would try for minutes.

    Raises:
        ClusterError: Nothing listens there.
    """
    host, _, port = target.address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return  # "auto" and the like
    try:
        server = (host.strip("[]"), int(port))
        socket.create_connection(server, timeout=_LISTENING_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"Cannot connect to {target.name()}: {error}.", hint=_ADDRESS_HINT
        ) from None
