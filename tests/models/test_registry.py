"""Names, paths, handed-in bytes and classes of the user -> models."""

from __future__ import annotations

import shutil
import sys
import textwrap

import numpy as np
import pytest
import torch

from segcore.errors import CheckpointError, UsageError
from segcore.models import downloads, registry
from segcore.models.base import Model, ModelOptions
from segcore.models.checkpoints import save_safetensors
from segcore.models.registry import BUNDLED, bundled_names, known_names, load_model
from segcore.models.yolo.network import build_network

CPU = ModelOptions(device="cpu")
OFFLINE = "http://127.0.0.1:9"  # nothing listens there


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    meta = {"architecture": "yolo11n-seg", "categories": [{"id": 1, "name": "a"}], "imgsz": 64}
    weights = build_network("yolo11n-seg", 1).state_dict()
    save_safetensors(path, {k: v.half() if v.ndim else v for k, v in weights.items()}, meta)
    return path


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGCORE_CACHE", str(tmp_path / "cache"))


def test_a_local_file_runs(file):
    model = load_model(str(file), CPU)
    assert isinstance(model, Model)
    assert model.info.name == "tiny"
    prepared = [model.preprocess(np.zeros((40, 60, 3), np.uint8))]
    (instances,) = model.postprocess(model.forward(prepared), prepared)
    assert (instances.height, instances.width) == (40, 60)


def test_bytes_handed_in_give_the_same_model(file):
    model = load_model("s3://bucket/folder/mine.safetensors", CPU, data=file.read_bytes())
    assert model.info.name == "mine"
    assert model.info.weights_sha256 == load_model(str(file), CPU).info.weights_sha256


def test_remote_objects_without_their_bytes():
    with pytest.raises(CheckpointError, match="must be read by the caller"):
        load_model("s3://bucket/mine.safetensors", CPU)


def test_the_bundled_models_load():
    assert "nuclei-yolo11n" in bundled_names()
    for name in bundled_names():
        model = load_model(name, CPU)
        assert model.info.name == name
        assert model.info.licence not in ("", "unknown")
        assert (BUNDLED / f"{name}.safetensors").stat().st_size < 8_000_000


def test_unknown_names_list_what_is_known():
    with pytest.raises(CheckpointError, match="no model and no file named 'yolo11n_seg'") as caught:
        load_model("yolo11n_seg", CPU)
    assert caught.value.hint.startswith("Did you mean yolo11n-seg?")
    assert all(name in caught.value.hint for name in known_names())
    with pytest.raises(CheckpointError, match=r"no checkpoint at gone\.pt"):
        load_model("gone.pt", CPU)


def published_at(monkeypatch, url):
    published = registry.PublishedModel("yolo11n-seg", url, "AGPL-3.0", 32.0)
    monkeypatch.setitem(registry.PUBLISHED, "yolo11n-seg", published)
    return published


def test_published_weights_offline_say_which_file_to_place_where(monkeypatch, capsys, file):
    monkeypatch.setattr(downloads.time, "sleep", lambda _seconds: None)
    published = published_at(monkeypatch, f"{OFFLINE}/yolo11n-seg.pt")
    with pytest.raises(CheckpointError, match="Cannot fetch") as caught:
        load_model("yolo11n-seg", CPU)
    assert str(published.cached) in caught.value.hint
    assert "AGPL-3.0" in capsys.readouterr().err
    # The advice works, and no connection is made.
    shutil.copy(file, published.cached)
    info = load_model("yolo11n-seg", CPU).info
    assert (info.name, info.licence) == ("yolo11n-seg", "AGPL-3.0")
    assert downloads.pinned_sha256(published.cached) == info.weights_sha256


def test_published_weights_that_changed_are_refused(monkeypatch, file):
    published = published_at(monkeypatch, f"{OFFLINE}/yolo11n-seg.pt")
    published.cached.parent.mkdir(parents=True)
    shutil.copy(file, published.cached)
    load_model("yolo11n-seg", CPU)
    published.cached.write_bytes(b"something else")
    with pytest.raises(CheckpointError, match="is not the file that was expected"):
        load_model("yolo11n-seg", CPU)


def test_links_are_fetched_over_https_only():
    with pytest.raises(CheckpointError, match="only fetched over https"):
        load_model("http://example.org/mine.pt", CPU)


ADAPTER = """
    from segcore.instances import Instances
    from segcore.models.base import Category, ModelInfo

    class Nothing:
        batch_size = 4
        def __init__(self, options):
            self.info = ModelInfo("nothing", "none", "0" * 64, "CC0-1.0", (Category(1, "x"),),
                                  {"conf": options.conf})
        def preprocess(self, image):
            return image.shape[:2]
        def forward(self, prepared):
            return None
        def postprocess(self, raw, prepared):
            return [Instances.empty(*shape) for shape in prepared]

    class Broken(Nothing):
        def __init__(self, options):
            raise RuntimeError("no such weights")

    class Half:
        def __init__(self, options):
            self.info = None

    number = 3
"""


@pytest.fixture
def adapter(tmp_path, monkeypatch):
    (tmp_path / "my_adapter.py").write_text(textwrap.dedent(ADAPTER))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    yield
    sys.modules.pop("my_adapter", None)


@pytest.mark.usefixtures("adapter")
def test_a_class_of_the_user():
    model = load_model("my_adapter:Nothing", ModelOptions(conf=0.1))
    assert isinstance(model, Model)
    assert model.info.parameters == {"conf": 0.1}


@pytest.mark.usefixtures("adapter")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_adapter:Gone", "has no 'Gone'"),
        ("my_adapter:Broken", "cannot be made: .*no such weights"),
        ("my_adapter:Half", "is not a model of segcore: it has no batch_size, preprocess"),
        ("my_adapter:number", "cannot be made"),
        ("no_such_module:Model", "Cannot import 'no_such_module'"),
    ],
)
def test_classes_that_cannot_be_used(name, message):
    with pytest.raises(UsageError, match=message):
        load_model(name, CPU)
