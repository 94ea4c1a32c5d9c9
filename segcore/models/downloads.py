"""Downloads files into a cache: once, completely, and verified.

One process downloads while the others wait for a lock; an interrupted download resumes where it
stopped; the file gets its name only when it is complete and has the right sha256. A file without a
known sha256 is pinned on first use: its sha256 is written beside it and required from then on.
Links may hold secrets (a signed query, a password): they are sent, and neither shown nor stored.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import os
import re
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from filelock import FileLock

from segcore.errors import CheckpointError, UsageError
from segcore.text import printable, redact_link

MAX_BYTES = 4 << 30
_CHUNK_BYTES = 1 << 20
_SHA256_DIGITS = 64
_TIMEOUT_S = 30.0  # for a connection, and for any byte to come
_SLOWEST_BYTES = 30_000  # that have to come in each _TIMEOUT_S
_FIRST_DELAY_S = 0.5  # before the second attempt; doubles each time
Progress = Callable[[int, int | None], None]  # bytes so far, total bytes if known


def cache_dir() -> Path:
    """``$SEGCORE_CACHE``, else ``segcore`` in the user's cache folder. Not created here."""
    configured = os.environ.get("SEGCORE_CACHE")
    if configured:
        return Path(configured)
    if configured := os.environ.get("XDG_CACHE_HOME"):
        return Path(configured) / "segcore"
    try:
        return Path.home() / ".cache" / "segcore"
    except RuntimeError:
        raise UsageError(
            "There is no home directory to keep downloaded models in.",
            "Set SEGCORE_CACHE to a folder that can be written to.",
        ) from None


