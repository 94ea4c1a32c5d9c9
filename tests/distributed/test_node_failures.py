"""Failures are counted by node: who is taken out, when a run ends, and what is no strike."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from segcore.distributed import cluster
from segcore.distributed.actors import UnitOutcome, failed_outcome
from segcore.distributed.cluster import NodeResources
from segcore.distributed.node_failures import (
    MAX_CONSECUTIVE_DEATHS,
    MAX_CONSECUTIVE_FAILURES,
    ClusterView,
    NodeFailures,
    Verdict,
)
from segcore.distributed.pipeline import Pipeline
from segcore.distributed.pool import PoolSize
from segcore.distributed.progress import ProgressActor
from segcore.errors import ObjectChanged, StorageError
from segcore.planning.plan import Units
from segcore.sources.unit_tables import units_from_table, units_to_table
from segcore.sources.units import Unit

GO_ON, OUT, STOP = Verdict.GO_ON, Verdict.TAKE_NODE_OUT, Verdict.STOP
UNITS = Units(units_to_table(Unit(f"{i:020}", "objects", "", "", 0, 1, 1, 1) for i in range(400)))


def _failures(able: str, at_work: str | None = None) -> NodeFailures:
    """Nodes are letters."""
    view = ClusterView(frozenset(able), frozenset(able if at_work is None else at_work))
    return NodeFailures(lambda: view, {})


def _fail(failures: NodeFailures, nodes: str) -> list[Verdict]:
    return [failures.record_failure(node, f"error on {node}") for node in nodes]


def test_the_only_node_ends_the_run():
    verdicts = _fail(_failures("A"), "A" * MAX_CONSECUTIVE_FAILURES)
    assert verdicts == [GO_ON] * (MAX_CONSECUTIVE_FAILURES - 1) + [STOP]


def test_a_success_on_the_node_forgets_its_failures():
    failures = _failures("A")
    for _ in range(5):
        assert set(_fail(failures, "A" * (MAX_CONSECUTIVE_FAILURES - 1))) == {GO_ON}
        failures.record_success("A")


@pytest.mark.parametrize("others_work", [True, False])
def test_one_bad_node_is_taken_out_whether_or_not_others_have_finished_a_unit(others_work):
    failures = _failures("ABCD")
    for i in range(MAX_CONSECUTIVE_FAILURES):
        if others_work:
            failures.record_success("BCD"[i % 3])
        verdict = failures.record_failure("A", "broken")
    assert verdict is OUT
    assert failures.taken_out == {"A": "broken"}
    assert set(_fail(failures, "A" * 50)) == {GO_ON}  # what it had begun
    failures.record_success("B")
    assert _fail(failures, "B" * 20)[-1] is OUT


def test_bad_nodes_are_taken_out_until_none_is_left():
    failures = _failures("ABC")
    for node in "AB":
        for _ in range(MAX_CONSECUTIVE_FAILURES):
            failures.record_success("C")
            verdict = failures.record_failure(node, "broken")
        assert verdict is OUT
    assert _fail(failures, "C" * MAX_CONSECUTIVE_FAILURES)[-1] is STOP
    assert set(failures.taken_out) == {"A", "B"}


@pytest.mark.parametrize("able", ["AB", "ABCDE", "ABCDEFGHIJKLMNOPQRSTUVWXYZ"])
def test_an_outage_takes_no_node_out_and_ends_the_run_soon(able):
    failures = _failures(able)
    verdicts = _fail(failures, able * 30)
    n_taken = verdicts.index(STOP) + 1
    assert n_taken <= max(MAX_CONSECUTIVE_FAILURES, 3 * len(able))
    assert not failures.taken_out


def test_an_outage_seen_by_one_actor_on_many_nodes_ends_after_a_few_nodes():
    view = ClusterView(frozenset("ABCDEFGH"), frozenset("A"))
    failures = NodeFailures(lambda: view, {})
    n_failures = 0
    for node in "ABCDEFGH":
        view = ClusterView(view.able, frozenset(node))
        verdict = GO_ON
        while verdict is GO_ON:
            verdict, n_failures = failures.record_failure(node, "outage"), n_failures + 1
        if verdict is STOP:
            break
    assert verdict is STOP
    assert n_failures <= 3 * MAX_CONSECUTIVE_FAILURES
    assert len(failures.taken_out) == 2


def test_a_node_that_failed_while_others_worked_is_taken_out_when_the_units_run_out():
    failures = _failures("ABC")
    _fail(failures, "AAABB")
    assert failures.take_out_at_end() == []  # perhaps an outage has begun
    failures.record_success("C")
    assert failures.take_out_at_end() == ["A"]  # of B there is too little evidence
    assert failures.taken_out == {"A": "error on A"}
    assert failures.take_out_at_end() == []


def test_the_last_node_is_not_taken_out_when_the_units_run_out():
    view = ClusterView(frozenset("AB"), frozenset("AB"))
    failures = NodeFailures(lambda: view, {})
    _fail(failures, "AAA")
    failures.record_success("B")
    view = ClusterView(frozenset("A"), frozenset("A"))  # B is gone
    assert failures.take_out_at_end() == []


def test_a_node_that_works_again_is_not_taken_out_when_the_units_run_out():
    failures = _failures("AB")
    _fail(failures, "AAAAA")
    failures.record_success("A")
    failures.record_success("B")
    assert failures.take_out_at_end() == []


def test_setup_failures_weigh_more():
    failures = _failures("AB")
    verdict, n_failures = GO_ON, 0
    while verdict is GO_ON:
        verdict = failures.record_setup_failure("A", "no driver")
        n_failures += 1
    assert (verdict, n_failures) == (OUT, 4)
    assert failures.record_setup_failure("B", "no driver") is STOP  # nowhere to go


def test_processes_that_die_on_one_node_only_take_it_out():
    failures = _failures("ABC")
    assert failures.record_deaths({"A": MAX_CONSECUTIVE_DEATHS - 1}) == (GO_ON, "")
    assert failures.record_deaths({"A": MAX_CONSECUTIVE_DEATHS, "B": 1}) == (OUT, "A")
    assert failures.record_deaths({"A": 99, "B": 1}) == (GO_ON, "")


def test_images_that_kill_processes_everywhere_take_no_node_out():
    assert _failures("ABC").record_deaths({"A": 50, "B": 2, "C": 40}) == (GO_ON, "")
    assert _failures("A").record_deaths({"A": 500}) == (GO_ON, "")


def test_restarted_actors_are_deaths_of_their_node_until_it_commits():
    progress = ProgressActor()
    for node in ("A", "A", "B", "A"):
        progress.register(b"", "actor", node)
    progress.register(b"", "other", "B")
    assert progress.deaths() == {"A": 2, "B": 1}
    assert progress.placements() == {"actor": "A", "other": "B"}
    progress.complete_on("A", "unit", (1, 0, 0), 10)
    assert progress.deaths() == {"B": 1}
    assert progress.snapshot().units == 1
    assert progress.drain() == [b""] * 5
    assert progress.placements() == {}
    assert progress.nodes_seen() == {"A", "B"}  # at any time


class _SimulatedPipeline(Pipeline):
    """A graph without Ray: a unit takes its node's seconds; bad nodes fail at once."""

    def __init__(self, nodes: dict[str, float], bad: str, errors: Any = None):
        self._nodes = NodeFailures(lambda: ClusterView(frozenset(nodes), frozenset(nodes)), {})
        self._pool = PoolSize(len(nodes), len(nodes), cpus=1, gpus=0, device="cpu")
        self._speeds, self._bad, self._error = nodes, bad, errors or StorageError("no network")
        self.sentences: list[str] = []
        self._notify = self.sentences.append
        self.n_done: dict[str, int] = {}

    def _recent_deaths(self) -> dict[str, int]:
        return {}

    def _measure(self, name: str, value: float) -> None:
        return

    def _run_graph(self, blocks: Sequence[pa.Table], stages: Any) -> Iterator[UnitOutcome]:
        left = [list(units_from_table(block)) for block in blocks]
        free_at = {node: 0.0 for node in self._speeds if node not in self._nodes.taken_out}
        running: list[tuple[float, str, list[Unit]]] = []
        while left or running:
            while left and (idle := [n for n in free_at if n not in {r[1] for r in running}]):
                node = idle[0]
                bundle = left.pop(0)
                running.append((free_at[node] + self._speeds[node] * len(bundle), node, bundle))
            running.sort(key=lambda run: run[0])
            free_at_s, node, bundle = running.pop(0)
            free_at[node] = free_at_s
            for unit in bundle:
                if node in self._bad:
                    outcome = failed_outcome(unit, self._error)
                    yield UnitOutcome(**{**vars(outcome), "node": node})
                else:
                    self.n_done[unit.unit] = self.n_done.get(unit.unit, 0) + 1
                    yield UnitOutcome(unit.unit, ok=1, node=node)


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch):
    node = NodeResources(1, 0, "A", "10.0.0.1", "rack1")
    monkeypatch.setattr(cluster, "all_nodes", lambda: [node])


