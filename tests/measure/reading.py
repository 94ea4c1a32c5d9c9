"""How fast the images of one unit are read from storage that is far away.

    python -m tests.measure.reading [--images 2000] [--kilobytes 100] [--delay-ms 80] [--mbps 60]
                                    [--read-threads 64]

A real S3 server on loopback, and in front of it a proxy that makes every round trip longer and
every connection slower, as a network and an object store do: more bandwidth takes more connections.
The same images are read from a tar shard, a Parquet shard and loose objects; their bytes are random
and are not decoded.
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

_READ_BYTES = 1 << 16


class DistantProxy:
    """Passes bytes between its clients and a server, later and slower.

    Args:
        server_port: On loopback.
        delay_s: Time of a round trip, and of opening a connection.
        rate: Bytes per second of the responses on one connection.
    """

    def __init__(self, server_port: int, delay_s: float, rate: float) -> None:
        self._server_port, self._delay_s, self._rate = server_port, delay_s, rate

    async def serve(self, listener: socket.socket) -> None:
        """Serve until cancelled."""
        server = await asyncio.start_server(self._handle_connection, sock=listener)
        await server.serve_forever()

    async def _handle_connection(
        self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter
    ) -> None:
        await asyncio.sleep(self._delay_s)
        from_server, to_server = await asyncio.open_connection("127.0.0.1", self._server_port)
        with suppress(ConnectionError):
            await asyncio.gather(
                self._pump(from_client, to_server, 0.0),
                self._pump(from_server, to_client, self._rate),
            )
        for writer in (to_server, to_client):
            writer.close()

    async def _pump(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, rate: float
    ) -> None:
        """Pass on half a round trip later, at `rate` bytes per second if it is not 0."""
        in_flight: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(256)
        clock = asyncio.get_running_loop().time

        async def deliver() -> None:
            free_at = 0.0  # when the connection has sent what came before
            while (item := await in_flight.get())[1]:
                due, data = item
                free_at = max(free_at, due) + (len(data) / rate if rate else 0.0)
                await asyncio.sleep(free_at - clock())
                sink.write(data)
                await sink.drain()
            sink.write_eof()

        delivery = asyncio.create_task(deliver())
        data = b"first"
        while data:
            data = await source.read(_READ_BYTES)
            await in_flight.put((clock() + self._delay_s / 2, data))
        await delivery


@contextmanager
def far_away(endpoint: str, delay_s: float, rate: float) -> Iterator[str]:
    """An endpoint of the same server at a distance; the proxy is a process of its own."""
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


def write_archives(storage: Storage, bucket: str, images: list[bytes]) -> dict[str, str]:
    """Write the images as each kind of archive; their URIs by kind."""
    names = [f"{i:06}.jpg" for i in range(len(images))]
    storage.write(f"{bucket}/tar/shard.tar", tar_bytes(zip(names, images, strict=True)))
    table = pa.table({"key": names, "jpg": images})
    storage.write(f"{bucket}/parquet/shard.parquet", parquet_bytes(table))
    for name, data in zip(names, images, strict=True):
        storage.write(f"{bucket}/loose/{name}", data)
    return {kind: f"{bucket}/{kind}" for kind in ("tar", "parquet", "loose")}


def measure_reading(
    storage: Storage, units: Iterable[Unit], options: SourceOptions
) -> tuple[int, float, float]:
    """Read these units: (images, images per second, 10^6 bytes per second)."""
    started, count, size = time.monotonic(), 0, 0
    for unit in units:
        for sample in read_unit(unit, storage, options):
            assert sample.data is not None, sample.error
            count, size = count + 1, size + len(sample.data)
    seconds = time.monotonic() - started
    return count, count / seconds, size / seconds / 1e6


def main() -> None:
    """Measure, and print a line for each kind of archive, distance and repetition."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--kilobytes", type=int, default=100, help="size of an image")
    parser.add_argument("--delay-ms", type=float, default=80, help="time of a round trip")
    parser.add_argument("--mbps", type=float, default=60, help="10^6 bytes/s of a connection")
    parser.add_argument(
        "--read-threads", type=int, default=64, help="64 is what a worker with a GPU uses"
    )
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    source = SourceOptions(read_threads=options.read_threads)
    images = [os.urandom(options.kilobytes * 1000) for _ in range(options.images)]
    with tempfile.TemporaryDirectory() as folder, LoopbackS3(folder) as server:
        os.environ |= server.environment
        near = Storage(StorageOptions(endpoint_url=server.endpoint))
        archives = write_archives(near, f"s3://{server.bucket}", images)
        with far_away(server.endpoint, options.delay_ms / 1e3, options.mbps * 1e6) as endpoint:
            far = Storage(StorageOptions(endpoint_url=endpoint))
            for kind, uri in archives.items():
                units = list(open_source(uri, source, near).units(UnitLimits()))
                for distance, storage in (("near", near), ("far", far)):
                    for _ in range(options.repeats):
                        n, images_s, mb_s = measure_reading(storage, units, source)
                        print(
                            f"{kind:8} {distance:5} {len(units):3} units, {n} images: "
                            f"{images_s:7.0f} images/s {mb_s:6.0f} MB/s",
                            flush=True,
                        )


if __name__ == "__main__":
    main()
