"""URIs of objects and folders: canonical form, joining and splitting.

Canonical form: an absolute path for local files (no `file://`), `scheme://bucket/key` without a
trailing slash for remote ones. The key is taken literally: nothing is percent-decoded.
"""

from __future__ import annotations

import os
import re
from urllib.parse import unquote, urlsplit

from segcore.errors import UsageError
from segcore.text import redact

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.\-]*)://(.*)$", re.DOTALL)
_ALIASES = {"s3a": "s3", "s3n": "s3", "gcs": "gs", "azure": "az"}
REMOTE_SCHEMES = ("s3", "gs", "az")


def scheme_of(uri: str) -> str:
    """The scheme of a URI in lower case, with aliases resolved; "file" for a plain path."""
    match = _SCHEME.match(uri)
    if match is None:
        return "file"
    scheme = match.group(1).lower()
    return _ALIASES.get(scheme, scheme)


def is_remote(uri: str) -> bool:
    """Whether the URI names an object store (any scheme other than `file`)."""
    return scheme_of(uri) != "file"


def normalize(uri_or_path: str | os.PathLike[str]) -> str:
    """Canonical form of a path or URI.

    Raises:
        UsageError: The scheme is unknown, the bucket is missing, the URI contains credentials, or
            the key has empty, `.` or `..` segments.
    """
    uri = _normalize_remote_or_local(uri_or_path)
    if is_remote(uri):
        _refuse_nul(uri)
        scheme, bucket, key = split(uri)
        key = key.rstrip("/")
        if key and any(part in ("", ".", "..") for part in key.split("/")):
            raise UsageError(
                f"{redact(uri)}: keys with empty, '.' or '..' parts are not supported."
            )
        return _join_remote(scheme, bucket, key)
    return uri


def normalize_input(uri_or_path: str | os.PathLike[str]) -> str:
    """Like `normalize`, but a folder of S3 may have empty, `.` and `..` segments.

    Raises:
        UsageError: As for `normalize`.
    """
    uri = _normalize_remote_or_local(uri_or_path)
    if scheme_of(uri) != "s3":
        return normalize(uri) if is_remote(uri) else uri
    scheme, bucket, key = split(uri)
    return _join_remote(scheme, bucket, key.rstrip("/"))


def normalize_object(uri_or_path: str | os.PathLike[str]) -> str:
    """Like `normalize` for one object: what is a key on S3 stays as it is, slashes included.

    Raises:
        UsageError: As for `normalize`.
    """
    uri = _normalize_remote_or_local(uri_or_path)
    return normalize(uri) if is_remote(uri) and scheme_of(uri) != "s3" else uri


def _normalize_remote_or_local(uri_or_path: str | os.PathLike[str]) -> str:
    """Canonical form, except that the key of a remote URI is left as it is."""
    text = os.fspath(uri_or_path)
    if not text:
        raise UsageError("The path or URI is empty.")
    scheme = scheme_of(text)
    if scheme == "file":
        _refuse_nul(text)
        return _normalize_local(text)
    if scheme not in REMOTE_SCHEMES:
        known = ", ".join(f"{name}://" for name in REMOTE_SCHEMES)
        raise UsageError(
            f"{redact(text)}: the scheme {scheme}:// is not supported.",
            f"Use a local path or one of {known}.",
        )
    rest = text.partition("://")[2]
    bucket, _, key = rest.partition("/")
    if "@" in bucket or ":" in bucket:
        raise UsageError(
            f"{redact(text)}: credentials do not belong in a URI.",
            "Use environment variables, a profile or an instance role.",
        )
    if not bucket:
        raise UsageError(f"{redact(text)} names no bucket.", f"Write {scheme}://bucket/path.")
    return _join_remote(scheme, bucket, key)


def _refuse_nul(text: str) -> None:
    if "\0" in text:
        raise UsageError(f"{redact(text)!r} contains a NUL character.")


def _join_remote(scheme: str, bucket: str, key: str) -> str:
    return f"{scheme}://{bucket}/{key}" if key else f"{scheme}://{bucket}"


def _normalize_local(text: str) -> str:
    if _SCHEME.match(text):
        parts = urlsplit(text)
        if parts.netloc not in ("", "localhost"):
            raise UsageError(f"{redact(text)}: file:// URIs of other hosts are not supported.")
        text = unquote(parts.path)
    return os.path.abspath(os.path.expanduser(text))


def split(uri: str) -> tuple[str, str, str]:
    """Canonical remote URI -> (scheme, bucket, key)."""
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    return scheme, bucket, key


def join(base: str, *parts: str) -> str:
    """`base` with `parts` appended; a part may have several segments.

    Raises:
        UsageError: A part is absolute, has a scheme, or has empty, `.` or `..` segments.
    """
    for part in parts:
        segments = part.split("/")
        if not part or _SCHEME.match(part) or any(name in ("", ".", "..") for name in segments):
            raise UsageError(f"{redact(part)!r} is not a plain relative path.")
        if os.sep != "/" and os.sep in part:
            raise UsageError(f"{part!r} is not a plain relative path.")
        base = f"{base.rstrip('/')}/{part}"
    return base


def parent(uri: str) -> str:
    """The folder of this object; for an object at the top of a bucket, the bucket itself."""
    if not is_remote(uri):
        return os.path.dirname(uri)
    scheme, bucket, key = split(uri)
    folder = key.rpartition("/")[0]
    return f"{scheme}://{bucket}/{folder}" if folder else f"{scheme}://{bucket}"


def basename(uri: str) -> str:
    """The last segment."""
    return uri.rstrip("/").rpartition("/")[2]
