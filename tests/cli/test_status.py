"""`segcore status --exit-code`: where a run stands, for scripts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from segcore.output.report import INCOMPLETE, RUNNING, SUCCESS, TOO_MANY_FAILED
from segcore.storage import Storage
from tests.support import serial_run
from tests.support.bright_images import bright_png
from tests.support.commands import call_segcore
from tests.support.jobs import job_config


@pytest.mark.parametrize(
    ("state", "code"),
    [(SUCCESS, 0), (INCOMPLETE, 1), (TOO_MANY_FAILED, 3), (RUNNING, 1)],  # nobody holds its lease
)
def test_the_exit_code_tells_the_state_if_asked_for(tmp_path: Path, state: str, code: int) -> None:
    Storage().write(f"{tmp_path}/in/a.png", bright_png(0))
    report = serial_run.segment(job_config(f"{tmp_path}/in", f"{tmp_path}/out"))
    serial_run.write_record(replace(report, status=state))
    assert call_segcore("status", report.output, "--exit-code").returncode == code
    assert call_segcore("status", report.output).returncode == 0


def test_a_run_at_work_is_5(tmp_path: Path) -> None:
    from segcore.lease.hold import hold_lease
    from segcore.output.layout import EditionLayout

    Storage().write(f"{tmp_path}/in/a.png", bright_png(0))
    report = serial_run.segment(job_config(f"{tmp_path}/in", f"{tmp_path}/out"))
    serial_run.write_record(replace(report, status=RUNNING))
    with hold_lease(Storage(), EditionLayout(report.prefix).lease_folder, 60):
        assert call_segcore("status", report.output, "--exit-code").returncode == 5
