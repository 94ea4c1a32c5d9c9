"""No result is deleted unasked, and no image is in two parts that a reader sees.

Runs on archives that lose, change and regain images are compared with a model of a few lines: which
image has which version in the results. Processes die between any two changes of storage.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segcore.config import Config
from segcore.errors import ListingShrank, StorageError, UsageError
from segcore.inspection.status import read_status
from segcore.inspection.verify import verify_output
from segcore.output.layout import EditionLayout
from segcore.output.report import RunReport
from segcore.output.results import open_results
from segcore.output.unlisted import read_unlisted
from segcore.planning.lost import LostEntries
from segcore.run.job import check_listing
from segcore.run.segment import preview, segment
from segcore.sources import page_image_id
from segcore.storage import Storage
from tests.support.archives import tar_bytes
from tests.support.bright_images import bright_png
from tests.support.jobs import job_config, part_bytes, table_rows
from tests.support.run_without_ray import ProcessKilled, killed_when, without_ray
from tests.support.tiff_files import Page, tiff_file

storage = Storage()
Versions = dict[str, int]  # name of an image -> its version, which is the width of its pixels


@pytest.fixture(autouse=True, scope="module")
def _no_ray():
    with without_ray():
        yield


def _png(version: int) -> bytes:
    return bright_png(version, size=(24, 40 + version))


def _tiff(version: int) -> bytes:
    pages = [Page(np.zeros((24, 40 + version, 3), np.uint8)) for _ in range(_N_PAGES[version])]
    for number, page in enumerate(pages):
        page.samples[3 : 5 + number, 4:9] = 220
    return tiff_file(pages)


_N_PAGES = {1: 2, 2: 3, 3: 1}  # of a TIFF of each version


@dataclass
class Archive:
    """Images as loose files or as members of tars, and an output; names are `shard/name.ext`.

    Attributes:
        has_pages: Each image is a TIFF, and each of its pages an image of the results.
    """

    folder: str
    kind: str
    has_pages: bool = False
    written: dict[str, bytes] = field(default_factory=dict)
    clock: int = 1_700_000_000  # seconds; each file that changes is newer than any before

    def put(self, images: Mapping[str, int]) -> None:
        """Let the archive hold exactly these images."""
        files: dict[str, bytes] = {}
        encode = _tiff if self.has_pages else _png
        if self.kind == "loose":
            files = {name: encode(version) for name, version in images.items()}
        else:
            for shard in sorted({name.partition("/")[0] for name in images}):
                members = [
                    (name.partition("/")[2], encode(version))
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
        pages = f"decode.pages={'all' if self.has_pages else 'first'}"
        sets = ("plan.images=3", "source.allow_empty=true", shrink, pages, *sets)
        return job_config(f"{self.folder}/in", f"{self.folder}/out", *sets)

    def name(self, image_id: str) -> str:
        return image_id.removeprefix(f"{self.folder}/in/").replace(".tar#", "/")

    def rows(self, images: Versions) -> Versions:
        """The same with a name for each row that the images are in the results."""
        if not self.has_pages:
            return images
        return {
            page_image_id(name, page): version
            for name, version in images.items()
            for page in range(1, _N_PAGES[version] + 1)
        }


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
    listed, kept = archive.rows(listed), archive.rows(kept)
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


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize("has_pages", [False, True])
@pytest.mark.parametrize("kind", ["loose", "tars"])
@settings(max_examples=15)
@given(first=archives.filter(bool), steps=st.lists(steps, min_size=1, max_size=4))
def test_results_follow_the_listing_and_nothing_is_lost(kind, has_pages, first, steps) -> None:
    with TemporaryDirectory() as folder:
        archive = Archive(folder, kind, has_pages)
        kept: Versions = {}
        before: Versions = {}
        for images, extensions, remove, dies_after in [(first, "png,jpg", False, None), *steps]:
            archive.put(images)
            if not archive.written:
                continue
            config = archive.config(f"source.extensions=[{extensions}]")
            listed = {n: v for n, v in images.items() if n.rpartition(".")[2] in extensions}
            if dies_after is not None:
                with killed_when(_after(dies_after)), suppress(ProcessKilled):
                    segment(config, remove_unlisted=remove)
                seen = _visible(archive, include_unlisted=False)
                rows_before, rows_listed = archive.rows(before), archive.rows(listed)
                assert seen in (rows_before, rows_listed) or rows_before.items() <= seen.items()
                everywhere = {archive.name(row["image_id"]) for row in _rows_anywhere(folder)}
                names = listed.keys() & kept.keys() if remove else kept.keys()
                # the rows of the version before or of the new one, so at least the first page
                assert everywhere >= names
                with suppress(UsageError):  # it is not known yet which images are unlisted
                    assert _visible(archive, include_unlisted=True).keys() >= names
            report = segment(config, remove_unlisted=remove)
            kept = dict(listed) if remove else {**kept, **listed}
            before = listed
            _check(archive, report, listed, kept)


def _times(archive: Archive) -> dict[Path, int]:
    """When each file of the output was written, nanoseconds."""
    return {path: path.stat().st_mtime_ns for path in Path(archive.folder, "out").rglob("*")}


def _after(n_changes: int):
    return lambda changes, method, uri: changes == n_changes


def _at_first_deletion(changes: int, method: str, uri: str) -> bool:
    """When the new units are committed, and the old ones are there still."""
    return method == "delete" and "/images/" in uri


def _at_the_list_of_unlisted_images(changes: int, method: str, uri: str) -> bool:
    return method == "write" and "/unlisted/" in uri


def _rows_anywhere(folder: str) -> list[dict]:
    (edition,) = Path(folder, "out").glob("*/images")
    return table_rows(str(edition.parent), "images")


TWELVE = {f"{shard}/{i}.png": 1 for shard in "abcd" for i in range(3)}
SEVEN = dict.fromkeys(list(TWELVE)[2:9], 1)


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    archive = Archive(str(tmp_path), "loose")
    archive.put(TWELVE)
    return archive


@pytest.mark.slow
def test_a_listing_that_shrank_much_is_refused_and_changes_nothing(archive: Archive) -> None:
    first = segment(archive.config(shrunk=False))
    before = _times(archive)
    archive.put(SEVEN)
    with pytest.raises(
        ListingShrank, match="5 of the 12 images or shards of the last run"
    ) as caught:
        segment(archive.config(shrunk=False), remove_unlisted=True)
    assert caught.value.exit_code == 1
    assert "--allow-shrunk-listing" in caught.value.hint
    with pytest.raises(ListingShrank):
        preview(archive.config(shrunk=False))
    assert before == {
        path: path.stat().st_mtime_ns for path in Path(archive.folder, "out").rglob("*")
    }

    planned = preview(archive.config())
    assert (planned.images, planned.entries_lost) == (7, 5)
    assert "their results are kept" in planned.summary()
    sentences: list[str] = []
    report = segment(archive.config(), notify=sentences.append)
    assert sentences[0].startswith("5 images or shards of the last run are not listed any more")
    _check(archive, report, SEVEN, TWELVE)
    assert "5 images of earlier listings, kept besides" in report.summary()
    status = read_status(storage, f"{archive.folder}/out")
    assert (status.images_done, status.images_unlisted, status.units_foreign) == (7, 5, 0)
    assert "5 images of earlier listings" in status.summary()

    again = segment(archive.config())
    assert (again.images, again.images_unlisted, again.images_this_time) == (7, 5, 0)
    removed = segment(archive.config(), remove_unlisted=True)
    _check(archive, removed, SEVEN, SEVEN)
    assert removed.images_removed == 5
    assert "results of 5 images that the input lacks" in removed.summary()
    assert first.run != removed.run


@pytest.mark.parametrize(("lost", "total"), [(0, 0), (1, 10), (99, 990), (99, 999)])
def test_a_tenth_may_be_gone(lost: int, total: int) -> None:
    check_listing(LostEntries(total, lost), "/in")
    with pytest.raises(ListingShrank):
        check_listing(LostEntries(total, lost + 1), "/in")


@pytest.mark.slow
def test_what_comes_back_unchanged_is_not_segmented_again(archive: Archive) -> None:
    segment(archive.config())
    files = {name: Path(archive.folder, "in", name).stat().st_mtime_ns for name in TWELVE}
    archive.put(SEVEN)
    segment(archive.config())
    archive.put(TWELVE)
    for name, time in files.items():
        os.utime(f"{archive.folder}/in/{name}", ns=(time, time))
    report = segment(archive.config())
    assert report.images_this_time == 0
    _check(archive, report, TWELVE, TWELVE)


@pytest.mark.slow
def test_the_newest_result_of_an_unlisted_image_is_kept(archive: Archive) -> None:
    segment(archive.config())
    changed = {**TWELVE, "a/0.png": 2, "d/2.png": 2}
    archive.put(changed)
    with killed_when(_at_first_deletion), suppress(ProcessKilled):
        segment(archive.config())
    assert len(_rows_anywhere(archive.folder)) > len(TWELVE)
    assert _visible(archive, include_unlisted=False) == changed
    archive.put(dict.fromkeys(list(TWELVE)[1:11], 1))
    report = segment(archive.config())
    _check(archive, report, dict.fromkeys(list(TWELVE)[1:11], 1), changed)


@pytest.mark.slow
def test_other_extensions_keep_every_result(tmp_path: Path) -> None:
    archive = Archive(str(tmp_path), "tars")
    images = {f"{shard}/{i}.{ext}": 1 for shard in "ab" for i in range(2) for ext in ("png", "jpg")}
    archive.put(images)
    segment(archive.config("source.extensions=[png,jpg]"))
    only_png = {name: 1 for name in images if name.endswith("png")}
    report = segment(archive.config("source.extensions=[png]"))
    _check(archive, report, only_png, images)
    for extensions in ("[png,bmp]", "[png,jpg,bmp]"):
        report = segment(archive.config(f"source.extensions={extensions}"))
        listed = images if "jpg" in extensions else only_png
        _check(archive, report, listed, images)


@pytest.mark.slow
def test_a_damaged_old_part_is_named_and_nothing_is_deleted(tmp_path: Path) -> None:
    archive = Archive(str(tmp_path), "tars")
    archive.put(TWELVE)
    first = segment(archive.config())
    uri = next(iter(storage.list(EditionLayout(first.prefix).parts_folder("images")))).uri
    storage.write(uri, b"PAR1 no PAR1")
    before = part_bytes(first.prefix)
    with pytest.raises(StorageError, match="not a readable part") as caught:
        segment(archive.config("source.extensions=[png,jpg,bmp]"))
    assert uri in caught.value.message
    assert "delete this object" in caught.value.hint
    assert before.items() <= part_bytes(first.prefix).items()


@pytest.mark.slow
def test_unlisted_images_are_no_matter_of_chance_while_nobody_has_counted_them(
    archive: Archive,
) -> None:
    images = dict.fromkeys(list(TWELVE)[:11], 1)
    archive.put(images)
    first = segment(archive.config())
    archive.put(TWELVE)
    segment(archive.config())
    archive.put(images)  # the plan of the first run, whose list of unlisted images was empty
    with killed_when(_at_the_list_of_unlisted_images), suppress(ProcessKilled):
        segment(archive.config())
    assert _visible(archive, include_unlisted=False) == images
    with pytest.raises(UsageError, match="no run has found out yet which of them to keep"):
        _visible(archive, include_unlisted=True)
    report = segment(archive.config())
    assert report.run == first.run
    _check(archive, report, images, TWELVE)


def test_the_last_complete_run_is_read_while_a_newer_one_replaces_its_units(
    archive: Archive,
) -> None:
    first = segment(archive.config())
    archive.put({**TWELVE, "a/0.png": 2, "d/2.png": 2})
    with killed_when(_after(9)), suppress(ProcessKilled):
        segment(archive.config())
    results = open_results(storage, f"{archive.folder}/out")
    assert results.run == first.run != results.newer_run != ""
    assert f"Run {results.newer_run} is not complete" in results.remarks()[0]
    assert _visible(archive, include_unlisted=True) == TWELVE
