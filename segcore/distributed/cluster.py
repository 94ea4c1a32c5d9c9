"""Ray: connecting quietly, and how many actors of which size fit."""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

from segcore.config import RayOptions
from segcore.distributed import quiet
from segcore.errors import ClusterError, UsageError
from segcore.signals import SignalShield
from segcore.worker import memory

START_ATTEMPTS = 3
_READER_CPUS = 4.0  # more readers of fewer CPUs each would hold more copies of the libraries
HINT_ADDRESS = (
    "Check --address (host:port, ray://host:port or auto) and that both sides run the same Ray. A "
    "cluster with a token needs RAY_AUTH_MODE=token and the token (RAY_AUTH_TOKEN or "
    "~/.ray/auth_token) here."
)


@dataclass(frozen=True)
class NodeResources:
    """What one machine of the cluster offers to Ray."""

    cpus: float
    gpus: float


@dataclass(frozen=True)
class PoolSize:
    """The actors of a run: from `min_actors` to `max_actors`, each of this size.

    Attributes:
        units_in_flight: Units that an actor works on at once.
        readers: Actors that only read and decode; 0: each actor does so for itself.
        cpus_per_reader: CPUs of each of them.
    """

    min_actors: int
    max_actors: int
    cpus: float
    gpus: float
    device: str
    units_in_flight: int = 1
    readers: int = 0
    cpus_per_reader: float = 1.0

    @property
    def threads(self) -> int:
        """Threads an actor may keep busy."""
        return max(1, int(self.cpus))

    @property
    def reading_threads(self) -> int:
        """Decoders of whoever reads."""
        return max(1, int(self.cpus_per_reader)) if self.readers else self.threads

    def of_readers(self) -> PoolSize:
        """What a reader takes, as a pool."""
        return PoolSize(self.readers, self.readers, self.cpus_per_reader, 0.0, "cpu")

    def summary(self) -> str:
        """For people: ``2 actors, 1 CPU each``."""
        count = str(self.max_actors)
        if self.min_actors != self.max_actors:
            count = f"{self.min_actors} to {count}"
        actors = "actor" if count == "1" else "actors"
        cpus = "1 CPU" if self.cpus == 1 else f"{self.cpus:g} CPUs"
        gpu = f" and {self.gpus:g} GPU" if self.gpus else ""
        readers = f" and {self.readers} readers, {self.cpus_per_reader:g} CPU each"
        beside = readers if self.readers else ""
        return f"{count} {actors}, {cpus}{gpu} each ({self.device}){beside}"


@contextmanager
def connected(options: RayOptions) -> Iterator[None]:
    """A Ray connection for the block: the caller's own if there is one, else ours, closed after.

    Without an address a local Ray is started, unless the environment names a cluster
    (RAY_ADDRESS, as inside a submitted job).

    Raises:
        ClusterError: Ray does not start or the cluster cannot be reached.
    """
    quiet.set_environment()
    # An interrupt in the middle of Ray's import or start is swallowed there, or makes Ray abort
    # the process at its end, or leaves processes behind.
    aside = SignalShield()
    ray = aside.run(_import)
    ours = not ray.is_initialized()
    with quiet.no_ray_output():
        try:
            if ours:
                aside.run(lambda: _connect(ray, options))
            yield
        finally:
            if ours:
                aside.run(ray.shutdown)  # has last words, too


def live_nodes() -> list[NodeResources]:
    """The living nodes of the connected cluster."""
    import ray

    return [
        NodeResources(node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0))
        for node in ray.nodes()
        if node["Alive"]
    ]


def size_pool(
    options: RayOptions, device: str, units: int, cluster: Sequence[NodeResources]
) -> PoolSize:
    """Size the actor pool for a number of units, and that of its readers in the layout `split`.

    On CPUs: as many actors as cores, each with one thread; with fewer units than cores the
    cores are shared out among fewer actors. On GPUs: one actor per GPU, CPUs shared out.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``, as asked for.

    Raises:
        UsageError: The requests contradict each other.
        ClusterError: The cluster cannot give what was asked for.
    """
    pool = _actors(options, device, units, cluster)
    return _with_readers(pool, options, cluster) if options.layout == "split" else pool


