"""A real Prometheus on loopback: Debian's package, installed or unpacked into a folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.ray_head import free_port
from tests.support.paths import ROOT

_FOLDER = ROOT / "build" / "prometheus"


def find_program(name: str) -> str:
    """The path of `prometheus` or `promtool`; skips the test where neither is to be had."""
    unpacked = _FOLDER / "usr" / "bin" / name
    if found := shutil.which(name):
        return found
    if not unpacked.exists() and shutil.which("apt-get"):
        _FOLDER.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "prometheus"], cwd=_FOLDER, capture_output=True)
        for package in _FOLDER.glob("prometheus_*.deb"):
            subprocess.run(["dpkg-deb", "-x", str(package), str(_FOLDER)], check=True)
    if not unpacked.exists():
        pytest.skip(f"{name} is not here (Debian: apt-get install prometheus)")
    return str(unpacked)


class Prometheus:
    """A server that scrapes every second.

    Args:
        targets: Name of a job -> host:port.
    """

    def __init__(self, folder: Path, targets: Mapping[str, str], rules: Path) -> None:
        program = find_program("prometheus")
        shutil.copy(rules, folder / "rules.yaml")
        jobs = [
            {"job_name": name, "static_configs": [{"targets": [target]}]}
            for name, target in targets.items()
        ]
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "5s"},
            "scrape_configs": jobs,
            "rule_files": ["rules.yaml"],
        }
        (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
        self.address = f"http://127.0.0.1:{free_port()}"
        with (folder / "log").open("w") as log:
            self.process = subprocess.Popen(
                [
                    program, f"--config.file={folder}/prometheus.yml",
                    f"--storage.tsdb.path={folder}/data",
                    f"--web.listen-address={self.address.removeprefix('http://')}",
                ],
                stdout=log, stderr=log, env=dict(os.environ),
            )  # fmt: skip

    def ask(self, path: str, **parameters: str) -> Any:
        """The `data` of an answer.

        Raises:
            AssertionError: Prometheus calls it an error.
        """
        url = f"{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                document = json.load(answer)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from None
        assert document["status"] == "success", document
        return document["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series of an instant query."""
        return list(self.ask("query", query=expression)["result"])

    def query_lately(self, expression: str) -> list[dict[str, Any]]:
        """The series that a query had at any time in the last ten minutes, as a panel shows it."""
        now = time.time()
        times = {"start": str(now - 600), "end": str(now), "step": "1"}
        return list(self.ask("query_range", query=expression, **times)["result"])

    def wait_for(self, expression: str, timeout_s: float = 120) -> list[dict[str, Any]]:
        """The series of a query, once there are any."""
        give_up_at = time.monotonic() + timeout_s
        while True:
            try:
                if series := self.query(expression):
                    return series
            except urllib.error.URLError:  # it starts
                pass
            assert time.monotonic() < give_up_at, f"no data: {expression}"
            time.sleep(0.5)

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(30)
