"""cluster/aws/iam-policy.json: which rights each command needs that works on an output."""

from __future__ import annotations

from pathlib import Path

import pytest

from segcore.errors import AccessDenied, CredentialsRejected
from segcore.storage import Storage
from tests.cluster.policy import ASKED_FIRST, OUTPUT, call, night
from tests.support.bright_images import bright_png
from tests.support.fake_s3 import FakeS3

pytestmark = pytest.mark.slow

READERS = (
    "status", "verify", "failures", "editions", "history",
    "export --format coco --images none",
    "report", "show", "rank --by uncertain",
)  # fmt: skip


def test_nights_and_what_looks_after_an_output(
    server: FakeS3, rights: list[tuple[str, str]], tmp_path: Path
) -> None:
    assert night(tmp_path)["status"] == "published"
    server.objects["shards/new.png"] = bright_png(9)
    del server.objects["shards/000.png"]
    shrunk = "source.allow_shrunk_listing=true"
    assert night(tmp_path, shrunk)["status"] == "published"
    assert night(tmp_path)["status"] == "nothing_to_do"
    first = call("editions", OUTPUT)["editions"][0]["edition"]
    assert call("compact", OUTPUT, "--grace", "0s")["files"]
    second = night(tmp_path, "model.conf=0.5")
    assert (second["status"], second["before"]) == ("published", first)
    call("compare", f"{OUTPUT}{first}", f"{OUTPUT}{second['edition']}")
    assert call("publish", OUTPUT, first)["changed"]
    assert call("prune", OUTPUT, "--keep", "0", "--yes")["bytes_deleted"]
    assert not [key for key in server.objects if key.startswith(f"masks/{second['edition']}/")]
    assert set(rights) <= ASKED_FIRST


def test_a_copy_that_is_not_allowed_names_both_objects(server: FakeS3) -> None:
    server.allows = lambda action, key: action != "s3:PutObject"
    with pytest.raises(AccessDenied, match=r"s3://bucket/private/x.png .* to s3://bucket/y.png"):
        Storage().link_or_copy("s3://bucket/private/x.png", "s3://bucket/y.png")
    server.accepts = lambda access_key: False
    with pytest.raises(CredentialsRejected, match=r"not accepted \(ExpiredToken\)\.$"):
        Storage().link_or_copy("s3://bucket/private/x.png", "s3://bucket/y.png")


def test_what_reads_an_output(
    server: FakeS3, rights: list[tuple[str, str]], tmp_path: Path
) -> None:
    night(tmp_path)
    places = {"export": [str(tmp_path / "export")], "report": ["--out", str(tmp_path / "r.html")],
              "show": ["--out", str(tmp_path / "sheet.png")]}  # fmt: skip
    for words in READERS:
        name, *options = words.split()
        call(name, OUTPUT, *places.get(name, []), *options)
    assert set(rights) <= ASKED_FIRST
