"""cluster/aws/iam-policy.json: a job works with these rights, and says which one is missing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.policy import POLICY, actions_of, is_allowed, without
from tests.support.commands import call_segcore
from tests.support.fake_s3 import FakeS3
from tests.support.jobs import BRIGHT_MODEL
from tests.support.run_without_ray import without_ray


def segment(
    server: FakeS3, policy: list[Mapping[str, Any]], source: str = "s3://bucket/shards/"
) -> tuple[int, str]:
    """Exit code and stderr of a job with these rights."""
    server.allows = lambda action, key: is_allowed(policy, action, key)
    words = ("--model", BRIGHT_MODEL, "--device", "cpu", "--set", "plan.images=2")
    with without_ray():
        done = call_segcore("segment", source, "s3://bucket/masks/", *words)
    return done.returncode, done.stderr


def test_a_job_works_with_these_rights(server: FakeS3, tmp_path: Path) -> None:
    code, said = segment(server, POLICY)
    assert code == 0, said
    for command in ("status", "verify", "show"):
        options = ("--out", str(tmp_path / "sheet.png")) if command == "show" else ()
        done = call_segcore(command, "s3://bucket/masks/", *options)
        assert done.returncode == 0, done.stderr
    assert not is_allowed(POLICY, "s3:PutObject", "shards/000.png")
    assert not is_allowed(POLICY, "s3:GetObject", "private/x.png")
    server.objects = {"private/x.png": b"x"}
    code, said = segment(server, POLICY, source="s3://bucket/private/")
    assert (code, "No permission for s3://bucket/private" in said) == (1, True), said


_MISSING = {
    ("ListInput", "s3:ListBucket"): "No permission for s3://bucket/shards/ (AccessDenied).",
    ("ReadInput", "s3:GetObject"): "No permission for s3://bucket/shards/000.png (AccessDenied).",
    ("ListOutput", "s3:ListBucket"): "No permission for s3://bucket/masks/",
    ("ReadAndWriteOutput", "s3:GetObject"): "No permission for s3://bucket/masks/latest.json",
    ("ReadAndWriteOutput", "s3:PutObject"): "/lease/00000001.json (AccessDenied).",
    ("ReadAndWriteOutput", "s3:DeleteObject"): ".parquet (AccessDenied).",
    ("ReadAndWriteOutput", "s3:AbortMultipartUpload"): "",  # parts of large files stay behind
}


def test_each_right_is_known() -> None:
    assert set(_MISSING) == {(one["Sid"], action) for one in POLICY for action in actions_of(one)}


@pytest.mark.parametrize(("sid", "action"), list(_MISSING))
def test_a_right_that_is_missing_is_said_and_no_image_is_blamed(
    server: FakeS3, sid: str, action: str
) -> None:
    code, said = segment(server, without(sid, action))
    expected = _MISSING[sid, action]
    assert code == (1 if expected else 0), said
    assert expected in said
    assert "No permission" in said or not expected
    assert "Traceback" not in said
    if expected:
        assert not [key for key in server.objects if "/images/" in key]
        code, said = segment(server, POLICY)  # with all rights the same command goes on
        assert code == 0, said
