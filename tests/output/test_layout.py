"""Paths of an output, and the way back from an object to what it is."""

from __future__ import annotations

import pytest

from segcore.output.layout import OutputLayout, part_of_file

UNIT, RUN = "ab" * 10, "01" * 8


@pytest.mark.parametrize("output", ["/out", "s3://bucket", "s3://bucket/deep/out"])
def test_paths_and_their_inverses(output: str) -> None:
    layout = OutputLayout(output).edition("model-0123")
    assert layout.prefix == f"{output}/model-0123"
    assert layout.name == "model-0123"
    assert layout.output == OutputLayout(output)
    assert layout.part("images", UNIT) == f"{output}/model-0123/images/{UNIT}.parquet"
    assert part_of_file(layout.part("instances", UNIT)) == (UNIT, 0)
    assert part_of_file(layout.part("images", UNIT, 12)) == (UNIT, 12)
    assert layout.run_record(RUN) == f"{output}/model-0123/runs/{RUN}.json"
    assert layout.execution("now") == f"{output}/model-0123/runs/history/now.json"
    files = layout.compacted("000001-0123abcd")
    assert files.name == "000001-0123abcd"
    folder = f"{output}/model-0123/compacted/000001-0123abcd"
    assert files.file("images", 7) == f"{folder}/images/00007.parquet"
    assert files.files_pattern("instances") == f"{folder}/instances/*.parquet"
    assert layout.compacted_pointer == f"{output}/model-0123/compacted/current.json"
    assert layout.output.lease_folder == f"{output}/lease"


@pytest.mark.parametrize(
    "name",
    ["readme.txt", "part-0.parquet", f"{UNIT}.parquet.tmp", "ab.parquet", f"{UNIT}-g0.parquet"],
)
def test_a_name_that_is_not_that_of_a_part(name: str) -> None:
    assert part_of_file(f"/out/model-0123/images/{name}") is None
