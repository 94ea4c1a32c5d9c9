from __future__ import annotations

import errno
import tempfile
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segcore.errors import StorageFull
from segcore.storage.spill import SpillFile


@given(st.lists(st.binary(max_size=9)), st.integers(0, 40))
def test_pieces_come_back_from_memory_and_from_the_file(pieces: list[bytes], limit: int) -> None:
    spill = SpillFile(memory_bytes=limit)
    places = [spill.append(piece) for piece in pieces]
    for place, piece in reversed(list(zip(places, pieces, strict=True))):
        assert spill.read(place, len(piece)) == piece


def test_a_full_temporary_folder_is_a_readable_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def __init__(self, **kwargs: Any) -> None:
            pass

        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", Full)
    spill = SpillFile(memory_bytes=2)
    spill.append(b"12")
    with pytest.raises(StorageFull, match=r"temporary folder .* is full") as error:
        spill.append(b"3")
    assert "TMPDIR" in error.value.hint
    assert spill.read(0, 2) == b"12"
