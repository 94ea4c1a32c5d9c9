"""What trainers wrap around a network when they save it: every combination gives its names."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from segcore.models.checkpoints import parse_checkpoint_file, save_safetensors
from segcore.models.pickles import PickledFile, Stub
from segcore.models.registry import FAMILIES, MARKS, parse_checkpoint, read_checkpoint
from segcore.models.wrappers import AmbiguousModel, find_candidates, unwrap_names
from tests.support.checkpoint_files import torch_file
from tests.support.paths import PYTHONPATH

PREFIXES = (
    "",
    "module.",
    "_orig_mod.",
    "model.",
    "ema.",
    "net.",
    "a.b.c.",
    "_fsdp_wrapped_module.",
)
# What is around the state dict in a file.
CONTAINERS: dict[str, Callable[[Any], Any]] = {
    "plain": lambda weights: weights,
    "model": lambda weights: {"model": weights, "epoch": 3, "optimizer": {"state": {"a": {}}}},
    "state_dict": lambda weights: {"state_dict": weights, "hyper_parameters": {"lr": 0.1}},
    "model_state_dict": lambda weights: {"epoch": 1, "model_state_dict": weights},
    "nested": lambda weights: {"config": {"a": {"b": 1}}, "checkpoint": {"net": weights}},
    "unknown": lambda weights: {"args": ["x"], "my_segmenter": weights, "best": torch.ones(1)},
}
YOLO_NAMES = ["model.0.conv.weight", "model.23.proto.cv3.conv.weight", "model.23.cv3.0.2.bias"]
DETECTOR_NAMES = ["backbone.body.conv1.weight", "roi_heads.mask_head.0.0.weight"]


@pytest.mark.parametrize("names", [YOLO_NAMES, DETECTOR_NAMES], ids=["yolo", "maskrcnn"])
def test_pairs_of_prefixes_give_the_names_of_the_network(names: list[str]) -> None:
    for first, second in itertools.product(PREFIXES, repeat=2):
        prefixed = [first + second + name for name in names]
        found = unwrap_names(prefixed, MARKS)
        assert found == dict(zip(names, prefixed, strict=True)), first + second
        assert any(family.recognises(found) for family in FAMILIES)


def test_wrappers_inside_of_the_names_and_a_bare_list_of_layers_are_understood() -> None:
    compiled = ["model.0._orig_mod.conv.weight", "model.23.module.proto.cv3.conv.weight"]
    found = unwrap_names(compiled, MARKS)
    assert found is not None
    assert list(found) == ["model.0.conv.weight", "model.23.proto.cv3.conv.weight"]
    bare = [name.removeprefix("model.") for name in YOLO_NAMES]
    assert list(unwrap_names(bare, MARKS) or {}) == YOLO_NAMES


def test_averages_are_preferred_and_their_counters_left_out() -> None:
    names = [prefix + name for prefix in ("model.", "model_ema.module.") for name in YOLO_NAMES]
    found = unwrap_names([*names, "n_averaged"], MARKS)
    assert found == {name: f"model_ema.module.{name}" for name in YOLO_NAMES}
    detector = unwrap_names([*(f"module.{n}" for n in DETECTOR_NAMES), "n_averaged"], MARKS)
    assert detector == {name: f"module.{name}" for name in DETECTOR_NAMES}


def test_other_tensors_are_neither_dropped_nor_taken_for_the_network() -> None:
    found = unwrap_names([*YOLO_NAMES, "criterion.weight"], MARKS)
    assert found is not None
    assert "criterion.weight" in found  # the family refuses it
    assert unwrap_names(["a.b", "model.123.proto.cv3.conv.weight"], MARKS) is None
    with pytest.raises(AmbiguousModel, match=r"2 copies of the model, under `a\.` and `b\.`"):
        unwrap_names([f"{p}{n}" for p in ("a.", "b.") for n in DETECTOR_NAMES], MARKS)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("legacy", [False, True])
def test_the_state_dict_is_found_whatever_is_around_it(container: str, legacy: bool) -> None:
    weights = OrderedDict((f"module.{name}", torch.ones(2)) for name in YOLO_NAMES)
    data = torch_file(CONTAINERS[container](weights), legacy)
    file = parse_checkpoint_file(data, "x.pt", MARKS)
    assert list(file.tensors) == YOLO_NAMES
    assert file.summary().endswith("named like `module.model.0.conv.weight`")


def test_averaged_state_dicts_are_preferred_and_optimizers_never_taken() -> None:
    states = {
        k: dict.fromkeys(YOLO_NAMES, torch.full((1,), v))
        for k, v in zip("abc", (1.0, 2, 3), strict=True)
    }
    root = {"optimizer": states["a"], "model": states["b"], "ema": states["c"]}
    file = parse_checkpoint_file(torch_file(root), "x.pt", MARKS)
    assert (file.place, file.tensors[YOLO_NAMES[0]].item()) == ("['ema']", 3.0)
    root["ema"] = {"decay": torch.ones(1)}  # an average that is not there
    assert parse_checkpoint_file(torch_file(root), "x.pt", MARKS).place == "['model']"


def test_modules_that_contain_each_other_many_times_end_the_search() -> None:
    module = Stub("m", {"_modules": {}})
    for _ in range(60):  # 2 ** 60 modules, if each is visited in each of its places
        module = Stub("m", {"_modules": {"a": module, "b": module}})
    file = PickledFile(torch_file({}))
    with pytest.raises(Exception, match=r"takes over 1,000,000 steps"):
        file.tensor_records(module)
    loop: dict[str, Any] = {}
    loop["model"] = loop["ema"] = loop
    assert len(list(find_candidates(loop))) == 1


@pytest.mark.parametrize("names", [{"0": "a", "1": "b", "2": "c"}, {1: "a", 2: "b", 3: "c"}])
def test_class_names_beside_a_state_dict_are_used(
    yolo_weights: dict[str, Tensor], names: dict[Any, str]
) -> None:
    root = {"state_dict": {f"model.{k}": v for k, v in yolo_weights.items()}, "names": names}
    checkpoint = parse_checkpoint(torch_file(root), "x.ckpt")
    assert [(c.id, c.name) for c in checkpoint.meta.categories] == [(0, "a"), (1, "b"), (2, "c")]
    assert checkpoint.state_dict.keys() == yolo_weights.keys()


CONVERT = """
import sys
from tests.models.test_wrappers import convert
print(convert(sys.argv[1]))
"""


def convert(path: str) -> str:
    """The safetensors file that `segcore convert` writes, and what goes into the edition."""
    checkpoint = read_checkpoint(path)
    save_safetensors(f"{path}.st", checkpoint.state_dict, checkpoint.meta.model_dump(mode="json"))
    written = hashlib.sha256(Path(f"{path}.st").read_bytes()).hexdigest()
    return f"{written} {checkpoint.model_info({}, 1)!r}"


@pytest.mark.faults
def test_two_processes_read_and_write_the_same(
    tmp_path: Path, yolo_weights: dict[str, Tensor]
) -> None:
    names = {"2": "c", 0: "a", "1": "b"}
    root = {"model": yolo_weights, "names": names, "tags": {"x", "y", "z"}, "epoch": 1}
    path = tmp_path / "x.pt"
    path.write_bytes(torch_file(root))
    expected = convert(str(path))
    assert "Category(id=2, name='c')" in expected
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": PYTHONPATH}
    command = [sys.executable, "-c", CONVERT, str(path)]
    assert subprocess.check_output(command, env=environment, text=True).strip() == expected
