"""What was not read is in the report and on the last screen, whatever the input is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from segcore.errors import NothingFound
from segcore.output.layout import EditionLayout
from segcore.output.report import RunReport
from segcore.run.segment import preview, segment
from segcore.storage import Storage
from tests.support import serial_run
from tests.support.archives import tar_bytes
from tests.support.bright_images import bright_png
from tests.support.jobs import job_config, write_files

IMAGE = bright_png(1)


def _run(source: object, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[RunReport, str]:
    """The report, and the last lines for people."""
    serial_run.without_ray(monkeypatch)
    report = segment(job_config(source, folder / "out"))
    stored = json.loads(
        Storage().read(EditionLayout(report.prefix).run_record(report.run)).decode()
    )
    assert stored == json.loads(json.dumps(report.to_dict()))
    return report, "\n".join(report.advice())


def test_a_folder_of_tars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tar_bytes([("c.png", IMAGE), ("c.txt", b"")])
    shard = tar_bytes(
        [
            ("a.png", IMAGE),
            ("a.json", b""),
            ("._a.png", b""),
            ("b.tar", inner),
            ("a.png", IMAGE),
            ("d.GIF", b""),
            ("e.heic", b""),
        ]
    )
    files = {"1.tar": shard + b"x" * 700, "notes.md": b"", ".DS_Store": b"", ".git/config": b""}
    write_files(tmp_path / "in", files)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere")
    report, shown = _run(tmp_path / "in", tmp_path, monkeypatch)
    assert report.images == 3
    assert report.notes == {
        "bytes_behind_end_mark": 700,
        "duplicate_names": 1,
        "ignored_members": 5,
        "ignored_members.gif": 1,
        "ignored_members.heic": 1,
        "ignored_members.hidden": 1,
        "ignored_members.json": 1,
        "ignored_members.txt": 1,
        "inner_archives": 1,
    }
    for line in (
        f"  Skipped 1 link to a folder in {tmp_path}/in (set source.allow_outside=true",
        f"  Skipped 2 hidden files or folders in {tmp_path}/in: names that start with a dot.",
        f"  Skipped 1 other file in {tmp_path}/in: 1 x .md.",
        "  700 bytes behind the end of tars, not read",
        "  5 members of tars that are no images (gif 1, heic 1, hidden 1, json 1, txt 1)",
        "  To read .gif, .heic too: --set 'source.extensions=["
        "jpg,jpeg,png,webp,tif,tiff,bmp,gif,heic]' and pip install 'segcore[heic]'.",
        "  1 tar inside a tar, read as well",
        "  1 key that occurred before in its shard, renamed to ~2, ~3, ...",
    ):
        assert line in shown
    assert len(report.input_notes) == 3
    assert tuple(preview(job_config(tmp_path / "in", tmp_path / "out2")).notes()) == (
        report.input_notes
    )


def test_a_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"1.png": IMAGE, "list.txt": b"# one\n1.png\n# two\n1.png\n../x.png\n"}
    write_files(tmp_path / "in", files)
    report, shown = _run(tmp_path / "in" / "list.txt", tmp_path, monkeypatch)
    assert (report.images, report.ok) == (2, 1)
    assert "2 x comment (a line that begins with '#' and names no file)" in shown
    assert "Ignored 1 duplicate entry" in shown


def test_an_input_without_images_says_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(tmp_path / "in", {"1.tar": tar_bytes([("a.json", b""), ("b.json", b"")])})
    with pytest.raises(NothingFound, match=r"2 members of tars that are no images \(json 2\)"):
        _run(tmp_path / "in", tmp_path, monkeypatch)
    write_files(tmp_path / "hidden", {".a.png": IMAGE, "b.heic": b""})
    with pytest.raises(NothingFound, match=r"found 1 x \.heic") as caught:
        preview(job_config(tmp_path / "hidden", tmp_path / "out"))
    assert "1 hidden file or folder" in caught.value.hint
    assert "To read .heic too: --set 'source.extensions=[" in caught.value.hint
