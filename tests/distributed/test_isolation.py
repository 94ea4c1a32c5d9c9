"""Images that kill, hang or exhaust the process that works on them, in a real Ray."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from segcore.config import load_config
from segcore.inspection.verify import verify_output
from segcore.output.report import RunReport
from segcore.run.segment import segment
from segcore.storage import Storage
from tests.support.archives import parquet_bytes, tar_bytes
from tests.support.bright_images import boxed_png
from tests.support.fake_models import DEADLY, DEADLY_EARLY, GREEDY, HANGS, RAISES
from tests.support.jobs import write_files

pytestmark = pytest.mark.ray


def _png(seed: int, first_pixel: tuple[int, int, int] = (0, 0, 0)) -> bytes:
    return boxed_png(40 + seed % 7, 56, first_pixel, box=(5, 9 + seed % 5, 7, 20))


def _contents(**bad: tuple[int, int, int]) -> dict[str, bytes]:
    """12 good images, and bad ones: ``_02a=DEADLY`` is 02a.png, in the order of names."""
    good_images = {f"{i:02d}.png": _png(i) for i in range(12)}
    bad_images = {f"{name[1:]}.png": _png(3, first_pixel) for name, first_pixel in bad.items()}
    return dict(sorted({**good_images, **bad_images}.items()))


def _segment(
    source: str, output: str, *sets: str, model: str = "tests.support.fake_models:BrightModel"
) -> RunReport:
    flags = {"i": ("input", source), "o": ("output", output), "m": ("model.name", model)}
    common_sets = ["plan.images=8", "ray.max_actors=2", "run.max_failed_fraction=0.9"]
    return segment(load_config(sets=[*common_sets, *sets], flags=flags))


def _table_rows(report: RunReport, table: str) -> list[dict]:
    return [
        row
        for info in Storage().list(f"{report.prefix}/{table}")
        for row in pq.read_table(info.uri).to_pylist()
    ]


def _image_rows(report: RunReport) -> dict[str, dict]:
    """The rows of `images` by the last part of the image id, each only once."""
    rows = _table_rows(report, "images")
    by_name = {row["image_id"].replace("#", "/").rpartition("/")[2]: row for row in rows}
    assert len(by_name) == len(rows)
    return by_name


def _instance_rows(report: RunReport) -> list[dict]:
    return sorted(_table_rows(report, "instances"), key=lambda row: row["image_id"])


@pytest.mark.faults
def test_images_that_kill_hang_or_exhaust_fail_alone(ray_session, tmp_path):
    contents = _contents(
        _02a=DEADLY, _02b=DEADLY_EARLY, _05a=RAISES, _10a=GREEDY, _11z=HANGS
    )  # both units have some
    source = write_files(tmp_path / "in", contents)
    output = str(tmp_path / "out")
    report = _segment(source, output, "run.image_timeout_s=4", "ray.max_actor_bytes=2000000000")

    assert report.exit_code == 0
    assert (report.images, report.ok, report.failed) == (17, 12, 5)
    assert report.failures == {"crashed": 2, "model_error": 1, "out_of_memory": 1, "timed_out": 1}
    rows = _image_rows(report)
    assert sorted(rows) == sorted(contents)
    codes = {name: row["error_code"] for name, row in rows.items() if row["status"] == "failed"}
    assert codes == {
        "02a.png": "crashed",
        "02b.png": "crashed",
        "05a.png": "model_error",
        "10a.png": "out_of_memory",
        "11z.png": "timed_out",
    }
    assert "4 s" in rows["11z.png"]["error_message"]
    assert verify_output(Storage(), output).exit_code == 0
    # The log has what the workers said, and which image it was.
    log = "".join(path.read_text() for path in sorted(Path(report.log).iterdir()))
    assert log.count("Traceback") == 1
    (traceback,) = (line for line in log.splitlines() if "An image failed (model_error)" in line)
    assert "05a.png" in traceback
    for name, code in codes.items():
        if code in ("crashed", "timed_out"):
            assert re.search(rf"ended while segmenting an image \({code}\).*{name}", log), name
    assert "died and restarted" in log
    # The results of the other images are what they would have been without the bad ones.
    for name in codes:
        (tmp_path / "in" / name).unlink()
    report_without = _segment(source, str(tmp_path / "out-without"))
    assert _instance_rows(report) == _instance_rows(report_without)


@pytest.mark.faults
@pytest.mark.parametrize("kind", ["tar", pytest.param("parquet", marks=pytest.mark.chaos)])
def test_images_of_shards_fail_alone_too(ray_session, tmp_path, kind):
    contents = _contents(_04a=DEADLY)
    source = tmp_path / f"in.{kind}"
    columns = {"key": list(contents), "image": list(contents.values())}
    data = tar_bytes(contents.items()) if kind == "tar" else parquet_bytes(columns, 4)
    source.write_bytes(data)
    output = str(tmp_path / "out")
    report = _segment(str(source), output)
    assert (report.images, report.ok, report.failures) == (13, 12, {"crashed": 1})
    assert len(_image_rows(report)) == 13
    assert verify_output(Storage(), output).exit_code == 0


@pytest.mark.faults
def test_a_model_that_dies_on_any_image_blames_none(ray_session, tmp_path):
    source = write_files(tmp_path / "in", _contents())
    sets = ("run.attempts=1", "ray.max_actors=1", "plan.images=100")
    report = _segment(
        source, str(tmp_path / "out"), *sets, model="tests.support.fake_models:DyingModel"
    )
    assert report.exit_code == 1
    assert (report.images, report.units_missing) == (0, 1)
    advice = " ".join(report.advice())
    assert "1 of 1 unit has no result" in advice
    assert "the machine or the model is at fault" in advice
    assert not (tmp_path / "out" / "latest.json").exists()
