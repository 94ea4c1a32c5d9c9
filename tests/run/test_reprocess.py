"""`segcore reprocess`: what a scheduler calls, safe twice, late, and after a death at any point."""

from __future__ import annotations

import itertools
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from segcore.config.schema import RunOptions
from segcore.errors import SegcoreError, UsageError
from segcore.output.layout import OutputLayout
from segcore.run.budget import Budget
from segcore.run.segment import segment
from segcore.storage import Storage
from tests.support.bright_images import bright_png, bright_pngs
from tests.support.commands import call_segcore
from tests.support.jobs import BRIGHT_MODEL, job_config, write_files
from tests.support.nights import BLIND_MODEL, fresh_rows, night, night_config, published_rows
from tests.support.run_without_ray import ProcessKilled, killed_when

NEW_MODEL = "model.conf=0.5"
pytestmark = pytest.mark.usefixtures("serial")
storage = Storage()


def _latest(folder: Path) -> dict[str, str]:
    path = Path(OutputLayout(str(folder / "out")).latest_json)
    return json.loads(path.read_bytes()) if path.exists() else {}


def _calls(folder: Path) -> list[dict[str, object]]:
    calls = Path(OutputLayout(str(folder / "out")).reprocess_calls)
    return [json.loads(path.read_bytes()) for path in sorted(calls.glob("*.json"))]


