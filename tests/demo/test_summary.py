"""The commands that the demo prints can be pasted into a shell."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segcore.demo.run import DemoReport
from segcore.demo.summary import one_liners, print_summary


def _run_in_shell(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, shell=True, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.slow
def test_the_printed_commands_work(
    demo_report: DemoReport, capsys: pytest.CaptureFixture[str]
) -> None:
    print_summary(demo_report)
    printed = capsys.readouterr().out
    assert str(demo_report.contact_sheet) in printed
    assert str(demo_report.page) in printed
    commands = one_liners(demo_report.tables)
    for command, word in zip(commands, ("score", "nucleus"), strict=True):
        assert command in printed
        done = _run_in_shell(command)
        assert done.returncode == 0, done.stderr
        assert word in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["plain", "with space", "it's $5", 'say "x"'])
def test_the_printed_commands_survive_odd_folders(folder: str, tmp_path: Path) -> None:
    tables = tmp_path / folder
    (tables / "instances").mkdir(parents=True)
    row = {"category": "nucleus", "area": 4, "score": 0.5}
    pq.write_table(pa.Table.from_pylist([row]), tables / "instances" / "u.parquet")
    for command in one_liners(str(tables)):
        done = _run_in_shell(command)
        assert done.returncode == 0, (command, done.stderr)
