"""Files on a local disk, as objects: atomic writes, sorted listings, errors for people."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from segcore.errors import AccessDenied, ObjectNotFound, StorageError

# Marks in place of an etag: the entry is listed, so that nothing is lost, but may not be read.
OUTSIDE_LINK = "!link"  # a symbolic link that leads out of the listed folder
LINKED_FOLDER = "!folder"  # a link to a folder, which was not entered
BAD_NAME = "!name"  # a file name that is not valid UTF-8


@contextmanager
def translated(path: str) -> Iterator[None]:
    """Turn OSError into the errors of segcore."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ObjectNotFound(f"{path} does not exist.") from error
    except PermissionError as error:
        raise AccessDenied(f"No permission for {path}.") from error
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise ObjectNotFound(f"{path[:200]}: {error.strerror}.") from error
        reason = error.strerror or type(error).__name__
        raise StorageError(f"{path}: {reason}.") from error


def etag_of(status: os.stat_result) -> str:
    """Version of a file: modification time and size."""
    return f"{status.st_mtime_ns:x}-{status.st_size:x}"


def stat(path: str) -> tuple[int, str]:
    """(size in bytes, etag) of a file; a folder counts as absent."""
    with translated(path):
        status = os.stat(path)
        if os.path.isdir(path):
            raise ObjectNotFound(f"{path} is a folder, not a file.")
    return status.st_size, etag_of(status)


def walk(root: str, follow_links: bool) -> Iterator[tuple[str, int, str]]:
    """(path, size, etag) of all files below `root`, in no particular order.

    Names that start with a dot are skipped. A link to a file is listed when its target lies
    below `root`; one that leads outside is listed with the etag `OUTSIDE_LINK` and size -1
    unless `follow_links`. Links to folders are entered only with `follow_links` (each real
    folder once, so loops end) and are listed with the etag `LINKED_FOLDER` otherwise. A broken
    link is listed with size -1 and an empty etag.
    """
    real_root = os.path.realpath(root)
    seen = {real_root}
    pending = [root]
    while pending:
        folder = pending.pop()
        with translated(folder):
            try:
                entries = list(os.scandir(folder))
            except FileNotFoundError:
                continue  # an absent folder is empty, as on an object store
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                pending.append(entry.path)
            elif entry.is_symlink():
                yield from _linked(entry, real_root, follow_links, pending, seen)
            elif entry.is_file(follow_symlinks=False):
                try:
                    status = os.stat(entry.path, follow_symlinks=False)
                except FileNotFoundError:
                    continue  # it went away meanwhile
                yield _row(entry.path, status)


def _linked(
    entry: os.DirEntry[str], real_root: str, follow: bool, pending: list[str], seen: set[str]
) -> Iterator[tuple[str, int, str]]:
    target = os.path.realpath(entry.path)
    try:
        is_folder = entry.is_dir()
        status = os.stat(entry.path)
    except OSError:
        yield _printable(entry.path), -1, ""
        return
    if is_folder:
        if not follow:
            yield _printable(entry.path), -1, LINKED_FOLDER
        elif target not in seen:
            seen.add(target)
            pending.append(entry.path)
        return
    inside = os.path.commonpath([real_root, target]) == real_root
    if inside or follow:
        yield _row(entry.path, status)
    else:
        yield _printable(entry.path), -1, OUTSIDE_LINK


def _row(path: str, status: os.stat_result) -> tuple[str, int, str]:
    shown = _printable(path)
    return (shown, status.st_size, etag_of(status)) if shown == path else (shown, -1, BAD_NAME)


def _printable(path: str) -> str:
    return path.encode("utf-8", "backslashreplace").decode("utf-8")


def open_file(path: str) -> BinaryIO:
    """The file, for reading."""
    with translated(path):
        return open(path, "rb")


def write(path: str, data: bytes) -> None:
    """Write so that after a crash either the old or the whole new file is there."""
    with translated(path):
        temporary = _write_temporary(path, data)
        try:
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
        _sync_folder(os.path.dirname(path))


def write_if_absent(path: str, data: bytes) -> bool:
    """Create the file, complete, unless it exists; True when this call created it."""
    with translated(path):
        temporary = _write_temporary(path, data)
        try:
            os.link(temporary, path)  # fails when the name exists: the atomic test-and-set
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
                raise
            return _create_exclusively(path, data)  # a file system without hard links
        finally:
            os.unlink(temporary)
        _sync_folder(os.path.dirname(path))
        return True


def _create_exclusively(path: str, data: bytes) -> bool:
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return False
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return True


def _write_temporary(path: str, data: bytes) -> str:
    folder, name = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    # Starts with a dot, so that listings never show what a killed process left behind. The mode
    # follows the umask, which the mkstemp of the standard library would not.
    temporary = os.path.join(folder, f".{name[:100]}.{secrets.token_hex(8)}.tmp")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        os.unlink(temporary)
        raise
    return temporary


def _sync_folder(folder: str) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:  # some network file systems cannot sync a folder
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def delete(path: str) -> None:
    """Remove the file; absent is fine."""
    with translated(path):
        try:
            os.unlink(path)
        except FileNotFoundError:
            return
