"""Rankings of the images of an edition: which to look at first, in ``rankings/<name>.parquet``.

A ranking is made from the parts of an edition as they were; where these have changed since, readers
use what still fits and say so.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segcore.errors import ObjectNotFound, StorageError, UsageError
from segcore.output.layout import EditionLayout
from segcore.output.results import Results
from segcore.storage import Storage
from segcore.storage.uris import basename
from segcore.text import parse_json, plural

RANKING_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("rank", pa.int32(), nullable=False),  # from 1: the first to look at
        pa.field("score", pa.float64()),  # what it was ranked by; null where there is no number
        pa.field("why", pa.string(), nullable=False),  # for people
    ]
)
MAX_RANKED = 1_000_000  # images in a ranking
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_METADATA_KEY = b"segcore.ranking"
_MAX_NAMED = 10


@dataclass(frozen=True)
class Ranking:
    """A ranking as it was written.

    Attributes:
        rows: With the columns of `RANKING_SCHEMA`, by rank.
        options: How it was made.
        n_images: Images that were ranked, with those beyond the limit.
        state: Of the edition when it was made, see `edition_state`.
    """

    name: str
    uri: str
    rows: pa.Table
    options: Mapping[str, Any]
    n_images: int
    state: str

    @cached_property
    def _place_of(self) -> dict[str, int]:
        ids = self.rows["image_id"].to_pylist()
        return {image_id: place for place, image_id in enumerate(ids)}

    def places(self, image_ids: pa.ChunkedArray) -> pa.Array:
        """The place of each image in `rows`, from 0; null for an image that is not ranked."""
        return pa.array(map(self._place_of.get, image_ids.to_pylist()), pa.int64())

    def remark(self, results: Results) -> str:
        """A sentence if the edition is another than when it was ranked; "" if it is the same."""
        if self.state == edition_state(results):
            return ""
        n_there = n_new = n_unread = 0
        for unit in results.units:
            try:
                table = results.read_rows("images", unit, ["image_id", "status"])
            except (StorageError, UsageError):  # who reads the images says which it is
                n_unread += 1
                continue
            ok = table.filter(pc.equal(table["status"], "ok"))
            n_found = len(ok) - self.places(ok["image_id"]).null_count
            n_there += n_found
            n_new += len(ok) - n_found
        n_gone = len(self.rows) - n_there
        beyond = self.n_images - len(self.rows)
        changes = []
        if n_gone:
            unread = f" or in {plural(n_unread, 'unit')} that cannot be read" if n_unread else ""
            changes.append(
                f"{plural(n_gone, 'of its images is', 'of its images are')} gone{unread}"
            )
        if n_new > beyond:
            changes.append(f"{plural(n_new - beyond, 'image')} came since")
        what = f": {' and '.join(changes)}" if changes else ""
        return (
            f"Ranking {self.name} was made from an older state of this edition{what}; what was "
            f"found in {'the others' if n_gone else 'its images'} may have changed, too. "
            "`segcore rank` with the same options makes it anew."
        )


def edition_state(results: Results) -> str:
    """16 hex digits that change when the results of any image do, or when images come or go."""
    digest = hashlib.sha256()
    for unit in sorted(results.units):
        digest.update(f"{unit}:{results.generations.get(unit, 0)}\n".encode())
    return digest.hexdigest()[:16]


def check_ranking_name(name: str) -> None:
    """Refuse what cannot be the name of a file on every storage.

    Raises:
        UsageError: The name has other letters, or is too long.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be the name of a ranking.",
            "It has 1 to 64 letters, digits, dots, - and _, and begins with a letter or digit.",
        )


def write_ranking(
    results: Results, name: str, rows: pa.Table, options: Mapping[str, Any], n_images: int
) -> Ranking:
    """Write a ranking of an edition, in place of one of this name; the same bytes for the same."""
    state = edition_state(results)
    document = {**options, "images": n_images, "state": state}
    metadata = {
        b"segcore.edition": results.name.encode(),
        b"segcore.run": results.run.encode(),
        _METADATA_KEY: json.dumps(document, sort_keys=True).encode(),
    }
    table = rows.cast(RANKING_SCHEMA).replace_schema_metadata(metadata)
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    uri = results.layout.ranking(name)
    results.storage.write(uri, sink.getvalue())
    return Ranking(name, uri, rows, dict(options), n_images, state)


def find_ranking(storage: Storage, layout: EditionLayout, name: str) -> Ranking | None:
    """The ranking of this name; None if there is none.

    Raises:
        UsageError: It cannot be the name of a ranking.
        StorageError: The file is damaged; names it.
    """
    check_ranking_name(name)
    uri = layout.ranking(name)
    try:
        with storage.open(uri) as file:
            part = pq.ParquetFile(file, page_checksum_verification=True)
            if part.metadata.num_rows > MAX_RANKED:
                raise ValueError(f"it has {part.metadata.num_rows:,} rows")
            document = parse_json((part.schema_arrow.metadata or {})[_METADATA_KEY])
            rows = part.read(RANKING_SCHEMA.names).replace_schema_metadata(None)
            rows = rows.select(RANKING_SCHEMA.names).cast(RANKING_SCHEMA)
        n_images, state = int(document.pop("images")), str(document.pop("state"))
    except ObjectNotFound:
        return None
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise StorageError(
            f"{uri} is not a readable ranking: {reason}.",
            "Make it anew: `segcore rank` with --overwrite.",
        ) from None
    return Ranking(name, uri, rows, document, n_images, state)


def read_ranking(results: Results, name: str) -> Ranking:
    """A ranking of an edition.

    Raises:
        UsageError: There is none of this name.
        StorageError: The file is damaged; names it.
    """
    ranking = find_ranking(results.storage, results.layout, name)
    if ranking is None:
        names = ranking_names(results.storage, results.layout)
        more = f" and {len(names) - _MAX_NAMED:,} more" if len(names) > _MAX_NAMED else ""
        there = f"It has {', '.join(names[:_MAX_NAMED])}{more}. " if names else ""
        raise UsageError(
            f"{results.prefix} has no ranking {name}.",
            f"{there}`segcore rank` makes one, for example with --by uncertain.",
        )
    return ranking


def ranking_names(storage: Storage, layout: EditionLayout) -> list[str]:
    """The names of all rankings of an edition, sorted."""
    names = (basename(info.uri) for info, _ in storage.list_folder(layout.rankings_folder))
    return sorted(name.removesuffix(".parquet") for name in names if name.endswith(".parquet"))
