"""The recipes of jobs/: each runs as a script, says errors in a sentence, returns its exit code."""

from __future__ import annotations

import ast
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import segcore
from segcore.config import RayOptions, load_config
from segcore.distributed.cluster import connected
from segcore.storage import Storage
from segcore.testing.synthetic_archive import SyntheticArchive, write_archive
from tests.support import serial_run
from tests.support.paths import PYTHONPATH, ROOT

JOBS = sorted(path.name for path in (ROOT / "jobs").glob("*.py"))
THRESHOLD_MODEL = "tests.support.threshold_model:Threshold"


def _run_job(
    name: str, *args: object, cwd: Path | None = None, ray_address: str = ""
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "jobs" / name), *map(str, args)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": PYTHONPATH, "RAY_ADDRESS": ray_address},
    )


@pytest.fixture(scope="module")
def ray_address() -> Iterator[str]:
    """A Ray cluster, named to jobs by RAY_ADDRESS as `ray job submit` does it."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", PYTHONPATH)
        with connected(RayOptions()):
            yield ray.get_runtime_context().gcs_address


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> SyntheticArchive:
    """Eight images in two shards, one of them broken."""
    folder = tmp_path_factory.mktemp("archive")
    return write_archive(Storage(), str(folder), n_images=8, n_broken=1, per_shard=4)


@pytest.mark.parametrize("name", JOBS)
def test_a_recipe_is_short_and_uses_public_names_only(name: str) -> None:
    source = (ROOT / "jobs" / name).read_text()
    assert 10 <= len(source.splitlines()) <= 40
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert node.module == "segcore.testing.synthetic_archive"
        elif isinstance(node, ast.Import):
            assert {alias.name for alias in node.names} <= sys.stdlib_module_names | {"segcore"}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert node.value.id != "segcore" or node.attr in segcore.__all__


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("segment.py", ["in", "out", "--set", "modle.conf=1"], "did you mean `model.conf`?"),
        ("evaluate.py", ["out", "truth.json"], "is not the output of a run"),
        ("train.py", ["nowhere.yaml"], "nowhere.yaml does not exist"),
        ("demo.py", ["out", "--images", "0"], "0 images"),
    ],
)
def test_an_error_is_a_sentence_and_its_exit_code(
    name: str, args: list[str], message: str, tmp_path: Path
) -> None:
    done = _run_job(name, *args, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("Error: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.ray
def test_segment_returns_the_exit_code_of_the_run(
    archive: SyntheticArchive, tmp_path: Path, ray_address: str
) -> None:
    output = tmp_path / "masks"
    args = (archive.shards, output, "--set", f"model.name={THRESHOLD_MODEL}")
    done = _run_job("segment.py", *args, "--set", "ray.max_actors=1", ray_address=ray_address)
    assert done.returncode == 3, done.stderr  # one of eight images is broken
    assert "Traceback" not in done.stderr
    results = segcore.open_results(str(output))
    statuses = [row["status"] for table in results.images() for row in table.to_pylist()]
    assert sorted(statuses) == ["failed"] + ["ok"] * 7


@pytest.mark.slow
def test_evaluate_prints_scores(archive: SyntheticArchive, tmp_path: Path) -> None:
    values = {"input": archive.shards, "output": str(tmp_path), "model.name": THRESHOLD_MODEL}
    serial_run.segment(load_config(flags={key: (key, value) for key, value in values.items()}))
    done = _run_job("evaluate.py", tmp_path, archive.ground_truth)
    assert done.returncode == 0, done.stderr
    assert "7 images" in done.stdout
    assert "nucleus: mask AP 0." in done.stdout


@pytest.mark.faults
def test_train_leaves_a_model_that_loads(archive: SyntheticArchive, tmp_path: Path) -> None:
    for shard in Storage().list(archive.shards):
        with tarfile.open(fileobj=io.BytesIO(Storage().read(shard.uri))) as tar:
            tar.extractall(tmp_path / "images", filter="data")
    document = {
        "name": "tiny",
        "licence": "CC0-1.0",
        "output": str(tmp_path / "run"),
        "data": {
            "images": str(tmp_path / "images"),
            "train": archive.ground_truth,
            "val": archive.ground_truth,
        },
        "augment": {"crop": 64, "min_side": 96, "max_side": 96},
        "validation": {"imgsz": 96},
        "epochs": 1,
        "batch_size": 4,
        "device": "cpu",
    }
    config = tmp_path / "train.yaml"
    config.write_text(json.dumps(document))  # JSON is YAML
    done = _run_job("train.py", config)
    assert done.returncode == 0, done.stderr
    assert "mask AP50-95" in done.stdout
    model = segcore.load_model(str(tmp_path / "run" / "tiny.safetensors"))
    assert [category.name for category in model.info.categories] == ["nucleus"]


@pytest.mark.ray
def test_demo_draws_segments_reads_and_evaluates(tmp_path: Path, ray_address: str) -> None:
    args = (tmp_path, "--images", 6, "--model", THRESHOLD_MODEL)
    done = _run_job("demo.py", *args, ray_address=ray_address)
    assert done.returncode == 0, done.stderr
    assert "mask AP50 0." in done.stdout
    assert "masks of one unit" in done.stdout
