"""References in manifests and COCO files: untrusted text -> the URI of an object, or a refusal."""

from __future__ import annotations

import os
import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from segcore.errors import SegcoreError, UsageError
from segcore.sources.base import (
    BAD_BACKSLASH,
    BAD_PARENT,
    BAD_PLACE,
    BAD_SCHEME,
    BAD_URI,
    SourceOptions,
)
from segcore.storage import Storage, local_disk
from segcore.storage.local_disk import OUTSIDE_LINK
from segcore.storage.uris import is_remote, join, normalize, parent, scheme_of, split
from segcore.text import plural, printable, redact

_MAX_PROBES = 5  # of references with backslashes, to see what they mean on an object store

Entry = tuple[str, int, str]  # uri, size, etag


@dataclass
class ReferenceResolver:
    """Turns the references of one file into entries.

    Attributes:
        root: Folder that relative references start from.
        document: The file that holds the references.
        options: Which places and schemes they may name.
        storage: Looks up what a backslash means on an object store.
        refusals: How many references were refused, by marker.
        first_refused: The first one that was refused because of its place; "" if none was.
    """

    root: str
    document: str
    options: SourceOptions
    storage: Storage
    refusals: Counter[str] = field(default_factory=Counter)
    first_refused: str = ""
    _allowed: tuple[str, ...] = ()  # by the options; links resolved, like the next two
    _places: tuple[str, ...] = ()  # the same and the file's own
    _real_root: str = ""
    _schemes: tuple[str, ...] = ()
    _n_resolved: int = 0
    _n_probes: int = 0
    _backslash_is_separator: bool | None = None  # on an object store; None: not known yet

    def __post_init__(self) -> None:
        self._schemes = self.options.schemes_for(is_remote(self.root))
        self._allowed = tuple(
            place if place.endswith("://") else _real(normalize(place))
            for place in self.options.allow
        )
        own = (_bucket_or_folder(self.root), _bucket_or_folder(parent(self.document)))
        self._places = (*own, *self._allowed)
        self._real_root = _real(self.root)

    def resolve_all(self, references: Iterable[str]) -> Iterator[Entry]:
        """The entries of all references.

        Raises:
            UsageError: Every single one was refused because of its place.
        """
        for reference in references:
            self._n_resolved += 1
            yield self.resolve(reference)
        if self._n_resolved and self.refusals[BAD_PLACE] == self._n_resolved:
            raise UsageError(
                f"{self.document} names only images outside its own folder or bucket, such as "
                f"{self.first_refused}.",
                self._hint(),
            )

    def notes(self) -> list[str]:
        """Sentences for people about refused references."""
        if not self.refusals[BAD_PLACE]:
            return []
        n_entries = plural(self.refusals[BAD_PLACE], "entry lies", "entries lie")
        return [
            f"{n_entries} outside the folder or bucket of {self.document} and will not be read, "
            f"such as {self.first_refused}. {self._hint()}"
        ]

    def _hint(self) -> str:
        uri = self.first_refused
        place = "://".join(split(uri)[:2]) if is_remote(uri) else parent(uri)
        return f"If that is intended: --set 'source.allow=[\"{place}\"]'."

    def resolve(self, reference: str) -> Entry:
        """(uri, size, etag); a refused reference has its text as uri and an etag with "!".

        Local files are looked up. Remote ones have size -1 and etag "", which mean "unknown".
        Where there is no file with backslashes in its name, they are taken for "/".
        """
        entry = self._resolve_as_written(reference)
        if "\\" in reference and entry[1] < 0 and not entry[2]:
            entry = self._resolve_backslashes(reference, entry)
        if entry[2].startswith("!"):
            self.refusals[entry[2]] += 1
            if entry[2] == BAD_PLACE:
                self.first_refused = self.first_refused or printable(entry[0])
        return entry

    def _resolve_as_written(self, reference: str) -> Entry:
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

    def _resolve_backslashes(self, reference: str, as_written: Entry) -> Entry:
        """The entry of a reference that names no local file as it is written."""
        with_slashes = self._resolve_as_written(reference.replace("\\", "/"))
        if not is_remote(as_written[0]):
            if with_slashes[1] >= 0 or with_slashes[2].startswith("!"):
                return with_slashes
            return as_written[0], -1, BAD_BACKSLASH
        if self._backslash_is_separator is None and self._n_probes < _MAX_PROBES:
            self._n_probes += 1
            # "/" first: some clients ask for it where the key has a backslash
            if not with_slashes[2] and self._exists(with_slashes[0]):
                self._backslash_is_separator = True
            elif self._exists(as_written[0]):
                self._backslash_is_separator = False
        return with_slashes if self._backslash_is_separator else as_written

    def _exists(self, uri: str) -> bool:
        try:
            return self.storage.exists(uri)
        except SegcoreError:
            return False

    def exists(self, reference: str) -> bool:
        """Whether a reference names an object that is there and may be read."""
        uri, size, etag = self._resolve_as_written(reference)
        return size >= 0 or (not etag and is_remote(uri) and self._exists(uri))

    def _find_uri(self, reference: str) -> tuple[str, str]:
        """(uri, "") or ("", refusal)."""
        if "\0" in reference or any("\ud800" <= letter <= "\udfff" for letter in reference):
            return "", BAD_URI
        try:
            if "://" not in reference and not reference.startswith("/"):
                return self._find_relative(reference)
            uri = normalize(reference)
            if is_remote(uri) and redact(uri) != uri:
                return "", BAD_URI
            return self._check_absolute(uri)
        except UsageError:
            is_known = scheme_of(reference) in self._schemes
            return "", BAD_URI if is_known else BAD_SCHEME

    def _check_absolute(self, uri: str) -> tuple[str, str]:
        is_named = self.options.allowed_schemes is None and _is_in(uri, self._allowed)
        if scheme_of(uri) not in self._schemes and not is_named:
            return "", BAD_SCHEME
        if self.options.allow_outside or _is_in(uri, self._places):
            return uri, ""
        return "", BAD_PLACE

    def _find_relative(self, reference: str) -> tuple[str, str]:
        relative = posixpath.normpath(reference)
        if relative == ".":
            return "", BAD_URI
        leaves_root = relative == ".." or relative.startswith("../")
        if is_remote(self.root):
            if not leaves_root:
                return join(self.root, relative), ""
            scheme, bucket, key = split(self.root)
            joined = posixpath.normpath(posixpath.join(key, relative))
            uri = normalize(f"{scheme}://{bucket}/{joined}")
        else:
            uri = os.path.normpath(os.path.join(self.root, relative))
        if self.options.allow_outside or _is_in(uri, self._allowed):
            return uri, ""
        if leaves_root:
            return "", BAD_PARENT
        return (uri, "") if _is_in(uri, [self._real_root]) else ("", OUTSIDE_LINK)


def _is_in(uri: str, places: Iterable[str]) -> bool:
    """Whether a URI lies in one of these places; links of local files are followed."""
    target = _real(uri)
    return any(
        target.startswith(place)
        if place.endswith("://")
        else target == place or target.startswith(place.rstrip("/") + "/")
        for place in places
    )


def _bucket_or_folder(root: str) -> str:
    """The bucket of a remote folder; a local folder without links."""
    if is_remote(root):
        scheme, bucket, _ = split(root)
        return f"{scheme}://{bucket}"
    return _real(root)


def _real(uri: str) -> str:
    """The URI; for a local path without links."""
    return uri if is_remote(uri) else os.path.realpath(uri)
