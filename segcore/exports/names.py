"""Names of images in an export: relative, safe on every system, and unique without extension."""

from __future__ import annotations

import hashlib
import re

from segcore.sources import file_image_id
from segcore.storage.uris import is_remote, scheme_of, split

_MAX_SEGMENT, _MAX_NAME = 80, 180  # letters; names on disk end at 255 bytes
_EXTENSION = re.compile(r"\.[A-Za-z0-9]{1,5}\Z")
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?\Z")
_SIGNATURES = (
    (b"\xff\xd8\xff", ".jpg"),
    (b"\x89PNG", ".png"),
    (b"GIF8", ".gif"),
    (b"BM", ".bmp"),
    (b"II*\0", ".tif"),
    (b"MM\0*", ".tif"),
    (b"II+\0", ".tif"),
    (b"MM\0+", ".tif"),
    (b"\0\0\0\x0cjP  ", ".jp2"),
)


def archive_path(image_id: str, shard: str, page: int | None, input_uri: str) -> str:
    """Where an image is in the archive: its path below the input, or `<shard>/<key>`."""
    file_id = file_image_id(image_id, page)
    if shard:
        stem = _below(shard, input_uri)
        folder = re.sub(r"(?i)\.(tar|parquet|tar\.gz|tgz)\Z", "", stem)
        path = f"{folder}/{file_id.removeprefix(f'{shard}#')}"
    else:
        path = _below(file_id, input_uri)
    if page is None or page == 1:
        return path
    stem, extension = split_extension(path)
    return f"{stem}-page{page}{extension}"


def _below(uri: str, input_uri: str) -> str:
    folder = input_uri.rstrip("/") + "/"
    if uri.startswith(folder):
        return uri.removeprefix(folder)
    if uri == input_uri:
        return uri.rpartition("/")[2]
    # The entries of a list often lie in its folder.
    folder = input_uri.rpartition("/")[0] + "/"
    if uri.startswith(folder):
        return uri.removeprefix(folder)
    return "/".join(split(uri)[1:]) if is_remote(uri) else uri.lstrip("/")


class UniqueNames:
    """Gives each path a name whose part before the extension no other has, whatever the case.

    The order of the calls decides who gets a longer name, so it must be the same in each run.
    """

    def __init__(self) -> None:
        self._used: set[bytes] = set()

    def reserve(self, name: str) -> None:
        """Keep others from a name that was given before."""
        self._used.add(_stem_hash(name))

    def assign(self, path: str, image_id: str, extension: str = "") -> str:
        """The name of an image, by its path in the archive.

        Args:
            extension: What to add where the path has no extension.
        """
        whole = safe_name(path)
        if not split_extension(whole)[1]:
            whole += extension
        name = whole
        attempt = 0
        while _stem_hash(name) in self._used:
            stem, suffix = split_extension(whole)
            text = image_id if not attempt else f"{image_id} {attempt}"
            name = f"{stem}-{hashlib.sha256(text.encode()).hexdigest()[:8]}{suffix}"
            attempt += 1
        self.reserve(name)
        return name


def safe_name(path: str) -> str:
    """A relative path of plain segments: letters, digits, space, ``.``, ``_``, ``-``, ``+``, ``=``.

    A path that is plain already stays as it is; one that is long or empty gets a hash.
    """
    segments = []
    for segment in path.replace("\\", "/").split("/"):
        plain = "".join(c if c.isalnum() or c in " ._-+=" else "_" for c in segment)
        plain = plain.strip(" ").lstrip(".").rstrip(". ")
        if not plain:
            continue
        segments.append(f"_{plain}" if _RESERVED.fullmatch(plain) else plain)
    name = "/".join(segments)
    longest = max((len(segment.encode()) for segment in segments), default=0)
    is_long = len(name.encode()) > _MAX_NAME or longest > _MAX_SEGMENT
    if not name or is_long:
        digest = hashlib.sha256(path.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        extension = split_extension(name)[1]
        last = split_extension(segments[-1])[0] if segments else ""
        start = re.sub(r"[^A-Za-z0-9_-]", "_", last[:40])
        name = f"{start or 'image'}-{digest}{extension}"
    return name


def split_extension(name: str) -> tuple[str, str]:
    """(stem, extension with its dot; "" if there is none)."""
    match = _EXTENSION.search(name)
    if match is None or name[: match.start()].endswith("/") or not match.start():
        return name, ""
    return name[: match.start()], match[0]


def with_suffix(name: str, suffix: str) -> str:
    """The name with another extension."""
    return split_extension(name)[0] + suffix


def extension_of(data: bytes) -> str:
    """The extension that an image's content calls for; "" if it is not known."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return ".webp"
    if data[4:12] in (b"ftypavif", b"ftypavis"):
        return ".avif"
    return next((ext for start, ext in _SIGNATURES if data.startswith(start)), "")


def is_local(uri: str) -> bool:
    """Whether a URI is a local path."""
    return scheme_of(uri) == "file"


def _stem_hash(name: str) -> bytes:
    stem = split_extension(name)[0].casefold()
    return hashlib.blake2b(stem.encode(), digest_size=12).digest()