@pytest.mark.parametrize("max_bundle_units", [1, 16])
@pytest.mark.parametrize("bad", ["A", "ABC", ""])
def test_all_units_are_done_once_on_the_good_nodes(bad, max_bundle_units):
    speeds = {node: 0.1 if node in bad else 40.0 for node in "ABCDEF"}
    pipeline = _SimulatedPipeline(speeds, bad)
    outcomes = list(pipeline._run_units(UNITS, lambda n: [], max_bundle_units))
    assert sorted(o.unit for o in outcomes) == [u.unit for u in UNITS]
    assert not any(o.error for o in outcomes)
    assert set(pipeline._nodes.taken_out) == set(bad)
    assert len(pipeline.sentences) == len(bad)
    if bad:
        first = pipeline.sentences[0]
        assert first.startswith("Took rack1 (10.0.0.1, node A) out of the run")
        assert "no network" in first


@pytest.mark.parametrize("seed", range(20))
def test_random_clusters_lose_no_unit_and_end_only_without_a_good_node(seed):
    rng = random.Random(seed)
    nodes = "ABCDEFGHIJ"[: rng.randint(1, 10)]
    bad = "".join(node for node in nodes if rng.random() < 0.4)
    speeds = {node: rng.choice([0.1, 3]) if node in bad else rng.choice([1, 60]) for node in nodes}
    pipeline = _SimulatedPipeline(speeds, bad)
    max_bundle_units = rng.choice([1, 4, 16])
    if set(bad) == set(nodes):
        with pytest.raises(StorageError, match="consecutive units failed"):
            list(pipeline._run_units(UNITS, lambda n: [], max_bundle_units))
        return
    outcomes = list(pipeline._run_units(UNITS, lambda n: [], max_bundle_units))
    assert sorted(o.unit for o in outcomes) == [u.unit for u in UNITS]
    assert set(pipeline._nodes.taken_out) <= set(bad)
    failed = [o for o in outcomes if o.error]
    assert len(failed) < MAX_CONSECUTIVE_FAILURES * max(len(bad), 1)


