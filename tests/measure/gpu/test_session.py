"""The session for a machine with a GPU runs where there is none, on tiny sizes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.measure.gpu import session
from tests.support.commands import run_module

QUICK = ("--device", "cpu", "--quick")
pytestmark = pytest.mark.slow


@pytest.mark.faults
def test_the_session_runs_on_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    done = run_module(
        "tests.measure.gpu.session", *QUICK, "--parts", "masks,parity,graph,peer", "--out", str(out)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(out.read_text())
    assert json.loads(done.stdout) == document
    assert document["masks"]["instances"] >= 200
    assert document["masks"]["different"] == {"TorchChunk": 0}
    assert document["parity"]["float32"]["mask_ap"] > 0.7
    assert 0 < abs(document["parity"]["bfloat16"]["mask_ap_less_float32"]) < 0.02
    assert document["graph"]["graph"] == "needs CUDA"
    assert document["peer"]["skipped"] == "no --photos"


def test_where_a_part_fails_its_error_is_recorded_and_the_others_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--parts", "parity,peer", "--data", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["session", *QUICK, *options])
    assert session.main() == 1
    document = json.loads(capsys.readouterr().out)
    assert document["parity"]["error"].startswith("FileNotFoundError")
    assert document["peer"]["skipped"]
