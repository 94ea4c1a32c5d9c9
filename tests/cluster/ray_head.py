"""A head of Ray with its job server and metrics, as `ray start --head` starts it, on loopback."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil

from tests.cluster.tools import cluster_python
from tests.support.commands import kill_trees
from tests.support.paths import PYTHONPATH, ROOT

_START_S = 240
_MAX_ATTEMPTS = 3
Started = TypeVar("Started")


def free_port() -> int:
    """A port below those that Ray gives its workers."""
    for port in secrets.SystemRandom().sample(range(6500, 9900), 50):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port")


_ROLES = {
    "gcs_server": "gcs", "ray::": "worker", "raylet/raylet": "raylet", "monitor.py": "autoscaler",
    "dashboard/dashboard.py": "job server", "dashboard/agent.py": "agent",
    "runtime_env/agent": "environment agent", "ray.util.client.server": "client server",
    "ray-dashboard": "job server", "ray::DashboardAgent": "agent",
    "ray::RuntimeEnvAgent": "environment agent", "segcore segment": "segcore",
}  # fmt: skip


def _role(command: str) -> str:
    """What a process of a head is, by its command line."""
    starts = [(command.find(text), role) for text, role in _ROLES.items() if text in command]
    return min(starts)[1] if starts else command


def _has_failed(folder: Path) -> bool:
    """Whether the raylet of a node has given up; `ray start` would wait for it for minutes.

    It waits 15 s for its agent, which on a busy machine takes longer.
    """
    logs = folder.glob("session_2*/logs/raylet.err")
    return any(b"Check failed" in path.read_bytes() for path in logs)


def _patiently(start: Callable[[], Started]) -> Started:
    """What `start` gives: on a busy machine Ray's agent may take longer than Ray waits for it."""
    for _ in range(_MAX_ATTEMPTS - 1):
        with suppress(RuntimeError):
            return start()
    return start()


@dataclass(frozen=True)
class RayNode:
    """A node that joined a head.

    Attributes:
        process: `ray start`; all others of the node are below it.
    """

    process: psutil.Process

    @property
    def raylet(self) -> int:
        """The process id of its raylet, the parent of its workers."""
        (raylet,) = (one for one in self.process.children() if one.name() == "raylet")
        return raylet.pid

    def kill(self) -> None:
        """Kill the node with all that runs on it."""
        kill_trees([self.process, *self.process.children(recursive=True)])


