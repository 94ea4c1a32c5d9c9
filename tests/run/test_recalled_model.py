"""A night with nothing to do knows its model by the hash of the weights; any change loads it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from segcore.config import Config
from segcore.output.edition import make_edition
from segcore.output.layout import OutputLayout
from segcore.run.job_model import JobModel
from segcore.storage import Storage
from tests.support import serial_run
from tests.support.bright_images import bright_png, bright_pngs
from tests.support.fake_models import BrightModel
from tests.support.jobs import write_files
from tests.support.nights import night

Loaded = list[str]


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loaded:
    """The checkpoints that runs load; each is one of `BrightModel`, whatever its bytes are."""
    opened: Loaded = []

    def open_model(
        config: Config, storage: Storage, output: OutputLayout, input_uri: str
    ) -> JobModel:
        data = Path(config.model.name).read_bytes()
        opened.append(config.model.name)
        info = BrightModel(config.model.options()).info
        info = replace(info, weights_sha256=hashlib.sha256(data).hexdigest())
        edition = make_edition(info, config.decode)
        return JobModel(data, info, edition, config.model.options())

    monkeypatch.setattr("segcore.run.job.open_model", open_model)
    monkeypatch.setattr(serial_run, "load_model", lambda name, options: BrightModel(options))
    serial_run.without_ray(monkeypatch)
    (tmp_path / "model.pt").write_bytes(b"weights")
    write_files(tmp_path / "in", bright_pngs(4))
    return opened


def _night(folder: Path, *sets: str) -> str:
    return night(folder, *sets, model=str(folder / "model.pt")).status


def test_nothing_to_do_loads_nothing_and_new_images_load_it_once(
    tmp_path: Path, loaded: Loaded
) -> None:
    assert (_night(tmp_path), len(loaded)) == ("published", 1)
    loaded.clear()
    os.utime(tmp_path / "model.pt", (1, 1))  # the bytes count, not the time
    assert (_night(tmp_path), loaded) == ("nothing_to_do", [])
    assert (_night(tmp_path, "model.device=cpu"), loaded) == ("nothing_to_do", [])
    write_files(tmp_path / "in", {"new.png": bright_png(9)})
    assert (_night(tmp_path), len(loaded)) == ("published", 1)
    loaded.clear()
    assert (_night(tmp_path), loaded) == ("nothing_to_do", [])


def _other_weights(folder: Path) -> list[str]:
    (folder / "model.pt").write_bytes(b"other weights")
    return []


def _damaged_record(folder: Path) -> list[str]:
    (record,) = (folder / "out" / "reprocess" / "models").iterdir()
    record.write_text('{"model": 1}')
    return []


def _no_record(folder: Path) -> list[str]:
    (record,) = (folder / "out" / "reprocess" / "models").iterdir()
    record.unlink()
    return []


def _other_version(folder: Path) -> list[str]:
    (record,) = (folder / "out" / "reprocess" / "models").iterdir()
    record.write_text(record.read_text().replace('"segcore": "', '"segcore": "0.0.0-'))
    return []


CHANGES: list[tuple[Callable[[Path], list[str]], str]] = [
    (_other_weights, "published"),
    (_damaged_record, "nothing_to_do"),
    (_no_record, "nothing_to_do"),
    (_other_version, "nothing_to_do"),
    (lambda folder: ["model.conf=0.5"], "published"),
    (lambda folder: ["decode.wide_range=min_max"], "published"),
]


@pytest.mark.parametrize(("change", "status"), CHANGES)
def test_whatever_may_change_results_loads_the_model(
    tmp_path: Path, loaded: Loaded, change: Callable[[Path], list[str]], status: str
) -> None:
    _night(tmp_path)
    loaded.clear()
    sets = change(tmp_path)
    assert (_night(tmp_path, *sets), len(loaded)) == (status, 1)
    loaded.clear()
    assert (_night(tmp_path, *sets), loaded) == ("nothing_to_do", [])  # it is on record again
