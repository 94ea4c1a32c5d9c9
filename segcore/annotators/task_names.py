"""The names by which an image may be known, from the link that a task has."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from urllib.parse import parse_qs, unquote, urlsplit

MAX_LINK_CHARS = 8192
_UPLOAD = re.compile(r"/data/upload/\d+/[0-9a-f]{8}-([^/]+)\Z")
_LOCAL_FILES = "/data/local-files/"
_RESOLVE = re.compile(r"/(?:tasks|projects)/\d+/(?:resolve|presign)/?\Z")


@dataclass(frozen=True)
class TaskName:
    """How a task names its image.

    Attributes:
        text: A path or URI, or the end of one.
        is_upload: It is the name of an uploaded copy: without folders, and with other letters for
            those that the tool does not take.
    """

    text: str
    is_upload: bool = False


def name_of_link(link: str) -> TaskName | None:
    """What the link of a task says about its image; None if it says nothing.

    Known are paths, URIs of object stores, links to a web server (whose host and query say
    nothing), and Label Studio's own links: to local files, to files in its storages, and to
    uploaded copies, whose names begin with 8 hexadecimal digits and a dash.
    """
    if not link or len(link) > MAX_LINK_CHARS:
        return None
    parts = urlsplit(link) if "://" in link or link.startswith("/") else None
    if parts is None:
        return TaskName(link)
    path, query = parts.path, parts.query
    if parts.scheme in ("", "http", "https"):
        if path.endswith(_LOCAL_FILES):
            return _plain(parse_qs(query).get("d", [""])[0])
        if _RESOLVE.search(path):
            return _encoded(parse_qs(query).get("fileuri", [""])[0])
        if match := _UPLOAD.search(path):
            return TaskName(unquote(match[1]), is_upload=True)
        return _plain(unquote(path)) if parts.scheme else TaskName(link)
    return TaskName(link)


def upload_name(name: str) -> str:
    """The name of a file as Label Studio stores an uploaded copy of it, without its prefix."""
    last = name.replace("\\", "/").rpartition("/")[2].strip().replace(" ", "_")
    return re.sub(r"(?u)[^-\w.]", "", last)


def _plain(text: str) -> TaskName | None:
    return TaskName(text) if text.strip("/") else None


def _encoded(text: str) -> TaskName | None:
    try:
        uri = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode()
    except (binascii.Error, ValueError):
        return None
    return name_of_link(uri) if "fileuri=" not in uri else None
