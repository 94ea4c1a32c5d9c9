"""Today's code reads, verifies and evaluates outputs that commit e8b9e42 wrote.

`schema1/` holds three archives (loose images, tars, Parquet shards), the outputs that the old code
made from them, and `expected.json`: what it reported about them. Rows, metadata, numbers and exit
codes must all stay the same, and so must the images, units and bytes of a plan. `make_schema1.py`
made these files.

The old code's decoder was another one, and belongs to another edition: a run of today's goes beside
the stored results and continues none of them.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import pytest

from segcore.testing.loopback_s3 import LoopbackS3
from tests.compat.schema1_store import (
    ROOT_URI,
    STORE,
    Bucket,
    Outcome,
    arguments,
    run,
)
from tests.support.commands import call_segcore
from tests.support.paths import PYTHONPATH, ROOT

MODEL = "tests.support.fake_models:BrightModel"
SEGCORE = [sys.executable, "-m", "segcore"]

EXPECTED = json.loads((STORE / "expected.json").read_text())
OUTPUTS: dict[str, dict[str, Any]] = EXPECTED["outputs"]
READINGS = [(output, command) for output, facts in OUTPUTS.items() for command in facts["reports"]]

pytestmark = pytest.mark.s3


@pytest.fixture
def bucket(s3: LoopbackS3) -> Bucket:
    """A fresh copy of the stored archives and outputs, at the URIs where the old code made them."""
    found = Bucket(s3.environment)
    found.reset()
    return found


def _segcore(*args: str) -> Outcome:
    if args[0] != "segment" or "--dry-run" in args:
        done = call_segcore(*args)
        return Outcome(done.returncode, json.loads(done.stdout), done.stderr)
    return run([*SEGCORE, *args], ROOT, {**os.environ, "PYTHONPATH": PYTHONPATH})


def _segment(output: str, *more: str) -> Outcome:
    args = arguments([*OUTPUTS[output]["segment"], *more], output)
    return _segcore("segment", *args, "--model", MODEL)


@pytest.mark.parametrize(("output", "command"), READINGS)
def test_reports_are_unchanged(bucket: Bucket, output: str, command: str) -> None:
    expected = OUTPUTS[output]["reports"][command]
    truth = [f"{ROOT_URI}truth.json"] if command == "evaluate" else []
    done = _segcore(command, f"{ROOT_URI}output/{output}", *truth, "--json")
    document, expected_document = dict(done.document), dict(expected["document"])
    if command == "evaluate":  # its notes are sentences for people: their words may change
        assert len(document.pop("notes")) == len(expected_document.pop("notes"))
    if command in ("status", "verify"):
        assert document["warnings"] == {}  # what schema 1 did not know
    document = {name: document[name] for name in expected_document}  # others came since
    assert (done.exit_code, _approximate(document)) == (expected["exit_code"], expected_document)


@pytest.mark.slow
@pytest.mark.parametrize("output", OUTPUTS)
def test_another_edition_plans_the_same_images_and_touches_nothing(
    bucket: Bucket, output: str
) -> None:
    bucket.forget_plans(output)
    before = bucket.objects(f"output/{output}/")
    planned = _segment(output, "--dry-run")
    assert bucket.objects(f"output/{output}/") == before  # content and time of writing
    expected = OUTPUTS[output]["dry_runs"]["replanned"]
    assert planned.exit_code == 0
    assert planned.document["prefix"] != expected["prefix"]
    for field in ("input", "model", "kind", "images", "units", "bytes"):
        assert planned.document[field] == expected[field], field
    for field in ("units_done", "units_stale"):  # parts of another edition are no part of this run
        assert planned.document[field] == 0, field


def _approximate(value: Any) -> Any:
    """The last digits of AP may depend on the version of NumPy."""
    if isinstance(value, dict):
        return {key: _approximate(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_approximate(part) for part in value]
    return pytest.approx(value, rel=1e-12) if isinstance(value, float) else value
