"""`segcore failures`: which images failed, as a table, as CSV and as JSON."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from segcore.storage import Storage
from tests.support import serial_run
from tests.support.bright_images import bright_png
from tests.support.commands import call_segcore
from tests.support.jobs import job_config

HOSTILE = 'b\x1b[31mred,"x".png'


@pytest.fixture
def output(tmp_path: Path) -> str:
    storage = Storage()
    storage.write(f"{tmp_path}/in/a.png", bright_png(0))
    storage.write(f"{tmp_path}/in/{HOSTILE}", b"no image")
    storage.write(f"{tmp_path}/in/c.png", b"")
    serial_run.segment(job_config(f"{tmp_path}/in", f"{tmp_path}/out"))
    return f"{tmp_path}/out"


def test_each_failed_image_is_listed_with_its_reason(output: str) -> None:
    done = call_segcore("failures", output)
    assert done.returncode == 0
    assert "red" in done.stdout
    assert "c.png" in done.stdout
    assert "a.png" not in done.stdout
    assert "\x1b[31m" not in done.stdout
    assert "2 images failed: " in done.stderr
    assert "empty 1" in done.stderr


def test_json_and_csv_give_the_rows_as_they_are(output: str) -> None:
    document = json.loads(call_segcore("failures", output, "--json").stdout)
    rows = {row["image_id"].rpartition("/")[2]: row for row in document["failures"]}
    assert set(rows) == {HOSTILE, "c.png"}
    assert rows["c.png"]["error_code"] == "empty"
    text = call_segcore("failures", output, "--csv").stdout
    assert list(csv.DictReader(io.StringIO(text))) == document["failures"]


def test_only_the_codes_that_were_asked_for(output: str) -> None:
    document = json.loads(call_segcore("failures", output, "--json", "--code", "empty").stdout)
    assert [row["error_code"] for row in document["failures"]] == ["empty"]
    done = call_segcore("failures", output, "--code", "emty")
    assert done.returncode == 2
    assert "no error code 'emty'" in done.stderr
    assert "corrupt, " in done.stderr


def test_a_run_without_failures_says_so(tmp_path: Path) -> None:
    Storage().write(f"{tmp_path}/in/a.png", bright_png(0))
    serial_run.segment(job_config(f"{tmp_path}/in", f"{tmp_path}/out"))
    done = call_segcore("failures", f"{tmp_path}/out")
    assert (done.returncode, done.stdout) == (0, "")
    assert "No image failed." in done.stderr
