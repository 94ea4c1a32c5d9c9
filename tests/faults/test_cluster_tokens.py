"""Clusters on this machine with and without a token, in a home directory that has one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.paths import ROOT

pytestmark = [pytest.mark.ray, pytest.mark.faults, pytest.mark.timeout(600)]

_CONNECT = """
import sys
from segcore.config import RayOptions
from segcore.distributed import cluster
with cluster.connected(RayOptions(address=sys.argv[1])):
    import ray
    class Actor:
        def answer(self):
            return 42
    handle = ray.remote(num_cpus=0)(Actor).remote()
    print(ray.get(handle.answer.remote(), timeout=60))
"""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextmanager
def _head(environment: dict[str, str], port: int, log: Path) -> Iterator[None]:
    """A head node, as `ray start --head` starts it."""
    command = [
        str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=1",
        f"--port={port}", "--include-dashboard=false", "--disable-usage-stats",
    ]  # fmt: skip
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        give_up_at = time.monotonic() + 120
        while b"Ray runtime started" not in log.read_bytes():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < give_up_at, log.read_text()
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture
def short_folder() -> Iterator[str]:
    """Ray's sockets lie below it, and their paths may have 107 bytes at most."""
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        yield folder


@pytest.mark.parametrize("has_token", [True, False], ids=["token", "no-token"])
def test_a_new_cluster_is_reached_at_once(
    tmp_path: Path, short_folder: str, has_token: bool
) -> None:
    """A local run leaves a token before the cluster begins, or only afterwards."""
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": str(tmp_path), "RAY_TMPDIR": short_folder, "PYTHONPATH": str(ROOT)}
    if has_token:
        token.write_text("0" * 32)
    port = _free_port()
    with _head(environment, port, tmp_path / "ray.log"):
        token.write_text("0" * 32)
        for address in ("auto", f"127.0.0.1:{port}"):
            done = subprocess.run(
                [sys.executable, "-c", _CONNECT, address],
                env=environment, capture_output=True, text=True, timeout=120, check=False,
            )  # fmt: skip
            assert (done.returncode, done.stdout.split()[-1:]) == (0, ["42"]), done.stderr
