"""Faults that only many units meet: throttled prefixes, listings that change, keys that expire.

Whole runs without Ray, on a server in memory; threads do the units as actors do. Each test has a
small number of units for `make faults` and ten thousand, or FAULT_UNITS, for `make chaos`.
"""

from __future__ import annotations

import os
import random
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest

from segcore.config import Config
from segcore.errors import StorageError, describe_error
from segcore.models.registry import load_model
from segcore.output.report import RunReport
from segcore.output.results import open_results
from segcore.run.job import Job
from segcore.run.passes import Notify, Pass, RunState
from segcore.run.segment import segment
from segcore.storage import Storage, StorageOptions
from segcore.worker.read_options import ReadOptions
from segcore.worker.unit_worker import UnitWorker
from tests.support.bright_images import boxed_png
from tests.support.fake_s3 import FakeS3
from tests.support.jobs import job_config, part_bytes
from tests.support.serial_run import without_ray

FEW, MANY = 120, int(os.environ.get("FAULT_UNITS", "10000"))
_WORKERS = 4
_IMAGES_PER_FOLDER = 100
_MAX_RUNS = 6  # of the same command, until it says that all is done

pytestmark = [pytest.mark.timeout(7200)]
scales = pytest.mark.parametrize(
    "n_units",
    [
        pytest.param(FEW, marks=pytest.mark.faults),
        pytest.param(MANY, marks=pytest.mark.chaos),
    ],
)


@pytest.fixture(autouse=True)
def aws_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keys that the server takes, whatever this machine has."""
    for name in ("AWS_ENDPOINT_URL", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    without_ray(monkeypatch, _run_passes)


def _run_passes(job: Job, passes: Sequence[Pass], state: RunState, notify: Notify) -> None:
    """As `segcore.run.passes.run_passes`, by threads of this process."""
    model = load_model(job.config.model.name, job.config.model.options())
    config = job.config
    reading = ReadOptions(job.storage, config.source, config.decode, 1, 1 << 29, 60.0)
    worker = UnitWorker(model, reading, job.parts)

    for current in passes:
        units = current.units
        for _ in range(config.run.attempts):
            with ThreadPoolExecutor(_WORKERS) as pool:
                futures = {unit.unit: pool.submit(worker.segment, unit) for unit in units}
            for unit, future in futures.items():
                if (error := future.exception()) is None:
                    state.done.add(unit)
                    state.errors.pop(unit, None)
                else:
                    state.errors[unit] = describe_error(error)
            if not (units := current.units_left(job, state)):
                break


def _key(number: int) -> str:
    return f"in/{number // _IMAGES_PER_FOLDER:04d}/{number:06d}.png"


def _png(seed: int) -> bytes:
    return boxed_png(20 + seed % 7, 30 + seed % 5, box=(3, 7 + seed % 9, 7, 20))


@pytest.fixture
def server(n_units: int) -> Iterator[FakeS3]:
    """An archive of one image for each unit, in folders, and some that cannot be read."""
    pngs = [_png(seed) for seed in range(35)]
    objects = {_key(number): pngs[number % 35] for number in range(n_units)}
    objects[_key(7)] = b""
    objects[_key(n_units - 1)] = b"no image"
    with FakeS3(objects, page_keys=_IMAGES_PER_FOLDER // 3) as fake:
        yield fake


def _config(server: FakeS3, output: str, *sets: str) -> Config:
    return job_config(
        "s3://bucket/in",
        f"s3://bucket/{output}",
        *(f"storage.endpoint_url={server.endpoint}", "plan.images=1"),
        *("run.max_failed_fraction=0.5", *sets),
    )


def _run_until_done(
    config: Config, before_each: Callable[[], object] = lambda: None
) -> list[RunReport]:
    """The reports of one command that is run again until it exits with 0; the last one did."""
    reports: list[RunReport] = []
    for _ in range(_MAX_RUNS):
        before_each()
        with suppress(StorageError):  # the command would exit with 1 and say why
            reports.append(segment(config))
            if reports[-1].exit_code == 0:
                return reports
    raise AssertionError(f"never done: {reports}")


def _parts(server: FakeS3, report: RunReport) -> dict[str, bytes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        return part_bytes(report.prefix)


def _rows(server: FakeS3, report: RunReport) -> list[tuple[object, ...]]:
    """What a reader is told of each image, in whatever unit it is."""
    columns = ("image_id", "etag", "status", "error_code", "n_instances", "width", "height")
    storage = Storage(StorageOptions(endpoint_url=server.endpoint))
    tables = open_results(storage, report.output).images(columns)
    rows = [row for table in tables for row in table.select(columns).to_pylist()]
    return sorted(tuple(str(row[name]) for name in columns) for row in rows)


class _Throttle:
    """Refuses requests below hot prefixes for a while, again and again, as S3 does.

    A while is counted in requests, not in seconds, so that nothing depends on the machine.
    """

    ACCEPTED, REFUSED = 40, 12  # requests in turn, for each prefix

    def __init__(self, folders: Sequence[str]) -> None:
        self._requests = dict.fromkeys(folders, 0)
        self._lock = threading.Lock()
        self.refused: Counter[str] = Counter()

    def __call__(self, method: str, key: str | None) -> tuple[int, str] | None:
        folder = next((name for name in self._requests if (key or "").startswith(name)), None)
        if folder is None:
            return None
        with self._lock:
            self._requests[folder] += 1
            if self._requests[folder] % (self.ACCEPTED + self.REFUSED) < self.ACCEPTED:
                return None
            self.refused[folder] += 1
        return 503, "SlowDown"


@scales
def test_a_run_that_is_throttled_equals_one_that_is_not(server: FakeS3, n_units: int) -> None:
    undisturbed = segment(_config(server, "undisturbed"))
    assert (undisturbed.exit_code, undisturbed.images, undisturbed.failed) == (0, n_units, 2)
    hot = ["in/0000/", "throttled/"]
    throttle = _Throttle(hot)
    server.refuse = throttle
    reports = _run_until_done(_config(server, "throttled"))
    server.refuse = lambda *_: None
    assert throttle.refused.keys() == set(hot)
    assert throttle.refused.total() >= n_units // 3
    assert len(reports) == 1  # requests are patient, so no unit is left
    assert reports[-1].failures == undisturbed.failures
    assert _parts(server, reports[-1]) == _parts(server, undisturbed)


@pytest.mark.faults
@pytest.mark.parametrize("n_units", [FEW])
def test_a_prefix_that_stays_throttled_fails_no_image(
    server: FakeS3, n_units: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An outage: units are left undone, and the same command does them later."""
    undisturbed = segment(_config(server, "undisturbed"))
    monkeypatch.setattr("segcore.storage.retries._PATIENCE_S_PER_RETRY", 0.1)
    monkeypatch.setattr("segcore.storage.retries._MAX_DELAY_S", 0.1)
    config = _config(server, "throttled", "storage.retries=2")
    server.refuse = lambda method, key: (
        (503, "SlowDown") if method == "GET" and (key or "").startswith("in/0000/") else None
    )
    report = segment(config)
    assert (report.exit_code, report.units_missing) == (1, _IMAGES_PER_FOLDER)
    assert any("there are too many" in error for error in report.errors)
    assert report.failed == 1  # that of the other folder, which is no image
    server.refuse = lambda *_: None
    report = segment(config)
    assert (report.exit_code, report.failures) == (0, undisturbed.failures)
    assert _parts(server, report) == _parts(server, undisturbed)


