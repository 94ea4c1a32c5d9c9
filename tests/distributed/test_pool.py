from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from segcore.config import RayOptions
from segcore.distributed.cluster import NodeResources
from segcore.distributed.pool import MAX_AUTOSCALED_ACTORS, describe_growth, size_pool
from segcore.errors import ClusterError, UsageError

LAPTOP = [NodeResources(cpus=2, gpus=0)]
SERVER = [NodeResources(cpus=16, gpus=4)]


def _pool(nodes, n_units=100, device="auto", **options):
    return size_pool(RayOptions(**options), device, n_units, nodes)


def test_one_actor_per_core():
    pool = _pool(LAPTOP)
    assert (pool.min_actors, pool.max_actors, pool.cpus, pool.gpus) == (2, 2, 1, 0)
    assert pool.device == "cpu"
    assert pool.threads == 1
    assert pool.summary() == "2 actors with 1 CPU each (cpu)"


def test_with_few_units_few_actors_share_the_cores():
    pool = _pool([NodeResources(8, 0)], n_units=2)
    assert (pool.max_actors, pool.cpus, pool.threads) == (2, 4, 4)


def test_more_actors_than_cores_get_a_fraction_each():
    pool = _pool(LAPTOP, min_actors=8, max_actors=8)
    assert pool.max_actors == 8
    assert pool.cpus == 0.25
    assert pool.threads == 1


def test_no_actor_spans_two_nodes():
    pool = _pool([NodeResources(3, 0), NodeResources(3, 0)], n_units=4)
    assert pool.max_actors == 4
    assert pool.cpus == 1  # 6 / 4, and two of them on each node


def test_auto_takes_gpus_and_shares_the_cpus():
    pool = _pool(SERVER, layout="fused")
    assert (pool.max_actors, pool.gpus, pool.cpus, pool.device) == (4, 1, 4, "cuda")
    assert pool.readers == 0


@pytest.mark.parametrize(
    ("nodes", "options", "readers", "cpus_per_reader"),
    [
        ([NodeResources(16, 1)], {}, 15, 1),
        ([NodeResources(3, 1)], {}, 2, 1),
        ([NodeResources(3.5, 1)], {}, 2, 1),
        ([NodeResources(4, 1)] * 4, {}, 12, 1),
        ([NodeResources(16, 1), NodeResources(64, 0)], {}, 79, 1),
        ([NodeResources(2, 1)], {}, 0, 1),  # too few CPUs
        ([NodeResources(16, 1)], {"gpus_per_actor": 0.1}, 0, 1),
        ([NodeResources(16, 1)], {"layout": "fused"}, 0, 1),
        ([NodeResources(16, 1)], {"cpus_per_actor": 16}, 0, 1),  # the user shared them out
        ([NodeResources(16, 1)], {"readers": 2}, 2, 4),
        ([NodeResources(16, 1)], {"readers": 15}, 15, 1),
        ([NodeResources(16, 0)], {}, 0, 1),
    ],
)
def test_on_gpus_all_other_cpus_decode(nodes, options, readers, cpus_per_reader):
    pool = _pool(nodes, **options)
    assert (pool.readers, pool.cpus_per_reader) == (readers, cpus_per_reader)
    assert pool.max_actors * pool.cpus + pool.readers * pool.cpus_per_reader <= sum(
        node.cpus for node in nodes
    )


def test_fractions_of_a_gpu():
    pool = _pool(SERVER, gpus_per_actor=0.5)
    assert (pool.max_actors, pool.gpus, pool.cpus) == (8, 0.5, 2)


def test_cpu_on_a_gpu_cluster_leaves_the_gpus():
    pool = _pool(SERVER, device="cpu")
    assert (pool.max_actors, pool.gpus, pool.device) == (16, 0, "cpu")


