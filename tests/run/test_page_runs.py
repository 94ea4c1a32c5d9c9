"""A whole run in which the pages of TIFFs are images: counted, tried again, carried over, drawn."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from segcore.inspection.status import read_status
from segcore.inspection.verify import verify_output
from segcore.output.results import open_results
from segcore.run.segment import preview, segment
from segcore.storage import Storage
from segcore.visualize.originals import read_originals
from tests.support.bright_images import bright_png
from tests.support.fake_models import RAISES
from tests.support.jobs import job_config, table_rows, write_files
from tests.support.tiff_files import Page, tiff_file

storage = Storage()


def _page(seed: int, first: tuple[int, int, int] = (0, 0, 0)) -> Page:
    samples = np.zeros((20 + seed, 30, 3), np.uint8)
    samples[3 : 5 + seed, 4:9, 1] = 220
    samples[0, 0] = first
    return Page(samples)


@pytest.mark.faults
@pytest.mark.ray
def test_a_run_over_pages_balances(ray_session, tmp_path: Path) -> None:
    pages = [_page(0), _page(1, RAISES), _page(2)]
    contents = {
        "a.png": bright_png(1),
        "b.tif": tiff_file(pages),
        "c.tif": tiff_file([_page(3)]),
        "d.tif": tiff_file([_page(4), _page(5)]),
    }
    source = write_files(tmp_path / "in", contents)
    sets = ["plan.images=3", "ray.max_actors=1", "run.max_failed_fraction=0.5"]
    config = job_config(source, str(tmp_path / "out"), *sets, "decode.pages=all")
    assert preview(config).images is None  # counted when read, as in a tar
    report = segment(config)
    assert (report.status, report.images, report.failures) == ("success", 7, {"model_error": 1})
    assert verify_output(storage, report.output).exit_code == 0
    status = read_status(storage, report.output)
    assert (status.images, status.images_done, status.state) == (7, 7, "success")
    images = read_originals(open_results(storage, report.output), [f"{source}/b.tif#page=3"])
    assert np.array_equal(images[f"{source}/b.tif#page=3"], pages[2].samples)

    # The others of its unit are carried over; the page that failed is tried again.
    storage.write(f"{source}/a.png", bright_png(2))
    mended = Path(os.environ["FAKE_MODEL_MENDED"])
    mended.touch()
    try:
        after = segment(config, retry_failed=True)
    finally:
        mended.unlink()
    assert (after.images, after.ok, after.images_this_time) == (7, 7, 2)
    assert (after.images_retried, after.images_recovered) == (1, 1)
    assert verify_output(storage, after.output).exit_code == 0
    rows = table_rows(after.prefix, "images")
    names = {row["image_id"].removeprefix(f"{source}/"): row["page"] for row in rows}
    assert names == {
        "a.png": None,
        "b.tif": 1,
        "b.tif#page=2": 2,
        "b.tif#page=3": 3,
        "c.tif": None,
        "d.tif": 1,
        "d.tif#page=2": 2,
    }