@scales
def test_keys_that_expire_and_are_renewed_disturb_nothing(
    server: FakeS3, n_units: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """An hour of AWS's temporary keys is two seconds here, and so are botocore's margins."""
    undisturbed = segment(_config(server, "undisturbed"))
    hour_s = 2.0
    credentials = "botocore.credentials.RefreshableCredentials"
    monkeypatch.setattr(f"{credentials}._advisory_refresh_timeout", hour_s / 4)
    monkeypatch.setattr(f"{credentials}._mandatory_refresh_timeout", hour_s / 6)
    ttl = timedelta(seconds=hour_s / 12)
    monkeypatch.setattr("segcore.storage.object_store._CREDENTIALS_TTL", ttl)

    issuer = tmp_path / "issue-keys"
    issuer.write_text(_KEY_ISSUER.replace("LIFETIME_S", str(int(hour_s))))
    issuer.chmod(0o755)
    profile = tmp_path / "aws-config"
    profile.write_text(f"[default]\ncredential_process = {issuer}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(profile))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)

    seen: Counter[str] = Counter()
    refused: Counter[str] = Counter()

    def accepts(access_key: str) -> bool:
        seen[access_key] += 1
        valid = time.time() < float(access_key.removeprefix("KEY"))
        refused[access_key] += not valid
        return valid

    server.accepts = accepts
    pause = 0.2 if n_units == FEW else 0.0  # so that some hours pass
    server.refuse = lambda method, key: time.sleep(pause * (method == "GET" and bool(key)))
    reports = _run_until_done(_config(server, "renewed"))
    server.refuse = lambda *_: None
    server.accepts = lambda access_key: True
    assert len(seen) >= 3
    assert refused.total() <= seen.total() / 20  # a request on its way when its key expired
    assert _parts(server, reports[-1]) == _parts(server, undisturbed)


# Prints keys whose name says until when they are valid; whole seconds, as AWS does.
_KEY_ISSUER = """#!/bin/sh
end=$(( $(date +%s) + LIFETIME_S ))
expiration=$(date -u -d "@$end" +%Y-%m-%dT%H:%M:%SZ)
echo "{\\"Version\\": 1, \\"AccessKeyId\\": \\"KEY$end\\", \\"SecretAccessKey\\": \\"s\\", \
\\"SessionToken\\": \\"t\\", \\"Expiration\\": \\"$expiration\\"}"
"""


@scales
def test_parts_that_are_listed_late_are_neither_lost_nor_doubled(
    server: FakeS3, n_units: int
) -> None:
    """Some stores list an object only some time after they took it."""
    undisturbed = segment(_config(server, "undisturbed"))
    rng = random.Random(3)
    # Counted in pages and runs, not in seconds, of which a fast machine needs one for six runs.
    lags = [rng.choice((0, 0, 1, 3)) if rng.random() < 0.2 else None for _ in range(1000)]
    first_run: dict[str, int] = {}
    pages: Counter[str] = Counter()
    runs: list[str] = []
    hidden: set[str] = set()

    def is_listed(key: str) -> bool:
        if not key.startswith("late/") or "/lease/" in key:
            return True
        pages[key] += 1
        since = first_run.setdefault(key, len(runs))
        lag = lags[zlib.crc32(key.encode()) % len(lags)]
        if lag is None or (pages[key] > 5 and len(runs) - since >= lag):
            return True
        hidden.add(key)
        return False

    server.is_listed = is_listed
    writes: Counter[str] = Counter()

    def count(method: str, key: str | None) -> None:
        if method == "PUT" and key and key.startswith("late/"):
            writes[key] += 1

    server.refuse = count
    reports = _run_until_done(_config(server, "late"), before_each=lambda: runs.append("run"))
    server.is_listed = lambda key: True
    assert len(hidden) >= n_units // 10
    assert len(reports) > 1
    assert all("not listed" in error for report in reports[:-1] for error in report.errors)
    assert all(report.errors for report in reports[:-1])
    assert reports[-1].images == n_units
    assert _parts(server, reports[-1]) == _parts(server, undisturbed)
    images = {key: n for key, n in writes.items() if "/images/" in key}
    assert len(images) == n_units
    assert sum(images.values()) <= 2 * n_units


class _ChangingArchive:
    """Adds, replaces and deletes images while their listing is read, page by page."""

    def __init__(self, server: FakeS3, n_images: int, seed: int) -> None:
        self._server = server
        self._rng = random.Random(seed)
        self._next_number = n_images
        self._lock = threading.Lock()
        self.changes: Counter[str] = Counter()

    def __call__(self, method: str, key: str | None) -> None:
        if key is not None:  # not a page of a listing
            return
        server, rng = self._server, self._rng
        with self._lock, server.lock:
            images = [name for name in server.objects if name.startswith("in/")]
            for _ in range(2):
                kind, name = rng.choice(("add", "replace", "delete")), rng.choice(images)
                if kind == "add":
                    folder = name.rpartition("/")[0]
                    server.objects[f"{folder}/new-{self._next_number}.png"] = _png(
                        rng.randrange(35)
                    )
                    self._next_number += 1
                elif kind == "replace":
                    server.objects[name] = _png(rng.randrange(35))
                else:
                    server.objects.pop(name, None)
                self.changes[kind] += 1


@scales
def test_a_listing_that_changes_while_it_is_read_is_made_up_for(
    server: FakeS3, n_units: int
) -> None:
    changing = _ChangingArchive(server, n_units, seed=5)
    config = _config(server, "changing", "source.allow_shrunk_listing=true")
    for _ in range(2):
        server.refuse = changing
        segment(config)  # what changed between its listing and its reading is left undone
        server.refuse = lambda *_: None
    assert min(changing.changes[kind] for kind in ("add", "replace", "delete")) >= 3
    changed = _run_until_done(config)[-1]
    undisturbed = segment(_config(server, "undisturbed"))
    n_images = sum(name.startswith("in/") for name in server.objects)
    assert undisturbed.images == n_images
    assert changed.images == n_images
    assert _rows(server, changed) == _rows(server, undisturbed)
