"""No name from an archive, a model or a ground truth steers a terminal, in any command."""

from __future__ import annotations

import json
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segcore.cli import console
from segcore.cli.main import app
from segcore.errors import ErrorCode, ImageError, SegcoreError
from segcore.models.checkpoints import save_safetensors
from segcore.models.registry import load_checkpoint
from segcore.output.editions import choose_edition
from segcore.output.latest import publish
from segcore.output.tables import encode_part
from segcore.storage import Storage
from segcore.text import json_text
from tests.support import serial_run
from tests.support.archives import tar_bytes
from tests.support.bright_images import bright_png
from tests.support.jobs import BRIGHT_MODEL, write_files

NASTY = "a\x1b[31m\nX\x9b2J\u202e"  # colour, line break, C1 control, right to left
SHOWN = "a?[31m?X?2J?"
Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command; gives its exit code and all that it prints, which must be printable."""
    serial_run.without_ray(monkeypatch)

    def run(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["segcore", *arguments])
        with pytest.raises(SystemExit) as end:
            console.run_app(app)
        printed = "".join(capsys.readouterr())
        assert [c for c in printed if not (c.isprintable() or c == "\n")] == []
        assert not re.search(r"^\s*X\?2J", printed, re.MULTILINE)  # a name does not begin a line
        return int(end.value.code or 0), printed

    return run


def _archive(folder: Path, kind: str) -> str:
    images = {f"{NASTY}.png": bright_png(1), f"{NASTY}2.png": b"no image", "b.png": bright_png(2)}
    if kind == "tar":
        members = [*images.items(), (f"{NASTY}.txt", b""), (f"{NASTY}.{NASTY}", b"")]
        return f"{write_files(folder, {f'{NASTY}.tar': tar_bytes(members)})}/{NASTY}.tar"
    if kind == "folder":
        return write_files(folder / NASTY, images | {f"x.{NASTY}": b"", f".{NASTY}": b""})
    write_files(folder, images)
    names = [*images, f"{NASTY}-missing.png", f"../{NASTY}.png", f"ftp://{NASTY}/x.png"]
    lines = [json.dumps({"uri": name}) for name in names]
    return f"{write_files(folder, {'list.jsonl': chr(10).join(lines).encode()})}/list.jsonl"


@pytest.mark.parametrize(
    "kind",
    ["tar", *(pytest.param(kind, marks=pytest.mark.faults) for kind in ("folder", "manifest"))],
)
def test_names_from_archives(run: Run, tmp_path: Path, kind: str) -> None:
    source, output = _archive(tmp_path / "in", kind), str(tmp_path / "out")
    options = ["--model", BRIGHT_MODEL, "--set", "run.max_failed_fraction=0"]
    assert run("segment", source, output, *options, "--dry-run")[0] == 0
    assert run("segment", source, output, *options)[0] == 3
    assert run("segment", source, output, *options, "--json")[0] == 3
    assert run("segment", source + NASTY, output)[0] == 2

    layout = choose_edition(Storage(), output).layout
    page = str(tmp_path / "report.html")
    assert run("report", output, "--out", page, "--against", NASTY, "--ground-truth", NASTY)[0] == 1
    assert all(c.isprintable() or c == "\n" for c in Path(page).read_text())
    for path in Path(layout.parts_folder("images")).iterdir():  # every row contradicts another
        table = pq.read_table(path)
        wrong = pa.array([7] * table.num_rows, pa.int32())
        position = table.schema.get_field_index("n_instances")
        table = table.set_column(position, table.schema.field("n_instances"), wrong)
        metadata = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
        path.write_bytes(encode_part(table, metadata))
    (Path(layout.parts_folder("images")) / f"{NASTY}.parquet").write_bytes(b"")
    code, printed = run("verify", output)
    assert code == 1
    assert SHOWN in printed
    assert run("status", output)[0] == 0

    truth = {
        "images": [{"id": 1, "file_name": f"{NASTY}.png"}, {"id": 2, "file_name": f"{NASTY}3.png"}],
        "categories": [{"id": 1, "name": f"[/x]{NASTY}"}],
        "annotations": [],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    code, printed = run("evaluate", output, str(tmp_path / "truth.json"))
    assert code == 2
    assert SHOWN in printed

    publish(Storage(), layout, NASTY, NASTY)
    Path(layout.output.latest_json).write_text(json.dumps({"edition": NASTY}))
    assert run("evaluate", output, str(tmp_path / "truth.json"))[0] == 1
    assert run("verify", output)[0] == 1
    record = json.loads(next(Path(layout.runs_folder).glob("*.json")).read_bytes())
    record |= {"execution": NASTY, "started": NASTY, "status": NASTY, "errors": [NASTY]}
    Path(layout.history_folder, "9.json").write_text(json.dumps(record))
    code, printed = run("status", output)
    assert (code, SHOWN in printed) == (0, True)


@pytest.mark.slow
def test_names_from_checkpoints(run: Run, tmp_path: Path) -> None:
    checkpoint = load_checkpoint("nuclei-yolo11n")
    meta = checkpoint.meta.model_dump(mode="json")
    meta |= {"licence": NASTY, "name": NASTY}
    source, target = tmp_path / f"{NASTY}.safetensors", tmp_path / f"{NASTY}-2.safetensors"
    save_safetensors(source, checkpoint.state_dict, meta)
    code, printed = run("convert", str(source), str(target))
    assert code == 0
    assert SHOWN in printed
    assert run("convert", str(source), str(target))[0] == 2  # it exists
    damaged = tmp_path / f"{NASTY}.pt"
    damaged.write_bytes(b"PK\x03\x04")
    assert run("convert", str(damaged), str(tmp_path / "3.safetensors"))[0] == 2


def test_an_error_is_printable_wherever_it_is_shown() -> None:
    error = SegcoreError(f"{NASTY} is wrong", f"delete {NASTY}")
    assert str(error) == error.message == f"{SHOWN} is wrong"
    assert error.hint == f"delete {SHOWN}"
    lines = SegcoreError([f"{NASTY} is wrong", "and more"], "do this")
    assert lines.message == f"{SHOWN} is wrong\nand more"
    again = pickle.loads(pickle.dumps(lines))
    assert (again.message, again.hint) == (lines.message, lines.hint)


# all of the categories "other" and "separator" below U+3000, and some above it
UNPRINTABLE = [chr(i) for i in range(0x3001) if not chr(i).isprintable()]
UNPRINTABLE += ["\ufeff", "\ufff9", "\ue000", "\U000e0001", "\U000e0041", "\udc9b"]


def test_no_character_that_steers_a_terminal_is_left_in_what_people_read() -> None:
    assert {"\0", "\n", "\r", "\x1b", "\x7f", "\x85", "\x9b", "\u061c", "\u200e", "\u2028"} < set(
        UNPRINTABLE
    )
    assert set(map(chr, [*range(0x202A, 0x202F), *range(0x2066, 0x206A)])) < set(UNPRINTABLE)
    name = "ü".join(["", *UNPRINTABLE, ""])
    shown = "ü".join(["", *("?" * len(UNPRINTABLE)), ""])
    assert ImageError(ErrorCode.CORRUPT, name).message == SegcoreError(name).message == shown
    text = json_text({name: [name]})
    assert [c for c in text if not (c.isprintable() or c == "\n")] == []
    assert "ü" in text
    assert json.loads(text) == {name: [name]}