@pytest.mark.parametrize("request_", [{"device": "cuda"}, {"gpus_per_actor": 1}])
def test_gpu_request_without_gpus_is_refused(request_):
    with pytest.raises(ClusterError, match=r"needs 1 actor with 1 GPU, .* has 0 GPUs") as caught:
        _pool(LAPTOP, **request_)
    assert "--device cpu" in caught.value.hint


def test_more_gpu_actors_than_gpus_are_refused():
    with pytest.raises(ClusterError, match=r"8 actors with 1 GPU each, .* has 4 GPUs"):
        _pool(SERVER, min_actors=8, max_actors=8)


def test_autoscaling_skips_the_comparison():
    pool = _pool(LAPTOP, gpus_per_actor=1, autoscaling=True, max_actors=32)
    assert (pool.min_actors, pool.max_actors, pool.gpus) == (1, 32, 1)


HEAD = [NodeResources(cpus=0, gpus=0)]
LARGE = NodeResources(16, 0)


@pytest.mark.parametrize(
    ("options", "n_units", "nodes", "max_actors"),
    [
        # a named limit, however many units there are
        ({}, 1_000_000, HEAD, MAX_AUTOSCALED_ACTORS),
        ({"gpus_per_actor": 1}, 1_000_000, SERVER, MAX_AUTOSCALED_ACTORS),
        # ... but what the cluster has already is used
        ({}, 1_000_000, [LARGE] * 10, 160),
        # no node is added for fewer than four units a worker; nodes that are there are used
        ({}, 100, HEAD, 25),
        ({}, 5, HEAD, 2),
        ({}, 5, [LARGE], 5),
        ({}, 1, HEAD, 1),
        # what was asked for, but no more than units
        ({"max_actors": 500}, 1_000_000, HEAD, 500),
        ({"max_actors": 500}, 80, HEAD, 80),
        ({"max_actors": 3}, 1_000_000, [LARGE] * 10, 3),
        ({"min_actors": 90}, 80, HEAD, 90),
        ({"min_actors": 3, "max_actors": 9}, 1, HEAD, 3),
    ],
)
def test_a_cluster_that_grows_has_a_limit(options, n_units, nodes, max_actors):
    pool = _pool(nodes, n_units, autoscaling=True, **options)
    assert pool.max_actors == max_actors
    assert pool.min_actors == options.get("min_actors", 1)
    (told,) = describe_growth(RayOptions(autoscaling=True, **options), n_units)
    if nodes is HEAD:
        assert f" {max_actors:,} actor" in told
    assert ("or more" in told) == ("max_actors" not in options)


def test_nothing_is_said_of_growth_where_there_is_none():
    assert describe_growth(RayOptions(), 100) == []
    assert describe_growth(RayOptions(autoscaling=True), 0) == []


def test_readers_grow_with_the_actors():
    sets = {"gpus_per_actor": 1, "max_actors": 16, "layout": "split", "autoscaling": True}
    pool = _pool(HEAD, 1000, **sets)
    assert (pool.max_actors, pool.readers, pool.gpus) == (16, 16, 1)
    readers = pool.reader_pool()
    assert (readers.min_actors, readers.max_actors, readers.cpus) == (1, 16, 1)
    fixed = _pool(SERVER, layout="split").reader_pool()
    assert (fixed.min_actors, fixed.max_actors) == (12, 12)


