"""Tars that an older reader read up to their first end mark are found, and done again alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import segcore.output.parts
import segcore.sources.tar
import segcore.sources.tar_index
from segcore.errors import StorageError
from segcore.inspection.verify import verify_output
from segcore.output.layout import EditionLayout
from segcore.output.report import RunReport
from segcore.output.rereads import read_reread_marks
from segcore.run.segment import segment
from segcore.sources.tar_members import TarMember, iter_tar_members
from segcore.storage import Storage
from tests.support.archives import tar_bytes
from tests.support.bright_images import bright_pngs
from tests.support.jobs import image_rows, job_config, part_bytes, table_rows
from tests.support.run_without_ray import without_ray

storage = Storage()
IMAGES = list(bright_pngs(12).items())
FIRST, SECOND = tar_bytes(IMAGES[:5]), tar_bytes(IMAGES[5:9])
PLAIN = tar_bytes([(f"plain{name}", data) for name, data in IMAGES[9:]])


@pytest.fixture(autouse=True)
def _no_ray() -> Iterator[None]:
    with without_ray():
        yield


def _run_old_version(folder: Path, monkeypatch: pytest.MonkeyPatch, *sets: str) -> RunReport:
    """A run with a reader that stops at the first end mark, as that of commit e8b9e42 did."""

    def up_to_first_end_mark(
        file, start: int, stop: int, size: int, *args: Counter[str]
    ) -> Iterator[TarMember]:
        end = len(FIRST) if size == len(FIRST + SECOND) else size
        return iter_tar_members(file, start, min(stop, end), end, *args)

    (folder / "in").mkdir()
    (folder / "in/joined.tar").write_bytes(FIRST + SECOND)
    (folder / "in/plain.tar").write_bytes(PLAIN)
    with monkeypatch.context() as patch:
        for module in (segcore.sources.tar, segcore.sources.tar_index):
            patch.setattr(module, "iter_tar_members", up_to_first_end_mark)
        patch.setattr(segcore.output.parts, "READER_VERSION", 1)
        return segment(job_config(folder / "in", folder / "out", *sets))


# As one unit, and cut into several when it was planned.
@pytest.mark.parametrize(
    "sets", [[], pytest.param(["plan.bytes=1000", "plan.images=2"], marks=pytest.mark.slow)]
)
def test_a_joined_tar_is_found_and_done_again_alone(tmp_path, monkeypatch, sets) -> None:
    old = _run_old_version(tmp_path, monkeypatch, *sets)
    assert (old.exit_code, old.images) == (0, 8)
    output = str(tmp_path / "out")
    config = job_config(tmp_path / "in", output, *sets)
    assert segment(config).images_this_time == 0  # a run alone looks for nothing
    assert verify_output(storage, output).problems == []
    (problem,) = verify_output(storage, output, check_input=True).problems
    assert problem.kind == "unread_images"
    assert "joined.tar holds 4 images more than were read from it" in problem.message

    assert (old.units > 2) == bool(sets)
    plain = {row["unit"] for row in table_rows(old.prefix, "images") if "plain" in row["image_id"]}
    before = part_bytes(old.prefix)
    sentences: list[str] = []
    report = segment(config, notify=sentences.append)
    assert "Reading 1 shard again for more images." in sentences
    assert (report.exit_code, report.images) == (0, 12)
    assert report.images_this_time == 4 + bool(sets)  # the old last unit had 1, and is cut anew
    expected = segment(job_config(tmp_path / "in", tmp_path / "anew", *sets))
    rows, rows_anew = image_rows(report.prefix), image_rows(expected.prefix)
    assert {name: row["n_instances"] for name, row in rows.items()} == {
        name: row["n_instances"] for name, row in rows_anew.items()
    }
    after = part_bytes(report.prefix)
    assert all(after[name] == before[name] for name in before if name[-28:-8] in plain)
    assert any(name[-28:-8] in plain for name in before)
    assert verify_output(storage, output, check_input=True).problems == []
    assert read_reread_marks(storage, EditionLayout(report.prefix)) == {}
    assert segment(config).images_this_time == 0


def test_a_shard_that_cannot_be_read_again_is_no_success(tmp_path, monkeypatch) -> None:
    _run_old_version(tmp_path, monkeypatch)
    config = job_config(tmp_path / "in", tmp_path / "out")
    assert verify_output(storage, config.output, check_input=True).exit_code == 1

    def unavailable(*args: object) -> None:
        raise StorageError("the network is away")

    with monkeypatch.context() as patch:
        patch.setattr(segcore.sources.tar, "stat_unchanged_shard", unavailable)
        report = segment(config)
    assert (report.exit_code, report.images) == (1, 8)  # what was there is there still
    assert report.errors == (
        "1 shard could not be read again for more images.",
        "the network is away",
    )
    assert segment(config).images == 12
