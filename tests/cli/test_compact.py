"""`segcore compact` as a person types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from segcore.cli.compact import _parse_size, _parse_time
from segcore.errors import UsageError
from tests.support.commands import call_segcore
from tests.support.finished_output import finish_run


def test_json_has_the_counts_and_the_patterns(tmp_path: Path) -> None:
    output = finish_run(str(tmp_path), n_images=4).output
    planned = call_segcore("compact", output, "--dry-run", "--json")
    assert (planned.returncode, json.loads(planned.stdout)["units_added"]) == (0, 2)
    done = call_segcore("compact", output, "--json", "--grace", "0")
    report = json.loads(done.stdout)
    assert (done.returncode, report["units"], report["files_deleted"]) == (0, 2, 4)
    assert len(list(Path("/").glob(report["images"].lstrip("/")))) == 1
    assert "which is published" in done.stderr
    again = call_segcore("compact", output)
    assert again.returncode == 0
    assert "nothing: no unit has changed" in again.stdout


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("--file-size", "0MB", "is not a size"),
        ("--file-size", "2GiB", "is not a size"),
        ("--file-size", "many", "is not a size"),
        ("--grace", "24", "is not a time"),
        ("--grace", "-1h", "is not a time"),
        ("--sort", "score", "is no order"),
    ],
)
def test_options_that_mean_nothing_are_refused(
    tmp_path: Path, option: str, value: str, reason: str
) -> None:
    done = call_segcore("compact", str(tmp_path), f"{option}={value}")
    assert (done.returncode, reason in done.stderr) == (2, True)


def test_an_output_that_is_none(tmp_path: Path) -> None:
    done = call_segcore("compact", str(tmp_path))
    assert done.returncode == 2
    assert "is not the output of a run" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [("1MB", 10**6), ("256MB", 256 * 10**6), ("1GiB", 1 << 30), ("512MiB", 512 << 20)],
)
def test_sizes(text: str, n_bytes: int) -> None:
    assert _parse_size(text) == n_bytes


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0), ("90m", 5400), ("24h", 86400), ("7d", 604800)]
)
def test_times(text: str, seconds: float) -> None:
    assert _parse_time(text) == seconds
    with pytest.raises(UsageError):
        _parse_time(text + "x")
