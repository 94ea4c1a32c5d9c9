"""Workers run the driver's code, or none: which change of a package is another code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from segcore.distributed import code_version as module
from segcore.distributed.actors import WorkerSetup, load_worker_model
from segcore.distributed.code_version import code_version
from segcore.errors import ClusterError


def _package(folder: Path) -> Path:
    (folder / "room").mkdir(parents=True)
    (folder / "__init__.py").write_text('__version__ = "1"\n')
    (folder / "room" / "a.py").write_text("A = 1\n")
    (folder / "room" / "b.py").write_text("B = 2\n")
    return folder


def _version_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(module, "PACKAGE", folder)
    return str(code_version.__wrapped__())


CHANGES: list[Callable[[Path], object]] = [
    lambda folder: (folder / "room" / "a.py").write_text("A = 2\n"),
    lambda folder: (folder / "room" / "c.py").write_text(""),
    lambda folder: (folder / "room" / "b.py").unlink(),
    lambda folder: (folder / "room" / "b.py").rename(folder / "room" / "c.py"),
    lambda folder: (folder / "room" / "b.py").rename(folder / "b.py"),
    lambda folder: (folder / "room" / "a.py").write_text("A = 1\nB = 2\n"),
]


@pytest.mark.parametrize("change", CHANGES)
def test_each_change_of_the_source_is_another_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], object]
) -> None:
    before = _version_of(_package(tmp_path / "here"), monkeypatch)
    there = _package(tmp_path / "there")
    assert _version_of(there, monkeypatch) == before
    (there / "__pycache__").mkdir()
    (there / "__pycache__" / "a.cpython-311.pyc").write_bytes(b"x")
    (there / "py.typed").touch()
    assert _version_of(there, monkeypatch) == before
    change(there)
    assert _version_of(there, monkeypatch) != before


def test_a_worker_of_another_code_sets_nothing_up() -> None:
    spec = MagicMock(code="0.0.9 (code 0123456789ab)")
    setup = WorkerSetup(lambda: load_worker_model(spec))
    with pytest.raises(ClusterError, match="the driver 0") as error:
        load_worker_model(spec)
    assert code_version() in error.value.message
    assert "ship_code" in error.value.hint
    assert "the driver 0.0.9 (code 0123456789ab)" in setup._error


def test_an_image_of_a_worker_without_the_models_file_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No image is blamed: the units are not done, and `setup_failed` blames the node."""
    from segcore.distributed import actors
    from segcore.models import bundled_weights, registry
    from segcore.models.base import ModelOptions
    from tests.support.bright_images import bright_pngs, unit_of_files

    monkeypatch.setattr(actors, "_SETUP_FAILURE_PAUSE_S", 0.0)
    monkeypatch.setattr(actors, "_limit_memory", lambda spec: None)
    monkeypatch.setattr(bundled_weights, "BUNDLED", tmp_path)
    monkeypatch.setattr(registry, "BUNDLED", tmp_path)
    options = ModelOptions(device="cpu")
    spec = MagicMock(code=code_version(), model="nuclei-yolo11n", weights=None, options=options)
    setup = WorkerSetup(lambda: load_worker_model(spec))
    outcome = setup.failed_outcome(unit_of_files(tmp_path / "a", bright_pngs(2)))
    assert outcome is not None
    assert outcome.setup_failed
    assert "nuclei-yolo11n" in outcome.error
    assert (outcome.ok, outcome.failed) == (0, 0)
