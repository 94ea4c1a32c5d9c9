"""Outputs of commit 721ffc8 whose images are pages of TIFFs: loose, in a tar, in Parquet.

``pages/`` holds the archives and the outputs as that commit wrote them, with `decode.pages=all`,
`plan.images=4` and the model of its tests, under the URIs below. Their edition is one of today's. A
file named like a page, ``k2#page=2``, has an id of its own since then.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from segcore.inspection.verify import verify_output
from segcore.output.results import open_results
from segcore.run.segment import segment
from segcore.storage import Storage
from segcore.testing.loopback_s3 import LoopbackS3
from tests.compat.schema1_store import ROOT_URI, Bucket
from tests.support.bright_images import bright_png
from tests.support.jobs import job_config
from tests.support.run_without_ray import without_ray

STORED = Path(__file__).parent / "pages"
ROOT = f"{ROOT_URI}pages/"
IMAGES = {  # kind -> images, and those that failed
    "loose": (
        ["a.png", "b.tif", "b.tif#page=2", "b.tif#page=3", "c.tif", "d.tif", "d.tif#page=2"],
        ["b.tif#page=2"],
    ),
    "tars": (
        [
            *("s.tar#x/a.tif", "s.tar#x/a.tif#page=2", "s.tar#b.png"),
            *("s.tar#e.tif", "s.tar#e.tif#page=2", "s.tar#e.tif#page=3"),
        ],
        ["s.tar#e.tif#page=2"],
    ),
    "tables": (
        [
            *("t.parquet#k", "t.parquet#k#page=2", "t.parquet#k2#page=2"),
            *("t.parquet#n.tif", "t.parquet#z"),
        ],
        ["t.parquet#z"],
    ),
}

pytestmark = pytest.mark.s3


@pytest.fixture
def storage(s3: LoopbackS3) -> Iterator[Storage]:
    with Bucket(s3.environment).holding(STORED):
        yield Storage()


def _image_ids(storage: Storage, kind: str, status: str = "") -> list[str]:
    results = open_results(storage, f"{ROOT}output/{kind}")
    rows = results.to_arrow("images").select(["image_id", "status"]).to_pylist()
    folder = f"{ROOT}archive/{kind}/"
    return [
        row["image_id"].removeprefix(folder) for row in rows if row["status"] == (status or "ok")
    ]


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("loose", marks=pytest.mark.slow),
        "tables",
        pytest.param("tars", marks=pytest.mark.slow),
    ],
)
def test_the_old_output_is_read_verified_and_continued(
    storage: Storage, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, failed = IMAGES[kind]
    output = f"{ROOT}output/{kind}"
    assert sorted(_image_ids(storage, kind) + failed) == sorted(images)
    assert _image_ids(storage, kind, "failed") == failed
    assert verify_output(storage, output, check_input=True).problems == []

    sets = ["plan.images=4", "decode.pages=all", "run.max_failed_fraction=0.5"]
    config = job_config(f"{ROOT}archive/{kind}", output, *sets)
    with without_ray():
        assert segment(config).nothing_to_do
        monkeypatch.setenv("FAKE_MODEL_MENDED", str(tmp_path))
        retried = segment(config, retry_failed=True)
    assert (retried.images, retried.failed, retried.images_recovered) == (len(images), 0, 1)
    assert sorted(_image_ids(storage, kind)) == sorted(images)
    assert verify_output(storage, output, check_input=True).problems == []


@pytest.mark.slow
def test_pages_of_the_old_output_are_carried_over(storage: Storage) -> None:
    storage.write(f"{ROOT}archive/loose/a.png", bright_png(9))
    sets = ["plan.images=4", "decode.pages=all", "run.max_failed_fraction=0.5"]
    with without_ray():
        report = segment(job_config(f"{ROOT}archive/loose", f"{ROOT}output/loose", *sets))
    assert (report.images, report.images_this_time, report.units_missing) == (7, 1, 0)
    assert verify_output(storage, report.output, check_input=True).problems == []
