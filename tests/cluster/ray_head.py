"""A head of Ray with its job server and metrics, as `ray start --head` starts it, on loopback."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Mapping
from pathlib import Path

import psutil
import ray

from tests.support.commands import kill_trees
from tests.support.paths import PYTHONPATH, ROOT

_FOLDER = ROOT / ".venv-cluster"
_START_S = 240
_MAX_ATTEMPTS = 3  # on a busy machine Ray's agent may take longer than Ray waits for it


def cluster_python() -> Path:
    """Python of an environment that has what this one has, and `ray[default]`; made on first use.

    SEGCORE_CLUSTER_PYTHON names another one.
    """
    if named := os.environ.get("SEGCORE_CLUSTER_PYTHON"):
        return Path(named)
    python = _FOLDER / "bin" / "python"
    complete = _FOLDER / "complete"
    if not complete.exists():
        venv.create(_FOLDER, with_pip=True)
        packages = Path(subprocess.check_output(
            [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
        ).strip())  # fmt: skip
        (packages / "parent.pth").write_text(sysconfig.get_path("purelib") + "\n")
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, f"ray[default]=={ray.__version__}"], check=True)
        complete.touch()
    return python


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


class RayHead:
    """A head with a token, one CPU, and `segcore` and `tests` on its path.

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
            **environment,
        }
        self._cpus = cpus
        self._log = Path(self._folder) / "head.log"
        for attempt in range(1, _MAX_ATTEMPTS + 1):
            try:
                self._start()
                break
            except RuntimeError:
                if attempt == _MAX_ATTEMPTS:
                    raise

    def _start(self) -> None:
        port, dashboard, self.metrics_port = free_port(), free_port(), free_port()
        self.address = f"http://127.0.0.1:{dashboard}"
        self.gcs_port = port
        command = [
            str(self.python), "-m", "ray.scripts.scripts", "start", "--head", "--block",
            f"--num-cpus={self._cpus}", f"--port={port}", f"--dashboard-port={dashboard}",
            "--dashboard-host=127.0.0.1", f"--metrics-export-port={self.metrics_port}",
            f"--ray-client-server-port={free_port()}",
            f"--dashboard-agent-listen-port={free_port()}", "--disable-usage-stats",
        ]  # fmt: skip
        with self._log.open("wb") as output:
            self.process = subprocess.Popen(
                command, env=self._environment, stdout=output, stderr=output, start_new_session=True
            )
        give_up_at = time.monotonic() + _START_S
        while b"Ray runtime started" not in self._log.read_bytes():
            if self.process.poll() is not None or time.monotonic() > give_up_at:
                self.kill()
                raise RuntimeError(f"Ray did not start:\n{self._log.read_text()[-3000:]}")
            time.sleep(0.2)

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


if __name__ == "__main__":
    print(cluster_python(), file=sys.stdout)
