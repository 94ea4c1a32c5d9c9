"""An S3 server on loopback, in memory, whose keys are opaque text, as on AWS.

SeaweedFS keeps objects as files of folders and refuses or changes some keys; AWS does not. This
server also records every request, and answers with an error when a test asks for that. It knows
what a run needs besides uploads in parts; signatures are not checked.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape, unescape


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
        is_listed: Called with a key; whether listings show it yet.
        accepts: Called with an access key; whether it is valid still.
        allows: Called with an action of IAM and a key, or a prefix that is listed; whether a policy
            allows it.
    """

    bucket = "bucket"

    def __init__(self, objects: Mapping[str, bytes], page_keys: int = 1000) -> None:
        self.objects = dict(objects)
        self.page_keys = page_keys
        self.refuse: Callable[[str, str | None], tuple[int, str] | None] = lambda *_: None
        self.requests: list[tuple[str, str | None, dict[str, str]]] = []
        self.listed_etag: Callable[[str], str] = self.etag
        self.is_listed: Callable[[str], bool] = lambda key: True
        self.accepts: Callable[[str], bool] = lambda access_key: True
        self.allows: Callable[[str, str], bool] = lambda action, key: True
        self.metadata: dict[str, dict[str, str]] = {}  # key -> its x-amz-meta-* headers
        self.lock = threading.Lock()  # of changes, so that one creator wins
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
        has_no_key = "list-type" in query or "delete" in query
        key = None if has_no_key else unquote(url.path)[len(f"/{self.fake.bucket}/") :]
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.fake.requests.append((self.command, key, dict(self.headers)))
        refusal = self.fake.refuse(self.command, key)
        signer = re.search("Credential=([^/]+)/", self.headers.get("Authorization", ""))
        if signer is not None and not self.fake.accepts(signer[1]):
            refusal = (400, "ExpiredToken")
        if refusal is None and not self._is_allowed(key, query):
            refusal = (403, "AccessDenied")
        if refusal is not None:
            self._refuse(*refusal)
        elif self.command == "PUT" and key is not None:
            self._put(key, body)
        elif self.command == "DELETE" and key is not None:
            self._delete([key])
            self._answer(204, b"")
        elif "delete" in query:
            self._delete_many(re.findall("<Key>(.*?)</Key>", body.decode()))
        elif key is None:
            self._list(query)
        else:
            self._get(key)

    do_HEAD = do_PUT = do_DELETE = do_POST = do_GET

    def _is_allowed(self, key: str | None, query: Mapping[str, str]) -> bool:
        """As IAM has it; keys that are deleted together are asked for one by one, later."""
        if key is None:
            return "delete" in query or self.fake.allows("s3:ListBucket", query.get("prefix", ""))
        if (source := self._copied()) and not self.fake.allows("s3:GetObject", source):
            return False
        actions = {"PUT": "s3:PutObject", "DELETE": "s3:DeleteObject"}
        return self.fake.allows(actions.get(self.command, "s3:GetObject"), key)

    def _delete_many(self, names: Sequence[str]) -> None:
        """Delete these keys, as a request has them; the answer is 200 whatever is refused."""
        refused = {
            name for name in names if not self.fake.allows("s3:DeleteObject", unescape(name))
        }
        self._delete([unescape(name) for name in names if name not in refused])
        results = "".join(
            f"<Error><Key>{name}</Key><Code>AccessDenied</Code><Message>m</Message></Error>"
            if name in refused
            else f"<Deleted><Key>{name}</Key></Deleted>"
            for name in names
        )
        self._answer(200, f"<DeleteResult>{results}</DeleteResult>".encode())

    def _refuse(self, status: int, code: str) -> None:
        self._answer(status, f"<Error><Code>{code}</Code><Message>m</Message></Error>".encode())

    def _copied(self) -> str:
        """The key that a request asks to copy; "" if it brings bytes itself."""
        source = unquote(self.headers.get("x-amz-copy-source", ""))
        return source.removeprefix("/").removeprefix(f"{self.fake.bucket}/")

    def _put(self, key: str, body: bytes) -> None:
        fake = self.fake
        if source := self._copied():
            if source not in fake.objects:
                self._refuse(404, "NoSuchKey")
                return
            body = fake.objects[source]
        with fake.lock:
            exists = key in fake.objects
            if not (exists and self.headers.get("If-None-Match") == "*"):
                fake.objects[key] = body
                names = [name for name in self.headers if name.lower().startswith("x-amz-meta-")]
                fake.metadata[key] = {name: self.headers[name] for name in names}
                exists = False
        etag = f'"{hashlib.md5(body).hexdigest()}"'
        if exists:
            self._refuse(412, "PreconditionFailed")
        elif source:
            result = f"<CopyObjectResult><ETag>{escape(etag)}</ETag></CopyObjectResult>"
            self._answer(200, result.encode())
        else:
            self._answer(200, b"", {"ETag": etag})

    def _delete(self, keys: list[str]) -> None:
        with self.fake.lock:
            for key in keys:
                self.fake.objects.pop(key, None)

    def _get(self, key: str) -> None:
        data, status = self.fake.objects.get(key), 200
        if data is None:
            if self.fake.allows("s3:ListBucket", key):
                self._refuse(404, "NoSuchKey")
            else:  # who may not list is not told whether it exists
                self._refuse(403, "AccessDenied")
            return
        headers = {**self.fake.metadata.get(key, {}), "ETag": f'"{hashlib.md5(data).hexdigest()}"'}
        if bounds := self.headers.get("Range"):
            first, last = bounds.removeprefix("bytes=").split("-")
            total = len(data)
            if int(first) >= total:
                self._answer(416, b"<Error><Code>InvalidRange</Code></Error>")
                return
            data, status = data[int(first) : int(last) + 1], 206
            stop = int(first) + len(data) - 1
            headers["Content-Range"] = f"bytes {first}-{stop}/{total}"
        self._answer(status, data, headers)

    def _list(self, query: dict[str, str]) -> None:
        prefix, start_after = query.get("prefix", ""), query.get("start-after", "")
        after = unquote(query.get("continuation-token", "")) or start_after
        with self.fake.lock:
            objects = dict(self.fake.objects)
        names = {
            self._fold(key, prefix, query.get("delimiter", ""))
            for key in objects
            if key.startswith(prefix) and self.fake.is_listed(key)
        }
        names = {name for name in names if name > after}
        page = sorted(names)[: min(self.fake.page_keys, int(query.get("max-keys", 1000)))]
        encode = quote if query.get("encoding-type") == "url" else escape
        items = "".join(
            f"<Contents><Key>{encode(name)}</Key><Size>{len(objects[name])}</Size>"
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
