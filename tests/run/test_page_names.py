"""Files whose names read like those of pages: no two images ever have one id."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segcore.inspection.verify import verify_output
from segcore.output.results import open_results
from segcore.run.segment import segment
from segcore.sources import file_image_id, page_image_id
from segcore.sources.base import lone_page
from segcore.storage import Storage
from segcore.visualize.originals import read_originals
from tests.support.archives import parquet_bytes, tar_bytes
from tests.support.bright_images import bright_png
from tests.support.jobs import job_config, table_rows, write_files
from tests.support.run_without_ray import without_ray
from tests.support.tiff_files import Page, tiff_file

names = st.lists(st.sampled_from(["a", ".tif", "#page=1", "#page=2", "#page=02", "~2", "[0]"]))


@given(files=st.sets(names.map("".join)), n_pages=st.integers(1, 3))
def test_ids_of_pages_and_files_never_meet(files: set[str], n_pages: int) -> None:
    pages = [lone_page] if n_pages == 1 else [lambda name, i=i: i + 1 for i in range(n_pages)]
    ids = defaultdict(list)
    for file in files:
        for page_of in [*pages, lambda name: 2]:
            page = page_of(file)
            assert file_image_id(page_image_id(file, page), page) == file
            ids[page_image_id(file, page)].append((file, page or 1))
    assert all(len(set(images)) == 1 for images in ids.values()), ids


def _tiff(*heights: int) -> bytes:
    return tiff_file([Page(np.full((height, 40, 3), 7, np.uint8)) for height in heights])


FILES = {
    "a.tif": _tiff(20, 21, 22),
    "a.tif#page=2": _tiff(23, 24),
    "a.tif#page=3": bright_png(size=(25, 40)),
    "a.tif#page=2#page=2": bright_png(size=(26, 40)),
    "a.tif#page=2#page=1": _tiff(27),
    "a.tif#page=4": b"no image",
    "b#page=1": bright_png(size=(28, 40)),
}
SUFFIXES = "[tif,tif#page=2,tif#page=3,tif#page=2#page=2,tif#page=2#page=1,tif#page=4]"


def _write_archive(folder: Path, kind: str) -> str:
    if kind == "tar":
        files = {name.replace("b#page=1", "b.tif#page=4"): data for name, data in FILES.items()}
        return write_files(folder, {"in.tar": tar_bytes(files.items())}) + "/in.tar"
    if kind == "parquet":
        columns = {"key": list(FILES), "image": list(FILES.values())}
        return write_files(folder, {"in.parquet": parquet_bytes(columns, 4)}) + "/in.parquet"
    write_files(folder / "files", FILES)
    lines = "\n".join(f"files/{name}" for name in FILES)
    return write_files(folder, {"list.txt": lines.encode()}) + "/list.txt"


@pytest.mark.slow
@pytest.mark.parametrize("pages", ["first", "all"])
@pytest.mark.parametrize("kind", ["tar", "parquet", "manifest"])
def test_each_image_has_an_id_of_its_own(tmp_path: Path, kind: str, pages: str) -> None:
    source = _write_archive(tmp_path / "in", kind)
    sets = [f"decode.pages={pages}", "run.max_failed_fraction=1"]
    if kind == "tar":
        sets.append(f"source.suffixes={SUFFIXES}")
    config = job_config(source, tmp_path / "out", *sets)
    with without_ray():
        report = segment(config)
        again = segment(config, retry_failed=True)
    assert report.images == again.images == (10 if pages == "all" else len(FILES))
    assert verify_output(Storage(), str(tmp_path / "out")).problems == []
    heights = {r["image_id"]: r["height"] for r in table_rows(report.prefix, "images")}
    assert len(heights) == report.images
    assert sorted(filter(None, heights.values())) == (
        list(range(20, 29)) if pages == "all" else [20, 23, 25, 26, 27, 28]
    )
    readable = [image_id for image_id, height in heights.items() if height]
    results = open_results(Storage(), str(tmp_path / "out"))
    for image_id, pixels in read_originals(results, readable).items():
        assert len(pixels) == heights[image_id]
