"""The first query of the README counts the published edition, and that one only."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from segcore.config import load_config
from segcore.output.results import open_results
from segcore.storage import Storage
from segcore.testing.synthetic_archive import write_archive
from tests.support import serial_run
from tests.support.paths import ROOT


def test_the_first_query_reads_the_published_edition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = write_archive(Storage(), str(tmp_path), n_images=4, n_broken=0, per_shard=2)
    for scale in ("full", "reduced"):
        flags = {
            "in": ("input", archive.shards),
            "out": ("output", str(tmp_path / "masks")),
            "model": ("model.name", "tests.support.threshold_model:Threshold"),
            "edition": ("decode.scale", scale),
        }
        serial_run.segment(load_config(flags=flags))
    assert len(list((tmp_path / "masks").glob("*/edition.json"))) == 2

    query = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)[0]
    monkeypatch.chdir(tmp_path)
    exec(compile(query, "README.md", "exec"), {})
    published = json.loads((tmp_path / "masks" / "latest.json").read_text())["edition"]
    results = open_results(Storage(), str(tmp_path / "masks"), published)
    n_masks = sum(table.num_rows for table in results.instances())
    assert re.search(rf"nucleus\W+{n_masks}\b", capsys.readouterr().out)
