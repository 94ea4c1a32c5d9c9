"""How many actors of which size a run has on the nodes of a cluster."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from segcore.config import RayOptions
from segcore.distributed.cluster import NodeResources
from segcore.errors import ClusterError, UsageError
from segcore.text import plural

# Where ray.readers asks for few. By default each has one: threads that decode wait for each other
# (docs/performance.md), and another copy of the libraries takes only 0.3 GB.
_MAX_CPUS_PER_READER = 4
# Layout `auto`: with fewer CPUs for each GPU, one for the worker is missed in decoding.
_MIN_CPUS_PER_SPLIT_GPU = 3
_MIN_CPU_SHARE = 0.01
# Of a cluster that adds nodes on demand, unless ray.max_actors says otherwise.
MAX_AUTOSCALED_ACTORS = 64
# A node takes minutes to start: it is not asked for so that each of its actors does one unit.
_MIN_UNITS_PER_AUTOSCALED_ACTOR = 4
_ROUNDING_SLACK = 1e-9  # shares are decimal fractions


@dataclass(frozen=True)
class PoolSize:
    """The actors of a run: from `min_actors` to `max_actors`, each of this size.

    Attributes:
        cpus, gpus: What each actor takes.
        device: ``cpu``, ``cuda`` or ``mps``.
        units_in_flight: Units that an actor works on at once.
        readers: Actors that only read and decode; 0: each actor does so for itself.
        cpus_per_reader: CPUs that each reader takes.
        grows: The cluster adds nodes on demand.
    """

    min_actors: int
    max_actors: int
    cpus: float
    gpus: float
    device: str
    units_in_flight: int = 1
    readers: int = 0
    cpus_per_reader: float = 1.0
    grows: bool = False

    @property
    def threads(self) -> int:
        """Threads that an actor may keep busy."""
        return max(1, int(self.cpus))

    @property
    def decode_threads(self) -> int:
        """Threads that decode in each process that reads: a reader, or else an actor."""
        return max(1, int(self.cpus_per_reader)) if self.readers else self.threads

    def fits_on(self, node: NodeResources) -> bool:
        """Whether the node has room for an actor."""
        return _count_fitting_actors(self.cpus, self.gpus, [node]) > 0

    def fills(self, nodes: Sequence[NodeResources]) -> bool:
        """Whether there are so many of these actors that each node must have one."""
        room = _count_fitting_actors(self.cpus, self.gpus, nodes)
        return not self.grows and self.min_actors >= room

    def on_nodes(self, nodes: Sequence[NodeResources]) -> PoolSize:
        """As many of these actors as fit on the nodes that are left; more come where it `grows`.

        Where not even one actor fits beside one reader, actors read for themselves: an actor that
        waits for a reader that has no room would wait forever.
        """
        if self.grows:
            return self
        actors = max(1, min(self.max_actors, _count_fitting_actors(self.cpus, self.gpus, nodes)))
        readers = 0
        if self.readers:
            for fewer in range(actors, 0, -1):
                readers = max(1, self.readers * fewer // self.max_actors)
                if readers <= self._count_fitting_readers(fewer, nodes):
                    actors = fewer
                    break
            else:
                readers = 0
        return replace(
            self,
            min_actors=min(self.min_actors, actors),
            max_actors=actors,
            readers=readers,
        )

    def _count_fitting_readers(self, actors: int, nodes: Sequence[NodeResources]) -> int:
        """How many readers the nodes have room for beside so many actors."""
        left = _cpus_left(actors, self.cpus, self.gpus, nodes)
        return sum(int(cpus / self.cpus_per_reader + _ROUNDING_SLACK) for cpus in left)

    def reader_pool(self) -> PoolSize:
        """The readers as a pool of their own, which grows as that of the actors does."""
        min_readers = max(1, self.readers * self.min_actors // self.max_actors)
        return PoolSize(min_readers, self.readers, self.cpus_per_reader, 0.0, "cpu")

    def summary(self) -> str:
        """For people: ``2 to 4 actors with 1 CPU each (cpu)``."""
        actors = _describe_actors(self.max_actors, self.cpus, self.gpus)
        if self.min_actors != self.max_actors:
            actors = f"{self.min_actors:,} to {actors}"
        text = f"{actors} ({self.device})"
        if self.readers:
            text += f" and {_describe_actors(self.readers, self.cpus_per_reader, 0.0, 'reader')}"
        return text


def size_pool(
    options: RayOptions, device: str, n_units: int, nodes: Sequence[NodeResources]
) -> PoolSize:
    """Size the actor pool for a number of units, and that of its readers in the layout `split`.

    On CPUs: as many actors as cores, each with one thread; with fewer units than cores there are
    fewer actors, and the cores are divided among them. On GPUs: one actor for each GPU, with an
    equal share of the CPUs. With `ray.autoscaling` see `max_autoscaled_actors`.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``, as asked for.

    Raises:
        UsageError: The requests contradict each other.
        ClusterError: The cluster cannot give what was asked for.
    """
    if options.autoscaling:
        pool = _size_autoscaled_actors(options, device, n_units, nodes)
    else:
        pool = _size_actors(options, device, n_units, nodes)
    is_split = options.layout == "split" or _should_split(pool, options, nodes)
    return _add_readers(pool, options, nodes) if is_split else pool


def max_autoscaled_actors(options: RayOptions, n_units: int) -> int:
    """How many actors a run asks for at most on a cluster that adds nodes on demand.

    `ray.max_actors`, if given, else `MAX_AUTOSCALED_ACTORS`: Ray does not tell how many nodes the
    autoscaler may have. There are never more than units, and nodes are added only for actors with
    some units each.
    """
    min_actors = options.min_actors or 1
    if options.max_actors:
        return max(min_actors, min(options.max_actors, n_units))
    worthwhile_actors = math.ceil(n_units / _MIN_UNITS_PER_AUTOSCALED_ACTOR)
    return max(min_actors, min(MAX_AUTOSCALED_ACTORS, worthwhile_actors))


def describe_growth(options: RayOptions, n_units: int) -> list[str]:
    """What a run may ask of a cluster that adds nodes on demand, before one is asked; for people.

    Args:
        n_units: Units that are left to do.
    """
    if not (options.autoscaling and n_units):
        return []
    actors = plural(max_autoscaled_actors(options, n_units), "actor")
    more = "" if options.max_actors else ", or more where its nodes have room for more already"
    return [f"The cluster may grow until it has {actors}{more}."]


def _size_autoscaled_actors(
    options: RayOptions, device: str, n_units: int, nodes: Sequence[NodeResources]
) -> PoolSize:
    """As `_size_actors`, on a cluster that adds nodes on demand.

    Raises:
        UsageError: See `size_pool`.
    """
    gpus = _gpus_per_actor(options, device, nodes)
    cpus = options.cpus_per_actor or 1.0
    max_actors = max_autoscaled_actors(options, n_units)
    if not options.max_actors:  # what is there already costs no start of a node
        max_actors = max(max_actors, min(_count_fitting_actors(cpus, gpus, nodes), n_units))
    return PoolSize(
        min(options.min_actors or 1, max_actors),
        max_actors,
        cpus,
        gpus,
        _actor_device(device, gpus),
        _units_in_flight(options, gpus),
        grows=True,
    )


def _units_in_flight(options: RayOptions, gpus: float) -> int:
    """On a GPU the next unit is read while one is written; on a CPU the cores are busy anyway."""
    return options.units_in_flight or (2 if gpus else 1)


def _size_actors(
    options: RayOptions, device: str, n_units: int, nodes: Sequence[NodeResources]
) -> PoolSize:
    """The pool of the layout `fused`.

    Raises:
        UsageError, ClusterError: See `size_pool`.
    """
    gpus = _gpus_per_actor(options, device, nodes)
    total_cpus = sum(node.cpus for node in nodes)
    total_gpus = sum(node.gpus for node in nodes)
    required_actors = options.min_actors or 1
    if gpus:
        capacity = sum(math.floor(node.gpus / gpus) for node in nodes)
        if capacity < required_actors:
            raise ClusterError(
                f"The run needs {_describe_actors(required_actors, None, gpus)}, but the cluster "
                f"has {plural(total_gpus, 'GPU')}.",
                hint="Use --device cpu, lower ray.gpus_per_actor or --actors, or set "
                "ray.autoscaling=true when the cluster adds nodes on demand.",
            )
    else:
        capacity = max(1, int(total_cpus / (options.cpus_per_actor or 1)))
    max_actors = min(options.max_actors or max(capacity, required_actors), max(n_units, 1))
    min_actors = min(options.min_actors or max_actors, max_actors)
    cpus = options.cpus_per_actor or _share_cpus(max_actors, gpus, nodes)
    fitting_actors = _count_fitting_actors(cpus, gpus, nodes)
    if fitting_actors < min_actors:
        raise ClusterError(
            f"The run needs {_describe_actors(min_actors, cpus, gpus)}, but the cluster "
            f"({plural(total_cpus, 'CPU')}, {plural(total_gpus, 'GPU')}, "
            f"{plural(len(nodes), 'node')}) has room for {fitting_actors:,}.",
            hint="Lower ray.cpus_per_actor or --actors, or set ray.autoscaling=true when the "
            "cluster adds nodes on demand.",
        )
    device = _actor_device(device, gpus)
    return PoolSize(min_actors, max_actors, cpus, gpus, device, _units_in_flight(options, gpus))


def _should_split(pool: PoolSize, options: RayOptions, nodes: Sequence[NodeResources]) -> bool:
    """Whether the layout `auto` gives decoding processes of its own."""
    if options.layout != "auto" or not pool.gpus or options.autoscaling or options.cpus_per_actor:
        return False
    return sum(node.cpus for node in nodes) >= _MIN_CPUS_PER_SPLIT_GPU * pool.max_actors


def _add_readers(pool: PoolSize, options: RayOptions, nodes: Sequence[NodeResources]) -> PoolSize:
    """The same actors with one CPU each, and readers with one CPU each on the remaining CPUs.

    Without GPUs the network is nearly all of the work: then there is one reader. Where nodes are
    added on demand, each actor with a GPU has a reader with one CPU.

    Raises:
        ClusterError: The readers do not fit.
    """
    cpus = options.cpus_per_actor or 1.0
    total_cpus = sum(node.cpus for node in nodes)
    actors = pool.max_actors if pool.gpus or options.max_actors else max(1, pool.max_actors - 1)
    remaining_cpus = total_cpus - actors * cpus
    cpus_per_reader = 1.0
    readers = options.readers or 1
    if pool.gpus and options.autoscaling:
        readers = options.readers or actors
    elif pool.gpus and options.readers:
        cpus_per_reader = float(max(1, min(_MAX_CPUS_PER_READER, int(remaining_cpus / readers))))
    elif pool.gpus:
        left = _cpus_left(actors, cpus, pool.gpus, nodes)
        readers = max(1, sum(int(free + _ROUNDING_SLACK) for free in left))
    if readers * cpus_per_reader > remaining_cpus and not options.autoscaling:
        raise ClusterError(
            f"The layout `split` needs {_describe_actors(readers, cpus_per_reader, 0.0, 'reader')} "
            f"besides {_describe_actors(actors, cpus, 0.0)}, but the cluster has "
            f"{plural(total_cpus, 'CPU')}.",
            hint="Use fewer --actors or ray.readers, or leave ray.layout at fused.",
        )
    return replace(
        pool,
        min_actors=min(pool.min_actors, actors),
        max_actors=actors,
        cpus=cpus,
        readers=readers,
        cpus_per_reader=cpus_per_reader,
    )


def _cpus_left(
    actors: int, cpus: float, gpus: float, nodes: Sequence[NodeResources]
) -> list[float]:
    """CPUs of each node beside so many actors."""
    left = []
    for node in nodes:
        here = min(actors, _count_fitting_actors(cpus, gpus, [node]))
        actors -= here
        left.append(node.cpus - here * cpus)
    return left


def uses_gpus(options: RayOptions, device: str, nodes: Sequence[NodeResources]) -> bool:
    """Whether actors take GPUs; `nodes` matter only where neither option tells.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``, as asked for.
    """
    if device != "auto":
        return device.startswith("cuda")
    if options.gpus_per_actor is not None:
        return options.gpus_per_actor > 0
    return any(node.gpus >= 1 for node in nodes)


def _gpus_per_actor(options: RayOptions, device: str, nodes: Sequence[NodeResources]) -> float:
    """GPUs that each actor takes; 0 for CPUs.

    Raises:
        UsageError: The device and ray.gpus_per_actor contradict each other.
    """
    wants_cuda = device.startswith("cuda")
    if options.gpus_per_actor is not None:
        if options.gpus_per_actor and not (wants_cuda or device == "auto"):
            raise UsageError(
                f"ray.gpus_per_actor is {options.gpus_per_actor:g}, but the device is `{device}`.",
                hint="Leave out one of them, or use --device cuda or auto with GPUs.",
            )
        if wants_cuda and not options.gpus_per_actor:
            raise UsageError("The device is `cuda`, but ray.gpus_per_actor is 0.")
        return options.gpus_per_actor
    return 1.0 if uses_gpus(options, device, nodes) else 0.0


def _actor_device(device: str, gpus: float) -> str:
    """The device of each actor: Ray shows an actor its own GPUs only, so an index is left out."""
    if gpus:
        return "cuda"
    return "cpu" if device == "auto" else device


def _share_cpus(actors: int, gpus: float, nodes: Sequence[NodeResources]) -> float:
    """CPUs for each of `actors`, so that all of them fit; a fraction when actors outnumber CPUs."""
    share = sum(node.cpus for node in nodes) / actors
    if share < 1:
        return max(_MIN_CPU_SHARE, math.floor(share * 100) / 100)
    whole_cpus = int(min(share, max(node.cpus for node in nodes)))
    while whole_cpus > 1 and _count_fitting_actors(whole_cpus, gpus, nodes) < actors:
        whole_cpus -= 1
    return float(whole_cpus)


def _count_fitting_actors(cpus: float, gpus: float, nodes: Sequence[NodeResources]) -> int:
    """How many actors of this size the nodes have room for."""
    return sum(
        int(min(node.cpus / cpus, node.gpus / gpus if gpus else math.inf) + _ROUNDING_SLACK)
        for node in nodes
    )


def _describe_actors(count: int, cpus: float | None, gpus: float, noun: str = "actor") -> str:
    """For people: ``1 actor with 4 CPUs and 1 GPU``, ``2 readers with 1 CPU each``."""
    sizes = [plural(cpus, "CPU")] if cpus else []
    if gpus:
        sizes.append(plural(gpus, "GPU"))
    return f"{plural(count, noun)} with {' and '.join(sizes)}" + (" each" if count != 1 else "")
