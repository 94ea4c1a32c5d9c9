"""Records of runs are read in their order, and anything else in their folder is named."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from segcore.errors import UsageError
from segcore.output.layout import EditionLayout
from segcore.output.run_records import read_newest_run, read_run_records
from segcore.storage import Storage

storage = Storage()
VALUES = {"run": "b" * 16, "sequence": 1, "status": "success", "input": "/in", "failed": 3}


@pytest.fixture
def layout(tmp_path: Path) -> EditionLayout:
    return EditionLayout(str(tmp_path / "edition"))


def _write(layout: EditionLayout, run: str, **changes: object) -> None:
    values = {**VALUES, "run": run, **changes}
    storage.write(layout.run_record(run), json.dumps(values).encode())


def test_runs_are_ordered_by_their_sequence(layout: EditionLayout) -> None:
    assert read_newest_run(storage, layout) is None
    for run, sequence in (("aa", 10), ("bb", 2), ("cc", 1)):
        _write(layout, run, sequence=sequence)
    storage.write(f"{layout.runs_folder}/readme.txt", b"not a record")
    assert [record.run for record in read_run_records(storage, layout)] == ["cc", "bb", "aa"]
    newest = read_newest_run(storage, layout)
    assert newest is not None
    assert (newest.run, newest.sequence, newest.status) == ("aa", 10, "success")
    assert (newest.input, newest.failed) == ("/in", 3)
    assert newest.uri == layout.run_record("aa")


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"{}", b"\xff", b'"text"', b"[" * 100_000]
    + [json.dumps(VALUES | {"sequence": value}).encode() for value in (None, math.inf, math.nan)]
    + [json.dumps({k: v for k, v in VALUES.items() if k != name}).encode() for name in VALUES],
)
def test_what_is_not_a_record_is_named(layout: EditionLayout, data: bytes) -> None:
    storage.write(layout.run_record("aa"), data)
    with pytest.raises(UsageError, match=r"aa\.json is not a run record") as caught:
        read_run_records(storage, layout)
    assert "Delete it" in caught.value.hint