def test_a_pool_fits_the_nodes_that_are_left_of_a_cluster():
    left = _pool(SERVER * 2, layout="split").on_nodes(SERVER)
    assert (left.min_actors, left.max_actors, left.readers) == (4, 4, 12)
    assert left.reader_pool().min_actors == 12
    small = [NodeResources(1, 0)] * 4
    left = _pool(small, layout="split").on_nodes(small[:3])
    assert (left.min_actors, left.max_actors, left.readers) == (2, 2, 1)
    left = _pool(small, layout="split").on_nodes(small[:2])
    assert (left.min_actors, left.max_actors, left.readers) == (1, 1, 1)
    # no room for both: actors read for themselves
    left = _pool(small, layout="split").on_nodes(small[:1])
    assert (left.min_actors, left.max_actors, left.readers) == (1, 1, 0)
    left = _pool(SERVER, layout="split").on_nodes([NodeResources(2, 1)])
    assert (left.min_actors, left.max_actors, left.readers) == (1, 1, 0)


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 2)), min_size=1, max_size=6),
    st.sampled_from(["cpu", "auto"]),
    st.data(),
)
def test_what_is_left_of_a_cluster_has_room_for_the_pool(sizes, device, data):
    nodes = [NodeResources(cpus, gpus) for cpus, gpus in sizes]
    try:
        pool = _pool(nodes, device=device, layout="split")
    except ClusterError:
        assume(False)
    left = data.draw(st.lists(st.sampled_from(nodes), max_size=len(nodes)))
    smaller = pool.on_nodes(left)
    if not pool.fits_on(NodeResources(sum(n.cpus for n in left), sum(n.gpus for n in left))):
        return  # nothing fits: the run ends elsewhere
    n_actors, n_readers = smaller.max_actors, smaller.readers
    assert n_actors * smaller.cpus + n_readers * smaller.cpus_per_reader <= max(
        sum(node.cpus for node in left), smaller.cpus
    )
    assert 1 <= smaller.min_actors <= n_actors <= pool.max_actors


def test_a_cluster_that_grows_goes_on_growing_where_a_node_is_left_out():
    pool = _pool(HEAD, 1000, gpus_per_actor=1, layout="split", autoscaling=True)
    assert pool.on_nodes(SERVER) == pool


def test_cpus_that_no_node_has_are_refused():
    message = r"needs 1 actor with 4 CPUs, .* \(2 CPUs, 0 GPUs, 1 node\) has room for 0\."
    with pytest.raises(ClusterError, match=message):
        _pool(LAPTOP, cpus_per_actor=4)


def test_explicit_cpus_bound_the_number_of_actors():
    assert _pool([NodeResources(8, 0)], cpus_per_actor=4).max_actors == 2


def test_a_range_of_actors():
    pool = _pool([NodeResources(8, 0)], min_actors=2)
    assert (pool.min_actors, pool.max_actors, pool.cpus) == (2, 8, 1)
    assert pool.summary() == "2 to 8 actors with 1 CPU each (cpu)"


@pytest.mark.parametrize(("device", "gpus"), [("cpu", 1.0), ("mps", 0.5), ("cuda", 0.0)])
def test_contradictions_are_usage_errors(device, gpus):
    with pytest.raises(UsageError):
        _pool(SERVER, device=device, gpus_per_actor=gpus)


def test_split_leaves_the_cpus_beside_the_gpus_to_readers():
    pool = _pool(SERVER, layout="split")
    assert (pool.max_actors, pool.cpus, pool.gpus) == (4, 1, 1)
    assert (pool.readers, pool.cpus_per_reader, pool.decode_threads) == (12, 1, 1)
    assert pool.summary() == (
        "4 actors with 1 CPU and 1 GPU each (cuda) and 12 readers with 1 CPU each"
    )


def test_split_without_gpus_has_one_reader():
    pool = _pool(LAPTOP, layout="split")
    assert (pool.max_actors, pool.cpus, pool.readers, pool.cpus_per_reader) == (1, 1, 1, 1)


def test_readers_that_do_not_fit_are_an_error_at_once():
    message = r"needs 3 readers with 1 CPU each besides 1 actor with 1 CPU, .* has 2 CPUs"
    with pytest.raises(ClusterError, match=message):
        _pool(LAPTOP, layout="split", readers=3)


def test_an_actor_has_two_units_in_flight_on_a_gpu_only():
    assert _pool(LAPTOP).units_in_flight == 1
    assert _pool(SERVER).units_in_flight == 2
    assert _pool(LAPTOP, units_in_flight=3).units_in_flight == 3
