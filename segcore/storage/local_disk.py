"""Files on a local disk as objects: atomic writes, recursive listings, readable errors."""

from __future__ import annotations

import errno
import os
import secrets
import stat as file_modes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from shutil import copyfileobj
from typing import BinaryIO

from segcore.errors import AccessDenied, ObjectChanged, ObjectNotFound, StorageError, StorageFull

# Markers that replace the etag of an entry that is listed, so that no entry is lost, but must not
# be read.
OUTSIDE_LINK = "!link"  # a symbolic link to a file outside the listed folder
LINKED_FOLDER = "!folder"  # a link to a folder that was not entered
BAD_NAME = "!name"  # a file name that is not valid UTF-8
SPECIAL_FILE = "!special"  # a pipe, a socket or a device
HIDDEN = "!hidden"  # a name that starts with a dot, of a file or of a folder that was not entered

# What a file system says that makes no hard link here.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)

_FULL_HINTS = {
    errno.ENOSPC: "Free some space on this disk, then rerun the same command to resume.",
    errno.EDQUOT: "Free some space or raise the quota, then rerun the same command to resume.",
}


class SpecialFile(StorageError):
    """Not a regular file: reading a pipe or a device may block for ever or have effects."""


@contextmanager
def translate_errors(path: str) -> Iterator[None]:
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
        if error.errno in _FULL_HINTS:
            full = f"{path} cannot be written: {error.strerror}."
            raise StorageFull(full, _FULL_HINTS[error.errno]) from error
        reason = error.strerror or type(error).__name__
        raise StorageError(f"{path}: {reason}.") from error


def file_etag(status: os.stat_result) -> str:
    """Version of a file: modification time and size."""
    return f"{status.st_mtime_ns:x}-{status.st_size:x}"


def stat(path: str) -> tuple[int, str]:
    """(size in bytes, etag) of a regular file; a folder counts as missing.

    Raises:
        SpecialFile: It is a pipe, a socket or a device.
    """
    with translate_errors(path):
        status = os.stat(path)
    _require_regular(path, status)
    return status.st_size, file_etag(status)


def _require_regular(path: str, status: os.stat_result) -> None:
    mode = status.st_mode
    if file_modes.S_ISREG(mode):
        return
    if file_modes.S_ISDIR(mode):
        raise ObjectNotFound(f"{path} is a folder, not a file.")
    kind = "a device"
    if file_modes.S_ISFIFO(mode):
        kind = "a named pipe"
    elif file_modes.S_ISSOCK(mode):
        kind = "a socket"
    raise SpecialFile(f"{path} is {kind}, not a regular file.")


def walk(
    root: str, follow_links: bool, *, show_hidden: bool = False
) -> Iterator[tuple[str, int, str]]:
    """(path, size, etag) of all files below `root`, in no particular order.

    Names that start with a dot are skipped, or listed with size -1 and the etag `HIDDEN` if
    `show_hidden` is set. A link to a file is listed like the file if its target
    lies below `root` or `follow_links` is set, and with the etag `OUTSIDE_LINK` and size -1
    otherwise. A link to a folder is entered if `follow_links` is set (each real folder once, so
    loops end), and listed with the etag `LINKED_FOLDER` and size -1 otherwise. A broken link is
    listed with size -1 and an empty etag; a pipe, socket or device with size -1 and the etag
    `SPECIAL_FILE`.
    """
    real_root = os.path.realpath(root)
    visited = {real_root}
    pending = [root]
    while pending:
        folder = pending.pop()
        with translate_errors(folder):
            try:
                entries = list(os.scandir(folder))
            except FileNotFoundError:
                continue  # a missing folder counts as empty, as on an object store
        for entry in entries:
            if entry.name.startswith("."):
                if show_hidden:
                    yield _escape_invalid_utf8(entry.path), -1, HIDDEN
            elif entry.is_dir(follow_symlinks=False):
                pending.append(entry.path)
            elif entry.is_symlink():
                yield from _walk_link(entry, real_root, follow_links, pending, visited)
            else:
                try:
                    status = os.stat(entry.path, follow_symlinks=False)
                except FileNotFoundError:
                    continue  # deleted since the folder was read
                yield _listing_row(entry.path, status)


def files(root: str) -> list[tuple[str, int, str]]:
    """(path, size, etag) of the files directly in `root`; names that start with a dot are skipped.

    Links, and what is no regular file, are skipped, too.
    """
    rows = []
    with translate_errors(root):
        try:
            entries = list(os.scandir(root))
        except (FileNotFoundError, NotADirectoryError):
            return []
        for entry in entries:
            if entry.name.startswith(".") or not entry.is_file(follow_symlinks=False):
                continue
            try:
                status = os.stat(entry.path, follow_symlinks=False)
            except FileNotFoundError:
                continue  # deleted since the folder was read
            rows.append((entry.path, status.st_size, file_etag(status)))
    return rows


def folders(root: str) -> list[str]:
    """Paths of the folders directly in `root`, sorted; names that start with a dot are skipped."""
    with translate_errors(root):
        try:
            entries = list(os.scandir(root))
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(e.path for e in entries if e.is_dir() and not e.name.startswith("."))


