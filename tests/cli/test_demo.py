"""`segcore demo` as a whole command, with Ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from segcore.demo.run import AP50_FLOOR
from segcore.models.registry import bundled_names
from segcore.output.results import open_results
from segcore.storage import Storage
from tests.support.paths import PYTHONPATH


def _run_demo(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "segcore", "demo", "--out", str(folder), "--json", *options]
    environment = os.environ | {"PYTHONPATH": PYTHONPATH, "AWS_SESSION_TOKEN": "not-of-this-server"}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=580, check=False, env=environment
    )


@pytest.mark.ray
@pytest.mark.timeout(600)
@pytest.mark.s3
@pytest.mark.faults
def test_the_whole_demo_on_s3_fails_for_bad_masks_only(tmp_path: Path) -> None:
    model = "tests.support.threshold_model:Threshold"
    done = _run_demo(tmp_path / "out", "--images", "24", "--s3", "--model", model)
    assert done.returncode == 1, done.stderr  # a threshold is no network
    assert done.stdout, done.stderr
    document = json.loads(done.stdout)
    assert len(document["problems"]) == 1
    assert "AP50" in document["problems"][0]
    assert document["problems"][0] in done.stderr
    assert document["run"]["input"].startswith("s3://")
    assert document["run"]["images"] == 24
    assert document["run"]["failed"] == len(document["archive"]["broken"])
    copied = open_results(Storage(), str(tmp_path / "out" / "masks"))
    assert copied.prefix == document["tables"]
    assert sum(table.num_rows for table in copied.images()) == 24
    assert sum(t.num_rows for t in copied.instances()) == document["run"]["instances"]
    assert Path(document["contact_sheet"]).exists()
    assert Path(document["report"]).exists()
    assert not (tmp_path / "out" / "s3-server").exists()


@pytest.mark.ray
@pytest.mark.timeout(600)
@pytest.mark.skipif(not bundled_names(), reason="this checkout has no bundled model yet")
def test_the_bundled_model_passes_the_demo(tmp_path: Path) -> None:
    done = _run_demo(tmp_path / "out", "--images", "24")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["ok"] is True
    assert document["evaluation"]["scores"]["mask"]["ap50"] >= AP50_FLOOR
