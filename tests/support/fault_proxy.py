"""A TCP/HTTP proxy on loopback that spoils some requests, by a seed.

It sits between a client and an S3 server and speaks just enough HTTP/1.1 to know where a
request and its response end. A request is passed on as it came, `Host` and signature included,
so that signed requests (SigV4) stay valid as long as the client signs for the proxy's address:
the server checks the signature with the `Host` that the client sent.

Each request meets at most one fault:

    slow_down   503 SlowDown with an XML body; the server never sees the request
    reset       the connection is reset: before the server has received anything, in the middle of
                the request, or after the server has done what was asked
    truncate    half of the response's body, then the connection is closed
    stall       nothing comes back until the client gives up (`stall_s` at most), or half a body
    trickle     the complete response, in small pieces with pauses
"""

from __future__ import annotations

import io
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from urllib.parse import urlsplit

FAULTS = ("slow_down", "reset", "truncate", "stall", "trickle")
_SLOW_DOWN = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>SlowDown</Code>'
    b"<Message>Please reduce your request rate.</Message></Error>"
)
_MAX_LINE_BYTES = 1 << 20
_SERVER_TIMEOUT_S = 60


@dataclass
class Message:
    """One HTTP request or response: the head as it came, and its body."""

    head: bytes
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def first_line(self) -> str:
        return self.head.partition(b"\r\n")[0].decode("latin-1")


class FaultProxy:
    """Forwards to `target`; a context manager.

    Args:
        target: `http://host:port` of the real server.
        share: Share of the requests that meet each fault, such as 0.05.
        faults: Which faults.
        seed: Decides which request (by its number) meets which fault.
        stall_s: How long a stalled response takes at most; longer than the client's time limit.

    Attributes:
        endpoint: `http://127.0.0.1:port`, for clients.
        requests: How many requests came.
        injected: How often each fault was injected.
    """

    def __init__(
        self,
        target: str,
        share: float = 0.05,
        faults: Iterable[str] = FAULTS,
        seed: int = 0,
        stall_s: float = 30.0,
    ) -> None:
        url = urlsplit(target)
        self._target = (url.hostname or "127.0.0.1", url.port or 80)
        self._rng = random.Random(seed)
        self._shares = dict.fromkeys(faults, share)
        self._stall_s = stall_s
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._connections: set[socket.socket] = set()
        self.requests = 0
        self.injected: Counter[str] = Counter()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> FaultProxy:
        threading.Thread(target=self._accept_connections, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing.set()
        self._listener.close()
        with self._lock:
            for connection in self._connections:
                with suppress(OSError):
                    connection.close()

    def set_shares(self, **shares: float) -> None:
        """Use other shares from now on, by fault; faults that are not named stop."""
        assert set(shares) <= set(FAULTS)
        with self._lock:
            self._shares = dict(shares)

    def _draw_fault(self) -> tuple[str, random.Random]:
        """The fault of the next request, "" for none, and random numbers for its details."""
        with self._lock:
            self.requests += 1
            number = self._rng.random()
            request_rng = random.Random(self._rng.random())
            for fault, share in self._shares.items():
                if number < share:
                    self.injected[fault] += 1
                    return fault, request_rng
                number -= share
        return "", request_rng

    def _accept_connections(self) -> None:
        while not self._closing.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve_connection, args=(client,), daemon=True).start()

    def _serve_connection(self, client: socket.socket) -> None:
        """Answer all requests of one connection."""
        with self._lock:
            self._connections.add(client)
        try:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            reader = client.makefile("rb")
            while (request := read_message(reader, None)) is not None:
                fault, rng = self._draw_fault()
                if not self._handle_request(client, request, fault, rng):
                    return
        except (OSError, ValueError):
            pass
        finally:
            with self._lock:
                self._connections.discard(client)
            with suppress(OSError):
                client.close()

    def _handle_request(
        self, client: socket.socket, request: Message, fault: str, rng: random.Random
    ) -> bool:
        """Forward a request, or fail it; False when the connection ended."""
        if fault == "slow_down":
            client.sendall(
                b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\n"
                b"Content-Length: %d\r\n\r\n" % len(_SLOW_DOWN) + _SLOW_DOWN
            )
            return True
        reset_at = rng.choice(("start", "request", "response")) if fault == "reset" else ""
        if reset_at == "start":
            _reset(client)
            return False
        with socket.create_connection(self._target, _SERVER_TIMEOUT_S) as server:
            data = _with_connection_close(request.head) + request.body
            if reset_at == "request" and request.body:
                server.sendall(data[: -(len(request.body) + 1) // 2])
                _reset(client)
                return False
            server.sendall(data)
            response = read_message(server.makefile("rb"), request.first_line.split()[0])
        return response is not None and self._send_response(client, response, fault, rng)

    def _send_response(
        self, client: socket.socket, response: Message, fault: str, rng: random.Random
    ) -> bool:
        """Send the response, or what the fault leaves of it; False when the connection ended."""
        data = response.head + response.body
        half = len(response.head) + len(response.body) // 2
        if fault == "reset":
            _reset(client)
            return False
        if fault == "truncate":
            client.sendall(data[:half] if response.body else data[: len(response.head) // 2])
            return False
        if fault == "stall":
            if response.body and rng.random() < 0.5:
                client.sendall(data[:half])
            self._closing.wait(self._stall_s)
            return False
        if fault == "trickle":
            step = max(1, len(data) // 10)
            for start in range(0, len(data), step):
                client.sendall(data[start : start + step])
                self._closing.wait(0.02)
            return True
        client.sendall(data)
        return True


def read_message(reader: io.BufferedReader, method: str | None) -> Message | None:
    """The next message; None at the end of the connection.

    Args:
        method: Of the request that this is the response to; None when it is a request itself.
    """
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        line = reader.readline(_MAX_LINE_BYTES)
        if not line:
            return None
        head += line
    headers = {}
    for line in head.split(b"\r\n")[1:-2]:
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.strip().lower()] = value.strip()
    message = Message(head, b"", headers)
    status = message.first_line.split()[1] if method else ""
    if method == "HEAD" or status in ("204", "304"):
        return message
    if headers.get("transfer-encoding", "").lower() == "chunked":
        message.body = _read_chunks(reader)
    elif "content-length" in headers:
        length = int(headers["content-length"])
        message.body = reader.read(length)
        if len(message.body) < length:
            return None
    elif method is not None:
        message.body = reader.read()
    return message


def _read_chunks(reader: io.BufferedReader) -> bytes:
    """A chunked body, framing included."""
    body = b""
    while True:
        line = reader.readline(_MAX_LINE_BYTES)
        size = int(line.split(b";")[0], 16)
        body += line + reader.read(size) + reader.readline(_MAX_LINE_BYTES)
        if size == 0:
            return body


def _with_connection_close(head: bytes) -> bytes:
    """The same head with `Connection: close`, a header that no signature covers."""
    lines = head[:-4].split(b"\r\n")
    others = [line for line in lines if not line.lower().startswith(b"connection:")]
    return b"\r\n".join([*others, b"Connection: close"]) + b"\r\n\r\n"


def _reset(connection: socket.socket) -> None:
    """Close so that the other side sees a reset, not an end."""
    linger = struct.pack("ii", 1, 0)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    connection.close()
