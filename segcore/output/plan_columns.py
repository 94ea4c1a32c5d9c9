"""A few columns of a stored plan, whose images would not fit into memory."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq

from segcore.storage import Storage, is_remote
from segcore.storage.remote_file import RemoteFile

_REQUEST_THREADS = 16
# Of a row group the columns before the images lie together, in some 30 kB.
_GROUP_BUFFER_BYTES = 64 << 10


def read_plan_columns(storage: Storage, uri: str, columns: Sequence[str]) -> pa.Table:
    """Columns of a Parquet file; row groups of a remote one are requested at the same time.

    Raises:
        ArrowException, OSError, ValueError, KeyError: It is damaged.
        StorageError: It cannot be read.
    """
    with storage.open(uri) as file:
        parquet = pq.ParquetFile(file)
        if not is_remote(uri):
            return parquet.read(list(columns), use_threads=False)
        metadata, size = parquet.metadata, file.seek(0, io.SEEK_END)
    fetch = partial(storage.read_range, uri)

    def read_group(number: int) -> pa.Table:
        group = io.BufferedReader(RemoteFile(fetch, size), _GROUP_BUFFER_BYTES)
        parquet = pq.ParquetFile(group, metadata=metadata)
        return parquet.read_row_group(number, list(columns), use_threads=False)

    with ThreadPoolExecutor(_REQUEST_THREADS, "segcore-plan") as pool:
        tables = list(pool.map(read_group, range(metadata.num_row_groups)))
    schema = pa.schema([metadata.schema.to_arrow_schema().field(name) for name in columns])
    return pa.concat_tables(tables) if tables else schema.empty_table()
