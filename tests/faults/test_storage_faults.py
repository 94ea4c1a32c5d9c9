"""Storage and whole runs through a proxy that spoils requests; see `fault_proxy`."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from segcore.config import Config, RayOptions, load_config
from segcore.distributed.cluster import connected
from segcore.errors import ObjectNotFound, StorageError
from segcore.inspection.verify import verify_output
from segcore.run.segment import segment
from segcore.storage import Storage, StorageOptions, remote_file
from segcore.testing.loopback_s3 import LoopbackS3
from tests.support import serial_run
from tests.support.fault_proxy import FAULTS, FaultProxy
from tests.support.paths import PYTHONPATH

pytestmark = [pytest.mark.s3, pytest.mark.timeout(600)]
TIMEOUT_S = 2.0  # of the client; a stalled answer takes longer


def _through(proxy: FaultProxy, retries: int = 12) -> Storage:
    return Storage(
        StorageOptions(endpoint_url=proxy.endpoint, timeout_s=TIMEOUT_S, retries=retries)
    )


@pytest.mark.parametrize(
    "fault", [pytest.param(f, marks=[pytest.mark.faults] * (f != "reset")) for f in FAULTS]
)
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
        storage = _through(proxy)
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
            assert storage.write_if_absent(f"{s3_prefix}/c{i}", b"mine") is True
            assert storage.write_if_absent(f"{s3_prefix}/c{i}", b"mine") is False
            assert direct.read(f"{s3_prefix}/c{i}") == b"mine"
            storage.delete(f"{s3_prefix}/w{i}")
            assert not direct.exists(f"{s3_prefix}/w{i}")
            with pytest.raises(ObjectNotFound):
                storage.read(f"{s3_prefix}/absent")
        assert proxy.injected[fault] >= 3


def test_a_listing_goes_on_behind_the_page_that_broke_off(
    s3: LoopbackS3, s3_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    direct = Storage()
    names = [f"{s3_prefix}/a b/{i:04d}+%é" for i in range(1500)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda uri: direct.write(uri, b""), names))
    with FaultProxy(s3.endpoint, 0.6, ["truncate"], seed=5) as proxy:
        for _ in range(3):
            assert [i.uri for i in _through(proxy).list(s3_prefix)] == names
        assert proxy.injected["truncate"] >= 3


def test_of_many_racers_one_wins_whatever_is_lost(s3: LoopbackS3, s3_prefix: str) -> None:
    """A reset between the head and the body of a PUT makes SeaweedFS 4.48 create an empty object.

    (A raw PUT with `Content-Length: 10` and 0 bytes of body does; with 3 or 9 bytes it does not.)
    The creator finds its nonce there, and must notice that its bytes are missing.
    """
    shares = {"reset": 0.25, "truncate": 0.25}
    with FaultProxy(s3.endpoint, seed=11) as proxy:
        proxy.set(**shares)
        for key in range(4):
            uri = f"{s3_prefix}/lease{key}"
            with ThreadPoolExecutor(8) as pool:
                won = list(
                    pool.map(
                        lambda n, uri=uri: _through(proxy, 30).write_if_absent(uri, b"%d" % n),
                        range(8),
                    )
                )
            assert won.count(True) == 1
            assert Storage().read(uri) == b"%d" % won.index(True)
        assert proxy.injected.total() > 10


def test_a_large_object_in_parts_is_whole_or_absent(
    s3: LoopbackS3, s3_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segcore.storage.object_store._SINGLE_PUT_BYTES", 1 << 20)
    data = os.urandom(11 << 20)
    with FaultProxy(s3.endpoint, 0.2, ["slow_down", "reset", "truncate"], seed=2) as proxy:
        for i in range(2):
            _through(proxy).write(f"{s3_prefix}/{i}", data)
            assert Storage().read(f"{s3_prefix}/{i}") == data
        assert proxy.injected.total() >= 2


def test_patience_has_an_end(s3: LoopbackS3, s3_prefix: str) -> None:
    with FaultProxy(s3.endpoint, seed=1, stall_s=5) as proxy:
        storage = Storage(StorageOptions(endpoint_url=proxy.endpoint, timeout_s=1, retries=2))
        for fault in ("slow_down", "reset", "truncate"):
            proxy.set(**{fault: 1.0})
            for action in (
                lambda: storage.read(f"{s3_prefix}/x"),
                lambda: storage.write(f"{s3_prefix}/x", b"1"),
                lambda: storage.write_if_absent(f"{s3_prefix}/x", b"1"),
                lambda: storage.delete(f"{s3_prefix}/x"),
                lambda: list(storage.list(s3_prefix)),
            ):
                before = proxy.requests
                if fault == "truncate" and action.__code__.co_names[-1:] == ("read",):
                    continue  # an absent object has no body to cut
                with pytest.raises(StorageError) as caught:
                    action()
                assert "\n" not in caught.value.message
                assert 2 <= proxy.requests - before <= 12, fault


# --- whole runs


@pytest.fixture(scope="module")
def ray_session(s3: LoopbackS3) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", PYTHONPATH)
        with connected(RayOptions()):
            yield


def _archive(prefix: str, n: int) -> str:
    """A manifest of images on S3, some bad, some of them missing for good."""
    storage = Storage()
    rng = np.random.default_rng(1)
    pixels = [np.zeros((30, 40, 3), np.uint8) for _ in range(n)]
    for i, image in enumerate(pixels):
        y, x = rng.integers(1, 15, 2)
        image[y : y + 9, x : x + 5 + i % 9, 1] = 220
    with ThreadPoolExecutor(8) as pool:
        list(
            pool.map(
                lambda i: storage.write(
                    f"{prefix}/in/{i:04d}.png", cv2.imencode(".png", pixels[i])[1].tobytes()
                ),
                range(n),
            )
        )
    storage.write(f"{prefix}/in/empty.png", b"")
    names = [f"{i:04d}.png" for i in range(n)] + ["empty.png", "0001-gone.png", "zz-gone.png"]
    storage.write(f"{prefix}/in/all.txt", "\n".join(names).encode())
    return f"{prefix}/in/all.txt"


def _config(source: str, output: str, *sets: str) -> Config:
    flags = {
        "input": ("input", source),
        "output": ("output", output),
        "model": ("model.name", "tests.support.fake_models:BrightModel"),
    }
    common = ["ray.max_actors=2", "run.max_failed_fraction=0.5"]
    return load_config(sets=[*common, *sets], flags=flags)


def _tables(prefix: str) -> dict[str, bytes]:
    storage = Storage()
    return {
        info.uri.removeprefix(prefix): storage.read(info.uri)
        for table in ("images", "instances")
        for info in storage.list(f"{prefix}/{table}")
    }


class _Watcher(threading.Thread):
    """Reads every part that can be seen, past the proxy, as soon as it can be seen."""

    def __init__(self, output: str) -> None:
        super().__init__(daemon=True)
        self.output, self.seen, self.partial = output, 0, []
        self._stop_asked = threading.Event()

    def run(self) -> None:
        storage = Storage()
        known: set[tuple[str, str]] = set()
        while not self._stop_asked.wait(0.05):
            for info in storage.list(self.output):
                if (info.uri, info.etag) in known or not info.uri.endswith(".parquet"):
                    continue
                known.add((info.uri, info.etag))
                self.seen += 1
                try:
                    pq.read_table(io.BytesIO(storage.read(info.uri)))
                except Exception as error:
                    self.partial.append((info.uri, repr(error)))

    def stop(self) -> None:
        self._stop_asked.set()
        self.join()


def _compare(s3: LoopbackS3, prefix: str, n: int, per_unit: int, seed: int) -> FaultProxy:
    """Run twice, once disturbed: both must be the same to the last byte."""
    source = _archive(prefix, n)
    units = f"plan.images={per_unit}"
    calm = segment(_config(source, f"{prefix}/calm", units))
    watcher = _Watcher(f"{prefix}/rough")
    watcher.start()
    try:
        with FaultProxy(s3.endpoint, 0.05, seed=seed, stall_s=30) as proxy:
            through = [f"storage.endpoint_url={proxy.endpoint}", f"storage.timeout_s={TIMEOUT_S}"]
            config = _config(source, f"{prefix}/rough", units, *through, "storage.retries=12")
            rough = segment(config)
    finally:
        watcher.stop()
    found = (rough.exit_code, rough.images, rough.failed)
    assert found == (0, n + 3, 3), rough.errors
    assert rough.failures == {"empty": 1, "not_found": 2}
    assert rough.failures == calm.failures
    assert _tables(rough.prefix) == _tables(calm.prefix)
    assert watcher.partial == []
    assert watcher.seen >= rough.units
    assert verify_output(Storage(), f"{prefix}/rough").exit_code == 0
    return proxy


@pytest.mark.ray
@pytest.mark.faults
def test_a_disturbed_run_equals_the_undisturbed_one(
    ray_session: None, s3: LoopbackS3, s3_prefix: str
) -> None:
    proxy = _compare(s3, s3_prefix, n=60, per_unit=16, seed=4)
    assert proxy.injected.total() >= 10


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(10))
def test_disturbed_runs_equal_the_undisturbed_ones(
    ray_session: None, s3: LoopbackS3, s3_prefix: str, seed: int
) -> None:
    proxy = _compare(s3, s3_prefix, n=400, per_unit=16, seed=seed)
    print(f"seed {seed}: {proxy.requests} requests, injected {dict(proxy.injected)}")
    assert set(proxy.injected) == set(FAULTS)


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(100, 120))
def test_disturbed_serial_runs_equal_the_undisturbed_one(
    s3: LoopbackS3, s3_prefix: str, seed: int
) -> None:
    source = _archive(s3_prefix, 300)
    calm = serial_run.segment(_config(source, f"{s3_prefix}/calm", "plan.images=8"))
    with FaultProxy(s3.endpoint, 0.05, seed=seed, stall_s=30) as proxy:
        options = {"storage.endpoint_url": proxy.endpoint, "storage.timeout_s": TIMEOUT_S}
        sets = [f"{key}={value}" for key, value in options.items()]
        config = _config(source, f"{s3_prefix}/rough", "plan.images=8", "storage.retries=12", *sets)
        rough = serial_run.segment(config)
    print(f"seed {seed}: {proxy.requests} requests, injected {dict(proxy.injected)}")
    assert set(proxy.injected) == set(FAULTS)
    assert rough.failures == {"empty": 1, "not_found": 2}
    assert _tables(rough.prefix) == _tables(calm.prefix)
