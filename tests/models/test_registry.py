"""Names, paths, bytes passed by the caller and classes of the user -> models."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from segcore.errors import CheckpointError, UsageError
from segcore.models import downloads, registry
from segcore.models.base import Model, ModelOptions
from segcore.models.checkpoints import save_safetensors
from segcore.models.families import PublishedModel
from segcore.models.registry import BUNDLED, bundled_names, known_names, load_model
from segcore.models.yolo.network import build_network
from tests.support.checkpoint_files import half, torch_file

CPU = ModelOptions(device="cpu")
OFFLINE = "http://127.0.0.1:9"  # nothing listens there


@pytest.fixture(scope="module")
def checkpoint_file(tmp_path_factory):
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    meta = {"architecture": "yolo11n-seg", "categories": [{"id": 1, "name": "a"}], "imgsz": 64}
    save_safetensors(path, half(build_network("yolo11n-seg", 1).state_dict()), meta)
    return path


@pytest.fixture(autouse=True)
def _cache_of_the_test(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGCORE_CACHE", str(tmp_path / "cache"))


def test_a_model_from_a_local_file_runs(checkpoint_file):
    model = load_model(str(checkpoint_file), CPU)
    assert isinstance(model, Model)
    assert model.info.name == "tiny"
    prepared = [model.preprocess(np.zeros((40, 60, 3), np.uint8))]
    (instances,) = model.postprocess(model.forward(prepared), prepared)
    assert (instances.height, instances.width) == (40, 60)


def test_a_worker_does_not_import_the_compiler_of_torch(tmp_path):
    """It takes a second and 70 MB in each process; operations on "meta" import it."""
    path = tmp_path / "yolo11n-seg.pt"
    path.write_bytes(torch_file(half(build_network("yolo11n-seg", 1).state_dict())))
    code = f"""
import sys, numpy as np
from segcore.models.base import ModelOptions
from segcore.models.registry import load_model, probe_model
for load in (probe_model, load_model):
    model = load({str(path)!r}, ModelOptions(device="cpu"))
