"""The account of a run takes what is known of parts, and costs nothing for each unit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from segcore.inspection.status import read_status
from segcore.output.layout import EditionLayout
from segcore.output.parts import Parts
from segcore.output.report import RunReport
from segcore.run.segment import segment
from segcore.storage import Storage
from tests.support import run_without_ray
from tests.support.bright_images import bright_png
from tests.support.jobs import job_config, write_files


@pytest.fixture(autouse=True)
def _without_ray() -> Iterator[None]:
    with run_without_ray.without_ray():
        yield


def _write_images(folder: Path, first: int, last: int) -> None:
    images = {f"{i:02d}.png": bright_png(i) if i % 5 else b"no image" for i in range(first, last)}
    write_files(folder / "in", images)


def _segment(folder: Path, **options: bool) -> RunReport:
    sets = ("plan.images=4", "run.max_failed_fraction=0.5")
    return segment(job_config(folder / "in", folder / "out", *sets), **options)


def _numbers(report: RunReport) -> tuple:
    failures = report.failures, report.warnings, report.notes
    return report.images, report.ok, report.failed, report.instances, failures


def _recounted(report: RunReport) -> tuple:
    """The numbers of a report from the footers of all parts, one after the other."""
    parts = Parts(Storage(), report.prefix, report.edition, report.run, "", ())
    generations = parts.list_generations()
    counts = list(parts.as_listed(generations).read_counts(generations))
    counters = tuple(
        dict(sum((Counter(getattr(part, name)) for part in counts), Counter()))
        for name in ("failures", "warnings", "notes")
    )
    sums = (sum(getattr(part, name) for part in counts) for name in ("ok", "failed", "instances"))
    return (report.images, *sums, counters)


@contextmanager
def _counted_requests() -> Iterator[Counter[tuple[str, str]]]:
    """(method, last folder and name) of each access to storage."""
    requests: Counter[tuple[str, str]] = Counter()

    def counted(name: str) -> Any:
        method = getattr(Storage, name)

        def call(storage: Storage, uri: str, *args: Any, **options: Any) -> Any:
            requests[name, "/".join(uri.split("/")[-2:])] += 1
            return method(storage, uri, *args, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("stat", "read_version", "read_range", "open", "listing", "list_with_times"):
            patch.setattr(Storage, name, counted(name))
        yield requests


def _opened_parts(requests: Counter[tuple[str, str]]) -> int:
    return sum(n for (_, name), n in requests.items() if name.startswith("images/"))


def test_no_part_is_opened_for_the_account_of_a_run_or_of_one_that_has_nothing_to_do(tmp_path):
    _write_images(tmp_path, 0, 18)
    with _counted_requests() as requests:
        first = _segment(tmp_path)
    assert _opened_parts(requests) == 0
    assert requests["read_version", "out/latest.json"] <= 3  # before, under the lease, at the end
    assert _numbers(first) == _recounted(first)

    with _counted_requests() as requests:
        again = _segment(tmp_path)
    assert again.nothing_to_do
    assert _numbers(again) == _numbers(first)
    assert _opened_parts(requests) == 0
    assert requests["read_version", "out/latest.json"] == 1
    assert requests["listing", f"{first.edition}/images"] == 1

    with _counted_requests() as requests:
        status = read_status(Storage(), str(tmp_path / "out"))
    assert (status.ok, status.failures) == (first.ok, first.failures)
    assert _opened_parts(requests) == 0
    assert not [name for _, name in requests if name in ("runs/history", f"{first.edition}/runs")]


def test_the_account_is_right_whatever_the_cache_holds(tmp_path, monkeypatch):
    """New images, a retry, a cache that is lost, of another time, or damaged."""
    _write_images(tmp_path, 0, 10)
    report = _segment(tmp_path)
    layout, storage = EditionLayout(report.prefix), Storage()
    old_cache = {info.uri: storage.read(info.uri) for info in storage.list(layout.counts_folder)}
    assert old_cache

    _write_images(tmp_path, 10, 20)
    report = _segment(tmp_path)
    assert _numbers(report) == _recounted(report)
    assert report.images == 20

    write_files(tmp_path / "in", {"05.png": bright_png(5)})  # its unit is cut anew
    report = _segment(tmp_path, retry_failed=True)
    assert _numbers(report) == _recounted(report)
    assert report.images_retried == report.failed == 3

    for damage in (b"", b"PAR1", None):
        for info in list(storage.list(layout.counts_folder)):
            storage.delete(info.uri)
        for uri, data in old_cache.items():
            storage.write(uri, data if damage is None else damage)
        again = _segment(tmp_path)
        assert again.nothing_to_do
        assert _numbers(again) == _numbers(report) == _recounted(report)

    for info in list(storage.list(layout.counts_folder)):
        storage.delete(info.uri)
    _segment(tmp_path)
    assert list(storage.list(layout.counts_folder)) == []  # it would hardly save time
    monkeypatch.setattr("segcore.output.counts_cache._WORTHWHILE_ROWS", 3)
    assert _segment(tmp_path).nothing_to_do
    assert list(storage.list(layout.counts_folder)) != []

    report = _segment(tmp_path, overwrite=True)
    assert _numbers(report) == _recounted(report)
    assert [i.uri for i in storage.list(layout.counts_folder) if i.size == 0] == []
