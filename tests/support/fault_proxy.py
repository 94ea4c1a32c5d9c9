"""A TCP/HTTP proxy on loopback that spoils some requests, by a seed.

It stands between a client and an S3 server and speaks just enough HTTP/1.1 to know where a
request and its answer end. Everything of a request is passed on as it came, `Host` and
signature included, so that signed requests (SigV4) stay valid as long as the client signs for
the proxy's address: the server checks the signature with the `Host` that the client sent.

One request meets at most one fault:

    slow_down   503 SlowDown with an XML body; the server never sees the request
    reset       the connection is reset: before the server hears of it, in the middle of what
                is sent to it, or after it has done what was asked
    truncate    half of the answer's body, then the connection is closed
    stall       nothing comes back until the client gives up (`stall_s` at most); or half a body
    trickle     the answer comes in small pieces with pauses, but whole
"""

from __future__ import annotations

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
_LIMIT = 1 << 20


@dataclass
class Message:
    """One HTTP request or answer: the head as it came, and its body."""

    head: bytes
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def first_line(self) -> str:
        return self.head.partition(b"\r\n")[0].decode("latin-1")


class FaultProxy:
    """Forwards to `target`; a context manager. Counts what it did in `injected`.

    Args:
        target: `http://host:port` of the real server.
        share: Share of the requests that meet each fault, such as 0.05.
        faults: Which faults.
        seed: Decides which request (by its number) meets which fault.
        stall_s: How long a stalled answer takes at most; longer than the client's time limit.
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
        self._random = random.Random(seed)
        self._shares = dict.fromkeys(faults, share)
        self._stall_s = stall_s
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._open: set[socket.socket] = set()
        self.requests = 0
        self.injected: Counter[str] = Counter()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> FaultProxy:
        threading.Thread(target=self._accept, daemon=True).start()
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
            for connection in self._open:
                with suppress(OSError):
                    connection.close()

    def set(self, **shares: float) -> None:
        """Other shares from now on, by fault; faults not named stop."""
        assert set(shares) <= set(FAULTS)
        with self._lock:
            self._shares = dict(shares)

    def _choose(self) -> tuple[str, random.Random]:
        with self._lock:
            self.requests += 1
            draw = self._random.random()
            own = random.Random(self._random.random())
            for fault, share in self._shares.items():
                if draw < share:
                    self.injected[fault] += 1
                    return fault, own
                draw -= share
        return "", own

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """All requests of one connection."""
        with self._lock:
            self._open.add(client)
        try:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            reader = client.makefile("rb")
            while (request := read_message(reader, None)) is not None:
                fault, rng = self._choose()
                if fault == "slow_down":
                    client.sendall(
                        b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\n"
                        b"Content-Length: %d\r\n\r\n" % len(_SLOW_DOWN) + _SLOW_DOWN
                    )
                    continue
                stage = rng.random() * 3 if fault == "reset" else 3.0
                if stage < 1:
                    return _reset(client)
                with socket.create_connection(self._target, 60) as server:
                    data = _closing_head(request.head) + request.body
                    if stage < 2 and request.body:
                        server.sendall(data[: -(len(request.body) + 1) // 2])
                        return _reset(client)
                    server.sendall(data)
                    answer = read_message(server.makefile("rb"), request.first_line.split()[0])
                if answer is None or not self._answer(client, answer, fault, rng):
                    return None
        except (OSError, ValueError):
            pass
        finally:
            with self._lock:
                self._open.discard(client)
            with suppress(OSError):
                client.close()
        return None

    def _answer(
        self, client: socket.socket, answer: Message, fault: str, rng: random.Random
    ) -> bool:
        """Send the answer, or what the fault leaves of it; False when the connection ended."""
        data = answer.head + answer.body
        half = len(answer.head) + len(answer.body) // 2
        if fault == "reset":
            _reset(client)
            return False
        if fault == "truncate":
            client.sendall(data[:half] if answer.body else data[: len(answer.head) // 2])
            return False
        if fault == "stall":
            if answer.body and rng.random() < 0.5:
                client.sendall(data[:half])
            self._closing.wait(self._stall_s)
            return False
        if fault == "trickle":
            step = max(1, len(data) // 10)
            for at in range(0, len(data), step):
                client.sendall(data[at : at + step])
                self._closing.wait(0.02)
            return True
        client.sendall(data)
        return True


def read_message(reader: socket.SocketIO, method: str | None) -> Message | None:  # type: ignore[valid-type]
    """The next message; None at the end of the connection.

    Args:
        method: Of the request that this answers; None when it is a request itself.
    """
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        line = reader.readline(_LIMIT)
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


def _read_chunks(reader: socket.SocketIO) -> bytes:  # type: ignore[valid-type]
    """A chunked body, with its framing."""
    body = b""
    while True:
        line = reader.readline(_LIMIT)
        size = int(line.split(b";")[0], 16)
        body += line + reader.read(size) + reader.readline(_LIMIT)
        if size == 0:
            return body


def _closing_head(head: bytes) -> bytes:
    """The same head with `Connection: close`, which no signature covers."""
    lines = head[:-4].split(b"\r\n")
    kept = [line for line in lines if not line.lower().startswith(b"connection:")]
    return b"\r\n".join([*kept, b"Connection: close"]) + b"\r\n\r\n"


def _reset(connection: socket.socket) -> None:
    """Close so that the other side sees a reset, not an end."""
    linger = struct.pack("ii", 1, 0)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    connection.close()
