"""Marks for tests that start a service, and a guard against tests that start one without its mark.

`make quick` leaves out the tests marked `ray` and `s3`. Whoever uses a fixture that starts Ray or
the S3 server gets the mark by itself; a test that starts one in another way, such as in a
subprocess, is marked by hand. A forgotten mark would make the quick run slow and hard to explain,
so a process of Ray or of the S3 server that an unmarked test starts ends that test.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from segcore.errors import UsageError
from segcore.testing.loopback_s3 import find_weed

MARK_OF_FIXTURE = {"ray_address": "ray", "ray_session": "ray", "s3": "s3"}
_RAY_PROGRAMS = ("gcs_server", "raylet")

_allowed_marks: frozenset[str] = frozenset()


def mark_by_fixtures(items: list[pytest.Item]) -> None:
    """Add the marks that follow from the fixtures of each test."""
    for item in items:
        for fixture in getattr(item, "fixturenames", ()):
            if fixture in MARK_OF_FIXTURE:
                item.add_marker(MARK_OF_FIXTURE[fixture])


@contextmanager
def only_marked_services(item: pytest.Item) -> Iterator[None]:
    """Let a test, with its fixtures, start no other services than its marks say."""
    global _allowed_marks
    _allowed_marks = frozenset(mark.name for mark in item.iter_markers())
    try:
        yield
    finally:
        _allowed_marks = frozenset()


def watch_started_processes() -> None:
    """Check every process that Python starts from now on; this cannot be taken back."""
    mark_of_program = dict.fromkeys(_RAY_PROGRAMS, "ray")
    weed = ""
    with suppress(UsageError):  # where it is not installed, nobody can start it
        weed = find_weed()

    def check(event: str, arguments: tuple[object, ...]) -> None:
        if event != "subprocess.Popen":
            return
        program = os.fsdecode(arguments[0])  # type: ignore[arg-type]
        mark = "s3" if program == weed else mark_of_program.get(os.path.basename(program))
        if mark is not None and mark not in _allowed_marks:
            pytest.fail(
                f"{os.path.basename(program)} was started without the mark `{mark}`: use the "
                f"fixtures of tests/conftest.py, or mark the test with pytest.mark.{mark}"
            )

    sys.addaudithook(check)
