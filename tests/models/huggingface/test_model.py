"""Folders of Hugging Face transformers: what is refused, and the same instances as theirs."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import socket
import sys
import types

import numpy as np
import pytest
import torch

from segcore import masks
from segcore.errors import CheckpointError, UsageError
from segcore.models.base import Model, ModelOptions
from segcore.models.huggingface.folder import Preprocessing, read_folder, stated_licence
from segcore.models.huggingface.model import detect, nearest
from segcore.models.registry import load_model

CPU = ModelOptions(device="cpu")
LOW = ModelOptions(device="cpu", conf=0.05)
installed = all(importlib.util.find_spec(name) for name in ("transformers", "scipy"))
needs_transformers = pytest.mark.skipif(
    not installed, reason="transformers and scipy are not installed: pip install 'segcore[hf]'"
)
CONFIG = {
    "model_type": "mask2former",
    "backbone_config": {"model_type": "swin"},
    "id2label": {"0": "cat"},
}
PREPROCESSING = {
    "image_processor_type": "Mask2FormerImageProcessor",
    "size": {"shortest_edge": 64, "longest_edge": 128},
}


def a_folder(path, config=CONFIG, preprocessing=PREPROCESSING, weights=b"weights"):
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    (path / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    if weights is not None:
        (path / "model.safetensors").write_bytes(weights)
    return path


# What a folder says, and what is refused before transformers is asked


def test_a_folder_is_read_and_hashed(tmp_path):
    folder = read_folder(a_folder(tmp_path / "mine"))
    assert folder.model_type == "mask2former"
    assert folder.weights_sha256 == hashlib.sha256(b"weights").hexdigest()
    assert folder.preprocessing.family == "Mask2Former"
    assert folder.licence == "unknown"


def test_the_hash_covers_every_shard_and_the_index(tmp_path):
    path = a_folder(tmp_path / "mine", weights=None)
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
def test_an_index_names_files_beside_it_only(tmp_path, name):
    path = a_folder(tmp_path / "mine", weights=None)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match="which is no file beside it"):
        read_folder(path)


def test_pickled_weights_are_refused(tmp_path):
    path = a_folder(tmp_path / "mine", weights=None)
    (path / "pytorch_model.bin").write_bytes(b"\x80\x02")
    with pytest.raises(CheckpointError, match=r"only as pickle \(pytorch_model.bin\)"):
        load_model(str(path), CPU)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "detr"}, "type 'detr', which is not supported"),
        ({"model_type": None}, "type 'None', which is not supported"),
        ({"backbone_config": None, "backbone": "resnet50"}, "backbone 'resnet50'"),
        ({"backbone_config": {"model_type": "timm_backbone"}}, "backbone 'timm_backbone'"),
        ({"quantization_config": {"load_in_8bit": True}}, "asks for quantization_config"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "asks for auto_map"),
        ({"num_queries": 10**9}, "number 1000000000, over all use"),
        ({"backbone_config": {"model_type": "swin", "depths": [1, 1e12]}}, "over all use"),
        ({"dropout": float("nan")}, "number nan"),
    ],
)
def test_models_that_cannot_be_used_are_refused_by_name(tmp_path, changes, words):
    path = a_folder(tmp_path / "mine", config=CONFIG | changes)
    with pytest.raises(CheckpointError, match=words):
        load_model(str(path), CPU)


@pytest.mark.parametrize(
    ("changes", "words"),
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
def test_preprocessing_that_cannot_be_used(tmp_path, changes, words):
    path = a_folder(tmp_path / "mine", preprocessing=PREPROCESSING | changes)
    with pytest.raises(CheckpointError, match=words):
        load_model(str(path), CPU)


def test_folders_that_are_damaged(tmp_path):
    with pytest.raises(CheckpointError, match=r"folder without config\.json"):
        load_model(str(tmp_path), CPU)
    path = a_folder(tmp_path / "mine", weights=None)
    with pytest.raises(CheckpointError, match=r"There is no model\.safetensors in"):
        read_folder(path)
    (path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="holds an adapter"):
        read_folder(path)
    for text, words in (("[1]", "no JSON object"), ("{", "is no JSON"), ("[" * 10**5, "no JSON")):
        (path / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=words):
            read_folder(path)
    path = a_folder(tmp_path / "other")
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
def test_the_licence_of_the_model_card(tmp_path, card, licence):
    (tmp_path / "README.md").write_bytes(card.encode())
    assert stated_licence(tmp_path / "README.md") == licence


def test_sizes_as_old_releases_wrote_them():
    old = Preprocessing.model_validate(
        {"feature_extractor_type": "MaskFormerFeatureExtractor", "size": 800, "max_size": 1333}
    )
    assert old.family == "MaskFormer"
    assert old.stated() == {"size": {"shortest_edge": 800, "longest_edge": 1333}}
    assert old.resized(400, "it").size == {"shortest_edge": 400, "longest_edge": 666}
    square = Preprocessing(
        image_processor_type="Mask2FormerImageProcessorFast", size={"height": 384, "width": 384}
    )
    assert square.resized(512, "it").size == {"height": 512, "width": 512}
    with pytest.raises(CheckpointError, match="imgsz does not apply to it"):
        Preprocessing(image_processor_type="x", do_resize=False).resized(512, "it")


def test_without_the_extra_one_sentence_says_what_to_install(tmp_path, monkeypatch):
    path = a_folder(tmp_path / "mine")
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UsageError, match="not installed") as caught:
        load_model(str(path), CPU)
    assert caught.value.hint == "pip install 'segcore[hf]'"


def test_an_old_release_of_transformers_is_refused(tmp_path, monkeypatch):
    old = types.ModuleType("transformers")
    old.__version__ = "4.57.6"
    monkeypatch.setitem(sys.modules, "scipy.optimize", types.ModuleType("scipy.optimize"))
    monkeypatch.setitem(sys.modules, "transformers", old)
    with pytest.raises(UsageError, match=r"transformers 4\.57\.6 is too old"):
        load_model(str(a_folder(tmp_path / "mine")), CPU)


@pytest.mark.parametrize("option", [{"iou": 0.5}, {"shape": "square"}])
def test_options_that_do_not_apply_are_refused(tmp_path, option):
    with pytest.raises(UsageError, match=f"{next(iter(option))} does not apply"):
        load_model(str(a_folder(tmp_path / "mine")), ModelOptions(device="cpu", **option))


# Queries -> instances, against the definition written out


def by_definition(class_logits, mask_logits, conf):
    """The rule of `detect` without a grid, one pair of query and class after another, float64."""
    exp = np.exp(class_logits.astype(np.float64))
    probabilities = (exp / exp.sum(1, keepdims=True))[:, :-1]
    pairs = [(p, q, c) for q, row in enumerate(probabilities) for c, p in enumerate(row)]
    found = []
    for p, q, c in sorted(pairs, reverse=True)[: len(class_logits)]:
        inside = mask_logits[q] > 0
        logits = mask_logits[q][inside].astype(np.float64)
        score = p * (1 / (1 + np.exp(-logits))).sum() / (inside.sum() + 1e-6)
        if score >= conf:
            found.append((score, c, inside))
    return sorted(found, key=lambda one: -one[0])


@pytest.mark.parametrize("conf", [0.0, 0.1, 0.3, 0.999])
def test_queries_become_instances_as_defined(conf):
    rng = np.random.default_rng(3)
    class_logits = rng.normal(0, 2, (40, 4)).astype(np.float32)
    mask_logits = rng.normal(0, 3, (40, 9, 12)).astype(np.float32)
    found = detect(torch.from_numpy(class_logits), torch.from_numpy(mask_logits), conf, None)
    expected = by_definition(class_logits, mask_logits, conf)
    assert len(found.scores) == len(expected)
    assert (len(expected) > 0) == (conf < 0.9)
    np.testing.assert_allclose(found.scores, [score for score, _, _ in expected], rtol=1e-5)
    assert found.labels.tolist() == [label for _, label, _ in expected]
    for mask, (_, _, inside) in zip(found.masks, expected, strict=True):
        np.testing.assert_array_equal(mask, inside)


@pytest.mark.parametrize(("source", "target"), [(384, 480), (384, 100), (7, 7), (384, 4032)])
def test_nearest_is_that_of_torch(source, target):
    line = torch.rand(1, 1, source, 1)
    wanted = torch.nn.functional.interpolate(line, size=(target, 3), mode="nearest")[0, 0, :, 1]
    assert torch.equal(line[0, 0, :, 0][torch.from_numpy(nearest(source, target))], wanted)


# Against transformers


def save(kind, path):
    """A tiny model with random weights that finds something: class logits are spread out."""
    import transformers as hf

    torch.manual_seed(5)
    backbone = hf.SwinConfig(
        image_size=64,
        patch_size=4,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 1, 1],
        window_size=4,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    if kind == "maskformer-resnet":
        backbone = hf.ResNetConfig(
            embedding_size=8,
            hidden_sizes=[8, 8, 16, 16],
            depths=[1, 1, 1, 1],
            out_features=["stage1", "stage2", "stage3", "stage4"],
        )
    common = {"backbone_config": backbone, "id2label": {0: "cat", 1: "dog", 2: "bird"}}
    if kind == "mask2former":
        config = hf.Mask2FormerConfig(
            **common,
            feature_size=32,
            mask_feature_size=32,
            hidden_dim=32,
            encoder_feedforward_dim=16,
            dim_feedforward=16,
            encoder_layers=1,
            decoder_layers=2,
            num_attention_heads=2,
            num_queries=12,
        )
        network = hf.Mask2FormerForUniversalSegmentation(config)
        processor = hf.Mask2FormerImageProcessorPil(size=PREPROCESSING["size"])
    else:
        decoder = hf.DetrConfig(
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
            num_queries=12,
        )
        config = hf.MaskFormerConfig(
            **common, decoder_config=decoder, fpn_feature_size=32, mask_feature_size=32
        )
        network = hf.MaskFormerForInstanceSegmentation(config)
        processor = hf.MaskFormerImageProcessorPil(size={"height": 96, "width": 64})
    with torch.no_grad():
        network.class_predictor.weight.mul_(20)
    network.save_pretrained(path)
    processor.save_pretrained(path)


@pytest.fixture(scope="module", params=["mask2former", "maskformer", "maskformer-resnet"])
def saved(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / f"tiny-{request.param}"
    save(request.param, path)
    return path


def an_image(height=75, width=118, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), np.uint8)
    return np.kron(coarse, np.ones((height // 6 + 1, width // 9 + 1, 1), np.uint8))[:height, :width]


def ours(model, *images):
    prepared = [model.preprocess(np.ascontiguousarray(image)) for image in images]
    return model.postprocess(model.forward(prepared), prepared)


def theirs(path, image, threshold):
    """Scores, class ids and masks of transformers' own pipeline, best score first."""
    import transformers as hf

    kind = json.loads((path / "config.json").read_text())["model_type"]
    family = {"mask2former": "Mask2Former", "maskformer": "MaskFormer"}[kind]
    network = {
        "mask2former": hf.Mask2FormerForUniversalSegmentation,
        "maskformer": hf.MaskFormerForInstanceSegmentation,
    }[kind].from_pretrained(path)
    processor = getattr(hf, f"{family}ImageProcessorPil").from_pretrained(path)
    with torch.inference_mode():
        outputs = network.eval()(**processor(image, return_tensors="pt"))
        (result,) = processor.post_process_instance_segmentation(
            outputs,
            threshold=threshold,
            target_sizes=[image.shape[:2]],
            return_binary_maps=True,
        )
    segments = result["segments_info"]
    order = np.argsort([-one["score"] for one in segments], kind="stable")
    found = result["segmentation"].numpy().astype(bool)
    return [(segments[i]["score"], segments[i]["label_id"], found[i]) for i in order]