def test_the_first_call_publishes_and_the_second_has_nothing_to_do(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = night(folder, date="2026-11-01")
    assert (first.status, first.exit_code, first.images_this_time) == ("published", 0, 7)
    assert _latest(folder)["edition"] == first.edition
    (record,) = _calls(folder)
    assert (record["status"], record["logical_date"]) == ("published", "2026-11-01")
    told = call_segcore("history", str(folder / "out")).stdout
    assert f"reprocess for 2026-11-01: published  [{first.edition}]" in told

    def refuse(*args: object) -> None:
        raise AssertionError("nothing is to be segmented")

    monkeypatch.setattr("segcore.run.segment.connect_workers", refuse)
    second = night(folder, date="2026-11-01")
    assert (second.status, second.exit_code) == ("nothing_to_do", 0)
    assert len(_calls(folder)) == 1


@pytest.mark.slow
def test_a_new_model_that_passes_is_published(folder: Path) -> None:
    first = night(folder)
    second = night(folder, NEW_MODEL)
    assert (second.status, second.before) == ("published", first.edition)
    assert second.measured["images_compared"] == 7
    assert (second.measured["vanished"], second.measured["appeared"]) == (0.0, 0.0)
    assert _latest(folder)["edition"] == second.edition != first.edition


@pytest.mark.slow
@pytest.mark.parametrize("on_refusal", ["update_published", "keep"])
def test_a_bad_model_is_refused_and_new_images_come_in_all_the_same(
    folder: Path, on_refusal: str
) -> None:
    first = night(folder, NEW_MODEL)  # options that the new configuration does not have
    before = published_rows(folder)
    write_files(folder / "in", {"new.png": bright_png(9)})
    chosen = f"schedule.on_refusal={on_refusal}"
    refused = night(folder, chosen, model=BLIND_MODEL)
    assert (refused.status, refused.exit_code) == ("refused", 4)
    assert refused.reasons == ("Objects vanished: 100.00%; gates.max_vanished allows 20.00%.",)
    assert _latest(folder)["edition"] == first.edition == refused.published
    if on_refusal == "keep":
        assert published_rows(folder) == before
    else:
        assert (refused.updated, refused.images_added) == (True, 1)
        assert published_rows(folder) == fresh_rows(folder, "1", NEW_MODEL)
    again = night(folder, chosen, model=BLIND_MODEL)
    assert (again.status, again.again, again.exit_code) == ("refused", True, 4)
    assert len(_calls(folder)) == 2
    # Gates that are opened decide anew.
    opened = night(folder, "gates.max_vanished=null", model=BLIND_MODEL)
    assert (opened.status, _latest(folder)["edition"]) == ("published", refused.edition)


@pytest.mark.slow
def test_an_edition_that_segment_made_grows_only_with_its_model_named(folder: Path) -> None:
    segment(job_config(folder / "in", folder / "out"))
    write_files(folder / "in", {"new.png": bright_png(9)})
    refused = night(folder, model=BLIND_MODEL)
    assert (refused.status, refused.updated) == ("refused", None)
    assert "schedule.published_model" in refused.notes[0]
    named = night(folder, f"schedule.published_model={BRIGHT_MODEL}", model=BLIND_MODEL)
    assert (named.status, named.updated, named.images_added) == ("refused", True, 1)
    wrong = night(folder, f"schedule.published_model={BLIND_MODEL}", model=BLIND_MODEL)
    assert "now gives the edition blind" in wrong.notes[0]


@pytest.mark.slow
def test_a_budget_ends_the_night_and_the_next_goes_on(folder: Path) -> None:
    first = night(folder)
    statuses, published = [], []
    for _ in range(3):
        report = night(folder, NEW_MODEL, "run.max_images=3")
        statuses.append((report.status, report.exit_code, report.images_this_time))
        published.append(_latest(folder)["edition"] == first.edition)
    expected = [("budget_reached", 0, 3), ("budget_reached", 0, 3), ("published", 0, 1)]
    assert (statuses, published) == (expected, [True, True, False])
    assert _latest(folder)["edition"] == report.edition


def test_budgets_are_cut_at_whole_units(folder: Path) -> None:
    report = segment(job_config(folder / "in", folder / "out", "plan.images=3", "run.max_images=4"))
    assert (report.status, report.exit_code, report.images) == ("budget_reached", 1, 3)
    assert any("run.max_images" in line for line in report.advice())
    assert Budget.of(RunOptions(max_seconds=1e-9)).is_over()
    assert not Budget.of(RunOptions(max_seconds=3600.0)).is_over()
    assert not Budget.of(RunOptions()).is_over()


@pytest.mark.slow
@pytest.mark.parametrize("removed", ["keep", "prune"])
def test_images_that_are_gone(folder: Path, removed: str) -> None:
    night(folder)
    (folder / "in" / "003.png").unlink()
    sets = ("source.allow_shrunk_listing=true", f"schedule.removed={removed}")
    report = night(folder, *sets)
    assert report.status == "published"
    assert report.segment is not None
    counts = (report.segment.images_unlisted, report.segment.images_removed)
    assert counts == ((1, 0) if removed == "keep" else (0, 1))
    assert published_rows(folder) == fresh_rows(folder, "1")


@pytest.mark.slow
@pytest.mark.parametrize("sets", [(), (NEW_MODEL,)], ids=["same model", "new model"])
def test_a_listing_that_shrank_is_refused_before_anything_is_segmented(
    folder: Path, sets: tuple[str, ...]
) -> None:
    night(folder)
    before = published_rows(folder)
    for name in ("001.png", "003.png", "005.png"):
        (folder / "in" / name).unlink()
    report = night(folder, *sets)
    assert (report.status, report.exit_code, report.images_this_time) == ("refused", 4, 0)
    assert "shrunk" in report.reasons[0]
    assert "source.allow_shrunk_listing=true" in report.notes[0]
    assert published_rows(folder) == before


@pytest.mark.slow
def test_too_many_failed_images_are_refused(folder: Path) -> None:
    write_files(folder / "in", {f"bad{i}.png": b"no image" for i in range(3)})
    report = night(folder)
    assert (report.status, report.exit_code, _latest(folder)) == ("refused", 4, {})
    assert "Failed images: 30.00%" in report.reasons[0]
    assert night(folder, "run.max_failed_fraction=0.5").status == "published"


def _golden(folder: Path, name: str = "golden.json", file_name: str = "002.png") -> str:
    """The true mask of one image, as COCO."""
    rows = published_rows(folder)
    (row,) = [row for row in rows["instances"] if row["image_id"].endswith("/002.png")]
    document = {
        "images": [{"id": 1, "file_name": file_name, "width": row["width"],
                    "height": row["height"]}],
        "categories": [{"id": 1, "name": "bright"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0,
                         "area": row["area"], "segmentation": {
                             "size": [row["height"], row["width"]],
                             "counts": row["counts"]}}],
    }  # fmt: skip
    (folder / name).write_text(json.dumps(document))
    return str(folder / name)


@pytest.mark.slow
def test_the_golden_set(folder: Path) -> None:
    night(folder)
    golden = f"gates.golden={_golden(folder)}"
    good = night(folder, NEW_MODEL, golden, "gates.min_ap=0.9")
    assert good.status == "published"
    assert (good.measured["ap"], good.measured["ap_before"]) == (pytest.approx(1), pytest.approx(1))
    bad = night(folder, golden, "gates.max_vanished=null", model=BLIND_MODEL)
    assert bad.status == "refused"
    assert bad.reasons[0].startswith("Mask AP 0.0000, of the published edition 1.0000;")
    unfit = f"gates.golden={_golden(folder, 'other.json', 'elsewhere.png')}"
    with pytest.raises(UsageError, match=r"golden set does not fit: .*elsewhere\.png"):
        night(folder, "model.conf=0.6", unfit)
    dogs = json.loads((folder / "golden.json").read_text())
    dogs["categories"], dogs["annotations"][0]["category_id"] = [{"id": 9, "name": "dog"}], 9
    (folder / "dogs.json").write_text(json.dumps(dogs))
    with pytest.raises(UsageError, match="dog"):
        night(folder, "model.conf=0.7", f"gates.golden={folder}/dogs.json")
    assert len(list((folder / "out").glob("*/edition.json"))) == 4  # refused before the night
    assert _latest(folder)["edition"] == good.edition


@pytest.mark.slow
def test_gates_by_category(folder: Path) -> None:
    night(folder)
    sets = ("gates.max_vanished=null", "gates.max_change_by_category={bright: 0.5}")
    report = night(folder, *sets, model=BLIND_MODEL)
    assert report.reasons == (
        "Objects of bright: 7 before, 0 now; the gate of this category allows a change of 50.0%.",
    )
    assert report.measured["categories"] == {"bright": {"before": 7, "after": 0}}


@pytest.mark.parametrize(
    ("gate", "words"),
    [
        ("gates.max_change_by_category={dog: 0.1}", "'dog', no category of the model"),
        ("gates.golden=/nowhere/golden.json", "/nowhere/golden.json"),
        ("gates.min_ap=0.3", "needs gates.golden"),
        ("gates.same_iou=0.2", "is below gates.match_iou"),
        ("gates.max_vanished=yes", "yes and no are no limits"),
        ("gates.max_change_by_category={bright: no}", "yes and no are no limits"),
        ("gates.max_change_by_category={bright: -1}", "greater than or equal to 0"),
    ],
)
def test_gates_that_cannot_be_applied_are_refused_before_the_night(
    folder: Path, gate: str, words: str
) -> None:
    with pytest.raises(SegcoreError, match=words) as caught:
        night(folder, gate)
    assert caught.value.exit_code == 2
    assert not any(path.suffix == ".parquet" for path in folder.rglob("*"))


def test_a_published_edition_that_is_gone(folder: Path) -> None:
    report = night(folder)
    assert report.segment is not None
    shutil.rmtree(report.segment.prefix)
    with pytest.raises(UsageError, match="the published edition was deleted"):
        night(folder)


def test_tables_that_are_not_named_any_more_are_said_to_lag(folder: Path) -> None:
    first = night(folder)
    write_files(folder / "out" / "delta/images/_delta_log", {f"{0:020}.json": b"{}"})
    registered = folder / "out" / first.edition / "registered"
    registered.mkdir()
    (registered / "1.json").write_text('{"table": "iceberg://lake/a.b\\u001b[31m", "files": []}')
    write_files(folder / "in", {"new.png": bright_png(9)})
    (note,) = night(folder).notes
    assert note.startswith("Other tables of this output were left as they are: delta, iceberg:")
    assert "\x1b" not in note
    done = call_segcore("publish", str(folder / "out"), first.edition)
    assert (done.returncode, "left as they are: delta, iceberg" in done.stderr) == (0, True)


@pytest.mark.slow
def test_a_published_edition_of_which_something_is_gone(folder: Path) -> None:
    first = night(folder)
    assert first.segment is not None
    prefix = Path(first.segment.prefix)
    shutil.rmtree(prefix / "plans")
    with pytest.raises(UsageError, match="The plan of the published edition is gone"):
        night(folder, NEW_MODEL)
    assert night(folder).status == "published"  # writes it again
    for table in ("images", "instances"):
        shutil.rmtree(prefix / table)
    refused = night(folder, NEW_MODEL)  # there is nothing to compare with, and that comes back
    assert (refused.status, refused.images_added) == ("refused", 7)
    assert "Nothing can be compared" in refused.reasons[0]
    assert night(folder, NEW_MODEL).status == "published"


@pytest.mark.slow
def test_damaged_results_are_not_published(folder: Path) -> None:
    night(folder)
    report = night(folder, NEW_MODEL, "run.max_images=3")
    assert report.segment is not None
    part = next((Path(report.segment.prefix) / "instances").iterdir())
    part.write_bytes(part.read_bytes()[:-40])
    damaged = night(folder, NEW_MODEL)
    assert (damaged.status, damaged.exit_code) == ("damaged", 1)
    assert "segcore verify finds problems" in damaged.reasons[0]
    assert _latest(folder)["edition"] != damaged.edition


@pytest.mark.slow
def test_the_command(folder: Path) -> None:
    config = folder / "night.yaml"
    config.write_text(f"input: {folder}/in\noutput: {folder}/out\nmodel:\n  name: {BRIGHT_MODEL}\n")
    done = call_segcore("reprocess", str(config), "--json", "--logical-date", "2026-11-01")
    document = json.loads(done.stdout)
    assert (done.returncode, document["status"]) == (0, "published")
    assert document["logical_date"] == "2026-11-01"
    assert call_segcore("reprocess", str(config)).returncode == 0
    assert call_segcore("reprocess", str(config), "--exit-99-if-nothing-to-do").returncode == 99
    bad = ["reprocess", str(config), "--set", f"model.name={BLIND_MODEL}"]
    done = call_segcore(*bad)
    assert (done.returncode, "segcore publish" in done.stderr) == (4, True)
    assert call_segcore(*bad, "--exit-0-if-refused").returncode == 0
    assert call_segcore("reprocess", str(config), "--logical-date", "a b").returncode == 2


def _die_and_call_again(
    tmp_path: Path, model: str, step: int, is_change: Callable[[str], bool]
) -> int:
    """Let a night die before its n-th change, for each n, and call again; returns how many died."""
    whole, folder = tmp_path / "whole", tmp_path / "work"
    write_files(folder / "in", bright_pngs(2))
    night(folder)
    write_files(folder / "in", {"new.png": bright_png(9)})
    shutil.copytree(folder, whole)
    first = _latest(folder)["edition"]
    sets = (NEW_MODEL,) if model == BRIGHT_MODEL else ()
    expected = fresh_rows(folder, "expected", *sets)
    deaths = 0
    for last in range(0, 100, step):
        shutil.rmtree(folder)
        shutil.copytree(whole, folder)
        n_changes = itertools.count()

        def is_last(n: int, kind: str, uri: str, last: int = last) -> bool:
            return is_change(uri) and next(n_changes) >= last  # noqa: B023

        try:
            with killed_when(is_last):
                night(folder, *sets, model=model)
        except (ProcessKilled, SegcoreError):
            deaths += 1
        else:
            break
        report = night(folder, *sets, model=model)
        is_accepted = model == BRIGHT_MODEL
        assert report.status in (("published", "nothing_to_do") if is_accepted else ("refused",))
        assert (_latest(folder)["edition"] == first) != is_accepted
        assert published_rows(folder) == expected
    return deaths


@pytest.mark.slow
@pytest.mark.parametrize("model", [BRIGHT_MODEL, BLIND_MODEL], ids=["accepted", "refused"])
def test_a_call_that_dies_between_its_steps_is_finished_by_the_next(
    tmp_path: Path, model: str
) -> None:
    """Before the model's options, the decision, the pointer and the record of the call."""
    output = OutputLayout(str(tmp_path / "work" / "out"))
    folders = (f"{output.uri}/reprocess/", output.latest_json)
    assert _die_and_call_again(tmp_path, model, 1, lambda uri: uri.startswith(folders)) == 4


@pytest.mark.faults
@pytest.mark.parametrize("model", [BRIGHT_MODEL, BLIND_MODEL], ids=["accepted", "refused"])
def test_a_call_that_dies_anywhere_is_finished_by_the_next(tmp_path: Path, model: str) -> None:
    assert 4 < _die_and_call_again(tmp_path, model, 3, lambda uri: True) < 30


@pytest.mark.slow
def test_two_schedulers_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segcore.run.reprocess._WAIT_S", 0.05)
    statuses: list[str] = []

    def call() -> None:
        statuses.append(night(folder, "schedule.if_busy=wait").status)

    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == ["nothing_to_do", "published"]
    assert night_config(folder).schedule.if_busy == "fail"
