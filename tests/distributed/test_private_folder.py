"""The folder of a local Ray: private, short, gone at the end, and removed after a kill."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from segcore.distributed.private_folder import (
    RAY_FOLDER,
    _base_folder,
    private_folder,
    remove_abandoned,
)
from segcore.errors import ClusterError
from tests.support.paths import ROOT


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base whose path is short enough."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        yield Path(folder)


def test_it_is_private_and_goes_at_the_end(base: Path) -> None:
    with private_folder() as folder:
        assert folder.parent == base
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        session = "session_2026-11-28_09-17-16_123456_4194304"
        assert len(f"{folder}/{RAY_FOLDER}/{session}/sockets/plasma_store") <= 107
        (folder / "session" / "logs").mkdir(parents=True)
        (folder / "session" / "logs" / "x").write_text("x")
        (folder / "session_latest").symlink_to(folder / "session")
    assert list(base.iterdir()) == []


def test_it_goes_after_an_error_and_stays_if_asked(base: Path) -> None:
    with pytest.raises(KeyboardInterrupt), private_folder():
        raise KeyboardInterrupt
    assert list(base.iterdir()) == []
    with private_folder(keep=True) as folder:
        (folder / "log").write_text("x")
    remove_abandoned(base)
    assert [entry.name for entry in folder.iterdir()] == ["log"]


def test_a_killed_owner_leaves_a_folder_that_the_next_one_removes(base: Path) -> None:
    code = (
        "import os, signal\n"
        "from segcore.distributed.private_folder import private_folder\n"
        "with private_folder() as folder:\n"
        "    (folder / 'session').mkdir()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    (abandoned,) = base.iterdir()
    with private_folder() as first:
        assert not abandoned.exists()
        with private_folder():
            assert first.exists()  # its owner lives
    assert list(base.iterdir()) == []


def test_what_is_not_ours_stays(base: Path) -> None:
    (base / "segcore-notes").mkdir()
    (base / "segcore-file").write_text("x")
    elsewhere = base / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "owner.lock").touch()
    (base / "segcore-link").symlink_to(elsewhere)
    remove_abandoned(base)
    assert (elsewhere / "owner.lock").exists()
    assert len(list(base.iterdir())) == 4


def test_a_long_base_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    long_base = tmp_path / ("x" * 40)
    monkeypatch.setenv("RAY_TMPDIR", str(long_base))
    assert _base_folder() == Path("/tmp")


def test_where_it_cannot_be_made_the_folder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/no/such")
    folder = private_folder()
    with pytest.raises(ClusterError, match=r"in /no/such: No such file") as caught, folder:
        raise AssertionError("made a folder")
    assert "RAY_TMPDIR" in caught.value.hint
    assert not os.path.exists("/no/such")


_TWO_LOCAL_RAYS = """
import os, stat
from pathlib import Path
from segcore.config import RayOptions
from segcore.distributed import cluster

def mode(path):
    return oct(stat.S_IMODE(path.stat().st_mode))

for _ in range(2):
    with cluster.connected(RayOptions(), num_cpus=1):
        import ray
        class Actor:
            def answer(self):
                return 42
        handle = ray.remote(num_cpus=0)(Actor).remote()
        assert ray.get(handle.answer.remote(), timeout=60) == 42
        token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
        print(mode(token), mode(token.parent), os.environ["RAY_AUTH_MODE"])
    assert not token.parent.exists()
    assert not {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
"""


@pytest.mark.ray
def test_a_local_ray_keeps_its_files_and_its_token_from_others(base: Path) -> None:
    """Ray opens its own folder for all, and needs a home directory for its own token."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_TMPDIR": str(base), "HOME": "/proc/nowhere", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", _TWO_LOCAL_RAYS]
    finished = subprocess.run(
        command, env=environment, check=False, capture_output=True, text=True, timeout=300
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.split("\n") == ["0o600 0o700 token"] * 2 + [""]
    assert list(base.iterdir()) == []
