"""How fast the images of one unit are read from storage that is far away.

    python -m tests.measure.reading [--images 2000] [--kilobytes 100] [--delay-ms 80] [--mbps 60]
                                       [--read-threads 64]

A real S3 server on loopback, and before it a proxy that makes every round trip longer and every
connection slower, as a network and an object store do: more bandwidth takes more connections. The
same images as tar shard, Parquet shard and loose objects; their bytes are random, and only read.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

import pyarrow as pa

from segcore.sources import SourceOptions, open_source, read_unit
from segcore.sources.units import Unit, UnitLimits
from segcore.storage import Storage, StorageOptions
from segcore.testing.loopback_s3 import LoopbackS3
from tests.support.archives import parquet_bytes, tar_bytes

_PIECE = 1 << 16


class DistantProxy:
    """Passes bytes between its clients and `target`, later and slower.

    Args:
        target: Port on loopback.
        delay_s: Time of a round trip, of opening a connection, too.
        rate: Bytes per second of one connection's answers.
    """

    def __init__(self, target: int, delay_s: float, rate: float) -> None:
        self._target, self._delay, self._rate = target, delay_s, rate

    async def serve(self, listener: socket.socket) -> None:
        """Until cancelled."""
        server = await asyncio.start_server(self._connection, sock=listener)
        await server.serve_forever()

    async def _connection(self, near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        await asyncio.sleep(self._delay)
        far, there = await asyncio.open_connection("127.0.0.1", self._target)
        with suppress(ConnectionError):
            await asyncio.gather(self._pump(near, there, 0.0), self._pump(far, back, self._rate))
        for writer in (there, back):
            writer.close()

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, rate: float
    ) -> None:
        line: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(256)
        clock = asyncio.get_running_loop().time

        async def deliver() -> None:
            free = 0.0  # when the connection has sent what came before
            while (item := await line.get())[1]:
                due, data = item
                free = max(free, due) + (len(data) / rate if rate else 0.0)
                await asyncio.sleep(free - clock())
                sink.write(data)
                await sink.drain()
            sink.write_eof()

        delivery = asyncio.create_task(deliver())
        data = b"first"
        while data:
            data = await source.read(_PIECE)
            await line.put((clock() + self._delay / 2, data))
        await delivery


@contextmanager
def far_away(endpoint: str, delay_s: float, rate: float) -> Iterator[str]:
    """The endpoint of the same server at a distance; the proxy is a process of its own."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = DistantProxy(urlsplit(endpoint).port or 80, delay_s, rate)
        process = multiprocessing.get_context("fork").Process(
            target=lambda: asyncio.run(proxy.serve(listener)), daemon=True
        )
        process.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            process.terminate()
            process.join()


def fill(storage: Storage, bucket: str, images: list[bytes]) -> dict[str, str]:
    """The archives; kind -> where."""
    names = [f"{i:06}.jpg" for i in range(len(images))]
    storage.write(f"{bucket}/tar/shard.tar", tar_bytes(zip(names, images, strict=True)))
    table = pa.table({"key": names, "jpg": images})
    storage.write(f"{bucket}/parquet/shard.parquet", parquet_bytes(table))
    for name, data in zip(names, images, strict=True):
        storage.write(f"{bucket}/loose/{name}", data)
    return {kind: f"{bucket}/{kind}" for kind in ("tar", "parquet", "loose")}


def rate_of(
    storage: Storage, units: Iterable[Unit], options: SourceOptions
) -> tuple[int, float, float]:
    """(images, images per second, 10^6 bytes per second) of reading these units."""
    began, count, size = time.monotonic(), 0, 0
    for unit in units:
        for sample in read_unit(unit, storage, options):
            assert sample.data is not None, sample.error
            count, size = count + 1, size + len(sample.data)
    seconds = time.monotonic() - began
    return count, count / seconds, size / seconds / 1e6


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--kilobytes", type=int, default=100)
    parser.add_argument("--delay-ms", type=float, default=80)
    parser.add_argument("--mbps", type=float, default=60, help="10^6 bytes/s of a connection")
    parser.add_argument("--read-threads", type=int, default=64, help="64: as where a GPU is")
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    source = SourceOptions(read_threads=options.read_threads)
    images = [os.urandom(options.kilobytes * 1000) for _ in range(options.images)]
    with tempfile.TemporaryDirectory() as folder, LoopbackS3(folder) as server:
        os.environ |= server.environment
        near = Storage(StorageOptions(endpoint_url=server.endpoint))
        archives = fill(near, f"s3://{server.bucket}", images)
        with far_away(server.endpoint, options.delay_ms / 1e3, options.mbps * 1e6) as endpoint:
            far = Storage(StorageOptions(endpoint_url=endpoint))
            for kind, uri in archives.items():
                units = list(open_source(uri, source, near).units(UnitLimits()))
                for where, storage in (("near", near), ("far", far)):
                    for _ in range(options.repeats):
                        count, per_s, speed = rate_of(storage, units, source)
                        print(f"{kind:8} {where:5} {len(units):3} units, {count} images: "
                              f"{per_s:7.0f} images/s {speed:6.0f} MB/s", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