@pytest.mark.parametrize("n_units", [6, 12, 20])
def test_a_short_job_names_its_bad_node_and_does_its_units_elsewhere(n_units):
    pipeline = _SimulatedPipeline({"A": 0.1, "B": 10.0, "C": 12.0}, "A")
    units = Units(UNITS.table.slice(0, n_units))
    outcomes = list(pipeline._run_units(units, lambda n: []))
    assert sorted(o.unit for o in outcomes) == [u.unit for u in units]
    assert not any(o.error for o in outcomes)
    assert set(pipeline._nodes.taken_out) == {"A"}
    assert len(pipeline.sentences) == 1


@pytest.mark.parametrize(("silent", "answers"), [("C", {"C": "no segcore"}), ("C", {}), ("", {})])
def test_nodes_where_nothing_began_are_tried_when_the_units_run_out(monkeypatch, silent, answers):
    """The units were done before Ray gave up starting actors there."""
    nodes = [NodeResources(1, 0, name) for name in "ABC"]
    monkeypatch.setattr(cluster, "live_nodes", lambda: nodes)
    asked: list[set[str]] = []

    def find(nodes: set[str], code: str) -> dict[str, str]:
        asked.append(nodes)
        return answers

    monkeypatch.setattr("segcore.distributed.pipeline.find_broken_nodes", find)
    monkeypatch.setattr("ray.get", lambda answer, timeout: answer)
    pipeline = _SimulatedPipeline(dict.fromkeys("ABC", 1.0), "")
    seen = {node.node_id for node in nodes} - set(silent)
    pipeline._spec = SimpleNamespace(code="x")
    pipeline._progress = SimpleNamespace(nodes_seen=SimpleNamespace(remote=lambda: seen))
    pipeline._take_out_silent()
    assert asked == [set(silent)]
    assert set(pipeline._nodes.taken_out) == set(answers)
    # Where there are fewer actors than room for them, a node may have had nothing to do.
    pipeline._pool = PoolSize(2, 2, cpus=1, gpus=0, device="cpu")
    pipeline._take_out_silent()
    assert len(asked) == 1


