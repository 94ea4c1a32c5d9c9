"""The temporary folder of a local Ray: private, and gone at the end.

Ray's default, /tmp/ray, is shared by all users of a machine and keeps the logs and sockets of every
run. Here each local Ray gets a folder inside one that nobody else may enter; its own folder Ray
opens for everybody to write into. A run that was killed leaves both behind; the next one of the
same user removes them. Whether the owner of a folder lives is told by a lock on a file in it, which
the system releases however the owner ends.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from segcore.errors import ClusterError

_PREFIX = "segcore-"
_OWNER_FILE = "owner.lock"
RAY_FOLDER = "ray"  # in the private folder: what Ray gets
# Ray's sockets lie 64 characters below its folder, and the system takes 107 for a path.
_MAX_PATH_BYTES = 42
_RANDOM_CHARS = 8  # that mkdtemp adds
_REMOVAL_TRIES = 10
_REMOVAL_PAUSE_S = 0.2


@contextmanager
def private_folder(*, keep: bool = False) -> Iterator[Path]:
    """A new folder that nobody else may enter, removed at the end of the block.

    Ray gets `RAY_FOLDER` in it.

    Args:
        keep: Leave it where it is.

    Raises:
        ClusterError: It cannot be made.
    """
    base = _base_folder()
    remove_abandoned(base)
    try:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
        lock = os.open(folder / _OWNER_FILE, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:
        raise ClusterError(
            f"Cannot make a temporary folder for Ray in {base}: {error.strerror}.",
            hint="Make room there, or name another folder with a short path by RAY_TMPDIR.",
        ) from None
    try:
        yield folder
    finally:
        if keep:
            (folder / _OWNER_FILE).unlink(missing_ok=True)
        else:
            _remove(folder)
        os.close(lock)


def remove_abandoned(base: Path) -> None:
    """Remove the folders of this user in `base` whose owners have ended."""
    with suppress(OSError):
        for folder in list(base.glob(f"{_PREFIX}*")):
            with suppress(OSError):
                status = folder.lstat()
                if status.st_uid == os.getuid() and folder.is_dir() and not folder.is_symlink():
                    _remove_if_abandoned(folder)


def _base_folder() -> Path:
    """The folder for temporary folders; /tmp where its path is too long for Ray's sockets."""
    base = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    n_bytes = len(os.fsencode(base)) + len(f"/{_PREFIX}/{RAY_FOLDER}") + _RANDOM_CHARS
    return Path(base if n_bytes <= _MAX_PATH_BYTES else "/tmp")


def _remove_if_abandoned(folder: Path) -> None:
    lock = os.open(folder / _OWNER_FILE, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError: its owner lives
        _remove(folder)
    finally:
        os.close(lock)


def _remove(folder: Path) -> None:
    """Remove a folder, the lock last; Ray's processes may still write into it as they end."""
    for _ in range(_REMOVAL_TRIES):
        others = [entry for entry in folder.iterdir() if entry.name != _OWNER_FILE]
        if not others:
            break
        for entry in others:
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)
        time.sleep(_REMOVAL_PAUSE_S)
    else:
        return  # the next run tries again
    shutil.rmtree(folder, ignore_errors=True)