@needs_transformers
@pytest.mark.parametrize("size", [(75, 118), (64, 64), (200, 90)])
def test_the_same_instances_as_transformers(saved, size):
    image = an_image(*size)
    expected = theirs(saved, image, 0.05)
    assert len(expected) > 3
    (found,) = ours(load_model(str(saved), LOW), image)
    assert (found.height, found.width) == size
    assert len(found) == len(expected)
    np.testing.assert_allclose(found.scores, [score for score, _, _ in expected], atol=2e-6)
    assert found.category_ids.tolist() == [label for _, label, _ in expected]
    for i, (_, _, mask) in enumerate(expected):
        np.testing.assert_array_equal(masks.decode(found.counts[i], *size).astype(bool), mask)
        assert found.areas[i] == mask.sum()
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        x, y, w, h = found.boxes[i].tolist()
        assert (x, y) == (columns[0], rows[0])
        assert (x + w, y + h) == (columns[-1] + 1, rows[-1] + 1)


@needs_transformers
def test_what_the_model_says_of_itself(saved):
    (saved / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    model = load_model(str(saved), CPU)
    assert isinstance(model, Model)
    info = model.info
    assert (info.name, info.licence) == (saved.name, "apache-2.0")
    assert [(c.id, c.name) for c in info.categories] == [(0, "cat"), (1, "dog"), (2, "bird")]
    data = (saved / "model.safetensors").read_bytes()
    assert info.weights_sha256 == hashlib.sha256(data).hexdigest()
    assert info.parameters["conf"] == 0.5
    json.dumps(info.parameters)


@needs_transformers
def test_results_depend_on_the_image_alone(saved):
    images = [an_image(75, 118), an_image(140, 60, seed=1), an_image(33, 47, seed=2)]
    model = load_model(str(saved), LOW.model_copy(update={"batch_size": 3}))
    for image, together in zip(images, ours(model, *images), strict=True):
        (alone,) = ours(model, image)
        assert together.counts == alone.counts
        np.testing.assert_array_equal(together.scores, alone.scores)


@needs_transformers
def test_options(saved):
    (all_of_them,) = ours(load_model(str(saved), LOW), an_image())
    (best,) = ours(load_model(str(saved), LOW.model_copy(update={"max_det": 2})), an_image())
    assert best.counts == all_of_them.counts[:2]
    (none,) = ours(load_model(str(saved), ModelOptions(device="cpu", conf=1.0)), an_image())
    assert len(none) == 0
    larger = load_model(str(saved), LOW.model_copy(update={"imgsz": 96}))
    assert min(larger.preprocess(an_image()).pixels.shape[1:]) == 96
    assert "size" in larger.info.parameters["preprocessing"]


@needs_transformers
def test_nothing_is_fetched_and_no_other_code_is_chosen(saved, tmp_path, monkeypatch):
    path = shutil.copytree(saved, tmp_path / "mine")
    config = json.loads((path / "config.json").read_text())
    config |= {
        "attn_implementation": "someone/kernel",
        "_attn_implementation": "someone/kernel",
        "transformers_weights": "../elsewhere.bin",
        "use_pretrained_backbone": True,
        "backbone": "someone/backbone",
        "dtype": "float16",
        "_name_or_path": "someone/model",
    }
    (path / "config.json").write_text(json.dumps(config))

    def no_network(*_args, **_kwargs):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    (expected,) = ours(load_model(str(saved), LOW), an_image())
    (found,) = ours(load_model(str(path), LOW), an_image())
    assert found.counts == expected.counts


@needs_transformers
def test_weights_that_do_not_fit(saved, tmp_path):
    from safetensors.torch import load_file, save_file

    path = shutil.copytree(saved, tmp_path / "mine")
    tensors = load_file(path / "model.safetensors")
    bias = tensors.pop("class_predictor.bias")
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 tensors .* missing, e.g. class_predictor.bias"):
        load_model(str(path), CPU)
    tensors["class_predictor.bias"] = torch.cat([bias, bias])
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="cannot load the model"):
        load_model(str(path), CPU)
    tensors["class_predictor.bias"] = torch.full_like(bias, torch.nan)
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"class_predictor\.bias holds NaN"):
        load_model(str(path), CPU)
    (path / "model.safetensors").write_bytes(b"no tensors at all")
    with pytest.raises(CheckpointError, match="cannot load the model"):
        load_model(str(path), CPU)
