"""The script for a machine with a GPU runs where there is none, on tiny sizes."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.support.paths import ROOT


def test_the_script_runs_on_a_cpu(tmp_path):
    out = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "tests.measure.gpu.session", "--device", "cpu", "--quick"]
    command += ["--parts", "masks,parity,graph,peer", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    assert json.loads(done.stdout) == found
    assert found["masks"]["instances"] >= 200
    assert found["masks"]["different"] == 0
    assert found["parity"]["float32"]["mask_ap"] > 0.7
    assert 0 < abs(found["parity"]["bfloat16"]["mask_ap_less_float32"]) < 0.02
    assert found["graph"]["graph"] == "needs CUDA"
    assert found["peer"]["skipped"] == "no --photos"


def test_a_part_that_fails_says_so_and_the_others_run(tmp_path):
    command = [sys.executable, "-m", "tests.measure.gpu.session", "--device", "cpu", "--quick"]
    command += ["--parts", "parity,peer", "--data", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)
    assert done.returncode == 1
    assert found["parity"]["error"].startswith("FileNotFoundError")
    assert found["peer"]["skipped"]
