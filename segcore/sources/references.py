"""References in manifests and COCO files: untrusted text -> the URI of an object, or a refusal."""

from __future__ import annotations

import os
import posixpath
from dataclasses import dataclass

from segcore.errors import SegcoreError, UsageError
from segcore.sources.base import BAD_PARENT, BAD_SCHEME, BAD_URI, SourceOptions
from segcore.storage import local_disk
from segcore.storage.local_disk import OUTSIDE_LINK
from segcore.storage.uris import is_remote, join, normalize, redact, scheme_of, split


@dataclass(frozen=True)
class ReferenceResolver:
    """Turns the references of one file into entries.

    Attributes:
        root: Folder that relative references start from.
        real_root: The same folder with links resolved; "" for a remote root.
        schemes: Schemes that absolute references may have.
        allow_outside: Whether relative references may lead outside `root`, by `..` or a link.
    """

    root: str
    real_root: str
    schemes: tuple[str, ...]
    allow_outside: bool

    @classmethod
    def for_root(cls, root: str, options: SourceOptions) -> ReferenceResolver:
        """A resolver for references relative to `root`, with the rules of these options."""
        is_remote_root = is_remote(root)
        real_root = "" if is_remote_root else os.path.realpath(root)
        return cls(root, real_root, options.schemes_for(is_remote_root), options.allow_outside)

    def resolve(self, reference: str) -> tuple[str, int, str]:
        """(uri, size, etag); a refused reference has its text as uri and an etag with "!".

        Local files are looked up. Remote ones have size -1 and etag "", which mean "unknown".
        """
        uri, refusal = self._find_uri(reference)
        if refusal:
            safe_text = redact(reference).encode("utf-8", "backslashreplace").decode("utf-8")
            return safe_text, -1, refusal
        if is_remote(uri):
            return uri, -1, ""
        try:
            size, etag = local_disk.stat(uri)
        except SegcoreError:
            return uri, -1, ""  # reading it yields a failed row that says what is wrong
        return uri, size, etag

    def _find_uri(self, reference: str) -> tuple[str, str]:
        """(uri, "") or ("", refusal)."""
        if "\0" in reference or any("\ud800" <= letter <= "\udfff" for letter in reference):
            return "", BAD_URI
        try:
            if "://" not in reference and not reference.startswith("/"):
                return self._find_relative(reference)
            if scheme_of(reference) not in self.schemes:
                return "", BAD_SCHEME
            uri = normalize(reference)
            has_secret = is_remote(uri) and redact(uri) != uri
            return ("", BAD_URI) if has_secret else (uri, "")
        except UsageError:
            return "", BAD_URI

    def _find_relative(self, reference: str) -> tuple[str, str]:
        relative = posixpath.normpath(reference)
        if relative == ".":
            return "", BAD_URI
        leaves_root = relative == ".." or relative.startswith("../")
        if leaves_root and not self.allow_outside:
            return "", BAD_PARENT
        if is_remote(self.root):
            if not leaves_root:
                return join(self.root, relative), ""
            scheme, bucket, key = split(self.root)
            joined = posixpath.normpath(posixpath.join(key, relative))
            return normalize(f"{scheme}://{bucket}/{joined}"), ""
        path = os.path.normpath(os.path.join(self.root, relative))
        if not self.allow_outside:
            target = os.path.realpath(path)
            if os.path.commonpath([self.real_root, target]) != self.real_root:
                return "", OUTSIDE_LINK
        return path, ""
