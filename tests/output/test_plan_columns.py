"""Columns of a plan in a store: the same as of a file, with few requests and many at once."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from segcore.output.plan_columns import read_plan_columns
from segcore.planning.plan import Plan, Units, run_name
from segcore.planning.plan_files import encode_plan
from segcore.sources.unit_tables import units_to_table
from segcore.sources.units import Member, make_objects_unit
from segcore.storage import Storage, StorageOptions
from tests.support.fake_s3 import FakeS3

COLUMNS = ["unit", "n_images", "n_bytes"]


def _plan(n_units: int) -> bytes:
    units = []
    for number in range(n_units):
        uris = [f"s3://bucket/photos/{number:05d}/{image:03d}.jpg" for image in range(20)]
        members = [Member(uri, uri, f"{hash(uri) % 2**64:032x}", 1000) for uri in uris]
        units.append(make_objects_unit(members))
    table = units_to_table(units)
    return encode_plan(Plan(run_name(table), "s3://bucket/photos", Units(table)))


@pytest.mark.slow
@pytest.mark.parametrize("n_units", [0, 1, 513, 4000])
def test_columns_in_a_store_are_those_of_the_file(
    n_units: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    data = _plan(n_units)
    (tmp_path / "plan.parquet").write_bytes(data)
    expected = read_plan_columns(Storage(), str(tmp_path / "plan.parquet"), COLUMNS)
    assert expected.num_rows == n_units
    n_groups = -(-n_units // 512)
    both = threading.Barrier(2, timeout=30)  # two requests for groups are there at once
    with FakeS3({"plan.parquet": data}) as server:
        storage = Storage(StorageOptions(endpoint_url=server.endpoint, retries=0))
        lock, n_requests = threading.Lock(), 0

        def meet(method: str, key: str | None) -> None:
            nonlocal n_requests
            with lock:
                n_requests += 1
                number = n_requests
            if n_groups > 1 and number in (n_requests_before_groups + 1, number_of_second):
                both.wait()

        n_requests_before_groups = 2  # for the size, and for the footer
        number_of_second = n_requests_before_groups + 2
        server.refuse = meet
        columns = read_plan_columns(storage, "s3://bucket/plan.parquet", COLUMNS)
    assert columns.equals(expected)
    assert n_requests <= 3 + 2 * n_groups
