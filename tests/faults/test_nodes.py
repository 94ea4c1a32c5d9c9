"""A real cluster with a bad node, and one whose nodes go away in the middle of an image."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from segcore.storage import Storage
from segcore.testing.loopback_s3 import LoopbackS3
from tests.faults.chaos_cluster import RealCluster
from tests.support.bright_images import boxed_png
from tests.support.commands import SegmentCommand, kill_trees
from tests.support.fake_models import DEADLY
from tests.support.paths import PYTHONPATH

pytestmark = [pytest.mark.ray, pytest.mark.s3, pytest.mark.faults, pytest.mark.timeout(600)]
N_IMAGES = 60
_ENVIRONMENT = {"PYTHONPATH": PYTHONPATH}


@pytest.fixture
def cluster(s3: LoopbackS3, tmp_path: Path) -> Iterator[RealCluster]:
    """Two worker nodes whose models take their time."""
    real = RealCluster({**_ENVIRONMENT, "FAKE_MODEL_DELAY": "0.7"}, tmp_path / "cluster.log")
    yield real
    real.stop()


def _png(seed: int, first_pixel: tuple[int, int, int] = (0, 0, 0)) -> bytes:
    return boxed_png(40 + seed % 7, 56, first_pixel, box=(5, 9 + seed % 5, 7, 20))


def _start(cluster: RealCluster, source: str, output: str, log: Path, *sets: str) -> SegmentCommand:
    options = [word for item in sets for word in ("--set", item)]
    model = ["--model", "tests.support.fake_models:BrightModel", "--address", cluster.address]
    environment = {**_ENVIRONMENT, **cluster.environment}
    return SegmentCommand([source, output, "--json", *model, *options], log, environment)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "failed"),  # its network is broken
        ({"FAKE_MODEL_BROKEN": "1"}, "A worker could not be set up"),
    ],
)
def test_a_bad_node_is_taken_out_and_the_others_go_on(
    cluster: RealCluster,
    s3_prefix: str,
    tmp_path: Path,
    fault: dict[str, str],
    reason: str,
) -> None:
    storage = Storage()
    for i in range(N_IMAGES):
        storage.write(f"{s3_prefix}/in/{i:02d}.png", _png(i))
    cluster.add_node(fault)
    sets = ["plan.images=1", "storage.retries=0", "storage.timeout_s=5"]
    command = _start(cluster, f"{s3_prefix}/in", f"{s3_prefix}/out", tmp_path / "log", *sets)
    try:
        assert command.wait() == 0, command.describe()
    finally:
        kill_trees(command.descendants())
    report = command.report()
    assert (report["images"], report["ok"], report["errors"]) == (N_IMAGES, N_IMAGES, [])
    (sentence,) = report["nodes_taken_out"]
    assert reason in sentence
    assert sentence in command.stderr()
    assert ": 4 nodes with 3 CPUs." in command.stderr()


def test_images_are_not_blamed_for_nodes_that_go_away(cluster: RealCluster, tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for i in range(6):
        (source / f"{i}.png").write_bytes(_png(i, DEADLY if i == 4 else (0, 0, 0)))
    cluster.add_node({"FAKE_MODEL_DELAY": "0.1"})
    command = _start(cluster, str(source), str(output), tmp_path / "log", "ray.max_actors=1",
                     "run.max_failed_fraction=0.9")  # fmt: skip
    try:
        lost: set[int] = set()
        while len(lost) < 2:
            actors = [p for p in cluster.workers() if "ray::ImageActor" in _name(p)]
            raylets = {parent.pid for actor in actors if (parent := actor.parent()) is not None}
            for pid in raylets - lost:
                time.sleep(2)  # the model is loaded and an image is in progress, perhaps
                psutil.Process(pid).kill()
                lost.add(pid)
            if not command.running():
                break
            time.sleep(0.1)
        assert command.wait() == 0, command.describe()
    finally:
        kill_trees(command.descendants())
    assert lost
    assert command.report()["failures"] == {"crashed": 1}, command.describe()


def _name(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