def _walk_link(
    entry: os.DirEntry[str],
    real_root: str,
    follow_links: bool,
    pending: list[str],
    visited: set[str],
) -> Iterator[tuple[str, int, str]]:
    """The row of a symbolic link; a folder that should be entered is added to `pending` instead."""
    target = os.path.realpath(entry.path)
    try:
        is_folder = entry.is_dir()
        status = os.stat(entry.path)
    except OSError:
        yield _escape_invalid_utf8(entry.path), -1, ""
        return
    if is_folder:
        if not follow_links:
            yield _escape_invalid_utf8(entry.path), -1, LINKED_FOLDER
        elif target not in visited:
            visited.add(target)
            pending.append(entry.path)
        return
    is_inside = os.path.commonpath([real_root, target]) == real_root
    if is_inside or follow_links:
        yield _listing_row(entry.path, status)
    else:
        yield _escape_invalid_utf8(entry.path), -1, OUTSIDE_LINK


def _listing_row(path: str, status: os.stat_result) -> tuple[str, int, str]:
    uri = _escape_invalid_utf8(path)
    if not file_modes.S_ISREG(status.st_mode):
        return uri, -1, SPECIAL_FILE
    return (uri, status.st_size, file_etag(status)) if uri == path else (uri, -1, BAD_NAME)


def _escape_invalid_utf8(path: str) -> str:
    """The path as text; never that of another file, whose name may really have such backslashes."""
    if path.isascii():
        return path
    escaped = path.encode("utf-8", "backslashreplace").decode("utf-8")
    while escaped != path and os.path.lexists(escaped):
        stem, extension = os.path.splitext(escaped)
        escaped = f"{stem}~{extension}"
    return escaped


def open_file(path: str) -> BinaryIO:
    """Open a regular file for reading; never waits, as opening a pipe without a writer would.

    Raises:
        SpecialFile: It is a pipe, a socket or a device.
    """
    stat(path)  # opening some devices has effects
    with translate_errors(path):
        # The file may have been replaced since, so opening must not wait either.
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    try:
        _require_regular(path, os.fstat(file.fileno()))
    except BaseException:
        file.close()
        raise
    return file


def read(path: str, check_size: Callable[[int], None], max_bytes: int | None) -> tuple[bytes, str]:
    """(all bytes, etag) of one version of a file.

    Raises:
        SpecialFile: See `open_file`.
        ObjectChanged: It was written to while it was read.
    """
    with open_file(path) as file, translate_errors(path):
        before = os.fstat(file.fileno())
        check_size(before.st_size)
        # Bounded again, as the size of a growing file cannot be trusted.
        data = file.read() if max_bytes is None else file.read(max_bytes + 1)
        check_size(len(data))
        etag = file_etag(before)
        if etag != file_etag(os.fstat(file.fileno())):
            raise ObjectChanged(f"{path} changed while it was read.")
    return data, etag


def write(path: str, data: bytes | memoryview) -> str:
    """Replace the file atomically: after a crash it has either the old or all of the new bytes.

    Returns:
        The etag of what was written.
    """
    return write_with(path, lambda file: _write_all(file, data))


def _write_all(file: BinaryIO, data: bytes | memoryview) -> None:
    file.write(data)


def write_with(path: str, write_content: Callable[[BinaryIO], None]) -> str:
    """As `write`, with what `write_content` puts into a file."""
    with translate_errors(path):
        temporary, etag = _write_temporary(path, write_content)
        try:
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
        _sync_folder(os.path.dirname(path))
        return etag


def write_if_absent(path: str, data: bytes) -> bool:
    """Create the complete file unless it exists; True if this call created it."""
    with translate_errors(path):
        temporary, _ = _write_temporary(path, lambda file: _write_all(file, data))
        try:
            os.link(temporary, path)  # fails when the name exists: the atomic test-and-set
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            return _create_exclusively(path, data)  # a file system without hard links
        finally:
            os.unlink(temporary)
        _sync_folder(os.path.dirname(path))
        return True


def link_or_copy(source: str, target: str) -> None:
    """Give a file a second name, or else its bytes; nothing is done if that exists."""
    with translate_errors(source):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        try:
            os.link(os.path.realpath(source), target)
        except FileExistsError:
            return
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            with open_file(source) as file:
                write_with(target, lambda copy: copyfileobj(file, copy))
            return
        _sync_folder(os.path.dirname(target))


def _create_exclusively(path: str, data: bytes) -> bool:
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return False
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        os.unlink(path)  # a part of it must not pass for the whole
        raise
    return True


def _write_temporary(path: str, write_content: Callable[[BinaryIO], None]) -> tuple[str, str]:
    """(path, etag) of a new file beside `path` with this content."""
    folder, name = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    # The name starts with a dot so that listings never show what a killed process left behind. The
    # mode follows the umask, unlike that of the standard library's mkstemp.
    temporary = os.path.join(folder, f".{name[:100]}.{secrets.token_hex(8)}.tmp")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            write_content(file)
            file.flush()
            os.fsync(file.fileno())
            etag = file_etag(os.fstat(file.fileno()))
    except BaseException:
        os.unlink(temporary)
        raise
    return temporary, etag


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
    """Delete the file if it exists."""
    with translate_errors(path):
        try:
            os.unlink(path)
        except FileNotFoundError:
            return
