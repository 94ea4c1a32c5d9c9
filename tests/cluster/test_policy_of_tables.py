"""cluster/aws/iam-policy.json: rights for Delta tables; `make lakehouse` has the library."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cluster.policy import ASKED_FIRST, OUTPUT, night
from tests.support.commands import run_segcore
from tests.support.fake_s3 import FakeS3

pytest.importorskip("deltalake", reason="the extra lakehouse")


def test_delta_tables(server: FakeS3, rights: list[tuple[str, str]], tmp_path: Path) -> None:
    editions = [night(tmp_path, *sets)["edition"] for sets in ((), ("model.conf=0.5",))]
    for edition in editions:
        # The library would wait for the server without giving this process its turn.
        done = run_segcore("publish", OUTPUT, edition, "--to", "delta")
        assert done.returncode == 0, done.stderr
    logs = [key for key in server.objects if re.search("delta/images/_delta_log/.*json", key)]
    assert len(logs) == 2
    assert set(rights) <= ASKED_FIRST


def test_delta_tables_that_may_not_be_written(
    server: FakeS3, rights: list[tuple[str, str]], tmp_path: Path
) -> None:
    edition = night(tmp_path)["edition"]
    server.allows = lambda action, key: action == "s3:ListBucket" or "/delta/" not in key
    done = run_segcore("publish", OUTPUT, edition, "--to", "delta")
    assert done.returncode == 1
    assert re.search("was to be copied to s3://bucket/masks/delta/instances/", done.stderr)
    server.allows = lambda action, key: "_delta_log" not in key
    done = run_segcore("publish", OUTPUT, edition, "--to", "delta")
    assert done.returncode == 1
    assert re.search("The table .*/delta/instances could not be opened: .*Access", done.stderr)
    assert "[31m" not in done.stderr
