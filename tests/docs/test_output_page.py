"""Every Python example in docs/output.md runs unchanged on a real output."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from segcore.config import load_config
from segcore.errors import ErrorCode, WarningCode
from segcore.output.schema import IMAGES_SCHEMA, INSTANCES_SCHEMA
from segcore.run.compact import compact
from segcore.run.compact_plan import CompactOptions
from segcore.storage import Storage
from segcore.testing.synthetic_archive import write_archive
from tests.support import serial_run
from tests.support.paths import ROOT

DOC = ROOT / "docs" / "output.md"
BLOCK = re.compile(r"^```python( setup)?\n(.*?)^```", re.MULTILINE | re.DOTALL)
BLOCKS = BLOCK.findall(DOC.read_text())
SETUP = "".join(code for kind, code in BLOCKS if kind)
EXAMPLES = [code for kind, code in BLOCKS if not kind]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    archive = write_archive(Storage(), str(folder), n_images=10, n_broken=2, per_shard=5)
    flags = {
        "in": ("input", archive.shards),
        "out": ("output", str(folder / "OUTPUT")),
        "model": ("model.name", "tests.support.threshold_model:Threshold"),
        "failed": ("run.max_failed_fraction", 0.5),
    }
    assert serial_run.segment(load_config(flags=flags)).exit_code == 0
    return folder


def test_the_error_codes_on_the_page_are_all_there_are() -> None:
    table = DOC.read_text().partition("## Why images fail")[2].partition("## Warnings")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == [str(code) for code in ErrorCode]


def test_the_warnings_on_the_page_are_all_there_are() -> None:
    table = DOC.read_text().partition("## Warnings")[2].partition("## What is left out")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == [str(code) for code in WarningCode]


def test_there_are_examples_for_every_library() -> None:
    all_examples = "".join(EXAMPLES)
    assert SETUP
    for name in ("pandas", "duckdb", "polars", "pycocotools", "segcore"):
        assert f"import {name}" in all_examples or f"from {name}" in all_examples


@pytest.mark.parametrize("code", EXAMPLES, ids=range(len(EXAMPLES)))
def test_the_example_runs(
    code: str,
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "polars" in code:
        pytest.importorskip("polars")
    monkeypatch.chdir(output)
    namespace: dict[str, object] = {}
    exec(compile(SETUP + code, str(DOC), "exec"), namespace)
    printed = capsys.readouterr().out
    if "print(" in code:
        assert "nucleus" in printed or "corrupt" in printed
    if "results.json" in code:
        results = json.loads((output / "OUTPUT" / "results.json").read_text())
        assert {r["category_id"] for r in results} == {1}
        assert len(results) > 20
    if "outline" in code:
        assert namespace["outline"]


def test_every_column_is_explained() -> None:
    text = DOC.read_text()
    images, instances = text.split("`instances`: one row")
    for section, schema in ((images, IMAGES_SCHEMA), (instances, INSTANCES_SCHEMA)):
        for name in schema.names:
            row = re.search(rf"^\|[^|]*`{name}`[^|]*\|([^|]*)\|", section, re.MULTILINE)
            assert row, f"docs/output.md does not explain {name}"
            is_list = name == "warnings"
            assert ("list" if is_list else str(schema.field(name).type)) in row.group(1)


@pytest.mark.slow
def test_the_examples_run_on_compacted_files(
    output: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(output, tmp_path, dirs_exist_ok=True)
    report = compact(Storage(), str(tmp_path / "OUTPUT"), options=CompactOptions(grace_s=0.0))
    monkeypatch.chdir(tmp_path)
    for code in (code for code in EXAMPLES if "duckdb" in code):
        namespace: dict[str, object] = {}
        exec(compile(SETUP + code, str(DOC), "exec"), namespace)
        assert report.instances.endswith(f"{namespace['instances']}/*.parquet")
        printed = capsys.readouterr().out
        assert "nucleus" in printed or "corrupt" in printed
