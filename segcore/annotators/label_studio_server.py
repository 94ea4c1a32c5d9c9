"""The HTTP server of the ML backend for Label Studio."""

from __future__ import annotations

import json
import logging
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from segcore.annotators.label_studio import LabelStudioBackend
from segcore.errors import SegcoreError, UsageError
from segcore.text import parse_json, printable

MAX_BODY_BYTES = 64 << 20
_READ_TIMEOUT_S = 60.0
_MAX_REASON = 200  # letters of the phrase behind a status code
_LOGGER = logging.getLogger(__name__)


class BackendServer(ThreadingHTTPServer):
    """Listens as soon as it is made; `serve_forever` answers.

    Args:
        address: Host and port; port 0 takes a free one.
    """

    daemon_threads = True

    def __init__(self, address: tuple[str, int], backend: LabelStudioBackend) -> None:
        self.backend = backend
        try:
            super().__init__(address, _Handler)
        except OSError as error:
            host, port = address
            raise UsageError(
                f"Cannot listen on {host}:{port}: {error.strerror or error}.",
                "Choose another --port, or end the program that has it.",
            ) from None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log why a connection ended; clients that leave are no news."""
        error = sys.exception()
        if not isinstance(error, ConnectionError | TimeoutError):
            _LOGGER.error("A request was not answered.", exc_info=error)

    @property
    def url(self) -> str:
        """Where it listens."""
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}"


class _Handler(BaseHTTPRequestHandler):
    """One connection. Label Studio shows people the reason phrase of an error, not its body."""

    server: BackendServer
    protocol_version = "HTTP/1.1"
    timeout = _READ_TIMEOUT_S

    def do_GET(self) -> None:
        """Health, at its own path and at the root, and versions."""
        backend = self.server.backend
        path = self.path.partition("?")[0]
        answers = {"/": backend.health, "/health": backend.health, "/versions": backend.versions}
        if path in answers:
            self._send(200, answers[path]())
        else:
            self._fail(404, f"There is nothing at {self.path}.")

    def do_POST(self) -> None:
        """Setup and predict; what Label Studio says about annotations is taken and forgotten."""
        backend = self.server.backend
        answers = {"/setup": backend.setup, "/predict": backend.predict}
        path = self.path.partition("?")[0].rstrip("/")
        try:
            body = self._read_body()
            if path == "/webhook":
                self._send(200, {"status": "ignored: an edition does not learn"})
            elif path in answers:
                self._send(200, answers[path](body))
            else:
                self._fail(404, "This backend answers /health, /setup and /predict.")
        except UsageError as error:
            self._fail(400, error.message)
        except SegcoreError as error:
            self._fail(503, error.message)

    def _read_body(self) -> dict[str, Any]:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MAX_BODY_BYTES:
            self.close_connection = True
            raise UsageError(
                f"A request has at most {MAX_BODY_BYTES >> 20} MiB, and says its length."
            )
        try:
            body = parse_json(self.rfile.read(int(length)) or b"{}")
        except ValueError:
            body = None
        if not isinstance(body, dict):
            raise UsageError("The request is no JSON object.")
        return body

    def _fail(self, status: int, message: str) -> None:
        _LOGGER.warning("%s %s: %s", self.command, printable(self.path)[:_MAX_REASON], message)
        plain = message.encode("ascii", "replace").decode().replace("\n", " ")
        self._send(status, {"error": message}, printable(plain)[:_MAX_REASON])

    def _send(self, status: int, document: dict[str, Any], reason: str | None = None) -> None:
        data = json.dumps(document).encode()
        self.send_response(status, reason)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Write requests to the log."""
        _LOGGER.debug(format, *args)