def _with_readers(
    pool: PoolSize, options: RayOptions, cluster: Sequence[NodeResources]
) -> PoolSize:
    """The same actors with one CPU each, and readers on what is left of the CPUs.

    Without GPUs the network is nearly all of the work: then there is one reader.
    """
    cpus = options.cpus_per_actor or 1.0
    total = sum(node.cpus for node in cluster)
    actors = pool.max_actors if pool.gpus or options.max_actors else max(1, pool.max_actors - 1)
    left = total - actors * cpus
    each = max(1.0, min(_READER_CPUS, float(int(left)))) if pool.gpus else 1.0
    readers = options.readers or (max(1, int(left // each)) if pool.gpus else 1)
    if readers * each > left and not options.autoscaling:
        raise ClusterError(
            f"The layout `split` needs {readers} reader(s) of {each:g} CPU(s) besides {actors} "
            f"actor(s) of {cpus:g}, but the cluster has {total:g} CPUs.",
            hint="Use fewer --actors or ray.readers, or leave ray.layout at fused.",
        )
    return replace(
        pool,
        min_actors=min(pool.min_actors, actors),
        max_actors=actors,
        cpus=cpus,
        readers=readers,
        cpus_per_reader=each,
    )


def _actors(
    options: RayOptions, device: str, units: int, cluster: Sequence[NodeResources]
) -> PoolSize:
    gpus = _gpus_per_actor(options, device, cluster)
    # On a GPU the next unit is read while one is being written; on a CPU the cores are busy anyway.
    in_flight = options.units_in_flight or (2 if gpus else 1)
    if options.autoscaling:
        most = options.max_actors or max(units, options.min_actors or 1)
        return PoolSize(
            min_actors=min(options.min_actors or 1, most),
            max_actors=most,
            cpus=options.cpus_per_actor or 1,
            gpus=gpus,
            device=_device(device, gpus),
            units_in_flight=in_flight,
        )
    cpu_total = sum(node.cpus for node in cluster)
    gpu_total = sum(node.gpus for node in cluster)
    room = max(1, int(cpu_total / (options.cpus_per_actor or 1)))
    if gpus:
        room = sum(math.floor(node.gpus / gpus) for node in cluster)
    if gpus and room < (options.min_actors or 1):
        raise ClusterError(
            f"{options.min_actors or 1} actor(s) with {gpus:g} GPU each were asked for, but the "
            f"cluster has {gpu_total:g} GPU(s).",
            hint="Use --device cpu, lower ray.gpus_per_actor or --actors, or set "
            "ray.autoscaling=true when the cluster adds nodes on demand.",
        )
    most = min(options.max_actors or max(room, options.min_actors or 1), max(units, 1))
    least = min(options.min_actors or most, most)
    cpus = options.cpus_per_actor or _share(most, cluster, gpus)
    fits = _fits(cpus, gpus, cluster)
    if fits < least:
        each = f"{cpus:g} CPU(s)" + (f" and {gpus:g} GPU" if gpus else "")
        raise ClusterError(
            f"{least} actor(s) with {each} each were asked for, but the cluster ({cpu_total:g} "
            f"CPUs, {gpu_total:g} GPUs, {len(cluster)} node(s)) holds {fits}.",
            hint="Lower ray.cpus_per_actor or --actors, or set ray.autoscaling=true when the "
            "cluster adds nodes on demand.",
        )
    return PoolSize(least, most, cpus, gpus, _device(device, gpus), in_flight)


def _gpus_per_actor(options: RayOptions, device: str, cluster: Sequence[NodeResources]) -> float:
    wants = device.startswith("cuda")
    if options.gpus_per_actor is not None:
        if options.gpus_per_actor and not (wants or device == "auto"):
            raise UsageError(
                f"ray.gpus_per_actor is {options.gpus_per_actor:g}, but the device is `{device}`.",
                hint="Drop one of the two; --device cuda or auto goes with GPUs.",
            )
        if wants and not options.gpus_per_actor:
            raise UsageError("The device is `cuda`, but ray.gpus_per_actor is 0.")
        return options.gpus_per_actor
    if wants:
        return 1.0
    return 1.0 if device == "auto" and any(node.gpus >= 1 for node in cluster) else 0.0


def _device(device: str, gpus: float) -> str:
    if gpus:
        return "cuda"
    return "cpu" if device == "auto" else device


def _share(actors: int, cluster: Sequence[NodeResources], gpus: float) -> float:
    """CPUs for each of `actors`, so that all of them fit; a fraction when actors outnumber CPUs."""
    total = sum(node.cpus for node in cluster)
    share = total / actors
    if share < 1:
        return max(0.01, math.floor(share * 100) / 100)
    whole = int(min(share, max(node.cpus for node in cluster)))
    while whole > 1 and _fits(whole, gpus, cluster) < actors:
        whole -= 1
    return float(whole)


def _fits(cpus: float, gpus: float, cluster: Sequence[NodeResources]) -> int:
    """How many actors of this size the nodes hold."""
    slack = 1e-9  # shares are decimal fractions
    return sum(
        int(min(node.cpus / cpus, node.gpus / gpus if gpus else math.inf) + slack)
        for node in cluster
    )


def _import() -> ModuleType:
    import ray
    import ray.data

    return ray


def _connect(ray: ModuleType, options: RayOptions) -> None:
    address = options.address or os.environ.get("RAY_ADDRESS") or "local"
    local = address == "local"
    if local:
        memory.limit_malloc_arenas()
    else:
        _check_listening(address)
    extra = {"include_dashboard": False} if local else {}
    for attempt in range(START_ATTEMPTS if local else 1):
        try:
            with quiet.no_native_stderr():
                ray.init(
                    address=address,
                    log_to_driver=False,
                    logging_level=logging.CRITICAL,
                    runtime_env=_shipped() if options.ship_code else None,
                    **extra,
                )
            return
        except Exception as error:  # Ray raises bare ones too
            ray.shutdown()
            if local and "timed out" in str(error) and attempt + 1 < START_ATTEMPTS:
                continue  # Ray gives itself 30 s, which a busy machine may not keep
            where = "a local Ray" if local else f"the Ray cluster at {address}"
            raise ClusterError(
                f"Cannot connect to {where}: {' '.join(str(error).split())[:300]}",
                hint="Is the machine overloaded, or short of memory or disk in /tmp?"
                if local
                else HINT_ADDRESS,
            ) from None


def _check_listening(address: str) -> None:
    """Refuse an address where nothing listens; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return  # "auto" and the like
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"Cannot connect to the Ray cluster at {address}: {error}.", hint=HINT_ADDRESS
        ) from None


def _shipped() -> dict[str, list[str]]:
    """Our own code, for clusters whose image does not hold it."""
    root = Path(__file__).resolve().parent.parent
    return {"py_modules": [str(root / "segcore"), str(root / "jobs")]}
