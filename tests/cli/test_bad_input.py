"""Bad input to show, compare, evaluate, report, rank and export: said, and the rest goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segcore.output.layout import EditionLayout
from tests.support.commands import call_segcore
from tests.support.masks_output import HEIGHT, WIDTH, Drawn, hard_mask, picture, write_results

pytestmark = pytest.mark.faults  # for its length: each command takes a second

N_IMAGES = 5  # in units of 4
SHOW = ("show", "out", "--out", "sheet.png")
COMPARE = ("compare", "out", "truth.json", "--table", "table.parquet")
EVALUATE = ("evaluate", "out", "truth.json")
REPORT = ("report", "out", "--ground-truth", "truth.json", "--out", "report.html")
RANK = ("rank", "out", "--by", "uncertain")
EXPORT = ("export", "out", "coco", "--workers", "1")
FILES = {"show": "sheet.png", "compare": "table.parquet", "report": "report.html"}


@dataclass(frozen=True)
class World:
    """An archive, its output `out` and its known masks, in the working folder."""

    layout: EditionLayout
    truth: dict[str, Any]

    def part(self, table: str, number: int) -> Path:
        return sorted((Path(self.layout.prefix) / table).glob("*.parquet"))[number]


def _write(names: list[str]) -> World:
    Path("in").mkdir()
    for number, name in enumerate(names):
        Path("in", name).write_bytes(picture(number))
    drawn = {name: [Drawn(hard_mask(), 3, 0.9), Drawn(~hard_mask(), 5, 0.4)] for name in names}
    layout = write_results(f"{Path.cwd()}/in", f"{Path.cwd()}/out", drawn)
    square = [[5, 5, 30, 5, 30, 30, 5, 30]]
    truth = {
        "categories": [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog & <b>"}],
        "images": [
            {"id": i, "file_name": name, "width": WIDTH, "height": HEIGHT}
            for i, name in enumerate(names, start=1)
        ],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 3, "segmentation": square, "iscrowd": 0}
            for i in range(1, len(names) + 1)
        ],
    }
    Path("truth.json").write_text(json.dumps(truth))
    return World(layout, truth)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.chdir(tmp_path)
    return _write([f"i{i}.png" for i in range(N_IMAGES)])


def _check(command: tuple[str, ...], code: int, message: str = "") -> None:
    """One exit code, one sentence, and a whole file or none."""
    done = call_segcore(*command)
    said = done.stdout + done.stderr
    assert done.returncode == code, said
    assert message in " ".join(said.split())
    assert "Traceback" not in said
    assert not any(character in said for character in "\x00\x07\x1b")
    assert not list(Path().glob(".*")), "something unfinished was left"
    if command[0] in FILES:
        file = Path(FILES[command[0]])
        is_written = code != 2
        assert file.exists() == is_written
        if file.suffix == ".parquet" and is_written:
            pq.read_table(file)


def _gone(world: World) -> None:
    Path("in/i1.png").unlink()


def _changed(world: World) -> None:
    Path("in/i1.png").write_bytes(picture(77))


def _unit_missing(world: World) -> None:
    world.part("images", 0).unlink()


def _damaged_instances(world: World) -> None:
    world.part("instances", 0).write_bytes(b"PAR1" + bytes(600) + b"PAR1")


def _damaged_images(world: World) -> None:
    file = world.part("images", 0)
    file.write_bytes(file.read_bytes()[:300])


CANNOT = "cannot be shown"
UNFINISHED = "1 unit of images have no results yet"
UNREADABLE = "is not a part of a segcore output"


@pytest.mark.parametrize(
    ("harm", "command", "code", "message"),
    [
        (_gone, SHOW, 1, "i1.png cannot be shown: "),
        (_gone, COMPARE, 0, "5 images compared"),
        (_gone, EVALUATE, 0, "5 images"),
        (_gone, REPORT, 1, "i1.png does not exist"),
        (_gone, RANK, 0, "5 segmented images"),
        (_changed, SHOW, 1, "it is another version"),
        (_changed, REPORT, 1, "it is another version"),
        (_unit_missing, SHOW, 0, UNFINISHED),
        (_unit_missing, COMPARE, 0, UNFINISHED),
        (_unit_missing, EVALUATE, 2, "Finish the run first"),
        (_unit_missing, (*EVALUATE, "--allow-missing"), 0, UNFINISHED),
        (_unit_missing, REPORT, 1, "have no results: the scores leave them out."),
        (_unit_missing, RANK, 0, UNFINISHED),
        (_damaged_instances, SHOW, 1, CANNOT),
        (_damaged_instances, COMPARE, 1, "1 unit cannot be read: left out"),
        (_damaged_instances, EVALUATE, 1, UNREADABLE),
        (_damaged_instances, EXPORT, 1, UNREADABLE),
        (_damaged_instances, REPORT, 1, "A unit cannot be read and is left out"),
        (_damaged_instances, RANK, 1, "A unit cannot be read and is left out"),
        (_damaged_images, SHOW, 1, "A unit cannot be read and is left out"),
        (_damaged_images, EVALUATE, 1, UNREADABLE),
        (_damaged_images, REPORT, 1, "Scores left out"),
        (_damaged_images, RANK, 1, "A unit cannot be read and is left out"),
    ],
)
def test_archives_and_outputs(
    world: World, harm: Callable[[World], None], command: tuple[str, ...], code: int, message: str
) -> None:
    harm(world)
    _check(command, code, message)


def _without(rows: list[dict], *keys: str) -> list[dict]:
    return [{k: v for k, v in row.items() if k not in keys} for row in rows]


def _changed_truth(name: str, truth: dict[str, Any]) -> str:
    images, objects = truth["images"], truth["annotations"]
    swap: dict[str, Any] = {
        "boxes": {"annotations": _without(objects, "segmentation")},
        "sizes": {"images": [{**row, "width": 90} for row in images]},
        "one size": {"images": [{**images[0], "width": 90}, *images[1:]]},
        "names": {"images": [{**row, "file_name": f"z{row['id']}.png"} for row in images]},
        "no sizes": {"images": _without(images, "width", "height")},
        "classes": {"categories": [{"id": 3, "name": "\x1b[31mlamp\x07"}]},
        "one name": {"images": [{**images[0], "file_name": "../../\x1b[31m<b>"}, *images[1:]]},
        "fewer": {"images": images[:1], "annotations": objects[:1]},
        "none": {"images": [], "annotations": []},
        "no objects": {"annotations": []},
    }
    texts = {"empty": "", "object": "{}", "list": "[]", "cut": '{"images": ['}
    return texts[name] if name in texts else json.dumps({**truth, **swap[name]})


@pytest.mark.parametrize(
    ("name", "codes", "message"),
    [  # of compare, evaluate and report
        ("boxes", (0, 2, 1), "5 annotations without a segmentation: left out"),
        ("sizes", (2, 2, 1), "size"),
        ("one size", (0, 2, 1), "size"),
        ("names", (2, 2, 1), "z1.png"),
        ("no sizes", (0, 0, 0), ""),
        ("classes", (0, 2, 1), "No class of the model"),
        ("one name", (0, 2, 1), ""),
        ("fewer", (0, 0, 0), ""),
        ("none", (2, 2, 1), "no images or no categories"),
        ("no objects", (0, 0, 0), ""),
        ("empty", (2, 2, 1), "is not JSON"),
        ("object", (2, 2, 1), "is not a COCO ground truth"),
        ("list", (2, 2, 1), "is not a COCO ground truth"),
        ("cut", (2, 2, 1), "is not JSON"),
    ],
)
def test_ground_truths(world: World, name: str, codes: tuple[int, ...], message: str) -> None:
    Path("truth.json").write_text(_changed_truth(name, world.truth))
    for command, code in zip((COMPARE, EVALUATE, REPORT), codes, strict=True):
        _check(command, code, message)


def test_another_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, names in (("first", ["a.png"]), ("copy", ["a.png"]), ("other", ["b.png"])):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        _write(names)
    monkeypatch.chdir(tmp_path)
    table = ("--table", "table.parquet")
    _check(("compare", "first/out", "copy/out", *table), 0, "of different archives")
    Path("table.parquet").write_bytes(b"what was there")
    done = call_segcore("compare", "first/out", "other/out", *table)
    assert (done.returncode, Path("table.parquet").read_bytes()) == (2, b"what was there")
    assert "have no image in common" in done.stderr
    against = ("report", "first/out", "--out", "report.html", "--against")
    _check((*against, "other/out"), 1, "have no image in common")


def _replaced(table: pa.Table, column: int, values: list) -> pa.Table:
    name = table.schema.names[column]
    return table.set_column(column, name, pa.array(values)).replace_schema_metadata(
        table.schema.metadata
    )


_HOSTILE = ["<script>x</script>", "a\x1b[31mb\x07\n\nError: no", "y" * 100_000, "", "..", "é"]


@pytest.mark.parametrize(
    ("change", "codes", "message"),
    [  # of show, report and export
        (lambda t: _replaced(t, 3, _HOSTILE[:N_IMAGES]), (0, 0, 0), ""),
        (lambda t: _replaced(t, 0, _HOSTILE[:N_IMAGES]), (2, 0, 1), ""),
        (lambda t: t.slice(0, 0), (2, 0, 1), ""),
        (lambda t: t.replace_schema_metadata({}), (1, 1, 1), "is not a readable ranking"),
        (lambda t: t.drop_columns(["why"]), (1, 1, 1), "is not a readable ranking"),
        (None, (1, 1, 1), "is not a readable ranking"),
    ],
    ids=["hostile reasons", "other images", "no rows", "no options", "no reasons", "cut"],
)
def test_rankings(
    world: World, change: Callable[[pa.Table], pa.Table] | None, codes: tuple[int, ...],
    message: str,
) -> None:  # fmt: skip
    assert call_segcore(*RANK).returncode == 0
    file = Path(world.layout.ranking("uncertain"))
    table = pq.read_table(file)
    if change is None:
        file.write_bytes(file.read_bytes()[:500])
    else:
        pq.write_table(change(table), file)
    commands = [
        ("show", "out", "--out", "sheet.png"),
        ("report", "out", "--out", "report.html"),
        ("export", "out", "export", "--workers", "1"),
    ]
    for command, code in zip(commands, codes, strict=True):
        done = call_segcore(*command, "--ranking", "uncertain")
        assert done.returncode == code, done.stderr
        assert message in " ".join(done.stderr.split())
        assert not any(character in done.stderr for character in "\x00\x07\x1b")
    assert Path("report.html").stat().st_size < 200_000


@pytest.mark.parametrize("name", ["../x", "a/b", "nix", "x" * 80, "a\x1b[31m"])
def test_names_of_rankings(world: World, name: str) -> None:
    _check(("show", "out", "--ranking", name, "--out", "sheet.png"), 2, "anking")
    _check(("rank", "out", "--by", "random", "--name", name), 0 if name == "nix" else 2)


@pytest.mark.parametrize("target", ["file/x", "in", "x" * 300])
def test_what_cannot_be_written(world: World, target: str) -> None:
    Path("file").write_bytes(b"")
    shutil.rmtree("in")
    Path("in").mkdir()
    for command, name in (
        (("compare", "out", "truth.json", "--table"), target),
        (("report", "out", "--out"), f"{target}/r.html" if target == "file/x" else "file/r.html"),
        (("show", "out", "--out"), f"{target}.png" if target != "in" else "file/x.png"),
    ):
        done = call_segcore(*command, name)
        assert done.returncode in (1, 2), done.stderr
        assert "Traceback" not in done.stderr
        assert "cannot be written" in done.stderr or "report" in command
        assert sorted(path.name for path in Path().iterdir()) == ["file", "in", "out", "truth.json"]
