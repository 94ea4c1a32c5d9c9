"""Pickles of `torch.save`: nothing in them runs, and no tensor reaches outside of its data."""

from __future__ import annotations

import io
import os
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from segcore.errors import CheckpointError
from segcore.models import pickle_machine, pickles
from segcore.models.pickles import PickledFile, PickleRefused, TensorRecord
from segcore.models.registry import parse_checkpoint
from tests.support.checkpoint_files import torch_file


class Evil:
    """Runs `function(*args)` in any reader that does what a pickle asks for."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


def hostile_objects(marker: Path | str) -> dict[str, Any]:
    """Objects whose unpickling would create the file `marker`, or import or open something."""
    touch = f"open({str(marker)!r}, 'w').close()"
    return {
        "os.system": Evil(os.system, f"touch {marker}"),
        "exec": Evil(exec, touch),
        "eval": Evil(eval, touch.replace(".close()", "")),
        "getattr": Evil(getattr, Evil(__import__, "os"), "system"),
        "import": Evil(__import__, "antigravity"),
        "open": Evil(open, str(marker), "w"),
        "jit": Evil(torch.jit.load, str(marker)),
        "torch.load": Evil(torch.load, str(marker)),
        "nested": {"names": [Evil(os.system, f"touch {marker}")]},
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(hostile_objects("x")))
@pytest.mark.parametrize("legacy", [False, True])
def test_nothing_in_a_pickle_is_executed(
    tmp_path: Path, yolo_weights: dict[str, Tensor], kind: str, legacy: bool
) -> None:
    marker = tmp_path / "executed"
    evil = hostile_objects(marker)[kind]
    modules_before = set(sys.modules)
    # Beside good weights the call is inert; in the place of the model it is not a model.
    checkpoint = parse_checkpoint(
        torch_file({"model": dict(yolo_weights), "train_args": evil, "x": evil}, legacy), "evil.pt"
    )
    assert len(checkpoint.state_dict) == 561
    with pytest.raises(CheckpointError, match=r"^evil\.pt "):
        parse_checkpoint(torch_file(evil, legacy), "evil.pt")
    assert not marker.exists()
    assert "antigravity" not in set(sys.modules) - modules_before


def test_nothing_is_executed_where_the_magic_number_should_be(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    for protocol in (2, 3, 4, 5):
        evil = pickle.dumps(hostile_objects(marker)["os.system"], protocol)
        with pytest.raises(CheckpointError, match=r"torch\.save did not write it"):
            parse_checkpoint(evil, "evil.pt")
    assert not marker.exists()


def zip_of(program: bytes) -> bytes:
    """A file of the zip format with this pickle and one storage of 8 bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/data.pkl", program)
        archive.writestr("a/data/0", b"\0" * 8)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (b"\x80\x02Nr\xff\xff\xff\x7f.", "memo index"),  # would allocate tens of GB
        (b"\x80\x02\x82\x01.", "extension registry"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.", "damaged"),
        (b"\x80\x02" + b"(" * 10 + b".", "damaged"),
        (b"\x80\x02U\x05hello", "damaged"),
    ],
)
def test_hostile_opcodes_are_refused(program: bytes, message: str) -> None:
    with pytest.raises(PickleRefused, match=message):
        PickledFile(zip_of(program))


def test_attributes_set_on_what_the_unpickler_hands_out_do_not_outlive_the_file() -> None:
    # BUILD with a state of (None, {...}) sets attributes on the function that takes tensors.
    program = (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\x0c\x00\x00\x00__defaults__NsX\x01\x00"
        b"\x00\x00aK\x01s\x86b."
    )
    PickledFile(zip_of(program))
    assert not hasattr(pickle_machine._rebuild_tensor, "a")
    assert not hasattr(pickles.Stub, "a")


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [(0, (3,), (1,)), (1, (2,), (1,)), (0, (2,), (5,)), (0, (1 << 40,), (0,)), (0, (2, 2), (1, 1))],
)
def test_tensors_may_not_reach_outside_of_their_storage(
    offset: int, size: tuple[int, ...], stride: tuple[int, ...]
) -> None:
    storage = pickles.StorageRecord("0", torch.float32, 2)
    file = PickledFile(zip_of(b"\x80\x02N."))
    with pytest.raises(PickleRefused, match="outside"):
        file.tensor(TensorRecord(storage, offset, size, stride))
    good = file.tensor(TensorRecord(storage, 0, (2,), (1,)))
    assert good.tolist() == [0.0, 0.0]


def test_storages_shorter_than_stated_are_refused() -> None:
    file = PickledFile(zip_of(b"\x80\x02N."))
    with pytest.raises(PickleRefused, match="less data"):
        file.tensor(TensorRecord(pickles.StorageRecord("0", torch.float32, 3), 0, (3,), (1,)))
    good = file.tensor(TensorRecord(pickles.StorageRecord("0", torch.float32, 2), 0, (2,), (1,)))
    assert good.tolist() == [0.0, 0.0]
