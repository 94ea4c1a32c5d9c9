"""Export, import and prelabel on a disk that is full from any of their writes on."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import segcore
from segcore.config.exports import PrelabelConfig
from segcore.corrections.import_corrections import import_corrections
from segcore.errors import StorageFull
from segcore.exports.export import export
from segcore.exports.options import ExportOptions
from segcore.lease.holder import Holder
from segcore.output.results import open_results
from segcore.storage import Storage, spill
from tests.exports.conftest import archive as archive  # a fixture
from tests.support.bright_images import bright_pngs
from tests.support.full_disk import full_after
from tests.support.jobs import BRIGHT_MODEL, write_files
from tests.support.run_without_ray import without_ray

pytestmark = pytest.mark.faults
FORMATS: dict[str, dict[str, Any]] = {
    "coco": {},
    "coco-results": {},
    "yolo-seg": {"images": "copy"},
    "cvat": {"images": "link"},
    "label-studio": {"images": "copy"},
    "labelme": {"images": "link"},
    "hf": {"images": "copy"},
    "overlays": {},
}


def files_of(folder: Path, *, but: tuple[str, ...] = ()) -> dict[str, bytes]:
    """Content by name of all files, what a listing hides included."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in but
    }


def cut_everywhere(
    job: Callable[[Path], Any], folder: Path, step: int, check: Callable[[Path], None]
) -> int:
    """Run `job` on disks that are full after 0, `step`, ... calls, then with room again.

    Args:
        job: Writes into a folder.
        check: What holds after the disk was full; takes the folder.

    Returns:
        How many disks were full.
    """
    n_left = n_cut = 0
    while True:
        target = folder / f"cut{n_left}"
        said = None
        with full_after(n_left) as disk:
            try:
                job(target)
            except StorageFull as error:
                said = error
        if disk.refused:
            assert said is not None, f"nobody heard of a full disk: {disk.refused}"
            assert "No space left on device" in said.message
            assert "Free some space" in said.hint
        check(target)
        if not disk.refused:
            return n_cut
        n_cut += 1
        job(target)
        check(target)
        n_left += step


@pytest.mark.parametrize("form", FORMATS)
def test_an_export_on_a_full_disk_says_so_and_goes_on_later(archive: Path, form: str) -> None:
    options = ExportOptions(format=form, chunk_images=2, **FORMATS[form])
    results = open_results(Storage(), str(archive / "out"))
    export(results, str(archive / "whole"), options)
    whole = files_of(archive / "whole")

    def check(dest: Path) -> None:
        for name, data in files_of(dest, but=("segcore-summary.json",)).items():
            assert name.endswith(".begun") or whole[name] == data, name

    n_cut = cut_everywhere(
        lambda dest: export(results, str(dest), options), archive / "dest", 7, check
    )
    assert n_cut > 3
    last = max((archive / "dest").iterdir(), key=lambda path: int(path.name[3:]))
    assert files_of(last).keys() == whole.keys()


@pytest.mark.parametrize("has_truth", [False, True])
def test_an_import_on_a_full_disk_writes_nothing(archive: Path, has_truth: bool) -> None:
    dest = archive / "dest"
    export(open_results(Storage(), str(archive / "out")), str(dest), ExportOptions())
    expected = archive / "expected.json"
    import_corrections(Storage(), str(dest), str(expected))
    before = files_of(dest)

    def job(folder: Path) -> None:
        import_corrections(Storage(), str(dest), str(folder / "truth.json"), overwrite=True)

    def check(folder: Path) -> None:
        found = files_of(folder)
        assert files_of(dest) == before
        assert found.keys() <= {"truth.json"}
        assert all(data in (b"old", expected.read_bytes()) for data in found.values())
        if has_truth:
            assert found

    for n_left in range(12):
        if has_truth:
            write_files(archive / f"to/cut{n_left}", {"truth.json": b"old"})
    assert cut_everywhere(job, archive / "to", 1, check) >= 4


@pytest.mark.parametrize("command", ["export", "import"])
def test_a_full_temporary_folder_is_named(
    archive: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = open_results(Storage(), str(archive / "out"))
    export(results, str(archive / "dest"), ExportOptions())

    class Full:
        def __init__(self, size: int) -> None:
            pass

        def write(self, data: bytes) -> int:
            raise OSError(28, "No space left on device")

        def close(self) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(spill.tempfile, "SpooledTemporaryFile", Full)
    jobs = {
        "export": lambda: export(results, str(archive / "more"), ExportOptions()),
        "import": lambda: import_corrections(
            Storage(), str(archive / "dest"), str(archive / "truth.json")
        ),
    }
    with pytest.raises(StorageFull, match=r"temporary folder .* is full") as caught:
        jobs[command]()
    assert tempfile.gettempdir() in caught.value.message
    assert "TMPDIR" in caught.value.hint
    assert not list(archive.glob("more/instances*")) + list(archive.glob("*truth*"))


def test_prelabel_on_a_full_disk_says_so_and_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each call stands for a process, which is gone when the next one finds its lease.
    monkeypatch.setattr(Holder, "exists", lambda holder: False)
    write_files(tmp_path / "in", bright_pngs(4))

    def job(folder: Path) -> None:
        flags = {"INPUT": ("input", str(tmp_path / "in")), "DEST": ("dest", str(folder / "to"))}
        sets = [f"model.name={BRIGHT_MODEL}", "export.format=label-studio"]
        sets += ["export.images=copy", "export.chunk_images=2", "export.ranking=random"]
        with without_ray():
            report = segcore.prelabel(
                segcore.load_config(sets=sets, flags=flags, schema=PrelabelConfig)
            )
        assert report.exit_code == 0

    job(tmp_path / "whole")
    whole = files_of(tmp_path / "whole/to", but=("segcore-summary.json", "segcore-export.json"))

    def check(folder: Path) -> None:
        for path in folder.rglob("*"):
            assert not path.name.endswith(".tmp"), path
            if path.suffix == ".json":
                json.loads(path.read_bytes())
        for name, data in files_of(folder / "to").items():
            if name.startswith(("tasks", "images")):
                assert data == whole[name]

    assert cut_everywhere(job, tmp_path / "cut", 23, check) > 2
    last = max((tmp_path / "cut").iterdir(), key=lambda path: int(path.name[3:]))
    assert files_of(last / "to").keys() >= whole.keys()
