"""cluster/kuberay/run_rayjob.py against a small API server."""

from __future__ import annotations

import importlib.util
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.manifests import KUBERAY, controller_problems

NAME = "segcore-nightly-29384723"
_LABEL = {"segcore/schedule": "segcore-nightly"}


class ApiServer(ThreadingHTTPServer):
    """RayJobs in memory; each one goes through `states`, one at each GET.

    Attributes:
        states: What jobDeploymentStatus becomes; the last one stays. "gone": the RayJob is deleted.
        answers: Status codes for the next requests, in place of real answers.
    """

    def __init__(self, states: list[str]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.jobs: dict[str, dict[str, Any]] = {}
        self.states = states
        self.answers: list[int] = []
        self.requests: list[str] = []


class Handler(BaseHTTPRequestHandler):
    server: ApiServer

    def do_GET(self) -> None:
        if self._early():
            return
        name = self.path.rpartition("/")[2]
        if "rayjobs?" in self.path:
            assert self.path.endswith("?labelSelector=segcore/schedule%3Dsegcore-nightly")
            self._send(200, {"items": list(self.server.jobs.values())})
            return
        state = self.server.states.pop(0) if len(self.server.states) > 1 else self.server.states[0]
        if state == "gone":
            self.server.jobs.pop(name, None)
        if name not in self.server.jobs:
            self._send(404, {})
            return
        self.server.jobs[name]["status"] = {"jobDeploymentStatus": state}
        self._send(200, self.server.jobs[name])

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self._early():
            return
        name = body["metadata"]["name"]
        if name in self.server.jobs:
            self._send(409, {})
            return
        body["metadata"]["creationTimestamp"] = "2026-11-05T02:00:00Z"
        self.server.jobs[name] = body
        self._send(201, body)

    def do_DELETE(self) -> None:
        if not self._early():
            self._send(200, self.server.jobs.pop(self.path.rpartition("/")[2]))

    def _early(self) -> bool:
        assert self.headers["Authorization"] == "Bearer the-token"
        assert self.path.startswith("/apis/ray.io/v1/namespaces/masks/rayjobs")
        self.server.requests.append(f"{self.command} {self.path.partition('rayjobs')[2]}")
        if not self.server.answers:
            return False
        self._send(self.server.answers.pop(0), {"message": "no"})
        return True

    def _send(self, code: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer(["Initializing", "Running", "Complete"]) as one:
        thread = threading.Thread(target=one.serve_forever, args=(0.01,))
        thread.start()
        yield one
        one.shutdown()
        thread.join()


@pytest.fixture
def run(server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "namespace").write_text("masks\n")
    (tmp_path / "token").write_text("the-token\n")
    for name, value in {
        "API_SERVER": f"http://127.0.0.1:{server.server_port}",
        "SERVICE_ACCOUNT": str(tmp_path),
        "POLL_S": "0.01",
        "JOB_NAME": NAME,
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.argv", ["run_rayjob.py", str(KUBERAY / "rayjob.yaml")])
    spec = importlib.util.spec_from_file_location("run_rayjob", KUBERAY / "run_rayjob.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def test_it_creates_the_job_and_waits(server: ApiServer, run: Any, capsys: Any) -> None:
    assert run() == 0
    (job,) = server.jobs.values()
    assert job["metadata"]["labels"] | _LABEL == job["metadata"]["labels"]
    assert controller_problems(job) == []
    assert server.requests.count("POST ") == 1
    assert "RayJob segcore-nightly-29384723: Complete" in capsys.readouterr().out


@pytest.mark.parametrize("state", ["Failed", "ValidationFailed", "gone"])
def test_a_job_that_does_not_succeed_is_exit_code_1(
    server: ApiServer, run: Any, state: str
) -> None:
    server.states = ["Running", "Retrying", "Running", state]
    assert run() == 1


def test_a_second_pod_waits_for_the_job_of_the_first(server: ApiServer, run: Any) -> None:
    server.jobs[NAME] = {"metadata": {"name": NAME, "creationTimestamp": "2026-11-05T02:00:00Z"}}
    assert run() == 0
    assert list(server.jobs) == [NAME]


def test_an_api_server_that_is_away_for_a_while_is_waited_for(server: ApiServer, run: Any) -> None:
    server.answers = [503, 429, 500]
    assert run() == 0
    assert len(server.jobs) == 1


def test_a_refusal_is_said(server: ApiServer, run: Any, capsys: Any) -> None:
    server.answers = [403]
    assert run() == 1
    assert 'refused RayJob segcore-nightly-29384723: 403 {"message": "no"}' in (
        capsys.readouterr().err
    )


def test_old_jobs_of_the_schedule_are_deleted(server: ApiServer, run: Any) -> None:
    for day in range(1, 5):
        state = "Running" if day == 1 else "Failed"
        server.jobs[f"old-{day}"] = {
            "metadata": {"name": f"old-{day}", "creationTimestamp": f"2026-11-0{day}T02:00:00Z"},
            "status": {"jobDeploymentStatus": state},
        }
    assert run() == 0
    assert sorted(server.jobs) == ["old-1", "old-3", "old-4", NAME]  # one runs, three newest stay