class RayHead:
    """A head with a token, and `segcore` and `tests` on its path; other nodes may join it.

    Attributes:
        address: Of its job server.
        token: What it wants.
        metrics_port: Where Prometheus finds the metrics.
        environment: What a client needs besides the address.
    """

    def __init__(self, environment: Mapping[str, str], *, cpus: int = 1) -> None:
        self.python = cluster_python()
        self.token = secrets.token_hex(32)
        # Ray's sockets lie below it, and their paths may have 107 bytes at most
        self._folder = tempfile.mkdtemp(prefix="ray")
        path = f"{self.python.parent}{os.pathsep}{os.environ['PATH']}"
        base = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        base |= {"PATH": path, "PYTHONPATH": PYTHONPATH, "HOME": self._folder}
        self.environment = {**base, "RAY_AUTH_TOKEN": self.token}
        self._environment = {
            **self.environment,
            "RAY_AUTH_MODE": "token",
            "RAY_TMPDIR": self._folder,
            "RAY_raylet_start_wait_time_s": str(_START_S),
            # by default the same ports for every Ray of a machine
            "AUTOSCALER_METRIC_PORT": str(free_port()),
            "DASHBOARD_METRIC_PORT": str(free_port()),
            **environment,
        }
        self._cpus = cpus
        _patiently(self._start)

    def _start(self) -> None:
        dashboard, self.gcs_port = free_port(), free_port()
        self.address = f"http://127.0.0.1:{dashboard}"
        self.metrics_port = free_port()
        self._ray_start(
            "head", self._environment, "--head", f"--num-cpus={self._cpus}",
            f"--port={self.gcs_port}", f"--dashboard-port={dashboard}",
            "--dashboard-host=127.0.0.1", f"--metrics-export-port={self.metrics_port}",
            f"--ray-client-server-port={free_port()}",
        )  # fmt: skip

    def _ray_start(
        self, name: str, environment: Mapping[str, str], *options: str
    ) -> psutil.Process:
        """`ray start OPTIONS`, once it says that it runs.

        Raises:
            RuntimeError: It did not start.
        """
        log = Path(self._folder) / f"{name}.log"
        command = [
            str(self.python), "-m", "ray.scripts.scripts", "start", "--block",
            "--disable-usage-stats", f"--dashboard-agent-listen-port={free_port()}", *options,
        ]  # fmt: skip
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, env=environment, stdout=output, stderr=output, start_new_session=True
            )
        give_up_at = time.monotonic() + _START_S
        while b"Ray runtime started" not in log.read_bytes():
            is_over = process.poll() is not None or time.monotonic() > give_up_at
            if is_over or _has_failed(Path(environment["RAY_TMPDIR"]) / name):
                kill_trees([psutil.Process(process.pid)] if process.poll() is None else [])
                raise RuntimeError(f"Ray did not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.2)
        return psutil.Process(process.pid)

    def add_node(
        self, name: str, environment: Mapping[str, str] | None = None, folder: Path | None = None
    ) -> RayNode:
        """A node with one CPU, joined by `ray start`.

        Args:
            environment: Of its own.
            folder: For all its files. Nodes that share one would delete each other's packages.
        """
        link = Path(self._folder) / name
        if folder is not None:
            link.symlink_to(folder)
        variables = {**self._environment, **(environment or {})}

        def start() -> psutil.Process:
            for path in link.glob("session_2*"):
                shutil.rmtree(path)  # of an attempt before
            return self._ray_start(
                name, variables, f"--address=127.0.0.1:{self.gcs_port}", "--num-cpus=1",
                f"--temp-dir={folder or link}", f"--metrics-export-port={free_port()}",
            )  # fmt: skip

        return RayNode(_patiently(start))

    def processes(self) -> list[psutil.Process]:
        """All processes of the head, and of the jobs on it: they share its folder."""
        found: dict[int, psutil.Process] = {}
        for process in psutil.process_iter():
            try:
                if process.environ().get("RAY_TMPDIR") == self._folder:
                    # a process that gives itself a title may have lost its environment by that
                    for one in (process, *process.children(recursive=True)):
                        found[one.pid] = one
            except psutil.Error:
                continue
        return list(found.values())

    def listeners(self) -> set[tuple[str, str, int]]:
        """(what a process is, address, port) of every listening socket."""
        found = set()
        for process in self.processes():
            try:
                role = _role(" ".join(process.cmdline()))
                for connection in process.net_connections("inet"):
                    if connection.status == psutil.CONN_LISTEN:
                        found.add((role, connection.laddr.ip, connection.laddr.port))
            except psutil.Error:
                continue
        return found

    def kill(self) -> None:
        """Kill the head with all that runs on it."""
        kill_trees(self.processes())

    def stop(self) -> None:
        """End it, and remove its files."""
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def logs(self) -> list[Path]:
        """All files of its session that a person may read."""
        return [path for path in Path(self._folder).rglob("*") if path.is_file()]

    def segcore(self, *words: str, log: Path) -> subprocess.Popen[str]:
        """Start `segcore WORDS` with the token, its stderr in a file."""
        with log.open("w") as stderr:
            return subprocess.Popen(
                [str(self.python), "-m", "segcore", *words],
                cwd=ROOT, env=self.environment, stdout=subprocess.PIPE, stderr=stderr, text=True,
            )  # fmt: skip

    def submit(self, *words: str, log: Path) -> tuple[int, str]:
        """`segcore submit` to its end: exit code and stdout."""
        process = self.segcore("submit", *words, "--address", self.address, log=log)
        stdout, _ = process.communicate(timeout=900)
        return process.returncode, stdout