def test_changed_inputs_are_no_fault_of_a_node():
    pipeline = _SimulatedPipeline({"A": 1.0}, "A", ObjectChanged("shard is another one now"))
    outcomes = list(pipeline._run_units(UNITS, lambda n: []))
    assert all(o.error and o.input_changed for o in outcomes)
    assert len(outcomes) == len(UNITS)


def test_a_pool_shrinks_with_its_nodes():
    pool = PoolSize(16, 16, cpus=4, gpus=1, device="cuda", readers=8)
    left = [NodeResources(cpus=16, gpus=4), NodeResources(cpus=2, gpus=4)]
    smaller = pool.on_nodes(left)
    assert (smaller.min_actors, smaller.max_actors, smaller.readers) == (4, 4, 2)
    assert [pool.fits_on(node) for node in left] == [True, False]
    assert cluster.away_from([]) == {}
    assert cluster.away_from(["b", "a"]) == {"label_selector": {"ray.io/node-id": "!in(a,b)"}}


@pytest.mark.parametrize(
    ("nodes_left", "grows", "sizes"),
    [
        (3, False, [(1, 1), (2, 2)]),  # (min, max) actors of each stage: readers, then the rest
        (2, False, [(1, 1), (1, 1)]),
        (1, False, [(1, 1)]),  # no room for a reader: one stage does both
        (1, True, [(1, 2), (1, 4)]),
    ],
)
def test_the_stages_of_split_fit_the_nodes_that_are_left(monkeypatch, nodes_left, grows, sizes):
    nodes = [NodeResources(1, 0, name) for name in "ABCD"]
    monkeypatch.setattr(cluster, "live_nodes", lambda: nodes)
    pipeline = _SimulatedPipeline(dict.fromkeys("ABCD", 1.0), "")
    pipeline._nodes.taken_out.update(dict.fromkeys("DCB"[: 4 - nodes_left], "broken"))
    pipeline._pool = PoolSize(1 if grows else 3, 4 if grows else 3, cpus=1, gpus=0, device="cpu",
                              readers=2 if grows else 1, grows=grows)  # fmt: skip
    monkeypatch.setattr(
        "segcore.distributed.pipeline.pool_options",
        lambda least, most, _, excluded: {"size": (least, most), "excluded": set(excluded)},
    )
    stages = pipeline._pool_stages(100)
    assert [stage.pool_options["size"] for stage in stages] == sizes
    for stage in stages:
        assert stage.pool_options["excluded"] == set(pipeline._nodes.taken_out)
