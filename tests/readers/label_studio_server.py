"""A Label Studio server on loopback: import, read back, annotate, export."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests

sys.path.insert(0, str(Path(__file__).parent))

from expected import build_folder, run_checks

BUILD = build_folder()
USER, PASSWORD = "reader@localhost.local", "only-on-loopback"
# Its tables take hundreds of migrations and minutes of CPU time, so they are made once.
TABLES = Path(sys.prefix) / "label_studio.sqlite3"
TABLES_S, STARTUP_S = 3600, 600


class Server:
    """A server that was started, and a session in it."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.session = requests.Session()
        self.session.trust_env = False

    def wait(self, process: subprocess.Popen[bytes]) -> None:
        """Wait until it answers."""
        deadline = time.monotonic() + STARTUP_S
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise RuntimeError(f"label-studio ended with code {process.returncode}")
            # Its first answer takes long on a busy machine.
            with contextlib.suppress(requests.ConnectionError, requests.Timeout):
                if self.session.get(f"{self.url}/health", timeout=120).ok:
                    return
            time.sleep(1)
        raise TimeoutError("label-studio did not answer")

    def log_in(self) -> None:
        """Log in as the user that the server was started with."""
        self.session.get(f"{self.url}/user/login/", timeout=300)
        form = {"email": USER, "password": PASSWORD, "persist_session": "on"}
        token = {"csrfmiddlewaretoken": self.session.cookies["csrftoken"]}
        answer = self.session.post(f"{self.url}/user/login/", data=form | token, timeout=300)
        answer.raise_for_status()
        self.call("GET", "/api/current-user/whoami")

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """A request to the API; its JSON."""
        headers = {"X-CSRFToken": self.session.cookies.get("csrftoken", "")}
        answer = self.session.request(
            method, self.url + path, json=body, headers=headers, timeout=300
        )
        if not answer.ok:
            raise RuntimeError(f"{method} {path}: {answer.status_code} {answer.text[:1000]}")
        return answer.json()


def settings(data: Path) -> dict[str, str]:
    """The environment of a server that talks to nobody and keeps its files in a folder."""
    environment = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
    return environment | {
        "COLLECT_ANALYTICS": "0", "LATEST_VERSION_CHECK": "0", "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "", "LABEL_STUDIO_BASE_DATA_DIR": str(data), "DEBUG": "0",
        # Otherwise it connects to no backend on loopback or in a private network: the first is for
        # the backend, the second for the webhook that it is given.
        "ML_BLOCK_LOCAL_IP": "false", "SSRF_PROTECTION_ENABLED": "false",
    }  # fmt: skip


def label_studio(*arguments: str) -> list[str]:
    """The command of the environment that this runs in."""
    return [str(Path(sys.executable).parent / "label-studio"), *arguments, "--log-level", "ERROR"]


def make_tables() -> None:
    """Make a database without anything in it, if there is none yet."""
    if TABLES.exists():
        return
    print("making the tables of Label Studio (some minutes)", file=sys.stderr)
    data = BUILD / "label-studio-tables"
    shutil.rmtree(data, ignore_errors=True)
    with (BUILD / "label-studio-tables.log").open("wb") as log:
        subprocess.run(
            label_studio("version", "--data-dir", str(data)),
            env=settings(data), stdout=log, stderr=log, timeout=TABLES_S, check=True,
        )  # fmt: skip
    os.replace(data / "label_studio.sqlite3", TABLES)


@contextlib.contextmanager
def server() -> Iterator[Server]:
    """A server with an empty database."""
    make_tables()
    data = BUILD / "label-studio-data"
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir()
    shutil.copyfile(TABLES, data / "label_studio.sqlite3")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = label_studio(
        "start", "--no-browser", "--internal-host", "127.0.0.1", "--port", str(port),
        "--data-dir", str(data), "--username", USER, "--password", PASSWORD,
    )  # fmt: skip
    with (BUILD / "label-studio.log").open("wb") as log:
        process = subprocess.Popen(command, env=settings(data), stdout=log, stderr=log)
        try:
            one = Server(port)
            one.wait(process)
            one.log_in()
            yield one
        finally:
            process.terminate()
            process.wait(30)


