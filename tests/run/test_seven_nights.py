"""Seven nights of `segcore reprocess`, over an archive that grows, shrinks and changes."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from segcore.inspection.verify import verify_output
from segcore.output.layout import OutputLayout
from segcore.run.reprocess_report import ReprocessReport
from segcore.storage import Storage
from tests.support import serial_run
from tests.support.bright_images import bright_png, bright_pngs
from tests.support.jobs import write_files
from tests.support.nights import BLIND_MODEL, fresh_rows, night, published_rows
from tests.support.run_without_ray import ProcessKilled, killed_when

OLD, NEW, NEWEST = "model.conf=0.25", "model.conf=0.5", "model.conf=0.75"


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    serial_run.without_ray(monkeypatch)
    monkeypatch.setattr("segcore.run.reprocess._WAIT_S", 0.05)


def _add(folder: Path, *seeds: int) -> None:
    write_files(folder / "in", {f"{seed:03d}.png": bright_png(seed) for seed in seeds})


def _at_once(folder: Path, *sets: str) -> list[str]:
    """Two schedulers call at the same time; how their calls end, sorted."""
    statuses: list[str] = []

    def call() -> None:
        statuses.append(night(folder, *sets, "schedule.if_busy=wait").status)

    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(statuses)


@pytest.mark.faults
def test_seven_nights(tmp_path: Path) -> None:
    output = OutputLayout(str(tmp_path / "out"))
    write_files(tmp_path / "in", bright_pngs(20))
    dates = iter(f"2026-11-{day:02d}" for day in range(1, 9))

    def call(*sets: str, **options: str) -> ReprocessReport:
        return night(tmp_path, *sets, date=next(dates), **options)

    # 1: the first one
    first = call(OLD)
    assert first.status == "published"
    assert published_rows(tmp_path) == fresh_rows(tmp_path, "1", OLD)

    # 2: it has grown, one image changed, one is gone; two schedulers at once
    _add(tmp_path, 20, 21, 22, 23)
    write_files(tmp_path / "in", {"004.png": bright_png(104)})
    (tmp_path / "in" / "007.png").unlink()
    assert _at_once(tmp_path, OLD) == ["nothing_to_do", "published"]
    assert published_rows(tmp_path) == fresh_rows(tmp_path, "2", OLD)

    # 3: a new model
    _add(tmp_path, 24)
    third = call(NEW)
    assert (third.status, third.before) == ("published", first.edition)
    assert published_rows(tmp_path) == fresh_rows(tmp_path, "3", NEW)

    # 4: a bad model; new images come in under the published one
    _add(tmp_path, 25, 26)
    bad = call(model=BLIND_MODEL)
    assert (bad.status, bad.exit_code, bad.updated, bad.images_added) == ("refused", 4, True, 2)
    expected = fresh_rows(tmp_path, "4", NEW)
    assert published_rows(tmp_path) == expected

    # 5: another model, and a budget that ends in the middle
    fifth = call(NEWEST, "run.max_images=12")
    assert (fifth.status, fifth.exit_code) == ("budget_reached", 0)
    assert published_rows(tmp_path) == expected

    # 6: the rest
    sixth = call(NEWEST)
    assert (sixth.status, sixth.images_this_time) == ("published", 26 - fifth.images_this_time)
    assert published_rows(tmp_path) == fresh_rows(tmp_path, "6", NEWEST)

    # 7: back to the model of night three; the process dies when the pointer is to move
    expected = published_rows(tmp_path)
    _add(tmp_path, 27)
    with (
        pytest.raises(ProcessKilled),
        killed_when(lambda n, kind, uri: uri == output.latest_json),
    ):
        call(NEW)
    assert published_rows(tmp_path) == expected
    seventh = call(NEW)
    assert (seventh.status, seventh.images_this_time) == ("published", 0)
    assert published_rows(tmp_path) == fresh_rows(tmp_path, "7", NEW)
    assert night(tmp_path, NEW).status == "nothing_to_do"

    assert not verify_output(Storage(), output.uri, seventh.edition).counts
    calls = [json.loads(path.read_bytes()) for path in Path(output.reprocess_calls).iterdir()]
    assert sorted((c["logical_date"], c["status"]) for c in calls) == [
        ("", "published"),  # night two
        ("2026-11-01", "published"),
        ("2026-11-02", "published"),
        ("2026-11-03", "refused"),
        ("2026-11-04", "budget_reached"),
        ("2026-11-05", "published"),
        ("2026-11-07", "published"),
    ]
