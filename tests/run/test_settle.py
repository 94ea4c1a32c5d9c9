"""No result is deleted unasked, and no image is in two parts that a reader sees.

Runs on archives that lose, change and regain images are compared with a model of a few lines: which
image has which version in the results. Processes die between any two changes of storage.
"""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segcore.config import Config
from segcore.errors import ListingShrank, SegcoreError, StorageError
from segcore.inspection.status import read_status
from segcore.inspection.verify import verify_output
from segcore.output.layout import EditionLayout
from segcore.output.report import RunReport
from segcore.output.results import open_results
from segcore.output.unlisted import read_unlisted
from segcore.run.segment import preview, segment
from segcore.storage import Storage
from tests.support.archives import tar_bytes
from tests.support.bright_images import bright_png
from tests.support.jobs import job_config, part_bytes, table_rows
from tests.support.run_without_ray import ProcessKilled, killed_after, without_ray

storage = Storage()
Versions = dict[str, int]  # name of an image -> its version, which is the width of its pixels


@pytest.fixture(autouse=True, scope="module")
def _no_ray():
    with without_ray():
        yield


def _png(version: int) -> bytes:
    return bright_png(version, size=(24, 40 + version))


@dataclass
class Archive:
    """Images as loose files or as members of tars, and an output; names are `shard/name.ext`."""

    folder: str
    kind: str
    written: dict[str, bytes] = field(default_factory=dict)
    clock: int = 1_700_000_000  # seconds; each file that changes is newer than any before

    def put(self, images: Mapping[str, int]) -> None:
        """Let the archive hold exactly these images."""
        files: dict[str, bytes] = {}
        if self.kind == "loose":
            files = {name: _png(version) for name, version in images.items()}
        else:
            for shard in sorted({name.partition("/")[0] for name in images}):
                members = [
                    (name.partition("/")[2], _png(version))
                    for name, version in sorted(images.items())
                    if name.startswith(f"{shard}/")
                ]
                files[f"{shard}.tar"] = tar_bytes(members)
        for name in self.written.keys() - files.keys():
            Path(self.folder, "in", name).unlink()
        for name, data in files.items():
            if self.written.get(name) == data:
                continue
            storage.write(f"{self.folder}/in/{name}", data)
            self.clock += 10
            os.utime(f"{self.folder}/in/{name}", (self.clock, self.clock))
        self.written = files

    def config(self, *sets: str, shrunk: bool = True) -> Config:
        shrink = f"source.allow_shrunk_listing={str(shrunk).lower()}"
        sets = ("plan.images=3", "source.allow_empty=true", shrink, *sets)
        return job_config(f"{self.folder}/in", f"{self.folder}/out", *sets)

    def name(self, image_id: str) -> str:
        return image_id.removeprefix(f"{self.folder}/in/").replace(".tar#", "/")


def _visible(archive: Archive, *, include_unlisted: bool) -> Versions:
    """What `open_results` gives; fails if an image is there twice."""
    results = open_results(storage, f"{archive.folder}/out", include_unlisted=include_unlisted)
    rows = [row for table in results.images() for row in table.to_pylist()]
    instances = Counter(row for t in results.instances() for row in t["image_id"].to_pylist())
    for row in rows:
        assert instances.pop(row["image_id"], 0) == row["n_instances"]
    assert not instances
    names = [archive.name(row["image_id"]) for row in rows]
    assert len(set(names)) == len(names), names
    return {name: row["width"] - 40 for name, row in zip(names, rows, strict=True)}


def _in_files(report: RunReport, archive: Archive) -> list[tuple[str, int]]:
    """What a glob over the parts gives."""
    rows = table_rows(report.prefix, "images")
    return sorted((archive.name(row["image_id"]), row["width"] - 40) for row in rows)


def _check(archive: Archive, report: RunReport, listed: Versions, kept: Versions) -> None:
    """The results are those of the model: `listed`, and with unlisted ones `kept`."""
    assert report.exit_code == 0
    assert report.images == len(listed)
    assert report.images_unlisted == len(kept) - len(listed)
    assert _visible(archive, include_unlisted=False) == listed
    assert _visible(archive, include_unlisted=True) == kept
    assert _in_files(report, archive) == sorted(kept.items())
    for include_unlisted in (False, True):
        output = f"{archive.folder}/out"
        checked = verify_output(storage, output, threads=1, include_unlisted=include_unlisted)
        assert checked.problems == []
        assert (checked.images, checked.images_unlisted) == (len(listed), len(kept) - len(listed))
    layout = EditionLayout(report.prefix)
    rows = read_unlisted(storage, layout, report.run)
    names = [archive.name(image_id) for image_id in rows["image_id"].to_pylist()]
    assert sorted(names) == sorted(kept.keys() - listed.keys())


NAMES = [f"{shard}/{i}.{ext}" for shard in "ab" for i in range(4) for ext in ("png", "jpg")]
archives = st.dictionaries(st.sampled_from(NAMES), st.integers(1, 3), max_size=10)
steps = st.tuples(
    archives,
    st.sampled_from(["png,jpg", "png,jpg", "png", "png,jpg,bmp"]),  # source.extensions
    st.booleans(),  # --remove-unlisted
    st.none() | st.integers(0, 40),  # the process dies after so many changes of storage
)


@pytest.mark.parametrize("kind", ["loose", "tars"])
@settings(max_examples=25)
@given(first=archives.filter(bool), steps=st.lists(steps, min_size=1, max_size=4))
def test_results_follow_the_listing_and_nothing_is_lost(kind, first, steps) -> None:
    with TemporaryDirectory() as folder:
        archive = Archive(folder, kind)
        kept: Versions = {}
        before: Versions = {}
        for images, extensions, remove, dies_after in [(first, "png,jpg", False, None), *steps]:
            archive.put(images)
            if not archive.written:
                continue
            config = archive.config(f"source.extensions=[{extensions}]")
            listed = {n: v for n, v in images.items() if n.rpartition(".")[2] in extensions}
            if dies_after is not None:
                with killed_after(dies_after), suppress(ProcessKilled):
                    segment(config, remove_unlisted=remove)
                seen = _visible(archive, include_unlisted=False)
                assert seen in (before, listed) or before.items() <= seen.items()
                everywhere = {archive.name(row["image_id"]) for row in _rows_anywhere(folder)}
                assert everywhere >= (listed.keys() & kept.keys() if remove else kept.keys())
            report = segment(config, remove_unlisted=remove)
            kept = dict(listed) if remove else {**kept, **listed}
            before = listed
            _check(archive, report, listed, kept)


def _rows_anywhere(folder: str) -> list[dict]:
    (edition,) = Path(folder, "out").glob("*/images")
    return table_rows(str(edition.parent), "images")
