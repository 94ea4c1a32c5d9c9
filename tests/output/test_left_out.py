"""What was not read is counted in the report and said on the last screen, within bounds."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segcore.output.left_out import bound_kinds, describe_left_out
from segcore.output.part_counts import PartCounts
from segcore.output.report import INCOMPLETE, SUCCESS
from tests.support.reports import account_of, make_report

NAMES = st.text("ab.\x1b", min_size=1, max_size=6)


@settings(max_examples=20)
@given(st.dictionaries(NAMES, st.integers(1, 9)))
def test_a_few_kinds_stay_as_they_are(notes: dict[str, int]) -> None:
    assert bound_kinds(notes) == notes
    assert list(bound_kinds(notes)) == sorted(notes)


@settings(max_examples=6)
@given(st.integers(0, 3000), st.integers(1, 400), st.randoms(use_true_random=False))
def test_thousands_of_kinds_are_bounded_and_none_is_lost(n_details, n_topics, random) -> None:
    notes: Counter[str] = Counter()
    for i in range(n_details):
        notes[f"topic{i % n_topics}.{i}"] = random.randint(1, 5)
    for i in range(n_topics):
        notes[f"topic{i}"] = random.randint(1, 5)
    bounded = bound_kinds(notes)
    assert sum(bounded.values()) == sum(notes.values())
    assert len(bounded) <= 201
    lines = describe_left_out(bounded)
    assert len(lines) <= 21
    assert all(len(line) < 300 for line in lines)


def test_lines_say_what_was_left_out_in_words() -> None:
    notes = {"ignored_members": 15, "bytes_behind_end_mark": 1, "inner_archives": 2, "new_note": 3}
    notes |= {f"ignored_members.{name}": n for name, n in {"json": 8, "txt": 4, "jp2": 3}.items()}
    assert describe_left_out(notes) == [
        "1 byte behind the end of a tar, not read",
        "15 members of tars that are no images (json 8, txt 4, jp2 3)",
        "2 tars inside tars, read as well",
        "3 new_note",
        "To read .jp2 too: --set 'source.extensions=[jpg,jpeg,png,webp,tif,tiff,bmp,jp2]'.",
    ]
    many = {f"ignored_members.{i}": 1 for i in range(30)}
    assert describe_left_out(many) == [
        "30 members of tars that are no images (0 1, 1 1, 10 1, 11 1, 12 1, 13 1, 14 1, 15 1, "
        "others 22)"
    ]
    assert describe_left_out({"a\x1b[31m.b\r": 1}) == ["1 a?[31m (b? 1)"]
    assert describe_left_out({}) == []


@pytest.mark.parametrize("status", [SUCCESS, INCOMPLETE])
def test_the_last_screen_has_what_listing_and_reading_left_out(status: str) -> None:
    parts = [PartCounts(unit, 1, 0, 0, notes={"inner_archives": 2}) for unit in ("a", "b")]
    account = account_of({"a": 1, "b": 1}, parts)
    report = make_report(
        status=status,
        images=2,
        units=2,
        notes=account.notes,
        input_notes=("Skipped 1 other file in /in: 1 x .txt.",),
    )
    assert report.advice()[:3] == [
        "Noticed while reading:",
        "  Skipped 1 other file in /in: 1 x .txt.",
        "  4 tars inside tars, read as well",
    ]
    assert report.to_dict()["notes"] == {"inner_archives": 4}
