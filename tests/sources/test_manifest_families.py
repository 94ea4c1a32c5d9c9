"""Manifests of odd text against independent readers: the same rows, or a refusal with the line.

``python -m tests.sources.test_manifest_families 4000`` tries so many and prints counts.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections import Counter
from pathlib import Path

from segcore.errors import UsageError
from segcore.sources import SourceOptions, open_source
from segcore.storage import Storage
from tests.support.manifest_files import ManifestFile, make_manifest

storage = Storage()


def _expected_uri(folder: Path, name: str) -> str:
    return name if "\0" in name else f"{folder}/{name}"


def _judge(file: ManifestFile, folder: Path) -> tuple[str, str]:
    """("same" or "refused" or "wrong", what was found)."""
    path = folder / f"m.{file.kind}"
    path.write_bytes(file.data)
    try:
        source = open_source(str(path), SourceOptions(allow_empty=True), storage)
        found = source.entries().to_table().column("uri").to_pylist()
    except UsageError as error:
        names_place = re.search(r"\bline \d+|no column|columns '", error.message)
        return ("refused" if names_place else "wrong"), error.message
    if file.rows is None:
        return "wrong", f"read: {found}"
    expected = [_expected_uri(folder, name) for name in file.rows]
    if found != sorted(set(expected)):
        return "wrong", f"{found} instead of {sorted(set(expected))}"
    notes = " ".join(source.notes)
    counts = [int(number) for number in re.findall(r"(\d+) x (?:row without|comment)", notes)]
    if sum(counts) != file.n_skipped:
        return "wrong", f"{file.n_skipped} lines without a value; notes: {notes}"
    n_duplicates = re.search(r"Ignored (\d+) duplicate", notes)
    if int(n_duplicates[1] if n_duplicates else 0) != len(expected) - len(set(expected)):
        return "wrong", f"duplicates of {expected}; notes: {notes}"
    return "same", ""


def judge_many(numbers: range) -> tuple[Counter[str], list[str]]:
    """Counts by kind and outcome; what is wrong."""
    counts: Counter[str] = Counter()
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        for number in numbers:
            file = make_manifest(number)
            outcome, found = _judge(file, Path(folder).resolve())
            counts[f"{file.kind}: {outcome}"] += 1
            if outcome == "wrong":
                wrong.append(f"{number}: {found[:300]}; {file.data[:300]!r}")
    return counts, wrong


def test_odd_manifests_are_read_like_by_others_or_refused_with_the_line() -> None:
    counts, wrong = judge_many(range(160))
    assert wrong == []
    for kind in ("txt", "csv", "tsv", "jsonl"):
        assert counts[f"{kind}: same"] > 15
        assert counts[f"{kind}: refused"] > 2


if __name__ == "__main__":
    counts, wrong = judge_many(range(int(sys.argv[1])))
    print("\n".join([*(f"{name}: {n}" for name, n in sorted(counts.items())), *wrong]))
    sys.exit(bool(wrong))
