"""Files from the web into a cache: once, whole, and checked.

One process downloads while the others wait at a lock; an interrupted download goes on where it
stopped; the file takes its name only when it is complete and has the right sha256. A file without a
known sha256 is pinned on first use: the sum is written beside it and demanded ever after.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from filelock import FileLock

from segcore.errors import CheckpointError

MAX_BYTES = 4 << 30
_CHUNK = 1 << 20
_TIMEOUT_S = 30.0
Progress = Callable[[int, int | None], None]  # bytes so far, bytes in all if known


def cache_dir() -> Path:
    """``$SEGCORE_CACHE``, else ``segcore`` in the user's cache folder. Not created here."""
    own = os.environ.get("SEGCORE_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "segcore"


def short_hash(text: str) -> str:
    """16 hex digits that tell texts apart."""
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
        target: Where the file is kept; ``.part``, ``.lock`` and ``.sha256`` lie beside it.
        sha256: What it must have, hex; None: pinned on first use.
        licence: Said before a download starts.
        progress: Called as bytes arrive; None draws a bar when stderr is a terminal.
        retries: Further tries after a broken connection.

    Raises:
        CheckpointError: Offline, not found, too large, or the sum is wrong; says which file to
            place where.
    """
    _check_url(url)
    if target.exists() and (sha256 or pinned_sha256(target)):
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
            f"Cannot keep {url} at {target}: {error.strerror or error}.",
            "Set SEGCORE_CACHE to a folder that can be written to.",
        ) from error
    return target


def pinned_sha256(target: Path) -> str | None:
    """The sum that was written down when `target` was first used."""
    pin = Path(f"{target}.sha256")
    return pin.read_text().split()[0] if pin.exists() else None


def _check_url(url: str) -> None:
    parts = urlsplit(url)
    local = parts.hostname in ("127.0.0.1", "localhost", "::1")
    if parts.scheme == "https" or (parts.scheme == "http" and local):
        return
    raise CheckpointError(f"Weights are only fetched over https, not from {url}.")


def _download(
    url: str,
    target: Path,
    sha256: str | None,
    licence: str,
    progress: Progress | None,
    retries: int,
) -> None:
    print(
        f"Fetching {url}" + (f" (licence of the weights: {licence})" if licence else ""),
        file=sys.stderr,
    )
    partial = Path(f"{target}.part")
    for attempt in range(retries + 1):
        try:
            with _bar(target.name, progress) as report:
                _transfer(url, partial, report)
            break
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            if isinstance(error, urllib.error.HTTPError) and error.code == 416:
                partial.unlink(missing_ok=True)  # what is here is no part of the file there
            elif not _worth_a_retry(error) or attempt == retries:
                raise _unreachable(url, target, error) from error
            if attempt == retries:
                raise _unreachable(url, target, error) from error
            time.sleep(0.5 * 2**attempt)
    found = _sha256(partial)
    if sha256 and found != sha256:
        partial.unlink()
        raise CheckpointError(
            f"{url} is not the expected file: its sha256 is {found} instead of {sha256}."
        )
    os.replace(partial, target)


def _transfer(url: str, partial: Path, report: Progress) -> None:
    """One connection; continues `partial` if the server still has the same file."""
    tag = Path(f"{partial}.etag")
    have = partial.stat().st_size if partial.exists() and tag.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "segcore"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", tag.read_text())
    opener = urllib.request.build_opener(_SafeRedirects)
    with opener.open(request, timeout=_TIMEOUT_S) as response:
        if response.status != 206:
            have = 0
            partial.unlink(missing_ok=True)
            tag.unlink(missing_ok=True)
            etag = response.headers.get("ETag", "")
            if etag and not etag.startswith("W/"):
                tag.write_text(etag)
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        if total and total > MAX_BYTES:
            raise CheckpointError(f"{url} has {total} bytes, over the limit of {MAX_BYTES}.")
        with partial.open("ab") as out:
            while chunk := response.read(_CHUNK):
                out.write(chunk)
                have += len(chunk)
                report(have, total)
                if have > MAX_BYTES:
                    raise CheckpointError(f"{url} has more than the limit of {MAX_BYTES} bytes.")
            out.flush()
            os.fsync(out.fileno())
    if total is not None and have != total:
        raise http.client.IncompleteRead(b"", total - have)
    tag.unlink(missing_ok=True)


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req, fp, code, msg, headers, newurl):  # type: ignore[no-untyped-def]
        _check_url(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _verify(url: str, target: Path, sha256: str | None) -> None:
    found = _sha256(target)
    wanted = sha256 or pinned_sha256(target)
    if wanted is None:
        Path(f"{target}.sha256").write_text(f"{found}  {target.name}\n")
    elif found != wanted:
        raise CheckpointError(
            f"{target} is not the file that was expected: its sha256 is {found} instead of "
            f"{wanted}.",
            f"Delete it and {target.name}.sha256 to fetch {url} again, if the change is known.",
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _worth_a_retry(error: Exception) -> bool:
    if isinstance(error, urllib.error.HTTPError):
        return error.code >= 500 or error.code == 429
    reason = getattr(error, "reason", error)
    return not isinstance(reason, ssl.SSLCertVerificationError)


def _unreachable(url: str, target: Path, error: Exception) -> CheckpointError:
    if isinstance(error, urllib.error.HTTPError):
        why = f"the server answered {error.code} {error.reason}"
    else:
        why = str(getattr(error, "reason", error) or type(error).__name__)
    return CheckpointError(
        f"Cannot fetch {url}: {why}.",
        f"On a machine that is online, fetch it and place the file at {target}.",
    )


@contextmanager
def _bar(name: str, progress: Progress | None) -> Iterator[Progress]:
    """`progress` itself, or a bar on stderr where a person can see it."""
    if progress is not None or not sys.stderr.isatty():
        yield progress or (lambda _done, _total: None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn(name), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Bars(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(name)
        yield lambda done, total: bars.update(task, completed=done, total=total)
