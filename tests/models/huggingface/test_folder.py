"""Folders of Hugging Face transformers: what they say, and what is refused before it is loaded."""

from __future__ import annotations

import hashlib
import json

import pytest

from segcore.errors import CheckpointError
from segcore.models.base import ModelOptions
from segcore.models.huggingface.folder import Preprocessing, read_folder, read_licence
from segcore.models.registry import load_model
from tests.models.huggingface.conftest import CONFIG, PREPROCESSING

CPU = ModelOptions(device="cpu")


def test_a_folder_is_read_and_hashed(make_folder):
    folder = read_folder(make_folder())
    assert folder.model_type == "mask2former"
    assert folder.weights_sha256 == hashlib.sha256(b"weights").hexdigest()
    assert folder.preprocessing.family == "Mask2Former"
    assert folder.licence == "unknown"


def test_the_hash_covers_every_shard_and_the_index(make_folder):
    path = make_folder(weights=None)
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = json.dumps({"weight_map": {"b": names[1], "a": names[0], "c": names[0]}})
    (path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match="There is no model-00001-of-00002"):
        read_folder(path)
    for name, data in zip(names, (b"one", b"two"), strict=True):
        (path / name).write_bytes(data)
    expected = hashlib.sha256(index.encode() + b"onetwo").hexdigest()
    assert read_folder(path).weights_sha256 == expected


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "pytorch_model.bin", 7])
def test_an_index_names_files_beside_it_only(make_folder, name):
    path = make_folder(weights=None)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match="which is not a file beside it"):
        read_folder(path)


def test_pickled_weights_are_refused(make_folder):
    path = make_folder(weights=None)
    (path / "pytorch_model.bin").write_bytes(b"\x80\x02")
    with pytest.raises(CheckpointError, match=r"only as a pickle \(pytorch_model.bin\)"):
        load_model(str(path), CPU)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "detr"}, "type 'detr', which is not supported"),
        ({"model_type": None}, "type 'None', which is not supported"),
        ({"backbone_config": None, "backbone": "resnet50"}, "backbone 'resnet50'"),
        ({"backbone_config": {"model_type": "timm_backbone"}}, "backbone 'timm_backbone'"),
        ({"quantization_config": {"load_in_8bit": True}}, "asks for quantization_config"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "asks for auto_map"),
        ({"num_queries": 10**9}, r"number 1000000000 \(num_queries\), which no known model needs"),
        (
            {"backbone_config": {"model_type": "swin", "depths": [1, 1e12]}},
            "which no known model needs",
        ),
        ({"dropout": float("nan")}, "number nan"),
        ({"decoder_layers": 10**5}, r"number 100000 \(decoder_layers\)"),
        ({"id2label": {"0": "\ud800"}}, "not valid Unicode"),
        ({"a": [[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]}, "nested too deeply"),
    ],
)
def test_models_that_cannot_be_used_are_refused_by_name(make_folder, changes, message):
    path = make_folder(config=CONFIG | changes)
    with pytest.raises(CheckpointError, match=message):
        load_model(str(path), CPU)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_processor_type": "DetrImageProcessor"}, "image processor 'DetrImageProcessor'"),
        ({"image_processor_type": None}, "image_processor_type: Input should be a valid string"),
        ({"size": {"shortest_edge": 10**7}}, "size.shortest_edge: Input should be less than"),
        ({"size": {"nonsense": 64}}, "size.nonsense"),
        ({"image_mean": [0.5]}, "image_mean"),
        ({"image_std": [1, 0, 1]}, "image_std.1: Input should be greater than 0"),
        ({"pad_size": {"height": 64, "width": 64}}, "pad_size is set"),
    ],
)
def test_preprocessing_that_cannot_be_used_is_refused(make_folder, changes, message):
    path = make_folder(preprocessing=PREPROCESSING | changes)
    with pytest.raises(CheckpointError, match=message):
        load_model(str(path), CPU)


def test_damaged_folders_are_refused(make_folder, tmp_path):
    with pytest.raises(CheckpointError, match=r"folder without config\.json"):
        load_model(str(tmp_path), CPU)
    path = make_folder(weights=None)
    with pytest.raises(CheckpointError, match=r"There is no model\.safetensors in"):
        read_folder(path)
    (path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="holds an adapter"):
        read_folder(path)
    for text, message in (
        ("[1]", "is not a JSON object"),
        ("{", "is not valid JSON"),
        ("[" * 10**5, "is not valid JSON"),
    ):
        (path / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=message):
            read_folder(path)
    path = make_folder("other")
    (path / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"no preprocessor_config\.json"):
        read_folder(path)


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\ntags:\n- vision\nlicense: apache-2.0\n---\n# Model", "apache-2.0"),
        ("---\r\nlicense: 'cc-by-nc-4.0'\r\n---\r\n", "cc-by-nc-4.0"),
        ("---\nlicense: other\nlicense_name: my-terms\n---\n", "my-terms"),
        ("---\nlicense: other\n---\n", "other"),
        ("license: mit\n", "unknown"),
        ("---\ntags: x\n---\nlicense: mit\n", "unknown"),
        ("---\nlicense: mit\n", "unknown"),
        ("---\nlicense: !!python/object:os.system x\n---\n", "unknown"),
        ("---\n" + "x: y\n" * 50_000 + "license: mit\n---\n", "unknown"),
        ("", "unknown"),
    ],
)
def test_the_licence_is_that_of_the_model_card(tmp_path, card, licence):
    (tmp_path / "README.md").write_bytes(card.encode())
    assert read_licence(tmp_path / "README.md") == licence


def test_sizes_are_read_as_old_releases_wrote_them():
    old = Preprocessing.model_validate(
        {"feature_extractor_type": "MaskFormerFeatureExtractor", "size": 800, "max_size": 1333}
    )
    assert old.family == "MaskFormer"
    assert old.explicit_fields() == {"size": {"shortest_edge": 800, "longest_edge": 1333}}
    assert old.resized(400, "it").size == {"shortest_edge": 400, "longest_edge": 666}
    square = Preprocessing(
        image_processor_type="Mask2FormerImageProcessorFast", size={"height": 384, "width": 384}
    )
    assert square.resized(512, "it").size == {"height": 512, "width": 512}
    with pytest.raises(CheckpointError, match="imgsz does not apply to it"):
        Preprocessing(image_processor_type="x", do_resize=False).resized(512, "it")
