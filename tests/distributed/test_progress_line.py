"""The progress line says what is committed, and no more than is known."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segcore.distributed.progress import ProgressSnapshot
from segcore.distributed.progress_line import ProgressGoal, ProgressLine

GOAL = ProgressGoal(1000, 4, 100)


class _Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def _lines(goal: ProgressGoal, *steps: tuple[float, ProgressSnapshot], problems=()) -> list[str]:
    """The line at each step, (seconds since the step before, progress)."""
    clock = _Clock()
    line = ProgressLine(goal, clock)
    texts = []
    for seconds, progress in steps:
        clock.now += seconds
        texts.append(line.text(progress, problems))
    return texts


def test_the_line_with_a_known_number_of_images():
    starting, first, second = _lines(
        GOAL,
        (5, ProgressSnapshot()),
        (10, ProgressSnapshot(240, 10, 9000, 1, 25, in_progress=50)),
        (10, ProgressSnapshot(490, 10, 9000, 2, 50, in_progress=100)),
    )
    assert starting == "starting workers · 0:05"
    assert first == (
        "250 / 1,000 images, 50 in progress · 30.0/s · 10 failed · 1 / 4 units · ETA 0:23"
    )
    assert second == (
        "500 / 1,000 images, 100 in progress · 30.0/s · 10 failed · 2 / 4 units · ETA 0:13"
    )


def test_an_archive_of_one_unit_has_an_estimate_after_a_tenth_of_its_images():
    _, *lines = _lines(
        ProgressGoal(200, 1, 10),
        (5, ProgressSnapshot()),
        (9, ProgressSnapshot(in_progress=40)),
        (1, ProgressSnapshot(in_progress=50)),
    )
    assert [line.rpartition(" · ")[2] for line in lines] == ["ETA -", "ETA 0:30"]
    _, *lines = _lines(
        ProgressGoal(2000, 4, 10),
        (5, ProgressSnapshot()),
        (20, ProgressSnapshot(in_progress=199)),
        (1, ProgressSnapshot(in_progress=210)),
    )
    assert [line.rpartition(" · ")[2] for line in lines] == ["ETA -", "ETA 2:59"]


def test_without_a_known_number_of_images_the_estimate_goes_by_committed_bytes():
    *_, line = _lines(
        ProgressGoal(None, 4, 100),
        (1, ProgressSnapshot()),
        (10, ProgressSnapshot(10, 0, 0, 1, 25)),
        (10, ProgressSnapshot(20, 0, 0, 2, 50)),
    )
    assert line == "20 images · 1.0/s · 0 failed · 2 / 4 units · ETA 0:20"


def test_the_estimate_does_not_grow_while_units_are_in_progress():
    """Nothing is committed between the lines, but images are done at the same pace."""
    goal = ProgressGoal(None, 8, 800)
    steps = [(10, ProgressSnapshot(100, 0, 0, 2, 200, in_progress=n)) for n in (0, 50, 100, 150)]
    *_, second, third, fourth = _lines(
        goal, (1, ProgressSnapshot()), (10, ProgressSnapshot(in_progress=50)), *steps
    )
    for line, left in zip((second, third, fourth), ("0:50", "0:40", "0:30"), strict=True):
        assert line.endswith(f"· 5.0/s · 0 failed · 2 / 8 units · ETA {left}")


def test_the_line_of_one_image_is_singular():
    assert _lines(ProgressGoal(1, 1, 10), (0, ProgressSnapshot(1, 0, 2, 1, 10))) == [
        "1 / 1 image · 0.0/s · 0 failed · 1 / 1 unit · ETA -"
    ]


@given(
    st.lists(st.tuples(st.floats(0, 100), st.integers(0, 500), st.integers(0, 1)), min_size=1),
    st.booleans(),
)
def test_no_time_is_told_before_two_units_are_committed_or_a_tenth_has_results(steps, is_known):
    """And what is called done is what is committed, whatever is in progress."""
    snapshots, units, images = [], 0, 0
    for seconds, in_progress, new_units in steps:
        units += new_units
        images += 100 * new_units
        snapshots.append(
            (seconds, ProgressSnapshot(images, 0, 0, units, units, in_progress=in_progress))
        )
    goal = ProgressGoal(100 * 50 if is_known else None, 50, 50)
    for (_, progress), line in zip(snapshots, _lines(goal, *snapshots), strict=True):
        if line.startswith("starting"):
            assert progress.units == progress.in_progress == 0
            continue
        assert line.startswith(f"{progress.images:,} ")
        if progress.units < 2 and not (is_known and progress.images + progress.in_progress >= 500):
            assert "ETA -" in line


@given(st.floats(1, 1e4), st.integers(2, 1000))
def test_the_pace_is_that_of_the_last_minutes(rate, minutes):
    """After a slow start and at any later rate, the line comes to tell that rate."""
    clock = _Clock()
    line = ProgressLine(ProgressGoal(10**9, 10**6, 10**9), clock)
    images = 0.0
    text = ""
    for minute in range(minutes + 12):
        images += (rate if minute >= minutes else 1) * 30
        clock.now += 30
        text = line.text(ProgressSnapshot(int(images), 0, 0, minute + 1, minute + 1))
    match = re.search(r"([\d.]+)/s", text)
    assert match is not None
    assert float(match[1]) == pytest.approx(rate, rel=0.05, abs=0.11)


def test_what_is_wrong_is_said():
    working = ProgressSnapshot(250, 0, 0, 2, 25)
    dying = ProgressSnapshot(250, 0, 0, 2, 25, in_progress=3, deaths=2)
    *_, after, later = _lines(
        GOAL,
        (1, ProgressSnapshot()),
        (20, working),
        (10, dying),
        (61, dying),
        problems=["3 units not done: StorageError: " + "x" * 500],
    )
    assert "2 worker processes died and restarted · 3 units not done: StorageError: xxx" in after
    assert "nothing new" not in after
    assert "nothing new for 1:01" in later
    assert len(later) < 300


def test_a_stall_ends_the_estimate():
    stalled = ProgressSnapshot(500, 0, 0, 2, 50)
    *_, line = _lines(GOAL, (1, ProgressSnapshot()), (20, stalled), *[(30, stalled)] * 12)
    assert "0.0/s" in line
    assert "ETA -" in line
    assert "nothing new for 6:00" in line
