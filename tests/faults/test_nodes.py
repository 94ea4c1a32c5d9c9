"""A real cluster with a bad node, and one whose nodes go away in the middle of an image."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest

from segcore.distributed.bundles import MAX_BUNDLE_UNITS
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


def _start(
    cluster: RealCluster,
    source: str,
    output: str,
    log: Path,
    *sets: str,
    model: str = "BrightModel",
    environment: Mapping[str, str] | None = None,
) -> SegmentCommand:
    options = [word for item in sets for word in ("--set", item)]
    options += ["--model", f"tests.support.fake_models:{model}", "--address", cluster.address]
    environment = {**_ENVIRONMENT, **cluster.environment, **(environment or {})}
    return SegmentCommand([source, output, "--json", *options], log, environment)


_NO_NETWORK = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
_GROWING = ["ray.autoscaling=true", "ray.min_actors=3", "ray.max_actors=3"]


@pytest.mark.parametrize(
    ("fault", "reason", "sets"),
    [
        (_NO_NETWORK, "failed", []),
        # a reader's node, or that of an actor
        pytest.param(_NO_NETWORK, "failed", ["ray.layout=split"], marks=pytest.mark.chaos),
        ({"FAKE_MODEL_BROKEN": "1"}, "A worker could not be set up", _GROWING),
        # six processes must have died there before the others are done
        pytest.param(
            {"FAKE_MODEL_DIES": "1"},
            "processes died in a row",
            [],
            marks=pytest.mark.chaos,
        ),
    ],
    ids=["network", "network-split", "setup-autoscaling", "deaths"],
)
def test_a_bad_node_is_taken_out_and_the_others_go_on(
    cluster: RealCluster,
    s3_prefix: str,
    tmp_path: Path,
    fault: dict[str, str],
    reason: str,
    sets: list[str],
) -> None:
    storage = Storage()
    n_images = 10 * N_IMAGES if "FAKE_MODEL_DIES" in fault else N_IMAGES
    for i in range(n_images):
        storage.write(f"{s3_prefix}/in/{i:03d}.png", _png(i))
    cluster.add_node(fault)
    sets = ["plan.images=1", "storage.retries=0", "storage.timeout_s=5", *sets]
    command = _start(cluster, f"{s3_prefix}/in", f"{s3_prefix}/out", tmp_path / "log", *sets)
    try:
        assert command.wait() == 0, command.describe()
    finally:
        kill_trees(command.descendants())
    report = command.report()
    assert (report["images"], report["ok"], report["errors"]) == (n_images, n_images, [])
    (sentence,) = report["nodes_taken_out"]
    assert reason in sentence
    assert sentence in command.stderr()
    assert ": 4 nodes with 3 CPUs." in command.stderr()


def _head(cluster: RealCluster) -> int:
    """The process id of the raylet of the head, which was started before all others."""
    raylets = [p for p in cluster.workers() if _name(p).split(" ")[0].endswith("raylet")]
    return min(raylets, key=psutil.Process.create_time).pid


@pytest.mark.parametrize(
    ("n_images", "losses", "delay_s"),
    [
        pytest.param(160, 2, 0.1, id="few"),
        pytest.param(10_000, 20, 0.02, id="many", marks=pytest.mark.chaos),
    ],
)
@pytest.mark.timeout(3600)
def test_nodes_come_and_go(
    s3: LoopbackS3, tmp_path: Path, n_images: int, losses: int, delay_s: float
) -> None:
    """Nothing is lost, little is done again, and nothing is done on the head."""
    source, output, work = tmp_path / "in", tmp_path / "out", tmp_path / "work"
    for folder in (source, work):
        folder.mkdir()
    for i in range(n_images):
        (source / f"{i:05d}.png").write_bytes(_png(i, (1, i // 200, i % 200)))
    environment = {"FAKE_MODEL_DELAY": str(delay_s), "FAKE_MODEL_LOG": str(work)}
    cluster = RealCluster({**_ENVIRONMENT, **environment}, tmp_path / "cluster.log")
    lost_at = []
    try:
        head = _head(cluster)
        cluster.add_node()
        command = _start(cluster, str(source), str(output), tmp_path / "log", "plan.images=1",
                         model="LoggedModel", environment=environment)  # fmt: skip
        try:
            for loss in range(losses):
                enough = n_images * (loss + 1) // (losses + 2)
                assert command.wait_until(
                    lambda enough=enough: len(list(output.glob("*/images/*.parquet"))) >= enough,
                    pause_s=0.2,
                ), command.describe()
                lost_at.append(time.time())
                cluster.remove_node(loss)
                cluster.add_node()
            assert command.wait() == 0, command.describe()
        finally:
            kill_trees(command.descendants())
    finally:
        cluster.stop()

    report = command.report()
    assert (report["images"], report["ok"], report["errors"]) == (n_images, n_images, [])
    assert report["units"] == len(list(output.glob("*/images/*.parquet"))) == n_images
    lines = [line.split() for log in work.iterdir() for line in log.read_text().splitlines()]
    assert len({tuple(line[2:]) for line in lines}) == n_images
    assert head not in {int(line[1]) for line in lines}
    done_again = len(lines) - n_images
    assert done_again <= losses * MAX_BUNDLE_UNITS
    starts = sorted(float(log.read_text().split()[0]) for log in work.iterdir())
    waits = [min((start - lost for start in starts if start > lost), default=0) for lost in lost_at]
    print(
        f"{n_images:,} units, {losses} nodes lost, {done_again} images segmented again; "
        f"seconds until a new process segmented: {', '.join(f'{wait:.1f}' for wait in waits)}"
    )


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
