"""From images to task files in one call, again after the archive has grown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import segcore
from segcore.config.exports import PrelabelConfig
from segcore.errors import UsageError
from tests.support.bright_images import bright_pngs
from tests.support.jobs import BRIGHT_MODEL, write_files
from tests.support.run_without_ray import without_ray


def config(folder: Path, *sets: str) -> PrelabelConfig:
    flags = {"INPUT": ("input", str(folder / "in")), "DEST": ("dest", str(folder / "dest"))}
    return segcore.load_config(
        sets=[f"model.name={BRIGHT_MODEL}", *sets], flags=flags, schema=PrelabelConfig
    )


@pytest.mark.slow
def test_images_become_tasks_and_new_images_are_added(tmp_path: Path) -> None:
    pictures = bright_pngs(6)
    names = sorted(pictures)
    write_files(tmp_path / "in", {name: pictures[name] for name in names[:4]})
    with without_ray():
        first = segcore.prelabel(config(tmp_path, "export.format=label-studio"))
        write_files(tmp_path / "in", {name: pictures[name] for name in names[4:]})
        second = segcore.prelabel(config(tmp_path, "export.format=label-studio"))
    assert first.exit_code == second.exit_code == 0
    assert first.export is not None
    assert second.export is not None
    assert (first.export.images, second.export.images) == (4, 2)
    assert (tmp_path / "dest-masks/latest.json").exists()
    tasks = [
        task
        for file in sorted((tmp_path / "dest").glob("tasks-*.json"))
        for task in json.loads(file.read_bytes())
    ]
    assert sorted(task["data"]["name"] for task in tasks) == names
    assert [task["data"]["segcore_number"] for task in tasks] == [1, 2, 3, 4, 5, 6]
    assert all(len(task["predictions"][0]["result"]) == 1 for task in tasks)
    assert json.loads(json.dumps(second.to_dict()))["export"]["masks"] == 2


def test_a_wrong_destination_is_refused_before_anything_is_segmented(tmp_path: Path) -> None:
    write_files(tmp_path / "in", bright_pngs(1))
    with pytest.raises(UsageError, match="DEST is missing"):
        segcore.prelabel(config(tmp_path).model_copy(update={"dest": None}))
    links = config(tmp_path, "export.images=link").model_copy(update={"dest": "s3://b/dest"})
    with pytest.raises(UsageError, match="no links"):
        segcore.prelabel(links)
    assert not (tmp_path / "dest-masks").exists()


@pytest.mark.slow
def test_a_way_to_rank_is_ranked_and_the_next_ones_are_added(tmp_path: Path) -> None:
    pictures = bright_pngs(6)
    names = sorted(pictures)
    write_files(tmp_path / "in", {name: pictures[name] for name in names[:5]})
    sets = ["export.ranking=random", "export.top=2"]
    with without_ray():
        first = segcore.prelabel(config(tmp_path, *sets))
        write_files(tmp_path / "in", {names[5]: pictures[names[5]]})
        said: list[str] = []
        second = segcore.prelabel(config(tmp_path, *sets), notify=said.append)
        with pytest.raises(UsageError, match="has no ranking mine"):
            segcore.prelabel(config(tmp_path, "export.ranking=mine"))
    assert first.export is not None
    assert second.export is not None
    assert first.export.images == 2
    assert any(sentence.startswith("Ranked 6 images: ") for sentence in said)
    ranking = segcore.rank(str(tmp_path / "dest-masks"), "random").ranking
    assert ranking.rows.num_rows == 6
    document = [json.loads(file.read_bytes()) for file in (tmp_path / "dest").glob("instances-*")]
    exported = {image["file_name"] for part in document for image in part["images"]}
    wanted = {name.rpartition("/")[2] for name in ranking.rows["image_id"].to_pylist()[:2]}
    assert wanted <= exported
