"""The text file of a run is there when it begins, and says how it ended, however that was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from segcore.errors import ClusterError, UsageError
from segcore.run.metrics_file import metrics_file
from segcore.run.passes import RunState


def _value(path: Path, name: str) -> float:
    lines = [line for line in path.read_text().splitlines() if line.startswith(name + "{")]
    assert len(lines) == 1, path.read_text()
    return float(lines[0].rpartition(" ")[2])


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ClusterError("gone"), 1),
        (UsageError("wrong"), 2),
        (KeyboardInterrupt(), 130),
        (RuntimeError("a bug"), 1),
    ],
)
def test_every_end_is_in_the_file(tmp_path: Path, error: BaseException, code: int) -> None:
    path, state = tmp_path / "segcore.prom", RunState()

    def run() -> None:
        with metrics_file(str(path), state):
            assert _value(path, "segcore_run_in_progress") == 1
            assert "segcore_run_exit_code" not in path.read_text()
            state.samples["segcore_units_total", ""] = 7
            state.timings["segment"] = 1.5
            raise error

    with pytest.raises(type(error)):
        run()
    assert _value(path, "segcore_run_in_progress") == 0
    assert _value(path, "segcore_run_exit_code") == code
    assert _value(path, "segcore_units_total") == 7
    assert 'segcore_run_step_seconds{edition="",step="segment"} 1.5' in path.read_text()
    assert [one.name for one in tmp_path.iterdir()] == ["segcore.prom"]


def test_a_file_that_cannot_be_written_is_said_before_the_run(tmp_path: Path) -> None:
    ran: list[Any] = []
    with (
        pytest.raises(UsageError, match="cannot be written: No such file"),
        metrics_file(str(tmp_path / "missing" / "x.prom"), RunState()),
    ):
        ran.append(1)
    assert not ran


def test_a_folder_that_goes_meanwhile_is_a_warning(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    state, warnings = RunState(), list[str]()
    state.warn = warnings.append

    def run() -> None:
        with metrics_file(str(folder / "x.prom"), state):
            (folder / "x.prom").unlink()
            folder.rmdir()
            raise ClusterError("gone")

    with pytest.raises(ClusterError, match="gone"):
        run()
    assert "cannot be written" in warnings[0]


def test_no_file_is_no_file(tmp_path: Path) -> None:
    with metrics_file(None, RunState()) as take_report:
        take_report(None)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
