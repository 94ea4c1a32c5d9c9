"""What answers at an address, with and without tokens, and what people are told of it."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from segcore.distributed import job_server
from segcore.errors import ClusterError, SegcoreError, UsageError

TOKEN = "5ec4e7" * 8
NODE = {
    "hostname": "gpu-1", "ip": "198.51.100.7",
    "raylet": {"nodeId": "ab" * 16, "state": "ALIVE"},
}  # fmt: skip


class FakeServer(ThreadingHTTPServer):
    """Answers as Ray's dashboard does; `token` is what it wants."""

    token: str | None = None
    answer: tuple[int, bytes] = (200, json.dumps({"ray_version": "2.60.0"}).encode())
    location: str | None = None
    nodes: Any = (NODE,)

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.seen: list[str | None] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: FakeServer

    def do_GET(self) -> None:
        sent = self.headers.get("Authorization")
        self.server.seen.append(sent)
        if self.server.location:
            self.send_response(302)
            self.send_header("Location", self.server.location)
            self.end_headers()
            return
        status, body = self.server.answer
        if self.server.token is not None and sent != f"Bearer {self.server.token}":
            status, body = (403 if sent else 401), b"no"
        elif self.path.startswith("/nodes"):
            body = json.dumps({"data": {"summary": list(self.server.nodes)}}).encode()
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        return


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeServer]:
    """A server, in a home without a token."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(job_server, "_client_class", lambda: lambda url, headers: headers)
    fake = FakeServer()
    thread = threading.Thread(target=fake.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield fake
    fake.shutdown()
    thread.join()
    fake.server_close()


def _keep_token(home: Path, text: str = TOKEN) -> None:
    (home / ".ray").mkdir(exist_ok=True)
    (home / ".ray" / "auth_token").write_text(text + "\n")


def _refusal(address: str) -> SegcoreError:
    with pytest.raises(SegcoreError) as error:
        job_server.connect(address)
    assert TOKEN not in error.value.message + error.value.hint
    return error.value


def test_a_server_without_a_token_gets_none(server: FakeServer, tmp_path: Path) -> None:
    _keep_token(tmp_path)
    known = job_server.connect(server.address + "/")
    assert (known.address, known.ray_version) == (server.address, "2.60.0")
    assert known.client == {}
    assert set(server.seen) == {None}
    assert [node.host for node in known.elsewhere()] == ["gpu-1"]


@pytest.mark.parametrize("place", ["variable", "file", "home"])
def test_the_token_is_found_where_ray_keeps_it(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    server.token = TOKEN
    if place == "variable":
        _keep_token(tmp_path, "another")  # the variable wins
        monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    elif place == "file":
        (tmp_path / "named").write_text(TOKEN)
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "named"))
    else:
        _keep_token(tmp_path)
    known = job_server.connect(server.address)
    assert known.client == {"Authorization": f"Bearer {TOKEN}"}


@pytest.mark.parametrize(
    ("mode", "kept", "words"),
    [
        (None, None, "wants a token"),
        ("token", None, "wants a token"),
        (None, "other", "does not accept the token from ~/.ray/auth_token"),
        ("token", "other", "does not accept the token from ~/.ray/auth_token"),
        ("disabled", TOKEN, "RAY_AUTH_MODE=disabled"),
    ],
)
def test_a_token_that_is_missing_or_wrong_is_said(
    server: FakeServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: str | None,
    kept: str | None,
    words: str,
) -> None:
    server.token = TOKEN
    if mode:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    if kept:
        _keep_token(tmp_path, kept)
    error = _refusal(server.address)
    assert isinstance(error, ClusterError)
    assert words in error.message
    assert "RAY_AUTH_TOKEN" in error.hint


def test_a_token_left_by_a_local_ray_stays_on_this_machine(
    server: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.token = TOKEN
    _keep_token(tmp_path)
    monkeypatch.setattr(job_server, "_is_loopback", lambda host: False)
    assert "not sent to another one unasked" in _refusal(server.address).message
    assert set(server.seen) == {None}
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert job_server.connect(server.address).client


def test_a_token_does_not_follow_a_redirect(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = FakeServer()
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    server.location = other.address
    assert "no job server of Ray" in _refusal(server.address).message
    assert other.seen == []
    other.server_close()


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (200, b"<html>a web page</html>", "is no job server of Ray"),
        (200, b"[]", "is no job server of Ray"),
        (404, b"", "HTTP status 404"),
        (502, b"", "HTTP status 502"),
        (200, b'{"ray_version": "2.9.3"}', "runs Ray 2.9.3; segcore needs Ray 2.60"),
        (200, b'{"ray_version": "\\u001b[2J"}', "runs Ray ?[2J"),
    ],
)
def test_what_is_no_job_server(server: FakeServer, status: int, body: bytes, words: str) -> None:
    server.answer = (status, body)
    assert words in _refusal(server.address).message


def test_nothing_listens_or_it_does_not_speak_http(server: FakeServer) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
        error = _refusal(address)
    assert f"No job server answers at {address}" in error.message
    assert "kubectl port-forward" in error.hint
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()

        def talk() -> None:
            connection, _ = mute.accept()
            connection.recv(1000)
            connection.sendall(b"\x00\x01no http\r\n\r\n")
            connection.close()

        thread = threading.Thread(target=talk)
        thread.start()
        error = _refusal(f"127.0.0.1:{mute.getsockname()[1]}")
        thread.join()
    assert "job server" in error.message


@pytest.mark.parametrize(
    "address",
    ["auto", "ray://head:10001", "http://", "head:port", "http://user:secret@head:8265",
     "http://head:8265?token=secret", "file:///etc/passwd"],
)  # fmt: skip
def test_addresses_that_are_refused(address: str) -> None:
    error = _refusal(address)
    assert isinstance(error, UsageError)
    assert "secret" not in error.message


@pytest.mark.parametrize("nodes", [None, "x", [1], [{}], [{"raylet": {"state": "DEAD"}}]])
def test_an_answer_about_nodes_that_is_not_understood_names_none(
    server: FakeServer, nodes: Any
) -> None:
    server.nodes = nodes if nodes is not None else ()
    assert job_server.connect(server.address).nodes == ()


def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "aiohttp", None)
    error = _refusal("http://127.0.0.1:1")
    assert "segcore[cluster]" in error.hint
