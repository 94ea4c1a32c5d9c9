"""Which code a process runs: driver and workers must run the same."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from segcore.version import __version__

PACKAGE = Path(__file__).resolve().parents[1]  # .../segcore


def code_to_ship() -> dict[str, list[str]]:
    """Ray's runtime environment with this package, for clusters whose image does not hold it."""
    return {"py_modules": [str(PACKAGE)]}


@functools.cache
def code_version() -> str:
    """The version of segcore in this process, with a fingerprint of its source files.

    Two builds may have the same version: a checkout with changes, an image that was not rebuilt.
    Takes some 20 ms.
    """
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(PACKAGE).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return f"{__version__} (code {digest.hexdigest()[:12]})"
