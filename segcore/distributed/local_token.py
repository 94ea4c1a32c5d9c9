"""The token of a local Ray: its own, for its owner alone, and gone at the end.

Whoever has the token and reaches Ray's ports runs code. Ray would write it into the home directory,
readable for every user who may enter that, and leave it there; where there is no home directory
that can be written to, it would not start at all.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from segcore.errors import ClusterError

_MODE = "RAY_AUTH_MODE"
_PATH = "RAY_AUTH_TOKEN_PATH"
_NAMED_BY_THE_USER = ("RAY_AUTH_TOKEN", _PATH)
_FILE = "auth_token"


@contextmanager
def own_token(folder: Path) -> Iterator[None]:
    """Let `ray.init` in the block start a local Ray with a new token; it must end in the block.

    A token that the environment names is taken as it is, and RAY_AUTH_MODE=disabled means none.

    Args:
        folder: Private, such as `private_folder` makes; keeps the token while Ray runs.

    Raises:
        ClusterError: The token cannot be written.
    """
    mode = os.environ.get(_MODE)
    is_named = any(os.environ.get(name) for name in _NAMED_BY_THE_USER)
    if is_named or (mode or "token").lower() != "token":
        yield
        return
    file = folder / _FILE
    try:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "w") as out:
            out.write(secrets.token_hex(32))
    except OSError as error:
        raise ClusterError(f"Cannot write {file}: {error.strerror}.") from None
    os.environ[_PATH] = str(file)
    _read_environment_again()
    try:
        yield
    finally:
        # A cluster that this process connects to later has another token, or none.
        os.environ.pop(_PATH, None)
        if mode is None:
            os.environ.pop(_MODE, None)  # Ray set it
        file.unlink(missing_ok=True)
        _read_environment_again()


def _read_environment_again() -> None:
    """Let Ray forget what it read; it keeps the first token and the first mode of a process."""
    try:
        from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

        AuthenticationTokenLoader.instance().reset_cache()
        Config.initialize("")
    except (ImportError, AttributeError):  # a Ray that keeps nothing of the kind
        return
