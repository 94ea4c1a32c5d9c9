"""Which precision a job computes in, where the user leaves it open."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from segcore.config import Config
from segcore.distributed import cluster
from segcore.distributed.cluster import NodeResources
from segcore.distributed.pool import PoolSize
from segcore.errors import UsageError
from segcore.models import registry
from segcore.output.layout import OutputLayout
from segcore.run import job, job_model, passes
from segcore.run.job_model import JobModel, open_model
from segcore.storage import Storage

INPUT = "/archive"


def _open(output: Path, *, device: str = "auto", **ray: object) -> JobModel:
    config = Config.model_validate({"model": {"device": device}, "ray": ray})
    return open_model(config, Storage(), OutputLayout(str(output)), INPUT)


@pytest.fixture(autouse=True)
def _no_gpu_here(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(job_model, "cuda_device_count", lambda: 0)


def _write_run(output: Path, model: JobModel, input_uri: str = INPUT) -> None:
    layout = OutputLayout(str(output)).edition(model.edition.name)
    record = {"run": "r", "sequence": 1, "status": "success", "input": input_uri, "failed": 0}
    Path(layout.runs_folder).mkdir(parents=True)
    (Path(layout.runs_folder) / "r.json").write_text(json.dumps(record))


def _precision(model: JobModel) -> str:
    stored = model.edition.document["model"]["parameters"]["precision"]
    assert stored == model.options.precision == model.info.parameters["precision"]
    return str(stored)


def test_the_device_that_was_asked_for_decides(tmp_path):
    assert _precision(_open(tmp_path, device="cpu")) == "float32"
    on_gpu = _open(tmp_path, device="cuda")
    assert _precision(on_gpu) == "float16"
    assert on_gpu.precision_reason == "Precision float16, since the workers have GPUs."


@pytest.mark.slow
def test_the_machine_decides_for_a_local_ray(tmp_path, monkeypatch):
    assert _precision(_open(tmp_path)) == "float32"
    assert _open(tmp_path).precision_reason == ""
    assert _precision(_open(tmp_path, gpus_per_actor=0.5)) == "float16"
    monkeypatch.setattr(job_model, "cuda_device_count", lambda: 2)
    assert _precision(_open(tmp_path)) == "float16"
    assert _precision(_open(tmp_path, gpus_per_actor=0)) == "float32"


@pytest.mark.parametrize(("gpus", "expected"), [(0.0, "float32"), (4.0, "float16")])
def test_the_nodes_of_a_cluster_decide(tmp_path, monkeypatch, gpus, expected):
    @contextmanager
    def connected(options):
        yield

    nodes = [NodeResources(8, 0), NodeResources(8, gpus)]
    monkeypatch.setattr(cluster, "connected", connected)
    monkeypatch.setattr(cluster, "live_nodes", lambda: nodes)
    assert _precision(_open(tmp_path, address="ray://10.0.0.1:10001")) == expected


@pytest.mark.slow
def test_the_results_that_exist_decide_first(tmp_path):
    on_cpu, on_gpu = _open(tmp_path, device="cpu"), _open(tmp_path, device="cuda")
    _write_run(tmp_path, on_gpu)
    resumed = _open(tmp_path, device="cpu")
    assert resumed.edition == on_gpu.edition
    assert on_gpu.edition.name in resumed.precision_reason
    _write_run(tmp_path, on_cpu)  # both exist and none is published: as if there were none
    assert _open(tmp_path, device="cuda").edition == on_gpu.edition
    assert _open(tmp_path, device="cpu").edition == on_cpu.edition


def test_results_of_another_input_decide_nothing(tmp_path):
    _write_run(tmp_path, _open(tmp_path, device="cuda"), "/other")
    assert _precision(_open(tmp_path, device="cpu")) == "float32"


def test_results_on_a_cpu_are_continued_on_a_gpu(tmp_path):
    on_cpu = _open(tmp_path, device="cpu")
    _write_run(tmp_path, on_cpu)
    resumed = _open(tmp_path, device="cuda")
    assert resumed.edition == on_cpu.edition
    assert resumed.precision_reason.startswith("Precision float32, as the results in")


@pytest.mark.slow
def test_the_checkpoint_and_the_records_are_read_once(tmp_path, monkeypatch):
    weights = tmp_path / "mine.safetensors"
    weights.write_bytes((registry.BUNDLED / "nuclei-yolo11n.safetensors").read_bytes())
    parsed, read = [], []
    parse, read_records = registry.parse_checkpoint, job_model.read_run_records
    monkeypatch.setattr(registry, "parse_checkpoint", lambda *a: parsed.append(1) or parse(*a))
    monkeypatch.setattr(
        job_model, "read_run_records", lambda *a: read.append(a[1].prefix) or read_records(*a)
    )
    config = {"model": {"name": str(weights), "device": "cuda"}}
    output = OutputLayout(str(tmp_path / "out"))

    def open_again() -> JobModel:
        parsed.clear()
        read.clear()
        return open_model(Config.model_validate(config), Storage(), output, INPUT)

    first = open_again()
    assert _precision(first) == "float16"
    assert first.records == ()
    _write_run(tmp_path / "out", first)
    second = open_again()
    assert second.edition == first.edition
    assert [record.run for record in second.records or ()] == ["r"]
    layout = output.edition(second.edition.name)
    monkeypatch.setattr(job, "read_run_records", lambda *a: pytest.fail("read again"))
    found = job.open_edition(Storage(), layout, INPUT, second.records, overwrite=False)
    assert found == second.records
    assert len(parsed) == 1
    assert len(read) == len(set(read)) == 2  # those of float32 and of float16


def test_float16_without_a_gpu_is_refused_before_a_worker_is_started(tmp_path):
    fake_job = SimpleNamespace(model=_open(tmp_path, device="cuda"))
    passes._check_precision(fake_job, PoolSize(1, 1, 1, 1, "cuda"))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="But the workers have no GPU") as caught:
        passes._check_precision(fake_job, PoolSize(1, 1, 1, 0, "cpu"))  # type: ignore[arg-type]
    assert "model.precision=float32" in caught.value.hint
