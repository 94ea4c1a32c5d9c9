"""Damaged parts, whatever the damage and whoever reads: exit code 1, and the file is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import segcore
from segcore.errors import DamagedOutput, SegcoreError
from segcore.exit_codes import ExitCode
from segcore.inspection.failures import read_failures
from segcore.instances import Instances
from segcore.output.layout import EditionLayout, Table
from segcore.output.results import Results, open_results
from segcore.storage import Storage
from tests.support.commands import call_segcore
from tests.support.generated_output import draw_instances
from tests.support.two_editions import truth_bytes, write_images

storage = Storage()
Damage = Callable[[Path], None]


def _cut(share: float) -> Damage:
    def cut(file: Path) -> None:
        data = file.read_bytes()
        file.write_bytes(data[: int(share * len(data))])

    return cut


def _written(data: bytes) -> Damage:
    return lambda file: file.write_bytes(data) and None


def _zeros_inside(file: Path) -> None:
    """In the ids of the images, which every reader needs."""
    data = bytearray(file.read_bytes())
    column = pq.read_metadata(file).row_group(0).column(0)
    stop = (column.dictionary_page_offset or column.data_page_offset) + column.total_compressed_size
    data[stop - 10 : stop] = bytes(10)
    file.write_bytes(data)


def _one_bit(file: Path) -> None:
    """In the first page of values: only its checksum tells."""
    column = pq.read_metadata(file).row_group(0).column(0)
    data = bytearray(file.read_bytes())
    first = column.dictionary_page_offset or column.data_page_offset
    data[first + column.total_compressed_size - 2] ^= 1
    file.write_bytes(data)


def _changed(change: Callable[[pa.Table], pa.Table]) -> Damage:
    def rewrite(file: Path) -> None:
        table = pq.read_table(file)
        changed = change(table)
        pq.write_table(changed.replace_schema_metadata(table.schema.metadata), file)

    return rewrite


def _nulls(table: pa.Table) -> pa.Table:
    empty = pa.array([None] * table.num_rows, pa.string())
    return table.set_column(0, pa.field("image_id", pa.string()), empty)


def _numbers(table: pa.Table) -> pa.Table:
    return table.set_column(0, "image_id", pa.array(range(table.num_rows), pa.int64()))


DAMAGE: dict[str, Damage] = {
    "gone": Path.unlink,
    "empty": _written(b""),
    "zeros": _written(bytes(4000)),
    "text": _written(b'{"images": []}'),
    "magic": _written(b"PAR1" + bytes(600) + b"PAR1"),
    "cut in the middle": _cut(0.5),
    "cut in the footer": _cut(0.97),
    "zeros inside": _zeros_inside,
    "one bit": _one_bit,
    "a column missing": _changed(lambda table: table.drop_columns(["image_id"])),
    "another type": _changed(_numbers),
    "values missing": _changed(_nulls),
    "another table": _changed(lambda table: pa.table({"x": [1, 2]})),
}


@pytest.fixture(scope="module")
def images() -> dict[str, Instances | None]:
    return {f"s3://archive/photos/{i}.jpg": draw_instances("nuclei", 3, i) for i in range(6)}


@pytest.fixture
def layout(tmp_path: Path, images: dict[str, Instances]) -> EditionLayout:
    (tmp_path / "truth.json").write_bytes(truth_bytes(images))
    return write_images(str(tmp_path / "out"), images, 3, "first")


def _part(layout: EditionLayout, table: Table) -> Path:
    return sorted(Path(layout.parts_folder(table)).iterdir())[0]


READERS: dict[str, Callable[[Results, str], object]] = {
    "tables": lambda results, folder: [results.to_arrow("images"), results.to_arrow("instances")],
    "evaluate": lambda results, folder: segcore.evaluate(results.prefix, f"{folder}/truth.json"),
    "export": lambda results, folder: segcore.export(
        results.prefix, f"{folder}/coco", options={"workers": 1}
    ),
}


@pytest.mark.parametrize("table", ["images", "instances"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_an_error_that_names_the_file(
    layout: EditionLayout, tmp_path: Path, table: Table, damage: str
) -> None:
    file = _part(layout, table)
    seen = open_results(storage, layout.prefix)  # as a process that is reading already
    DAMAGE[damage](file)
    is_committed = file.exists() or table == "instances"
    for results in [seen, *([open_results(storage, layout.prefix)] if is_committed else [])]:
        with pytest.raises(DamagedOutput) as caught:
            READERS["tables"](results, str(tmp_path))
        assert caught.value.exit_code == ExitCode.INCOMPLETE
        assert str(file) in caught.value.message
        assert "segcore verify" in caught.value.hint
    if is_committed:
        for reader in ("evaluate", "export"):
            with pytest.raises(SegcoreError) as caught:
                READERS[reader](seen, str(tmp_path))
            assert caught.value.exit_code == ExitCode.INCOMPLETE, caught.value
            assert str(file) in caught.value.message


@pytest.mark.slow
@pytest.mark.parametrize("table", ["images", "instances"])
def test_commands_end_with_1(layout: EditionLayout, tmp_path: Path, table: Table) -> None:
    file = _part(layout, table)
    _one_bit(file)
    truth = str(tmp_path / "truth.json")
    commands = [
        ("evaluate", layout.prefix, truth),
        ("export", layout.prefix, str(tmp_path / "coco"), "--workers", "1"),
        ("compare", layout.prefix, truth),
        ("report", layout.prefix, "--out", str(tmp_path / "r.html")),
        ("rank", layout.prefix, "--by", "uncertain"),
        ("verify", layout.prefix),
        *([("failures", layout.prefix)] if table == "images" else []),
    ]
    for command in commands:
        done = call_segcore(*command)
        assert done.returncode == 1, (command, done.stderr)
        assert file.name.removesuffix(".parquet") in done.stdout + done.stderr, command
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "text"),
    [(name, text) for name in ("edition.json", "latest.json", "record")
     for text in ("{", "[1]")],
)  # fmt: skip
def test_damaged_documents_are_no_usage_errors(layout: EditionLayout, name: str, text: str) -> None:
    output = layout.output
    record = next(Path(layout.runs_folder).glob("*.json"))
    files = {"edition.json": layout.edition_json, "latest.json": output.latest_json}
    file = Path(files.get(name, str(record)))
    file.write_text(text)
    done = call_segcore("failures", output.uri)
    if name == "latest.json":  # its only edition can be read all the same, or it is said
        assert done.returncode in (0, 1), done.stderr
    else:
        assert done.returncode == 1, done.stderr
        assert file.name in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("model", [5, {}, {"categories": [{"id": "a"}]}])
def test_an_edition_without_its_model(layout: EditionLayout, tmp_path: Path, model: object) -> None:
    file = Path(layout.edition_json)
    file.write_text(json.dumps({**json.loads(file.read_text()), "model": model}))
    truth = str(tmp_path / "truth.json")
    for command in (
        ("evaluate", layout.prefix, truth),
        ("compare", layout.prefix, truth),
        ("export", layout.prefix, str(tmp_path / "coco"), "--workers", "1"),
        ("rank", layout.prefix, "--by", "diverse"),
    ):
        done = call_segcore(*command)
        assert (done.returncode, "edition.json is damaged" in done.stderr) == (1, True), done.stderr
    done = call_segcore("report", layout.prefix, "--out", str(tmp_path / "r.html"))
    assert done.returncode == 1  # the rest goes on: the pictures are not there, either
    assert (tmp_path / "r.html").exists()
    assert call_segcore("failures", layout.prefix).returncode == 0


def test_a_part_that_is_sound_is_read_whole(layout: EditionLayout, images: dict) -> None:
    results = open_results(storage, layout.prefix)
    assert sorted(results.to_arrow("images")["image_id"].to_pylist()) == sorted(images)
    assert results.to_arrow("instances").num_rows == 18
    assert list(read_failures(results)) == []
    assert json.loads(Path(layout.edition_json).read_text()) == results.edition
