"""The folder of a local Ray: private, short, gone at the end, and removed after a kill."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from segcore.distributed.private_folder import _base_folder, private_folder, remove_abandoned
from segcore.errors import ClusterError


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
        longest = f"{folder}/session_2026-11-28_09-17-16_123456_4194304/sockets/plasma_store"
        assert len(longest) <= 107
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
