"""Downloads from a real HTTP server on loopback that breaks connections and changes its files."""

from __future__ import annotations

import hashlib
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest

from segcore.errors import CheckpointError, UsageError
from segcore.models import downloads, registry
from segcore.models.maskrcnn.network import ARCHITECTURES

BODY = bytes(range(256)) * 2000


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        site = self.server.site
        site.requests.append((self.path, self.headers.get("Range")))
        site.authorizations.append(self.headers.get("Authorization"))
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
        self.send_header("Content-Length", site.length or str(len(site.body) - start))
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
        self.length = ""  # what the server claims; "": the truth
        self.requests: list[tuple[str, str | None]] = []  # path and byte range
        self.authorizations: list[str | None] = []


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


def test_a_server_that_sends_a_byte_now_and_then_is_left(site, tmp_path, monkeypatch):
    """Each read has some, so that no time-out of the connection is met."""
    clock = SimpleNamespace(monotonic=count(step=20).__next__, sleep=lambda _seconds: None)
    monkeypatch.setattr(downloads, "time", clock)
    monkeypatch.setattr(downloads, "_SLOWEST_BYTES", len(BODY) + 1)
    monkeypatch.setattr(downloads, "_CHUNK_BYTES", 1000)
    with pytest.raises(CheckpointError, match=r"only \d+ bytes came in 40 s"):
        downloads.fetch(f"{site.url}/m", tmp_path / "m", retries=1)
    (_, whole), (_, rest) = site.requests
    assert whole is None
    assert re.fullmatch(r"bytes=[1-9]\d*-", rest), "it goes on where it stopped"
    assert not (tmp_path / "m").exists()


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


def test_a_sha256_that_is_known_in_part_is_checked_and_the_rest_pinned(site, tmp_path, capsys):
    target = downloads.fetch(f"{site.url}/m", tmp_path / "m", SHA256[:8])
    assert downloads.pinned_sha256(target) == SHA256
    assert f"Pinned m: its sha256 was not known here before. It is {SHA256}" in (
        capsys.readouterr().err
    )
    downloads.fetch(f"{site.url}/m", target, SHA256[:8])
    assert (len(site.requests), capsys.readouterr().err) == (1, "")
    (tmp_path / "m.sha256").write_text(f"{SHA256[:8]}{'0' * 56}  m\n")
    with pytest.raises(CheckpointError, match="is not the file that was expected"):
        downloads.fetch(f"{site.url}/m", target, SHA256[:8])
    with pytest.raises(CheckpointError, match=r"sha256 is .{64} instead of 00000000\.\.\."):
        downloads.fetch(f"{site.url}/m", tmp_path / "other", "0" * 8)


def test_the_digits_in_the_names_of_torchvision_are_checked():
    published = [registry.PUBLISHED[name] for name in ARCHITECTURES]
    assert [model.sha256 for model in published] == ["bf2d0c1e", "73cbd019"]
    assert all(model.file_name.endswith(f"-{model.sha256}.pth") for model in published)


@pytest.mark.parametrize("content", [b"", b"abc\n", b"\xff\xfe" * 40, b"A" * 64 + b"  m\n"])
def test_a_damaged_pin_is_an_error_that_says_what_to_delete(site, tmp_path, content):
    target = downloads.fetch(f"{site.url}/m", tmp_path / "m")
    (tmp_path / "m.sha256").write_bytes(content)
    with pytest.raises(CheckpointError, match="does not hold a sha256") as caught:
        downloads.fetch(f"{site.url}/m", target)
    assert "delete m.sha256" in caught.value.hint


def test_a_pin_appears_as_a_whole_while_others_read_it(site, tmp_path):
    pins = [tmp_path / f"{i}" for i in range(200)]
    stop = threading.Event()
    wrong: list[Exception] = []

    def read_all():
        while not stop.is_set():
            for pin in pins:
                try:
                    downloads.pinned_sha256(pin)
                except CheckpointError as error:
                    wrong.append(error)

    reader = threading.Thread(target=read_all)
    reader.start()
    for pin in pins:
        downloads._pin(pin, SHA256)
    stop.set()
    reader.join()
    assert not wrong
    assert {downloads.pinned_sha256(pin) for pin in pins} == {SHA256}


SECRETS = ("hunter2", "X-Signature", "sesame")


@pytest.mark.parametrize("path", ["m", "gone", "moved", "m m", "m\x1b[2Jm"])
def test_secrets_of_a_link_are_sent_and_neither_shown_nor_stored(site, tmp_path, capsys, path):
    url = f"{site.url.replace('//', '//me:hunter2@')}/{path}?X-Signature=sesame#sesame"
    site.moved_to = "http://me:hunter2@example.org/m?X-Signature=sesame"
    target, texts = tmp_path / "m", []
    try:
        downloads.fetch(url, target)
    except CheckpointError as error:
        texts += [error.message, error.hint]
    if target.exists():
        target.write_bytes(b"other")
        with pytest.raises(CheckpointError) as caught:
            downloads.fetch(url, target)
        texts += [caught.value.message, caught.value.hint]
    assert path == "m" or texts
    texts.append(capsys.readouterr().err)
    texts += [str(file) + file.read_text(errors="replace") for file in tmp_path.iterdir()]
    assert not [secret for secret in SECRETS for text in texts if secret in text]
    assert "\x1b" not in "".join(texts)
    if path in ("m", "gone"):
        assert site.requests[0][0] == f"/{path}?X-Signature=sesame"
        assert site.authorizations[0] == "Basic bWU6aHVudGVyMg=="


@pytest.mark.parametrize(
    "link", ["https://[::1/m?sesame", "https://host:port/m?sesame", "ftp://h?sesame"]
)
def test_links_that_are_no_links_are_refused_in_one_sentence(tmp_path, link):
    with pytest.raises(CheckpointError) as caught:
        downloads.fetch(link, tmp_path / "m")
    assert "sesame" not in caught.value.message


@pytest.mark.parametrize("length", ["many", "-1"])
def test_a_length_that_is_no_number_does_not_end_in_a_traceback(site, tmp_path, length):
    site.length = length
    with pytest.raises(CheckpointError):
        downloads.fetch(f"{site.url}/m", tmp_path / "m", "0" * 64, retries=0)


def test_without_a_home_the_error_names_the_variable(monkeypatch):
    for name in ("SEGCORE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(downloads.Path, "home", no_home)
    with pytest.raises(UsageError, match="no home directory") as caught:
        downloads.cache_dir()
    assert "SEGCORE_CACHE" in caught.value.hint
