"""segcore bench scale: each unit is committed and counted. No times are judged; Ray is left out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from segcore.bench import scale
from segcore.errors import SegcoreError
from segcore.output.committed import list_committed
from segcore.output.layout import EditionLayout
from segcore.storage import Storage
from tests.support.commands import call_segcore
from tests.support.run_without_ray import without_ray


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def call(function: Callable[..., Any], *args: Any) -> Any:
        return function(*args)

    monkeypatch.setattr(scale, "_in_own_process", call)
    with without_ray():
        yield


@pytest.mark.usefixtures("in_this_process")
def test_each_step_is_measured(tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    done = call_segcore("bench", "scale", "--units", "12", "--output", output, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    names = ("driver_ms_per_unit", "driver_peak_mb", "resume_s", "account_s", "status_s")
    for name in (*names, "driver_share_of_core"):
        assert isinstance(report[name], float), name
    assert {"prepare", "account", "settle"} <= report["run"]["steps"].keys()
    assert report["nothing_to_do"]["steps"].keys() == {"prepare", "account"}
    layout = EditionLayout(report["run"]["prefix"])
    assert len(list_committed(Storage(), layout).names()) == 12


@pytest.mark.usefixtures("in_this_process")
def test_a_run_that_is_not_complete_is_an_error(tmp_path: Path) -> None:
    scale.make_images(tmp_path / "photos", 3)
    (tmp_path / "photos" / "00000" / "001.png").unlink()
    values = {"input": str(tmp_path / "photos"), "output": str(tmp_path / "out")}
    with pytest.raises(SegcoreError, match="not complete"):
        scale.drive(values, 3)
    with pytest.raises(SegcoreError, match=r"status counts 2 of 3 units"):
        scale.time_status(values["output"], 3)


def test_images_are_made_in_folders(tmp_path: Path) -> None:
    scale.make_images(tmp_path / "photos", 2005)
    files = sorted((tmp_path / "photos").rglob("*.png"))
    assert len(files) == 2005
    assert {len(list(folder.iterdir())) for folder in (tmp_path / "photos").iterdir()} == {1000, 5}
    assert len({file.read_bytes() for file in files}) == 1
