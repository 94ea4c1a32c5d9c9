"""Storage and whole runs through a proxy that spoils requests; see `tests.support.fault_proxy`."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pyarrow.parquet as pq
import pytest

from segcore.config import Config
from segcore.errors import ObjectNotFound, StorageError
from segcore.inspection.verify import verify_output
from segcore.run.segment import segment
from segcore.storage import Storage, StorageOptions, remote_file
from segcore.testing.loopback_s3 import LoopbackS3
from tests.support import serial_run
from tests.support.bright_images import bright_png
from tests.support.fault_proxy import FAULTS, FaultProxy
from tests.support.jobs import job_config, part_bytes

pytestmark = [pytest.mark.s3, pytest.mark.timeout(600)]
TIMEOUT_S = 2.0  # of the client; a stalled answer takes longer


def _storage_through(proxy: FaultProxy, retries: int = 12) -> Storage:
    return Storage(
        StorageOptions(endpoint_url=proxy.endpoint, timeout_s=TIMEOUT_S, retries=retries)
    )


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.parametrize("fault", FAULTS)
def test_every_operation_survives_every_fault(
    fault: str, s3: LoopbackS3, s3_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_file, "_RANGE_BYTES", 20_000)
    direct = Storage()
    data = os.urandom(200_000)
    direct.write(f"{s3_prefix}/x", data)
    for i in range(7):
        direct.write(f"{s3_prefix}/listed/{i}", b"1" * i)
    with FaultProxy(s3.endpoint, 0.4, [fault], seed=3, stall_s=30) as proxy:
        storage = _storage_through(proxy)
        for i in range(1 if fault == "stall" else 4):
            assert storage.read(f"{s3_prefix}/x") == data
            assert storage.read_range(f"{s3_prefix}/x", 10, 100_000) == data[10:100_010]
            assert storage.stat(f"{s3_prefix}/x").size == len(data)
            with storage.open(f"{s3_prefix}/x", 50_000) as file:
                assert file.read() == data
            with storage.stream(storage.stat(f"{s3_prefix}/x"), len(data)) as file:
                assert file.read() == data
            listed = [info.size for info in storage.list(f"{s3_prefix}/listed")]
            assert listed == list(range(7))
            storage.write(f"{s3_prefix}/w{i}", data[i:])
            assert direct.read(f"{s3_prefix}/w{i}") == data[i:]
            assert storage.write_if_absent(f"{s3_prefix}/c{i}", b"first") is True
            assert storage.write_if_absent(f"{s3_prefix}/c{i}", b"first") is False
            assert direct.read(f"{s3_prefix}/c{i}") == b"first"
            storage.delete(f"{s3_prefix}/w{i}")
            assert not direct.exists(f"{s3_prefix}/w{i}")
            with pytest.raises(ObjectNotFound):
                storage.read(f"{s3_prefix}/absent")
        assert proxy.injected[fault] >= 3


@pytest.mark.faults
def test_a_listing_continues_after_the_page_that_broke_off(s3: LoopbackS3, s3_prefix: str) -> None:
    direct = Storage()
    names = [f"{s3_prefix}/a b/{i:04d}+%é" for i in range(1500)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda uri: direct.write(uri, b""), names))
    with FaultProxy(s3.endpoint, 0.6, ["truncate"], seed=5) as proxy:
        for _ in range(3):
            assert [i.uri for i in _storage_through(proxy).list(s3_prefix)] == names
        assert proxy.injected["truncate"] >= 3


@pytest.mark.faults
def test_of_many_racers_one_wins_whatever_is_lost(s3: LoopbackS3, s3_prefix: str) -> None:
    """A reset between the head and the body of a PUT makes SeaweedFS 4.48 create an empty object.

    (A raw PUT with `Content-Length: 10` and 0 bytes of body does; with 3 or 9 bytes it does not.)
    The creator finds its nonce there, and must notice that its bytes are missing.
    """
    contents = [b"%d" % n for n in range(8)]
    with FaultProxy(s3.endpoint, seed=11) as proxy:
        proxy.set_shares(reset=0.25, truncate=0.25)
        for key in range(4):
            uri = f"{s3_prefix}/lease{key}"

            def create(data: bytes, uri: str = uri) -> bool:
                return _storage_through(proxy, 30).write_if_absent(uri, data)

            with ThreadPoolExecutor(8) as pool:
                won = list(pool.map(create, contents))
            assert won.count(True) == 1
            assert Storage().read(uri) == contents[won.index(True)]
        assert proxy.injected.total() > 10


@pytest.mark.faults
def test_a_large_object_in_parts_is_complete_or_absent(
    s3: LoopbackS3, s3_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segcore.storage.object_store._SINGLE_PUT_BYTES", 1 << 20)
    data = os.urandom(11 << 20)
    with FaultProxy(s3.endpoint, 0.2, ["slow_down", "reset", "truncate"], seed=2) as proxy:
        for i in range(2):
            _storage_through(proxy).write(f"{s3_prefix}/{i}", data)
            assert Storage().read(f"{s3_prefix}/{i}") == data
        assert proxy.injected.total() >= 2


@pytest.mark.faults
def test_retries_have_an_end(s3: LoopbackS3, s3_prefix: str) -> None:
    with FaultProxy(s3.endpoint, seed=1, stall_s=5) as proxy:
        storage = Storage(StorageOptions(endpoint_url=proxy.endpoint, timeout_s=1, retries=2))
        actions: dict[str, Callable[[], object]] = {
            "read": lambda: storage.read(f"{s3_prefix}/x"),
            "write": lambda: storage.write(f"{s3_prefix}/x", b"1"),
            "write_if_absent": lambda: storage.write_if_absent(f"{s3_prefix}/x", b"1"),
            "delete": lambda: storage.delete(f"{s3_prefix}/x"),
            "list": lambda: list(storage.list(s3_prefix)),
        }
        for fault in ("slow_down", "reset", "truncate"):
            proxy.set_shares(**{fault: 1.0})
            for name, action in actions.items():
                if (fault, name) == ("truncate", "read"):
                    continue  # an absent object has no body to cut
                before = proxy.requests
                with pytest.raises(StorageError) as caught:
                    action()
                assert "\n" not in caught.value.message
                most = 60 if fault == "slow_down" else 12  # there is patience with it
                assert 2 <= proxy.requests - before <= most, (fault, name)


# --- whole runs


def _write_archive(prefix: str, n: int) -> str:
    """A manifest of images on S3, some bad, some of them missing for good."""
    storage = Storage()
    names = [f"{i:04d}.png" for i in range(n)]
    with ThreadPoolExecutor(8) as pool:
        list(
            pool.map(
                lambda i: storage.write(f"{prefix}/in/{names[i]}", bright_png(i, size=(30, 40))),
                range(n),
            )
        )
    storage.write(f"{prefix}/in/empty.png", b"")
    names += ["empty.png", "0001-gone.png", "zz-gone.png"]
    storage.write(f"{prefix}/in/all.txt", "\n".join(names).encode())
    return f"{prefix}/in/all.txt"


def _config(source: str, output: str, *sets: str) -> Config:
    common = ["ray.max_actors=2", "run.max_failed_fraction=0.5"]
    return job_config(source, output, *common, *sets)


def _settings_through(proxy: FaultProxy) -> list[str]:
    return [
        f"storage.endpoint_url={proxy.endpoint}",
        f"storage.timeout_s={TIMEOUT_S}",
        "storage.retries=12",
    ]


class _PartReader(threading.Thread):
    """Reads every part as soon as it can be seen, past the proxy.

    Attributes:
        n_read: Parts read so far.
        unreadable: (uri, error) of those that were no complete Parquet files.
    """

    def __init__(self, output: str) -> None:
        super().__init__(daemon=True)
        self.output, self.n_read = output, 0
        self.unreadable: list[tuple[str, str]] = []
        self._stop_requested = threading.Event()

    def run(self) -> None:
        storage = Storage()
        known: set[tuple[str, str]] = set()
        while not self._stop_requested.wait(0.05):
            for info in storage.list(self.output):
                if (info.uri, info.etag) in known or not info.uri.endswith(".parquet"):
                    continue
                known.add((info.uri, info.etag))
                self.n_read += 1
                try:
                    pq.read_table(io.BytesIO(storage.read(info.uri)))
                except Exception as error:
                    self.unreadable.append((info.uri, repr(error)))

    def stop(self) -> None:
        self._stop_requested.set()
        self.join()


def _run_twice_and_compare(
    s3: LoopbackS3, prefix: str, n: int, per_unit: int, seed: int
) -> FaultProxy:
    """Run twice, once disturbed: both must be the same to the last byte."""
    source = _write_archive(prefix, n)
    units = f"plan.images={per_unit}"
    undisturbed = segment(_config(source, f"{prefix}/undisturbed", units))
    reader = _PartReader(f"{prefix}/disturbed")
    reader.start()
    try:
        with FaultProxy(s3.endpoint, 0.05, seed=seed, stall_s=30) as proxy:
            output = f"{prefix}/disturbed"
            for _ in range(3):  # what looks like an outage leaves a unit undone: run again
                disturbed = segment(_config(source, output, units, *_settings_through(proxy)))
                if disturbed.exit_code == 0:
                    break
    finally:
        reader.stop()
    outcome = (disturbed.exit_code, disturbed.images, disturbed.failed)
    assert outcome == (0, n + 3, 3), disturbed.errors
    assert disturbed.failures == {"empty": 1, "not_found": 2}
    assert disturbed.failures == undisturbed.failures
    assert part_bytes(disturbed.prefix) == part_bytes(undisturbed.prefix)
    assert reader.unreadable == []
    assert reader.n_read >= disturbed.units
    assert verify_output(Storage(), f"{prefix}/disturbed").exit_code == 0
    return proxy


@pytest.mark.faults
def test_a_disturbed_run_equals_the_undisturbed_one(
    ray_session: None, s3: LoopbackS3, s3_prefix: str
) -> None:
    proxy = _run_twice_and_compare(s3, s3_prefix, n=60, per_unit=16, seed=4)
    assert proxy.injected.total() >= 10


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(10))
def test_disturbed_runs_equal_the_undisturbed_ones(
    ray_session: None, s3: LoopbackS3, s3_prefix: str, seed: int
) -> None:
    proxy = _run_twice_and_compare(s3, s3_prefix, n=400, per_unit=16, seed=seed)
    print(f"seed {seed}: {proxy.requests} requests, injected {dict(proxy.injected)}")
    assert set(proxy.injected) == set(FAULTS)


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(100, 120))
def test_disturbed_serial_runs_equal_the_undisturbed_one(
    s3: LoopbackS3, s3_prefix: str, seed: int
) -> None:
    source = _write_archive(s3_prefix, 300)
    per_unit = "plan.images=8"
    undisturbed = serial_run.segment(_config(source, f"{s3_prefix}/undisturbed", per_unit))
    with FaultProxy(s3.endpoint, 0.05, seed=seed, stall_s=30) as proxy:
        sets = [per_unit, *_settings_through(proxy)]
        disturbed = serial_run.segment(_config(source, f"{s3_prefix}/disturbed", *sets))
    print(f"seed {seed}: {proxy.requests} requests, injected {dict(proxy.injected)}")
    assert set(proxy.injected) == set(FAULTS)
    assert disturbed.failures == {"empty": 1, "not_found": 2}
    assert part_bytes(disturbed.prefix) == part_bytes(undisturbed.prefix)
