"""Whole runs in which the store refuses requests from a moment on: no image is blamed for it.

Credentials that expire, that are unknown or wrong, a clock that is off, rights that are taken away:
the run ends with 1, says which, and leaves units undone; the same command does them later.
One object that may not be read or written is another matter: one failed row, or one unit.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from subprocess import CompletedProcess
from typing import Any

import pyarrow.parquet as pq
import pytest

from segcore.config import RayOptions
from segcore.distributed.cluster import connected
from tests.support.bright_images import bright_png
from tests.support.commands import call_segcore, run_segcore
from tests.support.fake_s3 import FakeS3
from tests.support.jobs import BRIGHT_MODEL
from tests.support.paths import PYTHONPATH
from tests.support.refusing_store import MOMENTS, Refusal
from tests.support.run_without_ray import without_ray

pytestmark = pytest.mark.timeout(600)

N_IMAGES = 24
IMAGES = {f"in/{i:03}.png": bright_png(i, size=(30, 40)) for i in range(N_IMAGES)}
STATUS = {
    "ExpiredToken": 400,
    "InvalidAccessKeyId": 403,
    "SignatureDoesNotMatch": 403,
    "RequestTimeTooSkewed": 403,
    "AccessDenied": 403,
}
Run = Callable[..., CompletedProcess[str]]


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")


@pytest.fixture(scope="module")
def workers() -> Iterator[None]:
    """A Ray whose workers have credentials."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "x")
        patch.setenv("PYTHONPATH", PYTHONPATH)
        with connected(RayOptions()):
            yield


def _segment(run: Run, fake: FakeS3, *more: str) -> CompletedProcess[str]:
    store = f"storage.endpoint_url={fake.endpoint}"
    # A run that cannot renew its lease waits for its end.
    sets = ["plan.images=4", "ray.max_actors=2", "run.lease_ttl_s=20", store, *more]
    flags = [word for text in sets for word in ("--set", text)]
    model = ("--model", BRIGHT_MODEL)
    return run("segment", "s3://bucket/in", "s3://bucket/out", *model, *flags, "--json")


def _rows(fake: FakeS3) -> list[dict[str, Any]]:
    """All rows of `images` that were committed, read past the store."""
    parts = [data for key, data in fake.objects.items() if key.split("/")[2:3] == ["images"]]
    return [row for data in parts for row in pq.read_table(io.BytesIO(data)).to_pylist()]


def check_outage(run: Run, code: str, moment: str) -> None:
    """All is refused from this moment on."""
    refusal = Refusal((STATUS[code], code), moment)
    with FakeS3(IMAGES) as fake:
        fake.refuse = refusal
        stopped = _segment(run, fake)
        assert refusal.has_begun
        assert stopped.returncode == 1, stopped.stderr
        assert code in stopped.stderr
        assert "Traceback" not in stopped.stderr
        assert json.loads(stopped.stdout)["errors"]
        rows = _rows(fake)
        assert [row for row in rows if row["status"] != "ok"] == []
        assert len(rows) == {"commit": 8}.get(moment, len(rows)) < N_IMAGES

        fake.refuse = lambda *_: None
        for key in [key for key in fake.objects if "/lease/" in key]:
            del fake.objects[key]  # as if it had expired: nobody could give it back
        resumed = _segment(run, fake)
        assert resumed.returncode == 0, resumed.stderr
        report = json.loads(resumed.stdout)
        assert (report["images"], report["ok"], report["units_missing"]) == (N_IMAGES, N_IMAGES, 0)
        assert len(_rows(fake)) == N_IMAGES


def check_refused_object(run: Run, moment: str) -> None:
    """One object alone may not be read or written."""
    refusal = Refusal((403, "AccessDenied"), moment, only_one=True)
    with FakeS3(IMAGES) as fake:
        fake.refuse = refusal
        done = _segment(run, fake, "run.max_failed_fraction=0.1")
        document = json.loads(done.stdout)
        rows = _rows(fake)
        failed = [row for row in rows if row["status"] != "ok"]
        if moment in ("first read", "middle"):
            assert done.returncode == 0, done.stderr
            assert [(row["uri"], row["error_code"]) for row in failed] == [
                (f"s3://bucket/{refusal.key}", "access_denied")
            ]
            assert (document["ok"], document["failed"]) == (N_IMAGES - 1, 1)
            assert _segment(run, fake, "run.max_failed_fraction=0").returncode == 3
            return
        assert done.returncode == 1, done.stderr
        assert "AccessDenied" in done.stderr + done.stdout
        assert failed == []
        if moment == "commit":
            assert document["units_missing"] == 1
            assert len(rows) == N_IMAGES - 4


@pytest.mark.faults
@pytest.mark.parametrize("code", STATUS)
def test_an_outage_blames_no_image(credentials: None, code: str) -> None:
    """Runs of the command in one process: what workers do, without starting any."""
    with without_ray():
        for moment in MOMENTS:
            check_outage(call_segcore, code, moment)


@pytest.mark.faults
def test_one_refused_object_is_one_row_or_one_unit(credentials: None) -> None:
    with without_ray():
        for moment in MOMENTS:
            check_refused_object(call_segcore, moment)


@pytest.mark.ray
@pytest.mark.faults
def test_the_same_with_workers(workers: None) -> None:
    check_outage(call_segcore, "ExpiredToken", "middle")


@pytest.mark.ray
@pytest.mark.chaos
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("code", STATUS)
def test_the_same_in_processes(credentials: None, code: str, moment: str) -> None:
    check_outage(run_segcore, code, moment)
    if code == "AccessDenied":
        check_refused_object(run_segcore, moment)
