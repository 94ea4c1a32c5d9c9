"""`segcore verify` and `segcore status` on real outputs, damaged in every way."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from segcore.config import load_config
from segcore.inspection.problems import KINDS, Verification
from segcore.inspection.status import read_status
from segcore.inspection.verify import verify_output
from segcore.lease.hold import hold_lease
from segcore.output.parts import encode_part
from segcore.output.report import RUNNING, RunReport
from segcore.storage import Storage, join
from tests.support import serial_run
from tests.support.lease_files import lease_folder

storage = Storage()


def _png(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    pixels = np.zeros((40 + seed % 5, 56, 3), np.uint8)
    y, x = rng.integers(1, 20, 2)
    pixels[y : y + 9, x : x + 12, 1] = 220
    return cv2.imencode(".png", pixels)[1].tobytes()


@dataclass(frozen=True)
class Output:
    """A finished run in a folder."""

    report: RunReport
    output: str

    @property
    def prefix(self) -> str:
        return self.report.prefix

    def part(self, table: str, number: int = 0) -> str:
        infos = storage.list(join(self.prefix, table))
        return sorted(i.uri for i in infos if i.uri.endswith(".parquet"))[number]

    def edit(self, uri: str, change: Callable[[pa.Table], pa.Table], **options: object) -> None:
        """Rewrite a part as segcore would, with other rows."""
        table = pq.read_table(pa.BufferReader(storage.read(uri)))
        metadata = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
        storage.write(uri, encode_part(change(table), metadata))

    def kinds(self) -> dict[str, int]:
        return dict(self.verify().counts)

    def verify(self) -> Verification:
        return verify_output(storage, self.output, threads=2)


def _run(folder: str, n: int = 10) -> Output:
    for i in range(n):
        storage.write(f"{folder}/in/image{i:02d}.png", _png(i))
    storage.write(f"{folder}/in/words.png", b"no image at all")
    flags = {
        "input": ("input", f"{folder}/in"),
        "output": ("output", f"{folder}/out"),
        "model": ("model.name", "tests.support.fake_models:BrightModel"),
    }
    report = serial_run.segment(load_config(sets=["plan.images=4"], flags=flags))
    storage.write(join(report.prefix, "runs", f"{report.run}.json"), report.to_json())
    return Output(report, f"{folder}/out")


@pytest.fixture
def out(tmp_path: Path) -> Output:
    return _run(str(tmp_path))


def _set(table: pa.Table, name: str, values: list, row: int = 0) -> pa.Table:
    """The table with other values in a column from `row` on."""
    column = table[name].to_pylist()
    column[row : row + len(values)] = values
    at = table.schema.get_field_index(name)
    return table.set_column(at, table.schema.field(name), pa.array(column, table[name].type))


# --- a good output


def test_a_good_output_is_fine(folder: str) -> None:
    found = _run(folder).verify()
    assert (found.exit_code, dict(found.counts), found.problems) == (0, {}, [])
    assert (found.units, found.images, found.ok, found.failed) == (3, 11, 10, 1)
    assert found.instances == 10
    assert json.loads(json.dumps(found.to_dict()))["fine"] is True
    assert "fine" in found.summary()


def test_an_edition_may_be_given_by_its_prefix_or_name(out: Output) -> None:
    assert verify_output(storage, out.prefix).exit_code == 0
    assert verify_output(storage, out.output, out.report.edition).exit_code == 0


# --- damaged files


def test_every_flipped_byte_is_found(out: Output) -> None:
    rng = np.random.default_rng(7)
    for table in ("images", "instances"):
        uri = out.part(table)
        good = storage.read(uri)
        version = f"version {pa.__version__}".encode()
        free = np.ones(len(good), bool)  # another version of the writer is no damage
        free[good.rindex(version) + 8 : good.rindex(version) + len(version)] = False
        for place in rng.choice(np.flatnonzero(free), 40, replace=False).tolist():
            bad = bytearray(good)
            bad[place] ^= 1 << int(rng.integers(8))
            storage.write(uri, bytes(bad))
            found = out.verify()
            assert found.exit_code == 1, (table, place)
            assert uri in {problem.uri for problem in found.problems}, (table, place)
        storage.write(uri, good)
    assert out.kinds() == {}


@pytest.mark.parametrize("table", ["images", "instances"])
@pytest.mark.parametrize("length", [0, 3, 500, -1])
def test_a_truncated_part_is_unreadable(out: Output, table: str, length: int) -> None:
    uri = out.part(table)
    storage.write(uri, storage.read(uri)[:length])
    found = out.verify()
    assert found.counts["unreadable_part"] == 1
    assert [p.uri for p in found.problems if p.kind == "unreadable_part"] == [uri]


def test_missing_parts_are_named(out: Output) -> None:
    images, instances = out.part("images", 0), out.part("instances", 1)
    storage.delete(images)
    storage.delete(instances)
    found = out.verify()
    named = {(problem.kind, problem.uri) for problem in found.problems}
    assert {
        ("missing_part", images),
        ("orphan_part", images.replace("/images/", "/instances/")),
        ("missing_instances", instances),
    } <= named
    assert found.counts["report_differs"] >= 1


def test_alien_files_are_named(out: Output) -> None:
    aliens = [f"{out.prefix}/images/part-0.parquet", f"{out.prefix}/instances/notes.txt",
              f"{out.prefix}/images/old/{Path(out.part('images')).name}"]  # fmt: skip
    for uri in aliens:
        storage.write(uri, b"x")
    found = out.verify()
    assert dict(found.counts) == {"alien_file": 3}
    assert sorted(problem.uri for problem in found.problems) == sorted(aliens)


def test_a_part_of_no_plan_and_its_duplicate_images(out: Output) -> None:
    for table in ("images", "instances"):
        uri = out.part(table)
        storage.write(uri.replace(Path(uri).stem, "ab" * 10), storage.read(uri))
    found = out.verify()
    assert found.counts["unplanned_part"] == 1
    assert found.counts["wrong_metadata"] == 2  # it is of another unit by its own words
    ids = pq.read_table(out.part("images"))["image_id"].to_pylist()
    assert found.counts["duplicate_image"] == len(ids)
    duplicates = {p.image_id for p in found.problems if p.kind == "duplicate_image"}
    assert duplicates == set(ids)


def test_a_foreign_schema_is_named(out: Output) -> None:
    out.edit(out.part("images", 0), lambda t: t.drop_columns(["etag"]))
    wider = pa.field("area", pa.float64(), nullable=False)
    out.edit(
        out.part("instances", 1),
        lambda t: t.set_column(t.schema.get_field_index("area"), wider, t["area"].cast("double")),
    )
    found = out.verify()
    assert found.counts["wrong_schema"] == 2
    messages = " ".join(p.message for p in found.problems if p.kind == "wrong_schema")
    assert "etag is missing" in messages
    assert "area is" in messages


def test_a_part_written_by_another_tool_is_told(out: Output) -> None:
    uri = out.part("instances")
    pq.write_table(pq.read_table(uri), uri, compression="snappy")
    assert out.kinds() == {"altered_part": 1}


# --- edited rows


@pytest.mark.parametrize(
    ("kind", "column", "value"),
    [
        ("wrong_area", "area", 107),
        ("wrong_box", "bbox_x", -3.0),
        ("wrong_box", "bbox_w", 6.0),
        ("wrong_box", "bbox_h", float("nan")),
        ("wrong_box", "bbox_y", 30.0),
        ("bad_rle", "counts", "R_~"),
        ("bad_rle", "counts", ""),
        ("bad_rle", "counts", "10"),
        ("wrong_canvas", "height", 20),
        ("wrong_instance_row", "category_id", 2),
        ("wrong_instance_row", "category", "dim"),
        ("wrong_instance_row", "score", 1.5),
        ("wrong_instance_row", "score", float("nan")),
        ("wrong_instance_row", "instance_index", 1),
        ("orphan_instance", "image_id", "elsewhere.png"),
    ],
)
def test_an_edited_instance_is_named(out: Output, kind: str, column: str, value: object) -> None:
    uri = out.part("instances")
    image_id = pq.read_table(uri)["image_id"][1].as_py()
    out.edit(uri, lambda table: _set(table, column, [value], row=1))
    found = out.verify()
    named = [p for p in found.problems if p.kind == kind]
    assert [p.uri for p in named] == [uri]
    expected = "elsewhere.png" if column == "image_id" else image_id
    assert named[0].image_id == expected
    assert set(found.counts) <= {kind, "bad_rle", "unbalanced"}


@pytest.mark.parametrize(
    ("kind", "column", "value"),
    [
        ("unbalanced", "n_instances", 2),
        ("wrong_image_row", "status", "fine"),
        ("wrong_image_row", "error_code", "corrupt"),
        ("wrong_image_row", "unit", "f" * 20),
        ("wrong_image_row", "etag", "other"),
        ("wrong_image_row", "shard", "x.tar"),
        ("wrong_image_row", "width", None),
        ("wrong_canvas", "height", 39),
        ("image_missing", "image_id", "elsewhere.png"),
        ("image_not_planned", "image_id", "elsewhere.png"),
    ],
)
def test_an_edited_image_row_is_named(out: Output, kind: str, column: str, value: object) -> None:
    uri = out.part("images")
    out.edit(uri, lambda table: _set(table, column, [value]))
    found = out.verify()
    assert found.counts[kind] >= 1
    assert found.exit_code == 1
    assert Path(uri).stem in " ".join(p.uri for p in found.problems if p.kind == kind)


def test_an_unknown_reason_is_named(out: Output) -> None:
    rows = [out.part("images", n) for n in range(3)]
    uri = next(u for u in rows if "failed" in pq.read_table(u)["status"].to_pylist())
    place = pq.read_table(uri)["status"].to_pylist().index("failed")
    out.edit(uri, lambda table: _set(table, "error_code", ["bad luck"], place))
    assert out.kinds() == {"wrong_image_row": 1, "wrong_metadata": 2}


def test_a_deleted_row_is_missing(out: Output) -> None:
    uri = out.part("images")
    gone = pq.read_table(uri)["image_id"][0].as_py()
    out.edit(uri, lambda table: table.slice(1))
    found = out.verify()
    assert [p.image_id for p in found.problems if p.kind == "image_missing"] == [gone]
    assert [p.image_id for p in found.problems if p.kind == "orphan_instance"] == [gone]
    assert {"unbalanced", "wrong_metadata", "report_differs"} <= set(found.counts)


def test_a_duplicate_row_in_one_part_and_across_parts(out: Output) -> None:
    first, second = out.part("images", 0), out.part("images", 1)
    row = pq.read_table(first).slice(0, 1)
    out.edit(second, lambda table: pa.concat_tables([table, row]))
    out.edit(first, lambda table: pa.concat_tables([table, row]))
    found = out.verify()
    named = [p for p in found.problems if p.kind == "duplicate_image"]
    assert len(named) == 2
    assert {p.image_id for p in named} == {row["image_id"][0].as_py()}
    assert {p.uri for p in named} == {first, second} or {p.uri for p in named} == {first}


def test_equal_hashes_of_different_images_are_no_duplicates(
    out: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "segcore.inspection.verify._hashes", lambda t: np.zeros(t.num_rows, np.uint64)
    )
    assert out.kinds() == {}
    first, second = out.part("images", 0), out.part("images", 1)
    row = pq.read_table(first).slice(0, 1)
    out.edit(second, lambda table: pa.concat_tables([table, row]))
    assert out.kinds()["duplicate_image"] == 1


def test_a_swapped_instances_part_is_found(out: Output) -> None:
    one, two = out.part("instances", 0), out.part("instances", 1)
    first, second = storage.read(one), storage.read(two)
    storage.write(one, second)
    storage.write(two, first)
    kinds = out.kinds()
    assert {"orphan_instance", "wrong_metadata", "unbalanced"} <= set(kinds)


# --- what stands beside the parts


def test_damaged_documents_are_named(out: Output) -> None:
    edition = f"{out.prefix}/edition.json"
    good = storage.read(edition)
    document = json.loads(good)
    document["model"]["parameters"]["conf"] = 0.5
    storage.write(edition, json.dumps(document).encode())
    assert out.kinds() == {"bad_edition": 1}
    storage.write(edition, b"{")
    assert out.kinds()["bad_edition"] == 1
    storage.write(edition, good)

    plan = f"{out.prefix}/plans/{out.report.run}.parquet"
    whole = storage.read(plan)
    storage.write(plan, whole[:-100])
    assert out.kinds() == {"bad_plan": 1}
    storage.delete(plan)
    assert out.kinds() == {"bad_plan": 1}
    storage.write(plan, whole)

    record = f"{out.prefix}/runs/{out.report.run}.json"
    said = replace(out.report, images=12, ok=11)
    storage.write(record, said.to_json())
    assert out.kinds() == {"report_differs": 2}
    storage.write(record, b"{}")
    assert out.kinds() == {"bad_record": 1}
    storage.write(record, out.report.to_json())

    storage.write(f"{out.output}/latest.json", b'{"edition": "gone-123"}')
    assert verify_output(storage, out.prefix).counts == {"bad_latest": 1}
    run = json.dumps({"edition": out.report.edition, "run": "0" * 16}).encode()
    storage.write(f"{out.output}/latest.json", run)
    assert out.kinds() == {"bad_latest": 1}


def test_many_problems_are_counted_but_not_all_listed(
    out: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segcore.inspection.problems.MAX_LISTED", 3)
    for n in range(3):
        out.edit(out.part("instances", n), lambda t: _set(t, "area", [1] * t.num_rows))
    found = out.verify()
    assert dict(found.counts) == {"wrong_area": 10}
    assert len(found.problems) == 3
    assert "7 more" in found.summary()


def test_the_command_tells_by_its_exit_code(out: Output) -> None:
    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "segcore", *arguments]
        return subprocess.run(words, capture_output=True, text=True, check=False)

    good = command("verify", out.output, "--json")
    assert (good.returncode, json.loads(good.stdout)["fine"]) == (0, True)
    storage.delete(out.part("images"))
    bad = command("verify", out.output)
    assert bad.returncode == 1
    assert KINDS["missing_part"] in bad.stdout
    assert "missing_part: images/" in bad.stdout
    nothing = command("verify", f"{out.output}/../in")
    assert nothing.returncode == 2
    assert "Traceback" not in nothing.stderr
    seen = command("status", out.output, "--json")
    assert (seen.returncode, json.loads(seen.stdout)["units_left"]) == (0, 1)


# --- status


def test_status_of_a_finished_run(folder: str) -> None:
    out = _run(folder)
    found = read_status(storage, out.output)
    assert (found.state, found.units, found.units_done, found.units_left) == ("success", 3, 3, 0)
    assert (found.images, found.images_done, found.images_left) == (11, 11, 0)
    assert (found.ok, found.failed, found.failures) == (10, 1, {"not_an_image": 1})
    assert found.instances == 10
    assert found.pace is None
    assert json.loads(json.dumps(found.to_dict()))["units_left"] == 0


def test_status_while_the_job_runs_elsewhere(folder: str) -> None:
    out = _run(folder)
    with hold_lease(storage, lease_folder(out.prefix), 60):
        _watch_a_run(out)


def _watch_a_run(out: Output) -> None:
    record = f"{out.prefix}/runs/{out.report.run}.json"
    storage.delete(f"{out.output}/latest.json")  # not published yet
    parts = {uri: storage.read(uri) for uri in (out.part("images", n) for n in range(3))}
    for uri in parts:
        storage.delete(uri)
    started = replace(out.report, status=RUNNING, started="2026-01-01T00:00:00+00:00")
    storage.write(record, started.to_json())

    before = read_status(storage, out.output)
    assert (before.state, before.units_done, before.images_done) == ("running", 0, 0)
    assert (before.images, before.images_left) == (11, 11)
    assert before.pace is not None
    assert before.pace.eta_s is None
    assert "no part committed yet" in before.summary()

    for uri, data in list(parts.items())[:2]:
        storage.write(uri, data)
    amid = read_status(storage, out.output)
    assert (amid.units_done, amid.units_left) == (2, 1)
    assert amid.images_done + amid.images_left == 11
    assert amid.pace is not None
    assert amid.pace.images_per_second > 0
    assert amid.pace.eta_s is not None
    assert amid.pace.last_commit_s is not None
    assert "ETA" in amid.summary()


def test_status_names_foreign_and_unreadable_parts(out: Output) -> None:
    uri = out.part("images")
    storage.write(f"{out.prefix}/images/{'ab' * 10}.parquet", storage.read(uri))
    storage.write(uri, b"PAR1 no")
    found = read_status(storage, out.output)
    assert found.units_foreign == 1
    assert found.unreadable == (uri,)
    assert found.images_done < 11
    assert found.images is None  # what the unreadable part held is not known


def test_status_of_a_large_footer_is_read_whole(
    out: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segcore.inspection.status._FOOTER_BYTES", 64)
    assert read_status(storage, out.output).images_done == 11


def test_hashes_do_not_depend_on_chunks(out: Output) -> None:
    from segcore.inspection.verify import _hashes

    table = pq.read_table(out.part("images"))
    parts = pa.concat_tables([table.slice(2), table.slice(0, 2)])
    assert sorted(_hashes(parts).tolist()) == sorted(_hashes(table).tolist())
    assert len(set(_hashes(table).tolist())) == pc.count_distinct(table["image_id"]).as_py()
