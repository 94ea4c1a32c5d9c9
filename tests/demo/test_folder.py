"""The demo writes into folders of its own only."""

from __future__ import annotations

from pathlib import Path

import pytest

from segcore.demo.folder import claim_folder
from segcore.errors import UsageError


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    claim_folder(tmp_path / "new")
    claim_folder(tmp_path / "new")  # our own again
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.tex").write_text("precious")
    with pytest.raises(UsageError, match="not of this demo"):
        claim_folder(tmp_path / "theirs")
    with pytest.raises(UsageError, match="is a file"):
        claim_folder(tmp_path / "theirs" / "thesis.tex")
