"""Start a RayJob and wait for its end; only so does `Forbid` of a CronJob mean something.

    python run_rayjob.py rayjob.yaml      # in a pod whose service account may create RayJobs

The RayJob gets the name of the Kubernetes Job (JOB_NAME), so a pod that takes the place of a lost
one finds the RayJob that is there and waits for it. Exit codes: 0 the RayJob succeeded; 1 it
failed, is gone, or was refused.
"""

import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import yaml

ACCOUNT = Path(os.environ.get("SERVICE_ACCOUNT", "/var/run/secrets/kubernetes.io/serviceaccount"))
POLL_S = float(os.environ.get("POLL_S", "15"))
KEEP = int(os.environ.get("KEEP_FINISHED", "3"))  # earlier RayJobs of the same schedule
SCHEDULE = "segcore/schedule"  # label
ENDED = {"Complete": 0, "Failed": 1, "ValidationFailed": 1}


def call(method: str, path: str, body: Any = None) -> Any:
    """One request to the API server; the token is read anew, because it changes."""
    server = os.environ.get("API_SERVER") or "https://{}:{}".format(
        os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    )
    namespace = (ACCOUNT / "namespace").read_text().strip()
    request = urllib.request.Request(
        f"{server}/apis/ray.io/v1/namespaces/{namespace}/rayjobs{path}",
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={
            "Authorization": f"Bearer {(ACCOUNT / 'token').read_text().strip()}",
            "Content-Type": "application/json",
        },
    )
    ca = ACCOUNT / "ca.crt"
    context = ssl.create_default_context(cafile=str(ca)) if server.startswith("https") else None
    with urllib.request.urlopen(request, timeout=30, context=context) as answer:
        return json.load(answer)


def create(job: dict[str, Any]) -> None:
    """Create the RayJob, unless it is there already.

    Raises:
        HTTPError: The API server refused it.
    """
    while True:
        try:
            call("POST", "", job)
            print(f"created RayJob {job['metadata']['name']}", flush=True)
            return
        except urllib.error.HTTPError as error:
            if error.code == 409:
                print(f"RayJob {job['metadata']['name']} is there already", flush=True)
                return
            if error.code < 500 and error.code != 429:
                raise
        except OSError as error:
            print(f"the API server does not answer: {error}", file=sys.stderr, flush=True)
        time.sleep(POLL_S)


def wait(name: str) -> int:
    """Wait for the end of the RayJob; returns the exit code."""
    last = ""
    while True:
        try:
            status = call("GET", f"/{name}").get("status") or {}
        except urllib.error.HTTPError as error:
            if error.code == 404:
                print(f"RayJob {name} was deleted", file=sys.stderr)
                return 1
            status = {}
        except OSError:
            status = {}
        state = status.get("jobDeploymentStatus", "")
        if state and state != last:
            print(f"RayJob {name}: {state} {status.get('message', '')}".rstrip(), flush=True)
            last = state
        if state in ENDED:
            return ENDED[state]
        time.sleep(POLL_S)


def delete_old(job: dict[str, Any]) -> None:
    """Delete the RayJobs of this schedule that have ended, but for the newest ones."""
    label = job["metadata"]["labels"][SCHEDULE]
    listed = call("GET", f"?labelSelector={SCHEDULE}%3D{label}")["items"]
    ended = [one for one in listed if (one.get("status") or {}).get("jobDeploymentStatus") in ENDED]
    ended.sort(key=lambda one: str(one["metadata"]["creationTimestamp"]), reverse=True)
    for one in ended[KEEP:]:
        call("DELETE", f"/{one['metadata']['name']}")


def main() -> int:
    """Create, wait, tidy up; returns the exit code."""
    job = yaml.safe_load(Path(sys.argv[1]).read_text())
    name = os.environ["JOB_NAME"]
    job["metadata"]["name"] = name
    job["metadata"].setdefault("labels", {})[SCHEDULE] = name.rpartition("-")[0]
    try:
        create(job)
    except urllib.error.HTTPError as error:
        detail = error.read().decode(errors="replace")[:1000]
        print(f"the API server refused RayJob {name}: {error.code} {detail}", file=sys.stderr)
        return 1
    code = wait(name)
    try:
        delete_old(job)
    except OSError as error:
        print(f"old RayJobs were not deleted: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
