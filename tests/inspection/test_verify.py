"""`segcore verify` on real outputs that are damaged in every way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from segcore.cli import verify as verify_command
from segcore.errors import SegcoreError, UsageError
from segcore.inspection.image_checks import PlannedPart
from segcore.inspection.problems import KINDS
from segcore.inspection.status import read_status
from segcore.inspection.stored_plan import StoredPlan, open_stored_plan
from segcore.inspection.verify import verify_output
from segcore.output.results import open_results
from segcore.output.run_records import read_plan
from segcore.output.unlisted import UNLISTED_SCHEMA, write_unlisted
from segcore.storage import Storage
from tests.support.bright_images import BRIGHT_AREA
from tests.support.commands import call_segcore
from tests.support.finished_output import FinishedOutput, finish_run
from tests.support.tiff_files import Page, noise, tiff_file

storage = Storage()


def _with_values(table: pa.Table, name: str, values: list, row: int = 0) -> pa.Table:
    """The table with other values in a column from `row` on."""
    column = table[name].to_pylist()
    column[row : row + len(values)] = values
    position = table.schema.get_field_index(name)
    return table.set_column(position, table.schema.field(name), pa.array(column, table[name].type))


# --- a good output


@pytest.mark.slow
def test_a_good_output_is_fine(folder: str) -> None:
    result = finish_run(folder).verify()
    assert (result.exit_code, dict(result.counts), result.problems) == (0, {}, [])
    assert (result.units, result.images, result.ok, result.failed) == (3, 11, 10, 1)
    assert result.instances == 10
    assert json.loads(json.dumps(result.to_dict()))["fine"] is True
    assert "fine" in result.summary()
    per_second = result.to_dict()["instances_per_second"]
    assert per_second == pytest.approx(10 / result.seconds, rel=0.02, abs=0.1)


def test_an_edition_may_be_given_by_its_prefix_or_name(out: FinishedOutput) -> None:
    assert verify_output(storage, out.report.prefix).exit_code == 0
    assert verify_output(storage, out.output, out.report.edition).exit_code == 0


@pytest.mark.slow
def test_pages_and_warnings_are_fine_and_counted(folder: str) -> None:
    pages = tiff_file([Page(noise(seed)) for seed in range(3)])
    storage.write(f"{folder}/in/pages.tif", pages)
    first, every = finish_run(folder).verify(), finish_run(folder, pages="all").verify()
    assert (first.exit_code, first.images, first.warnings) == (0, 12, {"pages_left_out": 1})
    assert "pages_left_out 1" in first.summary()
    assert (every.exit_code, every.images, every.warnings) == (0, 14, {})


@pytest.mark.slow
def test_a_missing_page_is_named(folder: str) -> None:
    storage.write(f"{folder}/in/pages.tif", tiff_file([Page(noise(seed)) for seed in range(3)]))
    out = finish_run(folder, pages="all")
    uris = [out.part("images", number) for number in range(3)]
    uri = next(u for u in uris if 2 in pq.read_table(u)["page"].to_pylist())
    out.edit(uri, lambda table: table.filter(pc.not_equal(table["page"].fill_null(0), 2)))
    problems = out.verify().problems
    (missing,) = (problem for problem in problems if problem.kind == "image_missing")
    assert "page 2 has no row" in missing.message
    assert missing.image_id.endswith("pages.tif")


# --- damaged files


@pytest.mark.slow
def test_every_flipped_byte_is_found(out: FinishedOutput) -> None:
    rng = np.random.default_rng(7)
    for table in ("images", "instances"):
        uri = out.part(table)
        good = storage.read(uri)
        version = f"version {pa.__version__}".encode()
        may_change = np.ones(len(good), bool)  # another version of the writer is not damage
        may_change[good.rindex(version) + 8 : good.rindex(version) + len(version)] = False
        for position in rng.choice(np.flatnonzero(may_change), 40, replace=False).tolist():
            bad = bytearray(good)
            bad[position] ^= 1 << int(rng.integers(8))
            storage.write(uri, bytes(bad))
            result = out.verify()
            assert result.exit_code == 1, (table, position)
            assert uri in {problem.uri for problem in result.problems}, (table, position)
        storage.write(uri, good)
    assert out.kinds() == {}


@pytest.mark.parametrize("table", ["images", "instances"])
@pytest.mark.parametrize("length", [0, 3, 500, -1])
def test_a_truncated_part_is_unreadable(out: FinishedOutput, table: str, length: int) -> None:
    uri = out.part(table)
    storage.write(uri, storage.read(uri)[:length])
    result = out.verify()
    assert result.counts["unreadable_part"] == 1
    assert [p.uri for p in result.problems if p.kind == "unreadable_part"] == [uri]


def test_missing_parts_are_named(out: FinishedOutput) -> None:
    images, instances = out.part("images", 0), out.part("instances", 1)
    storage.delete(images)
    storage.delete(instances)
    result = out.verify()
    named = {(problem.kind, problem.uri) for problem in result.problems}
    assert {
        ("missing_part", images),
        ("orphan_part", images.replace("/images/", "/instances/")),
        ("missing_instances", instances),
    } <= named
    assert result.counts["report_differs"] >= 1


def test_alien_files_are_named(out: FinishedOutput) -> None:
    prefix = out.report.prefix
    aliens = [f"{prefix}/images/part-0.parquet", f"{prefix}/instances/notes.txt",
              f"{prefix}/images/old/{Path(out.part('images')).name}"]  # fmt: skip
    for uri in aliens:
        storage.write(uri, b"x")
    result = out.verify()
    assert dict(result.counts) == {"alien_file": 3}
    assert sorted(problem.uri for problem in result.problems) == sorted(aliens)


def test_a_part_outside_the_plan_and_its_duplicate_images_are_named(out: FinishedOutput) -> None:
    for table in ("images", "instances"):
        uri = out.part(table)
        storage.write(uri.replace(Path(uri).stem, "ab" * 10), storage.read(uri))
    result = out.verify()
    assert result.counts["unplanned_part"] == 1
    assert result.counts["wrong_metadata"] == 2  # its metadata names another unit
    ids = pq.read_table(out.part("images"))["image_id"].to_pylist()
    assert result.counts["duplicate_image"] == len(ids)
    duplicates = {p.image_id for p in result.problems if p.kind == "duplicate_image"}
    assert duplicates == set(ids)


def test_a_foreign_schema_is_named(out: FinishedOutput) -> None:
    out.edit(out.part("images", 0), lambda t: t.drop_columns(["etag"]))
    wider = pa.field("area", pa.float64(), nullable=False)
    out.edit(
        out.part("instances", 1),
        lambda t: t.set_column(t.schema.get_field_index("area"), wider, t["area"].cast("double")),
    )
    result = out.verify()
    assert result.counts["wrong_schema"] == 2
    messages = " ".join(p.message for p in result.problems if p.kind == "wrong_schema")
    assert "etag is missing" in messages
    assert "area is" in messages


def test_a_part_written_by_another_tool_is_named(out: FinishedOutput) -> None:
    uri = out.part("instances")
    pq.write_table(pq.read_table(uri), uri, compression="snappy")
    assert out.kinds() == {"altered_part": 1}


def test_a_list_of_unlisted_images_that_is_damaged_or_untrue_is_named(out: FinishedOutput) -> None:
    uri, unit = out.layout.unlisted(out.report.run), "ab" * 10
    storage.write(uri, b"PAR1 no PAR1")
    result = out.verify()
    assert [(p.kind, p.uri) for p in result.problems] == [("wrong_unlisted", uri)]

    ids = pq.read_table(out.part("images"))["image_id"].to_pylist()
    listed = [{"image_id": i, "uri": i, "etag": "", "shard": "", "unit": unit} for i in ids[1:]]
    rows = pa.Table.from_pylist(listed, UNLISTED_SCHEMA)
    write_unlisted(storage, out.layout, out.report.run, rows)
    assert out.kinds() == {"wrong_unlisted": 1, "report_differs": 1}  # it has no part

    part = out.layout.part("images", unit)
    for table in ("images", "instances"):
        storage.write(out.layout.part(table, unit), storage.read(out.part(table)))
    assert out.kinds() == {"duplicate_image": len(ids) - 1, "report_differs": 1}
    result = verify_output(storage, out.output, include_unlisted=True)
    assert [p.uri for p in result.problems if p.kind == "wrong_unlisted"] == [part]
    assert result.counts["duplicate_image"] == len(ids)


# --- edited rows


@pytest.mark.parametrize(
    ("kind", "column", "value"),
    [
        ("wrong_area", "area", BRIGHT_AREA - 1),
        ("wrong_box", "bbox_x", -3.0),
        ("wrong_box", "bbox_w", 6.0),
        ("wrong_box", "bbox_h", float("nan")),
        ("wrong_box", "bbox_y", 30.0),
        ("bad_rle", "counts", "R_~"),
        ("bad_rle", "counts", ""),
        ("bad_rle", "counts", "10"),
        ("wrong_canvas", "height", 20),
        ("wrong_canvas", "window_x", 1),
        ("wrong_canvas", "window_y", -1),
        ("wrong_instance_row", "category_id", 2),
        ("wrong_instance_row", "category", "dim"),
        ("wrong_instance_row", "score", 1.5),
        ("wrong_instance_row", "score", float("nan")),
        ("wrong_instance_row", "instance_index", 1),
        ("orphan_instance", "image_id", "elsewhere.png"),
    ],
)
def test_an_edited_instance_is_named(
    out: FinishedOutput, kind: str, column: str, value: object
) -> None:
    uri = out.part("instances")
    image_id = pq.read_table(uri)["image_id"][1].as_py()
    out.edit(uri, lambda table: _with_values(table, column, [value], row=1))
    result = out.verify()
    named = [p for p in result.problems if p.kind == kind]
    assert [p.uri for p in named] == [uri]
    expected = "elsewhere.png" if column == "image_id" else image_id
    assert named[0].image_id == expected
    assert set(result.counts) <= {kind, "bad_rle", "unbalanced"}


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
        ("wrong_image_row", "warnings", ["blurred: unknown"]),
        ("wrong_metadata", "warnings", ["repaired: "]),
        ("wrong_image_row", "page", 0),
        ("wrong_image_row", "page", 2),
        ("image_missing", "page", 2),
        ("wrong_canvas", "height", 39),
        ("image_missing", "image_id", "elsewhere.png"),
        ("image_not_planned", "image_id", "elsewhere.png"),
    ],
)
def test_an_edited_image_row_is_named(
    out: FinishedOutput, kind: str, column: str, value: object
) -> None:
    uri = out.part("images")
    out.edit(uri, lambda table: _with_values(table, column, [value]))
    result = out.verify()
    assert result.counts[kind] >= 1
    assert result.exit_code == 1
    assert Path(uri).stem in " ".join(p.uri for p in result.problems if p.kind == kind)


def test_an_unknown_reason_is_named(out: FinishedOutput) -> None:
    uris = [out.part("images", n) for n in range(3)]
    uri = next(u for u in uris if "failed" in pq.read_table(u)["status"].to_pylist())
    row = pq.read_table(uri)["status"].to_pylist().index("failed")
    out.edit(uri, lambda table: _with_values(table, "error_code", ["bad luck"], row))
    assert out.kinds() == {"wrong_image_row": 1, "wrong_metadata": 2}


def test_a_deleted_row_is_named(out: FinishedOutput) -> None:
    uri = out.part("images")
    deleted = pq.read_table(uri)["image_id"][0].as_py()
    out.edit(uri, lambda table: table.slice(1))
    result = out.verify()
    assert [p.image_id for p in result.problems if p.kind == "image_missing"] == [deleted]
    assert [p.image_id for p in result.problems if p.kind == "orphan_instance"] == [deleted]
    assert {"unbalanced", "wrong_metadata", "report_differs"} <= set(result.counts)


def test_a_duplicate_row_is_named_in_one_part_and_across_parts(out: FinishedOutput) -> None:
    first, second = out.part("images", 0), out.part("images", 1)
    row = pq.read_table(first).slice(0, 1)
    out.edit(second, lambda table: pa.concat_tables([table, row]))
    out.edit(first, lambda table: pa.concat_tables([table, row]))
    result = out.verify()
    named = [p for p in result.problems if p.kind == "duplicate_image"]
    assert len(named) == 2
    assert {p.image_id for p in named} == {row["image_id"][0].as_py()}
    assert {p.uri for p in named} == {first, second} or {p.uri for p in named} == {first}


def test_equal_hashes_of_different_images_are_not_duplicates(
    out: FinishedOutput, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "segcore.inspection.unit_checks.hash_image_ids", lambda t: np.zeros(t.num_rows, np.uint64)
    )
    assert out.kinds() == {}
    first, second = out.part("images", 0), out.part("images", 1)
    row = pq.read_table(first).slice(0, 1)
    out.edit(second, lambda table: pa.concat_tables([table, row]))
    assert out.kinds()["duplicate_image"] == 1


def test_a_swapped_instances_part_is_found(out: FinishedOutput) -> None:
    one, two = out.part("instances", 0), out.part("instances", 1)
    first, second = storage.read(one), storage.read(two)
    storage.write(one, second)
    storage.write(two, first)
    kinds = out.kinds()
    assert {"orphan_instance", "wrong_metadata", "unbalanced"} <= set(kinds)


# --- what lies beside the parts


def test_damaged_documents_are_named(out: FinishedOutput) -> None:
    edition = out.layout.edition_json
    edition_bytes = storage.read(edition)
    document = json.loads(edition_bytes)
    document["model"]["parameters"]["conf"] = 0.5
    storage.write(edition, json.dumps(document).encode())
    assert out.kinds() == {"bad_edition": 1}
    storage.write(edition, b"{")
    assert out.kinds()["bad_edition"] == 1
    storage.write(edition, edition_bytes)

    plan = out.layout.plan(out.report.run)
    plan_bytes = storage.read(plan)
    storage.write(plan, plan_bytes[:-100])
    assert out.kinds() == {"bad_plan": 1}
    storage.delete(plan)
    assert out.kinds() == {"bad_plan": 1}
    storage.write(plan, plan_bytes)

    record = out.layout.run_record(out.report.run)
    changed = replace(out.report, images=12, ok=11)
    storage.write(record, changed.to_json())
    assert out.kinds() == {"report_differs": 2}
    storage.write(record, b"{}")
    assert out.kinds() == {"bad_record": 1}
    storage.write(record, out.report.to_json())

    latest = out.layout.output.latest_json
    storage.write(latest, b'{"edition": "gone-123"}')
    assert verify_output(storage, out.report.prefix).counts == {"bad_latest": 1}
    unknown_run = json.dumps({"edition": out.report.edition, "run": "0" * 16}).encode()
    storage.write(latest, unknown_run)
    assert out.kinds() == {"bad_latest": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "it cannot be read"),
        (b"[]", "it cannot be read"),
        (b'{"execution": "NAME", "run": "r"}', "it does not say status as text"),
        (b'{"execution": "NAME", "run": 1, "status": "died"}', "it does not say run as text"),
        (b'{"execution": "other", "run": "r", "status": "died"}', "of the execution 'other'"),
        (b'{"execution": "NAME", "run": "r", "status": "died"}', ""),
    ],
)
def test_records_of_executions_are_checked(
    out: FinishedOutput, content: bytes, message: str
) -> None:
    name = "20261128T130000Z-0123abcd"
    uri = out.layout.execution(name)
    storage.write(uri, content.replace(b"NAME", name.encode()))
    problems = [(p.kind, p.uri) for p in out.verify().problems]
    assert problems == ([("bad_record", uri)] if message else [])
    assert message in " ".join(problem.message for problem in out.verify().problems)


def test_a_plan_that_breaks_off_is_named_and_the_rest_is_checked(
    out: FinishedOutput, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parts(plan: StoredPlan) -> Iterator[tuple[str, PlannedPart]]:
        yield from islice(all_parts(plan), 1)
        raise SegcoreError("The page is damaged.")

    all_parts = StoredPlan.parts
    monkeypatch.setattr(StoredPlan, "parts", parts)
    result = out.verify()
    assert dict(result.counts) == {"bad_plan": 1}
    assert (result.units, result.images) == (out.report.units, out.report.images)


def test_what_is_planned_is_sent_without_its_neighbours(out: FinishedOutput) -> None:
    plan = open_stored_plan(storage, out.layout, out.report.run)
    parts = dict(plan.parts())
    assert parts.keys() == plan.ids
    for unit in read_plan(storage, out.layout, out.report.run).units:
        part, expected = parts[unit.unit], PlannedPart.of_unit(unit)
        assert part.image_ids.equals(expected.image_ids)
        assert part.etags.equals(expected.etags)
        assert part.image_ids.nbytes < 2 * expected.image_ids.nbytes
        assert (part.kind, part.shard, part.n_images) == (unit.kind, unit.shard, unit.n_images)


def test_keys_of_other_groups_are_refused(out: FinishedOutput) -> None:
    with pytest.raises(UsageError, match=r"model\.conf.*storage and ray only"):
        verify_command.command(out.output, sets=["storage.retries=1", "model.conf=0.4"])


def test_long_checks_say_how_far_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    times = iter([0.0, 5.0, 20.0, 21.0, 40.0])
    monkeypatch.setattr("segcore.cli.console.time.monotonic", lambda: next(times))
    show = verify_command._ProgressLines()
    for done in (1, 200, 201, 500):
        show(done, 1000, 1000 * done)
    assert capsys.readouterr().err.splitlines() == [
        "200 of 1,000 units checked, 10,000 instances/s, about 1:20 left.",
        "500 of 1,000 units checked, 12,500 instances/s, about 0:40 left.",
    ]


def test_many_problems_are_counted_but_not_all_listed(
    out: FinishedOutput, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segcore.inspection.problems.MAX_LISTED", 3)
    for n in range(3):
        out.edit(out.part("instances", n), lambda t: _with_values(t, "area", [1] * t.num_rows))
    result = out.verify()
    assert dict(result.counts) == {"wrong_area": 10}
    assert len(result.problems) == 3
    assert "7 more" in result.summary()


@pytest.mark.slow
def test_the_exit_code_of_the_command_tells_the_result(out: FinishedOutput) -> None:
    good = call_segcore("verify", out.output, "--json")
    assert (good.returncode, json.loads(good.stdout)["fine"]) == (0, True)
    storage.delete(out.part("images"))
    bad = call_segcore("verify", out.output)
    assert bad.returncode == 1
    assert KINDS["missing_part"] in bad.stdout
    assert "missing_part: images/" in bad.stdout
    nothing = call_segcore("verify", f"{out.output}/../in")
    assert nothing.returncode == 2
    assert "Traceback" not in nothing.stderr
    status = call_segcore("status", out.output, "--json")
    assert (status.returncode, json.loads(status.stdout)["units_left"]) == (0, 1)


def test_hashes_do_not_depend_on_chunks(out: FinishedOutput) -> None:
    from segcore.inspection.unit_checks import hash_image_ids

    table = pq.read_table(out.part("images"))
    parts = pa.concat_tables([table.slice(2), table.slice(0, 2)])
    assert sorted(hash_image_ids(parts).tolist()) == sorted(hash_image_ids(table).tolist())
    assert len(set(hash_image_ids(table).tolist())) == pc.count_distinct(table["image_id"]).as_py()


def test_of_two_generations_the_newer_is_checked_and_the_older_named(out: FinishedOutput) -> None:
    uris = [out.part("images"), out.part("instances")]
    for uri in uris:
        storage.write(uri.replace(".parquet", "-g2.parquet"), storage.read(uri))
        storage.write(uri, b"PAR1 no PAR1")
    assert out.kinds() == {"older_part": 1}
    status = read_status(storage, out.output)
    assert (status.units_done, status.unreadable) == (status.units, ())
    tables = open_results(storage, out.output).images()
    assert sum(table.num_rows for table in tables) == out.report.images
    storage.delete(uris[0].replace(".parquet", "-g2.parquet"))
    assert out.kinds()["unreadable_part"] == 2
