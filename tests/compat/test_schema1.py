"""Today's code reads, verifies, evaluates and extends outputs that commit e8b9e42 wrote.

`schema1/` holds three archives (loose images, tars, Parquet shards), the outputs that the old code
made from them, and `expected.json`: what it reported about them and what it did next. Names, rows,
metadata, numbers and exit codes must all stay the same. `make_schema1.py` made these files.

The tests that segment anything take 15 s each and run with `make faults`.
"""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from segcore.testing.loopback_s3 import LoopbackS3
from tests.compat.schema1_store import (
    ROOT_URI,
    STORE,
    Bucket,
    Outcome,
    Stored,
    arguments,
    decoded,
    is_lease,
    is_part,
    run,
    steady,
)
from tests.support.paths import PYTHONPATH, ROOT

MODEL = "tests.support.fake_models:BrightModel"
SEGCORE = [sys.executable, "-m", "segcore"]

EXPECTED = json.loads((STORE / "expected.json").read_text())
OUTPUTS: dict[str, dict[str, Any]] = EXPECTED["outputs"]
READINGS = [(output, command) for output, facts in OUTPUTS.items() for command in facts["reports"]]

_edition = STORE / "output" / "loose" / OUTPUTS["loose"]["edition"] / "edition.json"
DECODER: str = json.loads(_edition.read_text())["decode"]["decoder"]
DECODERS = [f"{name} {version(name)}" for name in ("simplejpeg", "pillow")]

pytestmark = pytest.mark.s3
# Versions of these libraries are part of the edition's name: with others, a run starts a new one.
continues_edition = pytest.mark.skipif(
    not all(found in DECODER.split("; ") for found in DECODERS),
    reason=f"the stored edition was decoded with {DECODER}",
)


@pytest.fixture
def bucket(s3: LoopbackS3) -> Bucket:
    """A fresh copy of the stored archives and outputs, at the URIs where the old code made them."""
    found = Bucket(s3.environment)
    found.reset()
    return found


def _segcore(*args: str) -> Outcome:
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
    assert (done.exit_code, _approximate(document)) == (expected["exit_code"], expected_document)


@continues_edition
@pytest.mark.parametrize("output", OUTPUTS)
def test_rerunning_the_same_command_writes_nothing(bucket: Bucket, output: str) -> None:
    before = bucket.objects(f"output/{output}/")
    done = _segment(output)
    assert bucket.objects(f"output/{output}/") == before  # content and time of writing
    _check_outcome(done, OUTPUTS[output]["next"]["rerun"])


@continues_edition
@pytest.mark.parametrize("output", OUTPUTS)
def test_dry_runs_plan_the_same(bucket: Bucket, output: str) -> None:
    bucket.extend(output)
    before = bucket.objects(f"output/{output}/")
    extended = _segment(output, "--dry-run")
    assert bucket.objects(f"output/{output}/") == before
    bucket.reset()
    bucket.forget_plans(output)
    replanned = _segment(output, "--dry-run")
    expected = OUTPUTS[output]["dry_runs"]
    assert (extended.exit_code, extended.document) == (0, expected["extended"])
    assert (replanned.exit_code, replanned.document) == (0, expected["replanned"])


@pytest.mark.ray
@pytest.mark.faults
@continues_edition
@pytest.mark.parametrize("output", OUTPUTS)
def test_extending_the_archive_writes_the_same_parts(
    bucket: Bucket, ray_address: str, output: str
) -> None:
    before = bucket.objects(f"output/{output}/")
    bucket.extend(output)
    done = _segment(output, "--address", ray_address)
    _check(done, before, bucket.objects(f"output/{output}/"), OUTPUTS[output]["next"]["extend"])


@pytest.mark.ray
@pytest.mark.faults
@continues_edition
def test_retrying_failed_images_writes_the_same_parts(bucket: Bucket, ray_address: str) -> None:
    before = bucket.objects("output/loose/")
    mended = Path(os.environ["FAKE_MODEL_MENDED"])
    mended.touch()
    try:
        done = _segment("loose", "--address", ray_address, "--retry-failed")
    finally:
        mended.unlink()
    _check(done, before, bucket.objects("output/loose/"), OUTPUTS["loose"]["next"]["retry"])


@pytest.fixture
def ray_address(ray_session: None) -> str:
    """Address of one Ray shared by all runs of this file: a local one per run starts too slowly."""
    import ray

    return str(ray.get_runtime_context().gcs_address)


def _approximate(value: Any) -> Any:
    """The last digits of AP may depend on the version of NumPy."""
    if isinstance(value, dict):
        return {key: _approximate(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_approximate(part) for part in value]
    return pytest.approx(value, rel=1e-12) if isinstance(value, float) else value


def _check_outcome(done: Outcome, expected: dict[str, Any]) -> None:
    assert (done.exit_code, steady(done.document)) == (expected["exit_code"], expected["report"])


def _check(
    done: Outcome, before: dict[str, Stored], after: dict[str, Stored], expected: dict[str, Any]
) -> None:
    """Report and files must be those of the old code; unchanged parts must not be rewritten."""
    _check_outcome(done, expected)
    files: dict[str, str | None] = expected["files"]
    assert after.keys() == files.keys()
    new = expected["parquet"].keys() | expected["json"].keys()
    for name, stored in after.items():
        if name in new or is_lease(name):
            continue
        assert stored.sha256 == files[name], name
        if is_part(name):
            assert stored.changed == before[name].changed, f"{name} was written again"
    for name, document in expected["json"].items():
        assert steady(json.loads(after[name].data)) == document, name
    for name, document in expected["parquet"].items():
        assert decoded(after[name].data) == document, name
        # Only the same version of Arrow is sure to encode the same rows as the same bytes.
        if pa.__version__ == EXPECTED["pyarrow"]:
            assert after[name].sha256 == files[name], name
