"""The account of a run, and what people read about it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from segcore.output.part_counts import PartCounts
from segcore.output.preview import Preview
from segcore.output.report import (
    COMPLETE,
    INCOMPLETE,
    SUCCESS,
    TOO_MANY_FAILED,
    RunReport,
    final_status,
)
from tests.support.reports import account_of, make_report


def test_the_account_names_missing_and_unbalanced_units() -> None:
    account = account_of(
        {"one": 1, "two": 2, "three": None},
        [PartCounts("one", 1, 0, 4), PartCounts("two", 1, 0, 2)],
    )
    assert (account.images, account.ok, account.instances) == (2, 2, 6)
    assert account.missing == ("three",)
    assert account.unbalanced == ("two",)
    assert final_status(account, 1.0) == INCOMPLETE
    assert INCOMPLETE not in COMPLETE


def test_the_status_depends_on_the_allowed_fraction_of_failed_images() -> None:
    counts = PartCounts("unit", 98, 2, 0, {"corrupt": 1, "empty": 1})
    account = account_of({"unit": 100}, [counts])
    assert account.failures == {"corrupt": 1, "empty": 1}
    assert final_status(account, 0.02) == SUCCESS
    assert final_status(account, 0.019) == TOO_MANY_FAILED


@pytest.fixture
def report() -> RunReport:
    """A run of a single image."""
    return make_report(
        timings={"segment": 2.0},
        images=1,
        ok=1,
        units=1,
        images_this_time=1,
        images_per_second=0.5,
    )


def test_the_summary_names_the_tables_and_counts_in_singular_and_plural(report: RunReport) -> None:
    summary = report.summary()
    assert "1 image in 0:02, 0.5/s" in summary
    assert "/out/model-0123/images/*.parquet" in summary
    assert "/out/model-0123/instances/*.parquet" in summary
    many = replace(report, images_this_time=1200, units=5, units_withdrawn=2, units_missing=1)
    assert "1,200 images in 0:02" in many.summary()
    assert "5  (2 of earlier plans deleted, 1 MISSING)" in many.summary()


def test_advice_on_missing_units_says_what_to_do(report: RunReport) -> None:
    one = replace(report, status=INCOMPLETE, units=1, units_missing=1, errors=("no disk",))
    assert "1 of 1 unit has no result. Run the same command again" in one.advice()[0]
    assert one.advice()[-1] == "  no disk"
    two = replace(report, status=INCOMPLETE, units=3, units_missing=2)
    assert "2 of 3 units have no result" in two.advice()[0]
    changed = replace(report, status=INCOMPLETE, units_unbalanced=("ab12",))
    assert "1 unit holds a different number of images than planned" in changed.advice()[0]


def test_advice_on_failed_images_gives_their_share(report: RunReport) -> None:
    errors = ("no disk", "1 of 4 images failed (25.0%); run.max_failed_fraction allows 1.0%.")
    failed = replace(report, status=TOO_MANY_FAILED, errors=errors)
    assert failed.advice()[0].startswith(f"Error: {errors[1]} The images table")


def test_a_preview_tells_what_is_done_and_what_is_left() -> None:
    preview = Preview(
        input="/in",
        prefix="/out/model-0123",
        model="model",
        kind="images",
        images=1,
        units=1,
        bytes=2048,
        images_done=0,
        units_done=0,
        units_stale=0,
    )
    assert preview.summary_line() == "Plan: 1 image in 1 unit (2.0 KiB)."
    assert "not planned" not in preview.summary()
    later = replace(preview, images=300, units=3, images_done=100, units_done=1, units_stale=1)
    assert later.summary_line() == "Plan: 300 images in 3 units (2.0 KiB); 1 done, 2 to do."
    assert "1 unit already done (100 images)" in later.summary()
    assert "1 unit of earlier plans; those replaced are deleted" in later.summary()
    assert later.warnings() == []
    shrunk = replace(later, entries_lost=1)
    (sentence,) = shrunk.warnings()
    assert sentence.startswith("1 image or shard of the last run is not listed any more; their")
    assert "--remove-unlisted removes them" in shrunk.summary()
    assert "are removed at the end" in replace(shrunk, remove_unlisted=True).summary()
    unknown = replace(later, images=None, images_done=None)
    assert "counted when read" in unknown.summary_line()
    assert unknown.to_dict()["images"] is None


def test_nodes_that_did_not_work_are_named_at_the_end(report: RunReport) -> None:
    nodes = ("Took rack1 out of the run.", "Took rack2 out of the run.")
    named = ["Nodes that did not work:", *(f"  {node}" for node in nodes)]
    assert replace(report, nodes_taken_out=nodes).advice() == named
    short = replace(report, status="incomplete", units_missing=1, nodes_taken_out=nodes)
    assert short.advice()[:3] == named


def test_warnings_are_counted_and_explained(report: RunReport) -> None:
    assert "warnings" not in report.summary()
    warned = replace(report, warnings={"narrow_range": 1200, "repaired": 1})
    lines = warned.summary().splitlines()
    assert lines[4].split("  ")[-1].strip() == "narrow_range 1,200, repaired 1"
    assert lines[3].startswith("  failed")
    (advice,) = warned.advice()
    assert "column warnings" in advice
    assert report.advice() == []
    assert warned.to_dict()["warnings"] == {"narrow_range": 1200, "repaired": 1}
