"""With ``--json``, stdout holds one JSON document, whatever happens."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from segcore.cli import console
from segcore.errors import CheckpointError, ListingShrank, ObjectNotFound, StorageError, UsageError
from tests.support.commands import call_segcore


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["status"], "OUTPUT"),
        (["status", "/nowhere"], "/nowhere is not the output of a run"),
        (["verify", "/nowhere"], "/nowhere is not the output of a run"),
        (["failures", "/nowhere"], "/nowhere is not the output of a run"),
        (["compact", "/nowhere"], "/nowhere is not the output of a run"),
        (["evaluate", "/nowhere", "truth.json"], "/nowhere is not the output of a run"),
        (["segment", "in"], "OUTPUT is missing"),
        (["segment", "in", "out", "--set", "modle.conf=1"], "unknown key `modle.conf`"),
        (["segment", "in", "out", "--actors", "none"], "--actors"),
        (["segment", "in", "out", "--no-such-flag"], "--no-such-flag"),
        (["train", "nowhere.yaml"], "nowhere.yaml does not exist"),
        (["sgment"], "sgment"),
    ],
)
def test_what_is_wrong_with_a_command_is_one_document(args: list[str], message: str) -> None:
    done = call_segcore(*args, "--json")
    assert done.returncode == 2, done.stderr
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "usage_error"
    assert error["exit_code"] == 2
    assert message in error["message"]
    assert message in done.stderr


@pytest.mark.parametrize(
    ("error", "code", "exit_code"),
    [
        (StorageError("gone", "wait"), "storage_error", 1),
        (ObjectNotFound("nothing there"), "object_not_found", 2),
        (CheckpointError("not a model"), "checkpoint_error", 2),
        (ListingShrank("less"), "listing_shrank", 1),
        (TypeError("ours"), "bug", 1),
    ],
)
def test_errors_have_a_code(
    error: Exception, code: str, exit_code: int, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    app = console.new_app()

    @app.command()
    def fail(as_json: console.JsonFlag = False) -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["fail", "--json"])
    with pytest.raises(SystemExit) as end:
        console.run_app(app)
    assert end.value.code == exit_code
    document = json.loads(capsys.readouterr().out)["error"]
    assert (document["code"], document["exit_code"]) == (code, exit_code)
    assert str(error) in document["message"]
    assert document["hint"] == getattr(error, "hint", "")


def test_only_storage_may_be_set_where_nothing_is_segmented(tmp_path: Path) -> None:
    done = call_segcore("status", str(tmp_path), "--set", "model.conf=0.4")
    assert done.returncode == 2
    assert "only options of storage" in done.stderr
    with pytest.raises(UsageError):
        console.open_storage(["storage.endpoint=http://x"])
    storage = console.open_storage(["storage.endpoint_url=http://127.0.0.1:1", "storage.retries=0"])
    assert storage.options.endpoint_url == "http://127.0.0.1:1"
    assert storage.options.retries == 0
