"""Downloads from a real HTTP server on loopback that breaks connections and changes its files."""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from segcore.errors import CheckpointError
from segcore.models import downloads

BODY = bytes(range(256)) * 2000


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        site = self.server.site
        site.requests.append((self.path, self.headers.get("Range")))
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", site.moved_to)
            self.end_headers()
            return
        if self.path == "/gone":
            self.send_error(404)
            return
        start = 0
        byte_range = self.headers.get("Range")
        if byte_range and self.headers.get("If-Range") == site.etag:
            start = int(byte_range.removeprefix("bytes=").removesuffix("-"))
        self.send_response(206 if start else 200)
        self.send_header("ETag", site.etag)
        self.send_header("Content-Length", str(len(site.body) - start))
        self.end_headers()
        body = site.body[start:]
        if site.break_after:
            body = body[: site.break_after.pop(0)]
        self.wfile.write(body)

    def log_message(self, *_arguments):
        pass


class Site:
    """What the server has, and what it was asked for."""

    def __init__(self, address):
        self.url = address
        self.body, self.etag, self.moved_to = BODY, '"one"', ""
        self.break_after: list[int] = []  # bytes of the body, request by request
        self.requests: list[tuple[str, str | None]] = []  # path and byte range


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setattr(downloads.time, "sleep", lambda _seconds: None)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.site = Site(f"http://127.0.0.1:{server.server_port}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.site
        server.shutdown()


SHA256 = hashlib.sha256(BODY).hexdigest()


def test_a_file_is_fetched_once_and_pinned(site, tmp_path, capsys):
    target = tmp_path / "cache" / "model.pt"
    reports = []
    path = downloads.fetch(
        f"{site.url}/model.pt", target, licence="MIT", progress=lambda *args: reports.append(args)
    )
    assert path.read_bytes() == BODY
    assert downloads.pinned_sha256(target) == SHA256
    assert reports[-1] == (len(BODY), len(BODY))
    assert "licence of the weights: MIT" in capsys.readouterr().err
    downloads.fetch(f"{site.url}/model.pt", target)
    assert len(site.requests) == 1


def test_after_a_broken_connection_the_download_resumes_where_it_stopped(site, tmp_path):
    site.break_after = [100_000, 50_000]
    target = downloads.fetch(f"{site.url}/m", tmp_path / "m", SHA256)
    assert target.read_bytes() == BODY
    assert [byte_range for _, byte_range in site.requests] == [
        None,
        "bytes=100000-",
        "bytes=150000-",
    ]


def test_an_interrupted_download_resumes_in_another_process(site, tmp_path):
    site.break_after = [100_000]
    with pytest.raises(CheckpointError, match="Cannot fetch"):
        downloads.fetch(f"{site.url}/m", tmp_path / "m", SHA256, retries=0)
    assert not (tmp_path / "m").exists()
    downloads.fetch(f"{site.url}/m", tmp_path / "m", SHA256)
    assert site.requests[-1][1] == "bytes=100000-"


def test_a_file_that_changed_in_between_is_fetched_from_the_start(site, tmp_path):
    site.break_after = [100_000]
    with pytest.raises(CheckpointError):
        downloads.fetch(f"{site.url}/m", tmp_path / "m", retries=0)
    site.body, site.etag = BODY[::-1], '"two"'
    assert downloads.fetch(f"{site.url}/m", tmp_path / "m").read_bytes() == BODY[::-1]


def test_a_wrong_sha256_is_refused_and_nothing_is_kept(site, tmp_path):
    with pytest.raises(CheckpointError, match="is not the expected file: its sha256 is"):
        downloads.fetch(f"{site.url}/m", tmp_path / "m", "0" * 64)
    assert not (tmp_path / "m").exists()
    assert not (tmp_path / "m.part").exists()


def test_a_cached_file_that_was_changed_is_refused(site, tmp_path):
    target = downloads.fetch(f"{site.url}/m", tmp_path / "m")
    target.write_bytes(b"changed")
    with pytest.raises(CheckpointError, match="is not the file that was expected"):
        downloads.fetch(f"{site.url}/m", target)


def test_a_file_that_the_server_does_not_have_is_asked_for_once(site, tmp_path):
    with pytest.raises(CheckpointError, match="answered 404") as caught:
        downloads.fetch(f"{site.url}/gone", tmp_path / "model.pt")
    assert str(tmp_path / "model.pt") in caught.value.hint
    assert len(site.requests) == 1


def test_simultaneous_fetches_download_once(site, tmp_path):
    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(downloads.fetch, f"{site.url}/m", tmp_path / "m") for _ in range(8)]
    assert {job.result().read_bytes() for job in jobs} == {BODY}
    assert len(site.requests) == 1


def test_redirects_are_followed_to_safe_places_only(site, tmp_path):
    site.moved_to = f"{site.url}/m"
    assert downloads.fetch(f"{site.url}/moved", tmp_path / "a").read_bytes() == BODY
    for place in ("http://example.org/m", "ftp://127.0.0.1/m", "file:///etc/hostname"):
        site.moved_to = place
        with pytest.raises(CheckpointError):
            downloads.fetch(f"{site.url}/moved", tmp_path / "b")
        assert not (tmp_path / "b").exists()


def test_a_file_over_the_limit_is_refused(site, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "MAX_BYTES", 1000)
    with pytest.raises(CheckpointError, match="over the limit of 1000"):
        downloads.fetch(f"{site.url}/m", tmp_path / "m")


def test_the_error_for_a_cache_that_cannot_be_written_names_the_variable(site, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="Cannot store") as caught:
        downloads.fetch(f"{site.url}/m", tmp_path / "file" / "m")
    assert "SEGCORE_CACHE" in caught.value.hint


def test_the_cache_folder_follows_the_environment(monkeypatch):
    monkeypatch.setenv("SEGCORE_CACHE", "/a/b")
    assert downloads.cache_dir() == Path("/a/b")
    monkeypatch.delenv("SEGCORE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    assert downloads.cache_dir() == Path("/c/segcore")
