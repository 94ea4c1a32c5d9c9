"""Images whose results are kept though today's listing lacks them.

A run lists them in ``unlisted/<run>.parquet`` once its own results are committed; where there is no
such file, it has not come so far. Readers leave their rows out unless they are asked for.
"""

from __future__ import annotations

import io
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.parquet as pq

from segcore.errors import ObjectNotFound, StorageError
from segcore.output.layout import EditionLayout
from segcore.storage import Storage
from segcore.storage.uris import basename

UNLISTED_SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("etag", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),  # "" for loose images
        pa.field("unit", pa.string(), nullable=False),  # its part has the rows of the image
        pa.field("page", pa.int32()),  # as in `images`; older files lack it
    ]
)


def write_unlisted(storage: Storage, layout: EditionLayout, run: str, rows: pa.Table) -> None:
    """Say which images a run leaves as they are because its listing lacks them; perhaps none."""
    metadata = {"segcore.edition": layout.name, "segcore.run": run}
    sink = io.BytesIO()
    table = rows.cast(UNLISTED_SCHEMA).replace_schema_metadata(metadata)
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    storage.write(layout.unlisted(run), sink.getvalue())


def read_unlisted(
    storage: Storage, layout: EditionLayout, run: str, columns: Iterable[str] | None = None
) -> pa.Table | None:
    """The images that a run left as they are; None when it has not come so far.

    Raises:
        StorageError: The file cannot be read; names it.
    """
    uri = layout.unlisted(run)
    names = list(columns or UNLISTED_SCHEMA.names)
    try:
        with storage.open(uri) as file:
            table = pq.ParquetFile(file, page_checksum_verification=True).read(names)
    except ObjectNotFound:
        return None
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise _unreadable(uri, error) from None
    if "page" in names and "page" not in table.column_names:
        table = table.append_column("page", pa.nulls(table.num_rows, pa.int32()))
    schema = pa.schema([UNLISTED_SCHEMA.field(name) for name in names])
    return table.select(names).replace_schema_metadata(None).cast(schema)


def count_unlisted(storage: Storage, layout: EditionLayout, run: str) -> int:
    """How many images a run left as they are.

    Raises:
        StorageError: The file cannot be read; names it.
    """
    uri = layout.unlisted(run)
    try:
        with storage.open(uri, 64 << 10) as file:
            return int(pq.read_metadata(file).num_rows)
    except ObjectNotFound:
        return 0
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _unreadable(uri, error) from None


def runs_with_unlisted(storage: Storage, layout: EditionLayout) -> set[str]:
    """The runs that have such a file."""
    names = (basename(info.uri) for info, _ in storage.list_folder(layout.unlisted_folder))
    return {name.removesuffix(".parquet") for name in names if name.endswith(".parquet")}


def _unreadable(uri: str, error: Exception) -> StorageError:
    reason = str(error).partition("\n")[0][:200]
    return StorageError(
        f"{uri} is not a readable list of unlisted images: {reason}.",
        "Delete this object and rerun the same `segcore segment` command to have it made again.",
    )
