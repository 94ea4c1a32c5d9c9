"""An output of commit e8b9e42 of a joined tar, which it read up to the first end mark.

``joined/`` holds the archive and the output as that commit wrote it, with the model of its tests,
``fake_models:BrightModel``, under the URIs below.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from segcore.inspection.verify import verify_output
from segcore.output.layout import OutputLayout, Table
from segcore.output.rereads import read_reread_marks
from segcore.output.results import open_results
from segcore.run.segment import segment
from segcore.storage import Storage
from segcore.testing.loopback_s3 import LoopbackS3
from tests.compat.schema1_store import ROOT_URI, Bucket
from tests.support.jobs import job_config
from tests.support.run_without_ray import without_ray

TABLES: tuple[Table, ...] = ("images", "instances")
STORED = Path(__file__).parent / "joined"
OUTPUT = f"{ROOT_URI}joined/output"


@pytest.fixture
def storage(s3: LoopbackS3) -> Iterator[Storage]:
    with Bucket(s3.environment).holding(STORED):
        yield Storage()


def test_the_old_output_is_read_and_its_unread_images_are_found(storage: Storage) -> None:
    results = open_results(storage, OUTPUT)
    image_ids = [row for t in results.images(["image_id"]) for row in t["image_id"].to_pylist()]
    shard = f"{ROOT_URI}joined/archive/joined.tar"
    assert [name for name in image_ids if name.startswith(shard)] == [
        f"{shard}#{number:03d}.png" for number in range(3)
    ]
    assert verify_output(storage, OUTPUT).problems == []

    (problem,) = verify_output(storage, OUTPUT, check_input=True).problems
    assert problem.kind == "unread_images"
    assert f"{shard} holds 2 images more" in problem.message
    assert list(read_reread_marks(storage, results.layout).values()) == [shard]


@pytest.mark.slow
def test_the_next_run_does_the_joined_tar_again(storage: Storage) -> None:
    """The part of the old version in an edition of today: another model would segment all again."""
    old = open_results(storage, OUTPUT)
    (unit,) = {
        row["unit"]
        for table in old.images(["image_id", "unit"])
        for row in table.to_pylist()
        if "joined.tar" in row["image_id"]
    }
    config = job_config(f"{ROOT_URI}joined/archive", f"{ROOT_URI}joined/today")
    with without_ray():
        first = segment(config)
        today = OutputLayout(first.output).edition(first.edition)
        for table in TABLES:
            storage.write(today.part(table, unit), storage.read(old.layout.part(table, unit)))
        found = verify_output(storage, first.output, check_input=True)
        assert found.counts["unread_images"] == 1
        report = segment(config)
    assert report.errors == ()
    assert (first.images, report.images, report.images_this_time) == (9, 9, 2)
    assert verify_output(storage, report.output, check_input=True).problems == []
