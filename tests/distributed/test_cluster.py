from __future__ import annotations

import socket
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

import segcore
from segcore.config import Config, RayOptions
from segcore.distributed import cluster
from segcore.distributed.cluster import NodeResources, connected, find_target
from segcore.distributed.code_version import code_to_ship
from segcore.errors import ClusterError, UsageError
from segcore.run.job import check_paths_reachable
from segcore.run.segment import segment
from segcore.text import redact_link


@pytest.mark.slow
@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_an_address_where_nothing_listens_is_an_error_at_once(address):
    connection = connected(RayOptions(address=address))
    with pytest.raises(ClusterError, match=r"127\.0\.0\.1:1: .*refused") as caught, connection:
        raise AssertionError("connected to nothing")
    assert "--address" in caught.value.hint


def test_the_code_that_is_shipped_is_the_package():
    assert code_to_ship() == {"py_modules": [str(Path(segcore.__file__).resolve().parent)]}


_HERE = NodeResources(2, 0, "a" * 56, "127.0.0.1", socket.gethostname())
_OTHER_HOST = NodeResources(2, 0, "b" * 56, "127.0.0.1", "another-machine")
_OTHER_ADDRESS = NodeResources(2, 0, "c" * 56, "192.0.2.77", socket.gethostname())


def test_a_machine_is_this_one_if_both_its_name_and_its_address_are():
    nodes = [_HERE, _OTHER_HOST, _OTHER_ADDRESS]
    assert [node.is_on_this_machine() for node in nodes] == [True, False, False]


@pytest.mark.parametrize(
    ("option", "variable", "is_initialized", "name"),
    [
        (None, None, False, ""),
        ("local", "10.0.0.1:6379", False, ""),
        (None, "local", False, ""),
        (None, "10.0.0.1:6379", False, "the Ray cluster at 10.0.0.1:6379 (RAY_ADDRESS)"),
        ("10.0.0.2:6379", "10.0.0.1:6379", False, "the Ray cluster at 10.0.0.2:6379"),
        (
            "ray://me:secret@x:1?t=1",
            None,
            False,
            f"the Ray cluster at {redact_link('ray://me:secret@x:1?t=1')}",
        ),
        ("auto", None, False, "the Ray cluster at auto"),
        (None, None, True, "the Ray cluster that this process is connected to"),
        ("10.0.0.2:6379", None, True, "the Ray cluster that this process is connected to"),
    ],
)
def test_which_ray_is_used(monkeypatch, option, variable, is_initialized, name):
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: is_initialized))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if variable:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    target = find_target(RayOptions(address=option))
    assert target.is_local == (not name)
    if name:
        assert target.name() == name
        assert target.describe([_HERE, _OTHER_HOST]) == f"Using {name}: 2 nodes with 4 CPUs."
    else:
        nodes = [NodeResources(8, 2)]
        assert target.describe(nodes) == "Started a local Ray with 8 CPUs and 2 GPUs."


@pytest.mark.parametrize("how", ["--address", "RAY_ADDRESS", "caller"])
@pytest.mark.parametrize(
    ("input_", "output", "nodes", "sets", "refused"),
    [
        ("/in", "s3://b/out", [_HERE, _OTHER_HOST], {}, "The input /in is a local path"),
        ("s3://b/in", "/out", [_HERE, _OTHER_ADDRESS], {}, "The output /out is a local path"),
        ("/in", "/out", [_HERE, _HERE], {}, ""),
        ("/in", "/out", [_HERE, _OTHER_HOST], {"shared_paths": True}, ""),
        ("s3://b/in", "s3://b/out", [_OTHER_HOST], {}, ""),
    ],
)
def test_local_paths_on_other_machines_are_refused_however_the_cluster_is_named(
    monkeypatch, how, input_, output, nodes, sets, refused
):
    is_initialized = how == "caller"
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: is_initialized))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if how == "RAY_ADDRESS":
        monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    address = "10.0.0.1:6379" if how == "--address" else None
    options = RayOptions(address=address, **sets)
    target = find_target(options)
    monkeypatch.setattr(cluster, "connected", lambda options: nullcontext(target))
    monkeypatch.setattr(cluster, "live_nodes", lambda: nodes)
    config = Config(input=input_, output=output, ray=options)
    if not refused:
        check_paths_reachable(config)
        return
    with pytest.raises(UsageError, match=refused) as caught:
        check_paths_reachable(config)
    assert nodes[1].label() in caught.value.message
    assert "ray.shared_paths=true" in caught.value.hint


def test_paths_are_checked_before_the_archive_is_listed(monkeypatch, tmp_path):
    monkeypatch.setattr(cluster, "connected", lambda options: nullcontext(find_target(options)))
    monkeypatch.setattr(cluster, "live_nodes", lambda: [_OTHER_HOST])
    options = RayOptions(address="10.0.0.1:6379")
    config = Config(input=str(tmp_path / "no-such"), output=str(tmp_path / "out"), ray=options)
    with pytest.raises(UsageError, match="is a local path, but the Ray cluster at 10"):
        segment(config)
    assert not (tmp_path / "out").exists()