def short_hash(text: str) -> str:
    """16 hex digits that differ for different texts."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fetch(
    url: str,
    target: Path,
    sha256: str | None = None,
    *,
    licence: str = "",
    progress: Progress | None = None,
    retries: int = 3,
) -> Path:
    """The file of `url` at `target`: downloaded if it is not there, and verified.

    Args:
        url: https://, or http:// on this machine.
        target: Where the file is kept; ``.part``, ``.lock`` and ``.sha256`` files are beside it.
        sha256: The expected sha256, hex, or what it begins with; None: any. If it is not known
            whole, it is pinned on first use.
        licence: Printed before a download starts.
        progress: Called as bytes arrive; None draws a bar if stderr is a terminal.
        retries: Further attempts after a broken connection.

    Raises:
        CheckpointError: Offline, not found, too large, or the sha256 is wrong; the hint says which
            file to place where.
    """
    _check_url(url)
    is_known = sha256 is not None and len(sha256) == _SHA256_DIGITS
    if target.exists() and (is_known or pinned_sha256(target)):
        _verify(url, target, sha256)  # no lock: the cache may be read-only
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not target.exists():
                _download(url, target, sha256, licence, progress, retries)
            _verify(url, target, sha256)
    except OSError as error:
        raise CheckpointError(
            f"Cannot store {redact_link(url)} at {target}: {error.strerror or error}.",
            "Set SEGCORE_CACHE to a folder that can be written to.",
        ) from error
    return target


def pinned_sha256(target: Path) -> str | None:
    """The sha256 that was written down when `target` was first used.

    Raises:
        CheckpointError: What was written down is damaged.
    """
    pin = Path(f"{target}.sha256")
    try:
        text = pin.read_bytes()[:1000].decode(errors="replace")
    except FileNotFoundError:
        return None
    match = re.match(r"([0-9a-f]{64})\s", text)
    if match is None:
        raise CheckpointError(
            f"{pin} does not hold a sha256: it is damaged.",
            f"If you trust {target.name}, delete {pin.name} to pin it again.",
        )
    return match[1]


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise CheckpointError(f"{redact_link(url)} is not a valid link.") from None
    is_local = parts.hostname in ("127.0.0.1", "localhost", "::1")
    if parts.scheme == "https" or (parts.scheme == "http" and is_local):
        return
    raise CheckpointError(f"Weights are only fetched over https, not from {redact_link(url)}.")


def _download(
    url: str,
    target: Path,
    sha256: str | None,
    licence: str,
    progress: Progress | None,
    retries: int,
) -> None:
    print(
        f"Fetching {redact_link(url)}"
        + (f" (licence of the weights: {licence})" if licence else ""),
        file=sys.stderr,
    )
    partial = Path(f"{target}.part")
    for attempt in range(retries + 1):
        try:
            with _progress_bar(target.name, progress) as report:
                _transfer(url, partial, report)
            break
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            is_range_refused = isinstance(error, urllib.error.HTTPError) and error.code == 416
            if is_range_refused:
                partial.unlink(missing_ok=True)  # the bytes here are not the start of that file
            if attempt == retries or not (is_range_refused or _is_worth_a_retry(error)):
                raise _cannot_fetch(url, target, error) from error
            time.sleep(_FIRST_DELAY_S * 2**attempt)
    actual = _sha256(partial)
    if sha256 and not actual.startswith(sha256):
        partial.unlink()
        raise CheckpointError(
            f"{redact_link(url)} is not the expected file: its sha256 is {actual} instead of "
            f"{_shown(sha256)}."
        )
    os.replace(partial, target)


def _transfer(url: str, partial: Path, report: Progress) -> None:
    """One connection; resumes `partial` if the server still has the same file."""
    etag_file = Path(f"{partial}.etag")
    received = partial.stat().st_size if partial.exists() and etag_file.exists() else 0
    request = _request(url)
    if received:
        request.add_header("Range", f"bytes={received}-")
        request.add_header("If-Range", etag_file.read_text())
    opener = urllib.request.build_opener(_SafeRedirects)
    with opener.open(request, timeout=_TIMEOUT_S) as response:
        if response.status != 206:
            received = 0
            partial.unlink(missing_ok=True)
            etag_file.unlink(missing_ok=True)
            etag = response.headers.get("ETag", "")
            if etag and not etag.startswith("W/"):
                etag_file.write_text(etag)
        length = response.headers.get("Content-Length")
        total = received + int(length) if length and length.strip().isdecimal() else None
        if total and total > MAX_BYTES:
            raise CheckpointError(
                f"{redact_link(url)} has {total} bytes, over the limit of {MAX_BYTES}."
            )
        with partial.open("ab") as out:
            for chunk in _chunks(response):
                out.write(chunk)
                received += len(chunk)
                report(received, total)
                if received > MAX_BYTES:
                    raise CheckpointError(
                        f"{redact_link(url)} has more than the limit of {MAX_BYTES} bytes."
                    )
            out.flush()
            os.fsync(out.fileno())
    if total is not None and received != total:
        raise http.client.IncompleteRead(b"", total - received)
    etag_file.unlink(missing_ok=True)


def _chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """The body as it comes.

    Raises:
        TimeoutError: Less than `_SLOWEST_BYTES` came in `_TIMEOUT_S`. A server that sends a byte
            now and then would never meet the time-out of the connection.
    """
    began, n_bytes = time.monotonic(), 0
    while chunk := response.read1(_CHUNK_BYTES):
        yield chunk
        n_bytes += len(chunk)
        if (now := time.monotonic()) - began >= _TIMEOUT_S:
            if n_bytes < _SLOWEST_BYTES:
                raise TimeoutError(f"only {n_bytes} bytes came in {now - began:.0f} s")
            began, n_bytes = now, 0


def _request(url: str) -> urllib.request.Request:
    """The request for a link; user and password go into a header that redirects do not get."""
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    link = SplitResult(parts.scheme, host, parts.path, parts.query, "").geturl()
    request = urllib.request.Request(link, headers={"User-Agent": "segcore"})
    if at:
        token = base64.b64encode(unquote(user).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {token}")
    return request


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req, fp, code, msg, headers, newurl):  # type: ignore[no-untyped-def]
        _check_url(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _verify(url: str, target: Path, sha256: str | None) -> None:
    actual = _sha256(target)
    expected = pinned_sha256(target) if sha256 is None else sha256
    if expected is not None and not actual.startswith(expected):
        raise CheckpointError(
            f"{target} is not the file that was expected: its sha256 is {actual} instead of "
            f"{_shown(expected)}.",
            f"If you expect a new file, delete it and {target.name}.sha256 to fetch "
            f"{redact_link(url)} again.",
        )
    if expected is None or len(expected) < _SHA256_DIGITS:
        _pin(target, actual)


def _pin(target: Path, sha256: str) -> None:
    """Writes down the sha256 of a file whose sha256 was not known, or checks what is written.

    Others read the pin without a lock: it appears as a whole.
    """
    pinned = pinned_sha256(target)
    if pinned is None:
        partial = Path(f"{target}.sha256.part")
        partial.write_text(f"{sha256}  {target.name}\n")
        os.replace(partial, f"{target}.sha256")
        print(
            f"Pinned {target.name}: its sha256 was not known here before. It is {sha256}, and only "
            "that file is used from now on.",
            file=sys.stderr,
        )
    elif pinned != sha256:
        raise CheckpointError(
            f"{target} is not the file that was expected: its sha256 is {sha256} instead of "
            f"{pinned}.",
            f"If you expect a new file, delete {target.name}.sha256.",
        )


def _shown(sha256: str) -> str:
    return sha256 if len(sha256) == _SHA256_DIGITS else f"{sha256}..."


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_worth_a_retry(error: Exception) -> bool:
    if isinstance(error, urllib.error.HTTPError):
        return error.code >= 500 or error.code == 429
    reason = getattr(error, "reason", error)
    return not isinstance(reason, ssl.SSLCertVerificationError)


def _cannot_fetch(url: str, target: Path, error: Exception) -> CheckpointError:
    if isinstance(error, urllib.error.HTTPError):
        reason = f"the server answered {error.code} {printable(str(error.reason))[:200]}"
    elif isinstance(error, http.client.InvalidURL):  # its text holds the link
        reason = "the link has spaces or control characters"
    else:
        reason = printable(str(getattr(error, "reason", error) or type(error).__name__))[:200]
    return CheckpointError(
        f"Cannot fetch {redact_link(url)}: {reason}.",
        f"Fetch it on a machine that is online, and place the file at {target}.",
    )


@contextmanager
def _progress_bar(name: str, progress: Progress | None) -> Iterator[Progress]:
    """`progress` itself; else a bar on stderr if that is a terminal."""
    if progress is not None or not sys.stderr.isatty():
        yield progress or (lambda _done, _total: None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
    from rich.progress import Progress as ProgressDisplay

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with ProgressDisplay(*columns, console=Console(stderr=True)) as display:
        task = display.add_task(printable(name))
        yield lambda received, total: display.update(task, completed=received, total=total)
