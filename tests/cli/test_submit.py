"""segcore submit: what is sent, what the cluster is asked to run, and what is refused here."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from segcore.cli import submitted_command
from segcore.cli.submitted_command import JOBS, prepare_command
from segcore.distributed import job_server
from segcore.distributed.cluster import NodeResources
from segcore.distributed.job_server import JobServer
from segcore.errors import UsageError
from tests.support.commands import call_segcore

FAR = NodeResources(1, 0, "ab" * 16, "198.51.100.7", "gpu-1")


class FakeClient:
    """Takes jobs, keeps what their folders hold, and ends them at once."""

    def __init__(self, code: int = 0) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.sent: dict[str, bytes] = {}
        self._code = code

    def submit_job(self, *, submission_id: str, runtime_env: dict[str, Any], **job: Any) -> None:
        if submission_id in self.jobs:
            raise RuntimeError(f"Job with submission_id {submission_id} already exists.")
        if folder := runtime_env.get("working_dir"):
            files = [path for path in Path(folder).rglob("*") if path.is_file()]
            self.sent = {str(p.relative_to(folder)): p.read_bytes() for p in files}
        self.jobs[submission_id] = {**job, "runtime_env": runtime_env}

    def get_job_info(self, job_id: str) -> Any:
        status = "FAILED" if self._code else "SUCCEEDED"
        return SimpleNamespace(status=status, driver_exit_code=self._code, message="")

    async def tail_job_logs(self, job_id: str) -> Any:
        yield "hello\x1b[2J\n"


def _serve(monkeypatch: pytest.MonkeyPatch, *nodes: NodeResources, code: int = 0) -> FakeClient:
    client = FakeClient(code)
    server = JobServer("http://head:8265", "2.60.0", client, nodes)
    monkeypatch.setattr(job_server, "connect", lambda address: server)
    return client


def _submit(*words: str) -> Any:
    return call_segcore("submit", *words, "--address", "http://head:8265")


S3 = ("s3://bucket/in", "s3://bucket/out")


def _written(tmp_path: Path, text: str, name: str = "job.yaml") -> str:
    path = tmp_path / name
    path.write_text(text)
    return str(path)


def _weights(tmp_path: Path) -> str:
    (tmp_path / "models").mkdir(exist_ok=True)
    path = tmp_path / "models" / "w.pt"
    path.write_bytes(b"weights")
    return str(path)


def test_the_file_and_the_weights_it_names_are_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = _serve(monkeypatch, FAR)
    weights = _weights(tmp_path)
    text = f"input: s3://bucket/in\noutput: s3://bucket/out\nmodel: {{name: {weights}}}\n"
    done = _submit(_written(tmp_path, text), "--set", "model.conf=0.4", "--retry-failed")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "hello?[2J\n"
    ((job_id, job),) = client.jobs.items()
    assert job_id.startswith("segcore-segment-")
    assert client.sent == {"job.yaml": text.encode(), "w.pt": b"weights"}
    words = shlex.split(job["entrypoint"])
    assert words[:6] == ["exec", "python", "-m", "segcore", "segment", "--config"]
    assert words[6:] == [
        "job.yaml", "--set", "model.conf=0.4", "--set", 'model.name="w.pt"', "--retry-failed",
    ]  # fmt: skip
    assert job["metadata"]["command"] == "segment"


COMMANDS = [
    (["segment", *S3, "--model", "WEIGHTS"], ["segment", "--model", "w.pt", *S3], ["w.pt"]),
    (
        ["segment", "--model=WEIGHTS", *S3, "--no-publish"],
        ["segment", "--model", "w.pt", "--no-publish", *S3],
        ["w.pt"],
    ),
    (["segment", *S3, "--model", "nuclei-yolo11n"], None, []),
    (
        ["reprocess", "CONFIG", "--logical-date", "2026-11-01"],
        ["reprocess", "--logical-date", "2026-11-01", "job.yaml"],
        ["job.yaml"],
    ),
    (
        ["prelabel", *S3, "--format", "cvat", "--config", "CONFIG"],
        ["prelabel", "--format", "cvat", "--config", "job.yaml", *S3],
        ["job.yaml"],
    ),
    (["evaluate", S3[1], "CONFIG"], ["evaluate", S3[1], "job.yaml"], ["job.yaml"]),
    (["evaluate", S3[1], "s3://bucket/truth.json"], None, []),
]


@pytest.mark.parametrize(("words", "expected", "sent"), COMMANDS)
def test_words_and_files(
    tmp_path: Path, words: list[str], expected: list[str] | None, sent: Sequence[str]
) -> None:
    config = _written(tmp_path, "input: s3://bucket/in\noutput: s3://bucket/out\n")
    names = {"CONFIG": config, "WEIGHTS": _weights(tmp_path)}
    given = [word.replace("WEIGHTS", names["WEIGHTS"]) for word in words]
    given = [names.get(word, word) for word in given]
    prepared = prepare_command(given)
    again = prepare_command(prepared.words) if not sent else prepared
    assert again.words == prepared.words
    if expected is not None:
        assert prepared.words == expected
    assert sorted(prepared.files) == sorted(sent)


TRAIN = """
name: n
data: {images: /mnt/images, train: TRUTH, val: /mnt/val.json}
output: /mnt/out
licence: CC0-1.0
init: WEIGHTS
device: cuda
"""


def test_train_takes_a_gpu_and_sends_what_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = _serve(monkeypatch, FAR)
    truth = _written(tmp_path, "{}", "train.json")
    config = TRAIN.replace("TRUTH", truth).replace("WEIGHTS", _weights(tmp_path))
    path = _written(tmp_path, config)
    refused = _submit("train", path)
    assert refused.returncode == 2
    assert "(data.images) is a local path" in refused.stderr
    done = _submit("train", path, "--shared-paths")
    assert done.returncode == 0, done.stderr
    (job,) = client.jobs.values()
    assert job["entrypoint_num_gpus"] == 1.0
    assert sorted(client.sent) == ["job.yaml", "train.json", "w.pt"]
    assert 'data.train="train.json"' in shlex.split(job["entrypoint"])
    assert 'data.images="/mnt/images"' in shlex.split(job["entrypoint"])


def test_files_of_one_name_do_not_replace_each_other(tmp_path: Path) -> None:
    truth = tmp_path / "truth"
    truth.mkdir()
    (truth / "job.yaml").write_text("{}")
    text = f"input: s3://b/in\noutput: s3://b/out\ngates: {{golden: {truth}/job.yaml}}\n"
    prepared = prepare_command(["reprocess", _written(tmp_path, text)])
    assert sorted(prepared.files) == ["job.yaml", "other-job.yaml"]
    assert 'gates.golden="other-job.yaml"' in prepared.words


@pytest.mark.parametrize("place", [0, 1])
def test_local_paths_are_refused_where_the_cluster_does_not_see_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    client = _serve(monkeypatch, FAR)
    words = list(S3)
    words[place] = "photos"
    done = _submit("segment", *words)
    assert done.returncode == 2
    assert "photos" in done.stderr
    assert "such as gpu-1 (198.51.100.7" in done.stderr
    assert not client.jobs
    monkeypatch.chdir(tmp_path)
    done = _submit("segment", *words, "--shared-paths")
    assert done.returncode == 0, done.stderr
    (job,) = client.jobs.values()
    assert str(tmp_path / "photos") in job["entrypoint"]
    assert "ray.shared_paths=true" in job["entrypoint"]


SECRETS = [
    ["segment", "https://me:SECRET@host/list.txt", S3[1]],
    ["segment", *S3, "--model", "https://host/w.pt?X-Amz-Signature=SECRET"],
    ["segment", *S3, "--set", "storage.endpoint_url=https://me:SECRET@host"],
    ["evaluate", S3[1], "https://me:SECRET@host/truth.json"],
]


@pytest.mark.parametrize("words", SECRETS)
def test_secrets_are_refused_before_anything_is_sent(
    monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    client = _serve(monkeypatch, FAR)
    done = _submit(*words)
    assert done.returncode == 2
    assert "SECRET" not in done.stdout + done.stderr
    assert "Everyone who can read the jobs of the cluster would see it" in done.stderr
    assert not client.jobs


def test_a_secret_in_the_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = _serve(monkeypatch, FAR)
    text = "input: s3://b/in\noutput: s3://b/out\nmodel: {name: 'https://u:SECRET@h/w.pt'}\n"
    done = _submit(_written(tmp_path, text))
    assert done.returncode == 2
    assert "SECRET" not in done.stderr
    assert not client.jobs


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "What is to be submitted?"),
        (["status", S3[1]], "'status' cannot be submitted"),
        (["segment", *S3, "--no-such-option"], "No such option"),
        (["segment", "--set", "model.confidence=1", *S3], "did you mean"),
        (["train", "missing.yaml"], "does not exist"),
        (["--attach", "x", "segment", *S3], "--attach follows a job that exists"),
        (["segment", *S3, "--image", "i", "--ship-code"], "--image cannot be combined"),
        (["segment", *S3, "--working-dir", "no-such-folder"], "is no folder"),
    ],
)
def test_what_is_wrong_is_said_here(
    monkeypatch: pytest.MonkeyPatch, words: list[str], expected: str
) -> None:
    client = _serve(monkeypatch, FAR)
    done = _submit(*words)
    assert done.returncode == 2
    assert expected in " ".join(done.stderr.split())
    assert not client.jobs


@pytest.mark.parametrize("code", [0, 3, 4])
def test_json_is_one_document_and_the_exit_code_is_the_jobs(
    monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    _serve(monkeypatch, FAR, code=code)
    done = _submit("segment", *S3, "--json", "--id", "mine")
    assert done.returncode == code
    document = json.loads(done.stdout)
    assert (document["job"], document["exit_code"]) == ("mine", code)
    assert "hello" in done.stderr


def test_an_id_is_used_once(monkeypatch: pytest.MonkeyPatch) -> None:
    client = _serve(monkeypatch, FAR)
    assert _submit("segment", *S3, "--id", "mine", "--no-wait").stdout == "mine\n"
    done = _submit("segment", *S3, "--id", "mine", "--no-wait")
    assert done.returncode == 2
    assert "segcore submit --attach mine" in done.stderr
    assert len(client.jobs) == 1


def test_an_image_gets_the_words_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    client = _serve(monkeypatch, FAR)
    done = _submit("job.yaml", "--image", "registry/segcore:1")
    assert done.returncode == 0, done.stderr
    (job,) = client.jobs.values()
    assert job["runtime_env"]["image_uri"] == "registry/segcore:1"
    assert "working_dir" not in job["runtime_env"]
    assert job["entrypoint"].endswith("segcore segment --config job.yaml")


def test_a_working_folder_goes_without_hidden_names_and_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = _serve(monkeypatch, FAR)
    folder = tmp_path / "code"
    (folder / "package").mkdir(parents=True)
    (folder / "package" / "model.py").write_text("MODEL = 1")
    (folder / ".env").write_text("SECRET=1")
    (folder / "package" / "link").symlink_to("/etc/passwd")
    done = _submit("segment", *S3, "--working-dir", str(folder))
    assert done.returncode == 0, done.stderr
    assert list(client.sent) == ["package/model.py"]


def test_jobs_are_those_that_have_scripts() -> None:
    assert set(JOBS) == {"segment", "reprocess", "prelabel", "train", "evaluate"}
    for name in JOBS:  # each key that is replaced exists
        job = submitted_command._JOBS[name]
        if job.schema is not None:
            from segcore.config.loading import dotted_keys

            assert {*job.files, *job.places} <= set(dotted_keys(job.schema()))


def test_without_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    done = call_segcore("submit", "segment", *S3)
    assert done.returncode == 2
    assert "--address is missing" in done.stderr
    with pytest.raises(UsageError):
        prepare_command([])
