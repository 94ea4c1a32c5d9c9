"""segcore history: executions and calls of reprocess."""

from __future__ import annotations

from pathlib import Path

import pytest

from segcore.cli import history
from segcore.output.layout import OutputLayout
from segcore.output.reprocess_records import write_call
from segcore.storage import Storage
from tests.support.generated_output import write_output


def test_a_call_is_shown_though_nothing_was_executed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "out")
    layout = write_output(output, 1, 2, 1)
    for record in Storage().list(layout.runs_folder):
        Storage().delete(record.uri)
    call = {"started": "2026-11-01T02:00:00Z", "status": "refused", "reasons": ["it shrank"]}
    write_call(Storage(), OutputLayout(output), "20261101T020000Z-00000000", call)
    history.command(output)
    assert "reprocess: refused: it shrank" in capsys.readouterr().out