prepared = [model.preprocess(np.zeros((40, 60, 3), np.uint8))]
model.postprocess(model.forward(prepared), prepared)
print([name for name in ("torch._dynamo", "sympy") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_bytes_passed_by_the_caller_give_the_same_model(checkpoint_file):
    data = checkpoint_file.read_bytes()
    model = load_model("s3://bucket/folder/mine.safetensors", CPU, data=data)
    assert model.info.name == "mine"
    assert model.info.weights_sha256 == load_model(str(checkpoint_file), CPU).info.weights_sha256


@pytest.mark.parametrize(
    ("options", "precision"),
    [
        (ModelOptions(), "float32"),
        (ModelOptions(device="cuda:5", precision="float16"), "float16"),
        (ModelOptions(device="cpu", precision="float16"), "float16"),
        (ModelOptions(precision="bfloat16"), "bfloat16"),
    ],
)
def test_a_model_is_described_where_it_cannot_run(checkpoint_file, options, precision):
    model = registry.probe_model(str(checkpoint_file), options)
    loaded = load_model(str(checkpoint_file), CPU)
    assert model.info.parameters == {**loaded.info.parameters, "precision": precision}
    image = np.zeros((40, 60, 3), np.uint8)
    assert model.preprocess(image).letterbox == loaded.preprocess(image).letterbox


def test_a_model_that_is_only_described_cannot_be_asked_for(checkpoint_file):
    with pytest.raises(UsageError, match="no device named 'meta'"):
        load_model(str(checkpoint_file), ModelOptions(device="meta"))


def test_weights_that_float16_cannot_hold_are_found_without_a_gpu(tmp_path):
    torch.manual_seed(1)
    weights = build_network("yolo11n-seg", 1).state_dict()
    name = next(name for name in weights if name.endswith("proto.cv3.conv.weight"))
    weights[name] *= 1e7
    path = tmp_path / "large.safetensors"
    meta = {"architecture": "yolo11n-seg", "categories": [{"id": 1, "name": "a"}], "imgsz": 64}
    save_safetensors(path, weights, meta)
    registry.probe_model(str(path), ModelOptions())
    with pytest.raises(CheckpointError, match="cannot be used in float16"):
        registry.probe_model(str(path), ModelOptions(precision="float16"))


def test_object_uris_need_their_bytes():
    with pytest.raises(CheckpointError, match="lies in an object store"):
        load_model("s3://bucket/mine.safetensors", CPU)


def test_the_bundled_models_load():
    assert "nuclei-yolo11n" in bundled_names()
    for name in bundled_names():
        model = load_model(name, CPU)
        assert model.info.name == name
        assert model.info.licence not in ("", "unknown")
        assert (BUNDLED / f"{name}.safetensors").stat().st_size < 8_000_000


def test_the_error_for_an_unknown_name_lists_the_known_ones():
    with pytest.raises(CheckpointError, match="no model and no file named 'yolo11n_seg'") as caught:
        load_model("yolo11n_seg", CPU)
    assert caught.value.hint.startswith("Did you mean yolo11n-seg?")
    assert all(name in caught.value.hint for name in known_names())
    with pytest.raises(CheckpointError, match=r"no checkpoint at gone\.pt"):
        load_model("gone.pt", CPU)


def publish_at(monkeypatch, url):
    published = PublishedModel("yolo11n-seg", url, "AGPL-3.0", 32.0)
    monkeypatch.setitem(registry.PUBLISHED, "yolo11n-seg", published)
    return published


def test_without_a_connection_the_error_says_which_file_to_place_where(
    monkeypatch, capsys, checkpoint_file
):
    monkeypatch.setattr(downloads.time, "sleep", lambda _seconds: None)
    published = publish_at(monkeypatch, f"{OFFLINE}/yolo11n-seg.pt")
    with pytest.raises(CheckpointError, match="Cannot fetch") as caught:
        load_model("yolo11n-seg", CPU)
    assert str(published.cached_path) in caught.value.hint
    assert "AGPL-3.0" in capsys.readouterr().err
    # Following the hint works, and no connection is made.
    shutil.copy(checkpoint_file, published.cached_path)
    info = load_model("yolo11n-seg", CPU).info
    assert (info.name, info.licence) == ("yolo11n-seg", "AGPL-3.0")
    assert downloads.pinned_sha256(published.cached_path) == info.weights_sha256


def test_published_weights_that_changed_are_refused(monkeypatch, checkpoint_file):
    published = publish_at(monkeypatch, f"{OFFLINE}/yolo11n-seg.pt")
    published.cached_path.parent.mkdir(parents=True)
    shutil.copy(checkpoint_file, published.cached_path)
    load_model("yolo11n-seg", CPU)
    published.cached_path.write_bytes(b"something else")
    with pytest.raises(CheckpointError, match="is not the file that was expected"):
        load_model("yolo11n-seg", CPU)


def test_links_are_fetched_over_https_only():
    with pytest.raises(CheckpointError, match="only fetched over https"):
        load_model("http://example.org/mine.pt", CPU)


USER_MODULE = """
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
def user_module(tmp_path, monkeypatch):
    (tmp_path / "my_models.py").write_text(textwrap.dedent(USER_MODULE))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    yield
    sys.modules.pop("my_models", None)


@pytest.mark.usefixtures("user_module")
def test_a_class_of_the_user_is_loaded():
    model = load_model("my_models:Nothing", ModelOptions(conf=0.1))
    assert isinstance(model, Model)
    assert model.info.parameters == {"conf": 0.1}


@pytest.mark.usefixtures("user_module")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_models:Gone", "has no 'Gone'"),
        ("my_models:Broken", "cannot be created: .*no such weights"),
        ("my_models:Half", "is not a model of segcore: it has no batch_size, preprocess"),
        ("my_models:number", "cannot be created"),
        ("no_such_module:Model", "Cannot import 'no_such_module'"),
    ],
)
def test_classes_that_cannot_be_used_are_refused(name, message):
    with pytest.raises(UsageError, match=message):
        load_model(name, CPU)


def test_every_architecture_belongs_to_one_family():
    architectures = [name for family in registry.FAMILIES for name in family.architectures]
    assert len(architectures) == len(set(architectures))
    assert set(registry.PUBLISHED) <= set(architectures)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("batch_size = 0", "its batch_size is 0"),
        ("batch_size = 2.5", "its batch_size is 2.5"),
        ("info = {}", "its info is of type dict"),
        ("info = ModelInfo('n', 'a', '', '', ())", "no categories"),
        ("info = ModelInfo('n', 'a', '', '', (Category(-1, 'x'),))", "the id of Category"),
        ("info = ModelInfo('n', 'a', '', '', (Category(1, None),))", "not a Category with a name"),
        ("info = ModelInfo('n', 'a', '', '', (Category(1, 'x'),) * 2)", "the same id"),
    ],
)
@pytest.mark.usefixtures("user_module")
def test_what_a_class_of_the_user_says_about_itself_is_checked(tmp_path, change, message):
    wrong = f"\nclass Wrong(Nothing):\n    def __init__(self, options): pass\n    {change}\n"
    if "info" not in change:
        wrong += "    info = ModelInfo('n', 'a', '', '', (Category(1, 'x'),))\n"
    with (tmp_path / "my_models.py").open("a") as file:
        file.write(wrong)
    with pytest.raises(UsageError, match=f"my_models:Wrong cannot be used: .*{message}"):
        load_model("my_models:Wrong")
