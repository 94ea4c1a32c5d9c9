"""Entries of manifests and COCO files: text from an untrusted file -> an object, or a refusal."""

from __future__ import annotations

import os
import posixpath
from dataclasses import dataclass

from segcore.errors import SegcoreError, UsageError
from segcore.sources.base import BAD_PARENT, BAD_SCHEME, BAD_URI, SourceOptions
from segcore.storage import local_disk
from segcore.storage.uris import is_remote, join, normalize, redact, scheme_of, split


@dataclass(frozen=True)
class Resolver:
    """Turns the references of one file into rows of entries.

    Attributes:
        root: Folder that relative references start from.
        real_root: The same with links resolved; "" for a remote root.
        schemes: Schemes that absolute references may have.
        allow_outside: Whether relative references may leave `root`, by `..` or a link.
    """

    root: str
    real_root: str
    schemes: tuple[str, ...]
    allow_outside: bool

    @classmethod
    def of(cls, root: str, options: SourceOptions) -> Resolver:
        """With the rules of these options."""
        remote = is_remote(root)
        real_root = "" if remote else os.path.realpath(root)
        return cls(root, real_root, options.schemes_for(remote), options.allow_outside)

    def row(self, reference: str) -> tuple[str, int, str]:
        """(uri, size, etag); a refused reference has its text as uri and an etag with "!".

        Local files are looked up; of remote ones size -1 and etag "" say "not known".
        """
        uri, refusal = self._locate(reference)
        if refusal:
            shown = redact(reference).encode("utf-8", "backslashreplace").decode("utf-8")
            return shown, -1, refusal
        if is_remote(uri):
            return uri, -1, ""
        try:
            size, etag = local_disk.stat(uri)
        except SegcoreError:
            return uri, -1, ""  # reading it says what is wrong, in a failed row
        return uri, size, etag

    def _locate(self, reference: str) -> tuple[str, str]:
        """(uri, "") or ("", refusal)."""
        if "\0" in reference or any("\ud800" <= c <= "\udfff" for c in reference):
            return "", BAD_URI
        try:
            if "://" not in reference and not reference.startswith("/"):
                return self._below_root(reference)
            if scheme_of(reference) not in self.schemes:
                return "", BAD_SCHEME
            uri = normalize(reference)
            signed = is_remote(uri) and redact(uri) != uri
            return ("", BAD_URI) if signed else (uri, "")
        except UsageError:
            return "", BAD_URI

    def _below_root(self, reference: str) -> tuple[str, str]:
        plain = posixpath.normpath(reference)
        if plain == ".":
            return "", BAD_URI
        climbs = plain == ".." or plain.startswith("../")
        if climbs and not self.allow_outside:
            return "", BAD_PARENT
        if is_remote(self.root):
            if not climbs:
                return join(self.root, plain), ""
            scheme, bucket, key = split(self.root)
            joined = posixpath.normpath(posixpath.join(key, plain))
            return normalize(f"{scheme}://{bucket}/{joined}"), ""
        path = os.path.normpath(os.path.join(self.root, plain))
        if not self.allow_outside:
            target = os.path.realpath(path)
            if os.path.commonpath([self.real_root, target]) != self.real_root:
                return "", "!link"
        return path, ""