def round_trip(one: Server, folder: str) -> str:
    """Import tasks, read the predictions back, submit each as it is, and keep the export."""
    config = (BUILD / folder / "config.xml").read_text()
    tasks = json.loads((BUILD / folder / "tasks-00001.json").read_bytes())
    project = one.call("POST", "/api/projects", {"title": folder, "label_config": config})["id"]
    one.call("POST", f"/api/projects/{project}/import", tasks)
    predictions = one.call("GET", f"/api/predictions?project={project}")
    stored = one.call(
        "GET", f"/api/projects/{project}/export?exportType=JSON&download_all_tasks=true"
    )
    ids = {task["data"]["segcore_number"]: task["id"] for task in stored}
    by_task = {prediction["task"]: prediction for prediction in predictions}
    assert len(ids) == len(tasks)
    n_regions = 0
    for task in tasks:
        (sent,) = task["predictions"]
        back = by_task[ids[task["data"]["segcore_number"]]]
        assert back["model_version"] == sent["model_version"]
        assert back["result"] == sent["result"], "regions came back otherwise"
        n_regions += len(back["result"])
        one.call("POST", f"/api/tasks/{back['task']}/annotations", {"result": back["result"]})
    exported = one.call("GET", f"/api/projects/{project}/export?exportType=JSON")
    (BUILD / f"{folder}-exported.json").write_text(json.dumps(exported))
    return f"{len(tasks)} tasks, {n_regions} regions came back equal"


def ml_backend(one: Server, folder: str, url: str) -> str:
    """Connect `segcore label-studio`, have Label Studio fetch predictions, and compare the masks.

    Tasks name their images in three ways; one could mean several, and one none.
    """
    config = (BUILD / folder / "config.xml").read_text()
    exported = json.loads((BUILD / folder / "tasks-00001.json").read_bytes())
    tasks, names = [], []
    for number, task in enumerate(exported):
        name = task["data"]["name"]
        links = ("/data/local-files/?d=x/images/", "s3://bucket/in/", "https://127.0.0.1/")
        link = links[number % 3] + urllib.parse.quote(name) if number else name
        tasks.append({"data": {"image": link}})
        names.append(name)
    title = {"title": f"ml {folder}", "label_config": config}
    project = one.call("POST", "/api/projects", title)["id"]
    backend = {"url": url, "project": project, "title": "segcore"}
    connected = one.call("POST", "/api/ml/", backend)
    assert connected["state"] == "CO", connected
    odd = [{"data": {"image": "zz.png"}}, {"data": {"image": "s3://b/.png"}}]
    one.call("POST", f"/api/projects/{project}/import", [*tasks, *odd])
    action = f"/api/dm/actions/?id=retrieve_tasks_predictions&project={project}"
    one.call("POST", action, {"selectedItems": {"all": True, "excluded": []}})
    predictions = one.call("GET", f"/api/predictions?project={project}")
    stored = one.call(
        "GET", f"/api/projects/{project}/export?exportType=JSON&download_all_tasks=true"
    )
    links = {task["id"]: task["data"]["image"] for task in stored}
    by_link = {task["data"]["image"]: name for task, name in zip(tasks, names, strict=True)}
    sent = {task["data"]["name"]: task["predictions"][0] for task in exported}
    assert len(predictions) == len(tasks), (len(predictions), len(tasks))
    n_regions = 0
    for prediction in predictions:
        wanted = sent[by_link[links[prediction["task"]]]]
        assert prediction["model_version"] == wanted["model_version"] == connected["model_version"]
        values = [
            [(region["type"], region["value"]) for region in result]
            for result in (prediction["result"], wanted["result"])
        ]
        assert values[0] == values[1], "the backend's masks differ from those of the export"
        n_regions += len(values[0])
    choices = "<Choices name='c' toName='i'><Choice value='yes'/><Choice value='no'/></Choices>"
    wrong = f"<View><Image name='i' value='$image'/>{choices}</View>"
    other = one.call("POST", "/api/projects", {"title": "other", "label_config": wrong})["id"]
    refusal = "none"
    try:
        one.call("POST", "/api/ml/", backend | {"project": other})
    except RuntimeError as error:
        refusal = str(error)
    assert "has no BrushLabels or PolygonLabels" in refusal, refusal
    return f"{len(predictions)} tasks, {n_regions} regions as in the export; 2 unknown stay empty"


def main() -> int:
    """Both kinds of masks in one server; returns the exit code."""
    url = sys.argv[2]
    try:
        with server() as one:
            return run_checks(
                {
                    "label-studio, polygons: real server": lambda: round_trip(one, "label-studio"),
                    "label-studio, brush: real server": lambda: round_trip(
                        one, "label-studio-brush"
                    ),
                    "label-studio, ML backend, polygons: real server": lambda: ml_backend(
                        one, "label-studio", url
                    ),
                    "label-studio, ML backend, brush: real server": lambda: ml_backend(
                        one, "label-studio-brush", url
                    ),
                }
            )
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        print(f"FAILED  label-studio server: {error}; see {BUILD}/label-studio.log")
        return 1


if __name__ == "__main__":
    sys.exit(main())
