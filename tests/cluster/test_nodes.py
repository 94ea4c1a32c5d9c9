"""A cluster of real nodes: they come and go, and one of them differs from the others."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cluster.ray_head import RayHead
from tests.faults.chaos_cluster import HEALTH
from tests.support.bright_images import bright_pngs
from tests.support.jobs import image_rows, write_files
from tests.support.paths import ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.ray, pytest.mark.timeout(1800)]

IMAGES = 60
_MODEL = "tests.support.fake_models:LoggedModel"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where each process writes which images it segmented."""
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def hold(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """While this file exists, each process stops after one image."""
    return tmp_path_factory.mktemp("hold") / "hold"


@pytest.fixture(scope="module")
def head(work: Path, hold: Path) -> Iterator[RayHead]:
    """A head without work, and two nodes."""
    environment = {**HEALTH, "FAKE_MODEL_DELAY": "0.3", "FAKE_MODEL_LOG": str(work)}
    head = RayHead({**environment, "FAKE_MODEL_HOLD": str(hold)}, cpus=0)
    try:
        for name in ("first", "second"):
            head.add_node(name)
        yield head
    finally:
        head.stop()


@pytest.fixture(autouse=True)
def _release(hold: Path) -> Iterator[None]:
    """A test that failed holds nobody up."""
    yield
    hold.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_files(tmp_path_factory.mktemp("archive") / "in", bright_pngs(IMAGES))


class Job:
    """`segcore submit` of a segmentation, and what came of it."""

    def __init__(self, head: RayHead, source: str, folder: Path, *words: str) -> None:
        self.output, self._log = folder / "out", folder / "log"
        config = folder / "job.yaml"
        config.write_text(
            f"input: {source}\noutput: {self.output}\nplan: {{images: 2}}\n"
            f"model: {{name: '{_MODEL}', device: cpu}}\n"
        )
        address = ("--address", head.address)
        self.process = head.segcore("submit", str(config), *words, *address, log=self._log)

    def wait_for_parts(self, number: int) -> None:
        """Wait until so many units are committed, which is the middle of the job."""
        self._wait_until(lambda: len(list(self.output.glob("*/images/*.parquet"))) >= number)

    def wait_for_work_of(self, raylet: int, work: Path) -> None:
        """Wait until an image was segmented on this node."""
        self._wait_until(lambda: raylet in _raylets_at_work(work))

    def _wait_until(self, is_so: Callable[[], bool]) -> None:
        give_up_at = time.monotonic() + 400
        while not is_so():
            assert self.process.poll() is None, self._log.read_text()
            assert time.monotonic() < give_up_at
            time.sleep(0.1)

    def wait(self) -> tuple[int, str]:
        """Exit code, and all that was said."""
        stdout, _ = self.process.communicate(timeout=900)
        return self.process.returncode, stdout + self._log.read_text()

    def check_whole(self, number: int = IMAGES) -> str:
        """Nothing is lost, nothing is there twice; returns what was said."""
        code, said = self.wait()
        assert code == 0, said
        assert "Traceback" not in said
        (edition,) = (path.parent for path in self.output.glob("*/edition.json"))
        rows = image_rows(str(edition))
        assert len(rows) == number
        assert all(row["status"] == "ok" for row in rows.values())
        return said


def _raylets_at_work(work: Path) -> set[int]:
    """The raylets below which images were segmented."""
    lines = [line for log in work.iterdir() for line in log.read_text().splitlines()]
    return {int(line.split()[1]) for line in lines}


def test_a_node_comes_and_another_goes_in_the_middle(
    head: RayHead, archive: str, work: Path, hold: Path, tmp_path: Path
) -> None:
    going = head.add_node("going")
    hold.touch()
    job = Job(head, archive, tmp_path)
    job.wait_for_work_of(going.raylet, work)
    hold.unlink()
    job.wait_for_parts(12)
    hold.touch()
    going.kill()
    coming = head.add_node("coming")
    try:
        job.wait_for_work_of(coming.raylet, work)
        hold.unlink()
        job.check_whole()
    finally:
        coming.kill()


def _other_build(folder: Path, change: Callable[[Path], None]) -> dict[str, str]:
    """The environment of a node that has a changed copy of segcore."""
    shutil.copytree(ROOT / "segcore", folder / "segcore")
    shutil.copytree(ROOT / "tests" / "support", folder / "tests" / "support")
    change(folder / "segcore")
    return {"PYTHONPATH": str(folder)}


def _add_comment(package: Path) -> None:
    path = package / "exit_codes.py"
    path.write_text(path.read_text() + "# another build\n")


def test_a_node_with_another_build_is_taken_out(
    head: RayHead, archive: str, work: Path, tmp_path: Path
) -> None:
    node = head.add_node("other", _other_build(tmp_path / "build", _add_comment))
    try:
        said = Job(head, archive, tmp_path).check_whole()
        assert "out of the run; its units are done on other nodes" in said
        assert "This worker runs segcore" in said
        assert node.raylet not in _raylets_at_work(work)
    finally:
        node.kill()


@pytest.mark.parametrize("n_images", [24, 8 * IMAGES])
def test_a_node_without_segcore_is_taken_out(
    head: RayHead, work: Path, tmp_path: Path, n_images: int
) -> None:
    """Actors cannot even begin there; that ends the pool once it has been tried three times.

    A short job is done before that.
    """
    source = write_files(tmp_path / "in", bright_pngs(n_images))
    node = head.add_node("none", _other_build(tmp_path / "build", shutil.rmtree))
    try:
        said = Job(head, source, tmp_path).check_whole(n_images)
        assert "out of the run; its units are done on other nodes" in said
        assert "Nodes that did not work:" in said
        assert "This node has no segcore (No module named 'segcore')" in said
        assert node.raylet not in _raylets_at_work(work)
    finally:
        node.kill()


@contextmanager
def _small_disk(megabytes: int) -> Iterator[Path]:
    """A file system of this size."""
    folder = Path(tempfile.mkdtemp(prefix="ray"))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("root is needed to mount a small file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        folder.rmdir()


def _fill(folder: Path) -> None:
    with (folder / "fill").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 20))
        except OSError:
            return


@pytest.mark.parametrize("full_at", ["before", "middle"])
def test_a_full_disk_of_one_node_loses_nothing(
    head: RayHead, archive: str, work: Path, hold: Path, tmp_path: Path, full_at: str
) -> None:
    with _small_disk(100) as folder:
        node = head.add_node(f"full-{full_at}", {"TMPDIR": str(folder)}, folder)
        try:
            if full_at == "before":
                _fill(folder)
            else:
                hold.touch()
            job = Job(head, archive, tmp_path)
            if full_at == "middle":
                job.wait_for_work_of(node.raylet, work)
                hold.unlink()
                job.wait_for_parts(6)
                _fill(folder)
            said = job.check_whole()
            if full_at == "before":  # no process of the job starts there
                assert "out of the run; its units are done on other nodes" in said
                assert "No space left on device" in said
        finally:
            node.kill()


def test_a_node_without_the_model_is_taken_out(
    head: RayHead, archive: str, work: Path, tmp_path: Path
) -> None:
    def remove_model(package: Path) -> None:
        (package.parent / "tests" / "support" / "fake_models.py").unlink()

    # the same code of segcore, and an image that lacks the class of the user
    node = head.add_node("without", _other_build(tmp_path / "build", remove_model))
    try:
        said = Job(head, archive, tmp_path).check_whole()
        assert "out of the run; its units are done on other nodes" in said
        assert node.raylet not in _raylets_at_work(work)
    finally:
        node.kill()
