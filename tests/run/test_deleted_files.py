"""Files of an output that somebody deleted, as errors advise: the same run makes them again."""

from __future__ import annotations

from pathlib import Path

import pytest

from segcore.inspection.verify import verify_output
from segcore.output.layout import EditionLayout
from segcore.output.report import RunReport
from segcore.output.results import open_results
from segcore.run.segment import segment
from segcore.storage import Storage
from tests.support.jobs import job_config

pytestmark = pytest.mark.usefixtures("serial")
storage = Storage()


def _segment(folder: Path, conf: float = 0.25) -> RunReport:
    sets = ("plan.images=2", "source.allow_shrunk_listing=true", f"model.conf={conf}")
    return segment(job_config(folder / "in", folder / "out", *sets))


def test_a_deleted_list_of_unlisted_images(folder: Path) -> None:
    _segment(folder)
    (folder / "in" / "003.png").unlink()
    report = _segment(folder)
    assert report.images_unlisted == 1
    Path(EditionLayout(report.prefix).unlisted(report.run)).unlink()
    again = _segment(folder)
    assert (again.nothing_to_do, again.images_unlisted, again.images_this_time) == (False, 1, 0)
    results = open_results(storage, str(folder / "out"), include_unlisted=True)
    assert results.to_arrow("images").num_rows == 7
    assert not verify_output(storage, str(folder / "out"), include_unlisted=True).counts
    assert _segment(folder).nothing_to_do


def test_a_deleted_edition_json_of_an_edition_that_is_not_published(folder: Path) -> None:
    published = _segment(folder).edition
    report = _segment(folder, 0.5)
    Path(EditionLayout(report.prefix).edition_json).unlink()
    again = _segment(folder, 0.5)
    assert (again.nothing_to_do, again.images_this_time) == (False, 0)
    assert (again.edition, again.published) == (report.edition, published)
    assert not verify_output(storage, str(folder / "out"), report.edition).counts
    assert _segment(folder, 0.5).nothing_to_do
