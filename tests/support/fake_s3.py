"""A read-only S3 server on loopback whose keys are opaque text, as on AWS.

SeaweedFS keeps objects as files of folders and refuses or changes some keys; AWS does not. This
server also records every request, and answers with an error when a test asks for that.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape


class FakeS3:
    """Serves one bucket; a context manager.

    Args:
        objects: Key -> bytes; may be changed while the server runs.
        page_keys: Keys on one page of a listing.

    Attributes:
        refuse: Called with (method, key or None for a listing); gives (HTTP status, error code), or
            None where the request is served.
        requests: (method, key or None, headers) of each request.
        listed_etag: Called with a key; the etag that listings show.
    """

    bucket = "bucket"

    def __init__(self, objects: Mapping[str, bytes], page_keys: int = 1000) -> None:
        self.objects = dict(objects)
        self.page_keys = page_keys
        self.refuse: Callable[[str, str | None], tuple[int, str] | None] = lambda *_: None
        self.requests: list[tuple[str, str | None, dict[str, str]]] = []
        self.listed_etag: Callable[[str], str] = self.etag
        handler = type("Handler", (_Handler,), {"fake": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def etag(self, key: str) -> str:
        """The version of an object."""
        return hashlib.md5(self.objects[key]).hexdigest()

    def __enter__(self) -> FakeS3:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Folder(str):
    """A common prefix in a listing."""


class _Handler(BaseHTTPRequestHandler):
    fake: FakeS3
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # one packet per answer

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        url = urlsplit("http://host" + self.path)
        query = {name: values[0] for name, values in parse_qs(url.query, True).items()}
        is_listing = "list-type" in query
        key = None if is_listing else unquote(url.path)[len(f"/{self.fake.bucket}/") :]
        self.fake.requests.append((self.command, key, dict(self.headers)))
        refusal = self.fake.refuse(self.command, key)
        if refusal is None and key is not None and key not in self.fake.objects:
            refusal = (404, "NoSuchKey")
        if refusal is not None:
            xml = f"<Error><Code>{refusal[1]}</Code><Message>m</Message></Error>"
            self._answer(refusal[0], xml.encode())
        elif key is None:
            self._list(query)
        else:
            self._get(key)

    do_HEAD = do_GET

    def _get(self, key: str) -> None:
        data, status, headers = self.fake.objects[key], 200, {}
        if bounds := self.headers.get("Range"):
            first, last = bounds.removeprefix("bytes=").split("-")
            total = len(data)
            if int(first) >= total:
                self._answer(416, b"<Error><Code>InvalidRange</Code></Error>")
                return
            data, status = data[int(first) : int(last) + 1], 206
            stop = int(first) + len(data) - 1
            headers["Content-Range"] = f"bytes {first}-{stop}/{total}"
        headers["ETag"] = f'"{self.fake.etag(key)}"'
        self._answer(status, data, headers)

    def _list(self, query: dict[str, str]) -> None:
        prefix, start_after = query.get("prefix", ""), query.get("start-after", "")
        after = unquote(query.get("continuation-token", "")) or start_after
        names = {
            self._fold(key, prefix, query.get("delimiter", ""))
            for key in self.fake.objects
            if key.startswith(prefix)
        }
        names = {name for name in names if name > after}
        page = sorted(names)[: min(self.fake.page_keys, int(query.get("max-keys", 1000)))]
        encode = quote if query.get("encoding-type") == "url" else escape
        items = "".join(
            f"<Contents><Key>{encode(name)}</Key><Size>{len(self.fake.objects[name])}</Size>"
            f"<LastModified>2024-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>&quot;{self.fake.listed_etag(name)}&quot;</ETag></Contents>"
            if not isinstance(name, _Folder)
            else f"<CommonPrefixes><Prefix>{encode(name)}</Prefix></CommonPrefixes>"
            for name in page
        )
        more = len(names) > len(page)
        token = f"<NextContinuationToken>{quote(page[-1])}</NextContinuationToken>" if more else ""
        encoding = "<EncodingType>url</EncodingType>" if encode is quote else ""
        self._answer(
            200,
            f"<ListBucketResult><IsTruncated>{str(more).lower()}</IsTruncated>{encoding}{token}"
            f"{items}</ListBucketResult>".encode(),
        )

    def _fold(self, key: str, prefix: str, delimiter: str) -> str:
        """The key, or the folder below `prefix` that a listing with delimiters shows for it."""
        rest = key[len(prefix) :]
        if not delimiter or delimiter not in rest:
            return key
        return _Folder(prefix + rest.partition(delimiter)[0] + delimiter)

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str] = {}) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()
