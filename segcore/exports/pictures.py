"""The images of an export: written beside it, linked to, or named by a link."""

from __future__ import annotations

import os
from urllib.parse import quote

from segcore.errors import UsageError
from segcore.exports.archive import ArchivedImage
from segcore.exports.formats.base import Format
from segcore.exports.names import is_local
from segcore.exports.options import ExportOptions
from segcore.exports.state import DestLayout
from segcore.storage import Storage
from segcore.storage.local_disk import translate_errors
from segcore.storage.uris import is_remote, split
from segcore.text import redact


def check_destination(options: ExportOptions, layout: DestLayout) -> None:
    """Refuse what cannot be written to DEST.

    Raises:
        UsageError: Links to files are asked for in an object store.
    """
    if options.images == "link" and is_remote(layout.uri):
        raise UsageError(
            f"--images link: {layout.uri} is in an object store, which has no links.",
            "Use --images copy or --images url:TEMPLATE.",
        )


def check_template(options: ExportOptions, shard: str) -> None:
    """Refuse links that would be those of a shard and not of an image.

    Args:
        shard: A tar or Parquet file of the archive; "" if there is none.

    Raises:
        UsageError: The template tells images in a shard not apart.
    """
    template = options.url_template
    if shard and template and "{name}" not in template and "{path}" not in template:
        raise UsageError(
            f"--images url:{template}: {redact(shard)} holds many images, and this would be one "
            "link for all of them.",
            "Use {path} or {name}, or write the images with --images copy.",
        )


def has_no_link(options: ExportOptions, record: ArchivedImage) -> bool:
    """Whether Label Studio is given a name where it needs a link."""
    return options.format == "label-studio" and options.images == "none" and bool(record.shard)


def needs_bytes(options: ExportOptions, form: Format, record: ArchivedImage) -> bool:
    """Whether the encoded image must be read from the archive."""
    if form.needs_pictures or options.images == "copy":
        return True
    return options.images == "link" and not _is_linkable(record)


def _is_linkable(record: ArchivedImage) -> bool:
    is_file = not record.shard and (record.page or 1) == 1
    return is_file and is_local(record.image_id)


def link_of(options: ExportOptions, record: ArchivedImage, name: str) -> str:
    """The link to an image; "" where there is none."""
    uri = record.shard or record.image_id
    template = options.url_template
    if template:
        bucket, key = split(uri)[1:] if is_remote(uri) else ("", uri.lstrip("/"))
        values = {"name": name, "path": record.path, "uri": uri, "key": key, "bucket": bucket}
        for placeholder, value in values.items():
            safe = "/:" if placeholder == "uri" else "/"
            template = template.replace(f"{{{placeholder}}}", quote(value, safe=safe))
        return template
    if options.format != "label-studio":
        return ""
    if options.images != "none":
        return "/data/local-files/?d=" + quote(f"images/{name}")
    if record.shard:
        return ""
    if is_remote(record.image_id):
        return quote(record.image_id, safe="/:")
    return "/data/local-files/?d=" + quote(record.image_id.lstrip("/"))


def write_picture(
    storage: Storage, layout: DestLayout, options: ExportOptions, record: ArchivedImage, name: str,
    data: bytes | None,
) -> bool:  # fmt: skip
    """Write an image below DEST or link to it; returns whether it is there."""
    target = layout.picture(name)
    if options.images == "link" and _is_linkable(record):
        if not os.path.exists(record.image_id):
            return False
        with translate_errors(target):
            os.makedirs(os.path.dirname(target), exist_ok=True)
            if not os.path.lexists(target):
                os.symlink(record.image_id, target)
        return True
    if data is None:
        return False
    storage.write(target, data)
    return True
