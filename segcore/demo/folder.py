"""The local folder of a demo, and the S3 server that may hold archive and tables instead."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from segcore.demo.run import DemoReport
from segcore.errors import UsageError
from segcore.storage import Storage
from segcore.testing.loopback_s3 import LoopbackS3

_BUCKET = "segcore-demo"
_MARKER_FILE = "segcore-demo.json"  # a folder that holds it was made by a demo


def claim_folder(out: Path) -> None:
    """Create the folder, or reuse one that an earlier demo created; never anybody else's.

    Raises:
        UsageError: It is a file, holds other files, or cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file.", "Choose a folder with --out.")
    if out.is_dir() and any(out.iterdir()) and not (out / _MARKER_FILE).exists():
        raise UsageError(
            f"{out} holds files that are not of this demo.", "Choose another folder with --out."
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / _MARKER_FILE).write_text('{"made_by": "segcore demo"}\n')
    except OSError as error:
        raise UsageError(
            f"{out} cannot be written: {error.strerror}.", "Choose another folder with --out."
        ) from None


@contextmanager
def loopback_bucket(out: Path, notify: Callable[[str], None]) -> Iterator[str]:
    """Run a loopback S3 server for the length of the block; the usual AWS variables name it.

    Its folder is removed at the end, but kept with its log if the server does not start.

    Yields:
        The ``s3://`` URI of an empty bucket.
    """
    server_folder = out / "s3-server"
    shutil.rmtree(server_folder, ignore_errors=True)  # left by a demo that was killed
    saved = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    for name in saved:  # a session token or profile would contradict the server's keys
        del os.environ[name]
    try:
        with LoopbackS3(server_folder, _BUCKET) as server:
            os.environ.update(server.environment)
            notify(f"S3 server at {server.endpoint}, bucket {_BUCKET}; it ends with the demo.")
            yield f"s3://{_BUCKET}"
        shutil.rmtree(server_folder, ignore_errors=True)
    finally:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            del os.environ[name]
        os.environ.update(saved)


def copy_results(report: DemoReport, base: str, out: Path) -> None:
    """Copy tables and ground truth from the server, which ends with the demo, to `out`.

    Afterwards ``report.tables`` is the local copy.

    Args:
        base: The prefix of the demo on the server.
    """
    storage = Storage()
    local = out.absolute()
    shutil.rmtree(local / "masks", ignore_errors=True)  # of an earlier demo
    uris = [info.uri for info in storage.list(report.run.output)]
    for uri in [*uris, report.archive.ground_truth]:
        storage.write(str(local / uri.removeprefix(base).lstrip("/")), storage.read(uri))
    report.tables = str(local / report.run.prefix.removeprefix(base).lstrip("/"))
