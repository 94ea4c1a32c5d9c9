"""The public functions take arguments in the usual order, and say what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

import segcore
from segcore.errors import UsageError
from segcore.output.schema import IMAGES_SCHEMA, INSTANCES_SCHEMA
from tests.support.bright_images import bright_png
from tests.support.jobs import THRESHOLD_MODEL, job_config, table_rows, write_files
from tests.support.run_without_ray import without_ray


@pytest.fixture
def photos(tmp_path: Path) -> str:
    contents = {"a.png": bright_png(0), "b.png": bright_png(1), "c.png": b"no image"}
    return write_files(tmp_path / "photos", contents)


def test_a_job_its_results_and_its_scores(photos: str, tmp_path: Path) -> None:
    output = str(tmp_path / "masks")
    options = {"run.max_failed_fraction": 1.0, "plan.images": 1}
    said: list[str] = []
    with without_ray():
        report = segcore.segment(
            photos, output, model=THRESHOLD_MODEL, options=options, notify=said.append
        )
        again = segcore.segment(photos, output, model=THRESHOLD_MODEL, options=options)
    assert (report.exit_code, report.images, report.failed) == (0, 3, 1)
    assert said
    assert again.nothing_to_do
    results = segcore.open_results(output)
    images, instances = results.to_arrow("images"), results.to_pandas("instances")
    assert images.schema.names == IMAGES_SCHEMA.names
    assert images.to_pylist() == table_rows(report.prefix, "images")
    assert list(instances.columns) == INSTANCES_SCHEMA.names
    assert len(instances) == report.instances
    some = results.to_arrow("images", ["status", "image_id"])
    assert some.column_names == ["status", "image_id"]
    assert sorted(some["status"].to_pylist()) == ["failed", "ok", "ok"]
    options_of_storage = segcore.StorageOptions(retries=0)
    assert segcore.open_results(output, storage=options_of_storage).storage.options.retries == 0


def test_a_whole_configuration_is_taken_alone(photos: str, tmp_path: Path) -> None:
    config = job_config(photos, tmp_path / "masks", "run.max_failed_fraction=1.0")
    with without_ray():
        assert segcore.segment(config).exit_code == 0
    for more in ({"output": "x"}, {"model": "x"}, {"options": {"model.conf": 0.5}}):
        with pytest.raises(TypeError):
            segcore.segment(config, **more)  # type: ignore[arg-type]


def test_results_without_units_are_empty_tables(tmp_path: Path) -> None:
    photos = write_files(tmp_path / "photos", {})
    Path(photos).mkdir(exist_ok=True)
    with without_ray():
        segcore.segment(
            photos, f"{tmp_path}/out", model=THRESHOLD_MODEL, options={"source.allow_empty": True}
        )
    results = segcore.open_results(f"{tmp_path}/out")
    assert results.to_arrow("instances").schema.names == INSTANCES_SCHEMA.names
    assert results.to_arrow("images", ["image_id"]).num_rows == 0


def test_what_is_wrong_is_said(photos: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"did you mean `model\.conf`"):
        segcore.segment(photos, "masks/", options={"modle.conf": 0.5})
    with pytest.raises(UsageError, match="OUTPUT is missing"):
        segcore.segment(photos)
    with pytest.raises(UsageError, match="not the output of a run"):
        segcore.open_results(str(tmp_path))
    with pytest.raises(UsageError, match="exif_labels is 'nothing'"):
        segcore.evaluate(str(tmp_path), "truth.json", exif_labels="nothing")
    with without_ray():
        config = job_config(photos, tmp_path / "masks", "run.max_failed_fraction=1.0")
        segcore.segment(config)
    results = segcore.open_results(f"{tmp_path}/masks")
    with pytest.raises(UsageError, match="no column 'score'"):
        results.to_arrow("images", ["score"])
    with pytest.raises(UsageError, match="no table 'masks'"):
        results.to_arrow("masks")  # type: ignore[arg-type]
