"""Models of Hugging Face transformers: the same instances as theirs, and what is refused."""

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
from segcore.models.registry import load_model

CPU = ModelOptions(device="cpu")
LOW_CONF = ModelOptions(device="cpu", conf=0.05)
IS_INSTALLED = all(importlib.util.find_spec(name) for name in ("transformers", "scipy"))
needs_transformers = pytest.mark.skipif(
    not IS_INSTALLED, reason="transformers and scipy are not installed: pip install 'segcore[hf]'"
)


def test_without_the_extra_the_error_says_what_to_install(make_folder, monkeypatch):
    path = make_folder()
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UsageError, match="not installed") as caught:
        load_model(str(path), CPU)
    assert caught.value.hint == "pip install 'segcore[hf]'"


def test_an_old_release_of_transformers_is_refused(make_folder, monkeypatch):
    old = types.ModuleType("transformers")
    old.__version__ = "4.57.6"
    monkeypatch.setitem(sys.modules, "scipy.optimize", types.ModuleType("scipy.optimize"))
    monkeypatch.setitem(sys.modules, "transformers", old)
    with pytest.raises(UsageError, match=r"transformers 4\.57\.6 is too old"):
        load_model(str(make_folder()), CPU)


@pytest.mark.parametrize("option", [{"iou": 0.5}, {"shape": "square"}, {"precision": "bfloat16"}])
def test_options_that_do_not_apply_are_refused(make_folder, option):
    ((name, value),) = option.items()
    with pytest.raises(UsageError, match=f"model.{name}={value} does not apply"):
        load_model(str(make_folder()), ModelOptions(device="cpu", **option))


def save_model(kind, path):
    """A tiny model with random weights that detects something: class logits are spread out."""
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
        processor = hf.Mask2FormerImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 128})
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
def model_folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / f"tiny-{request.param}"
    save_model(request.param, path)
    return path


def make_image(height=75, width=118, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), np.uint8)
    return np.kron(coarse, np.ones((height // 6 + 1, width // 9 + 1, 1), np.uint8))[:height, :width]


def run(model, *images):
    """Instances that segcore finds in each image."""
    prepared = [model.preprocess(np.ascontiguousarray(image)) for image in images]
    return model.postprocess(model.forward(prepared), prepared)


def run_transformers(path, image, threshold):
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
    order = np.argsort([-segment["score"] for segment in segments], kind="stable")
    bitmaps = result["segmentation"].numpy().astype(bool)
    return [(segments[i]["score"], segments[i]["label_id"], bitmaps[i]) for i in order]


@needs_transformers
@pytest.mark.parametrize("size", [(75, 118), (64, 64), (200, 90)])
def test_the_same_instances_as_transformers(model_folder, size):
    image = make_image(*size)
    expected = run_transformers(model_folder, image, 0.05)
    assert len(expected) > 3
    (instances,) = run(load_model(str(model_folder), LOW_CONF), image)
    assert (instances.height, instances.width) == size
    assert len(instances) == len(expected)
    np.testing.assert_allclose(instances.scores, [score for score, _, _ in expected], atol=2e-6)
    assert instances.category_ids.tolist() == [label for _, label, _ in expected]
    for i, (_, _, mask) in enumerate(expected):
        decoded = masks.decode(instances.counts[i], *size).astype(bool)
        np.testing.assert_array_equal(decoded, mask)
        assert instances.areas[i] == mask.sum()
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        x, y, w, h = instances.boxes[i].tolist()
        assert (x, y) == (columns[0], rows[0])
        assert (x + w, y + h) == (columns[-1] + 1, rows[-1] + 1)


@needs_transformers
def test_the_model_says_what_its_folder_says(model_folder):
    (model_folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    model = load_model(str(model_folder), CPU)
    assert isinstance(model, Model)
    info = model.info
    assert (info.name, info.licence) == (model_folder.name, "apache-2.0")
    assert [(c.id, c.name) for c in info.categories] == [(0, "cat"), (1, "dog"), (2, "bird")]
    data = (model_folder / "model.safetensors").read_bytes()
    assert info.weights_sha256 == hashlib.sha256(data).hexdigest()
    assert info.parameters["conf"] == 0.5
    json.dumps(info.parameters)


@needs_transformers
def test_results_depend_on_the_image_alone(model_folder):
    images = [make_image(75, 118), make_image(140, 60, seed=1), make_image(33, 47, seed=2)]
    model = load_model(str(model_folder), LOW_CONF.model_copy(update={"batch_size": 3}))
    for image, in_batch in zip(images, run(model, *images), strict=True):
        (alone,) = run(model, image)
        assert in_batch.counts == alone.counts
        np.testing.assert_array_equal(in_batch.scores, alone.scores)


@needs_transformers
def test_options_decide_scores_number_and_size(model_folder):
    (everything,) = run(load_model(str(model_folder), LOW_CONF), make_image())
    (best,) = run(
        load_model(str(model_folder), LOW_CONF.model_copy(update={"max_det": 2})), make_image()
    )
    assert best.counts == everything.counts[:2]
    (none,) = run(load_model(str(model_folder), ModelOptions(device="cpu", conf=1.0)), make_image())
    assert len(none) == 0
    larger = load_model(str(model_folder), LOW_CONF.model_copy(update={"imgsz": 96}))
    assert min(larger.preprocess(make_image()).pixels.shape[1:]) == 96
    assert "size" in larger.info.parameters["preprocessing"]


@needs_transformers
def test_nothing_is_fetched_and_no_other_code_is_chosen(model_folder, tmp_path, monkeypatch):
    path = shutil.copytree(model_folder, tmp_path / "mine")
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

    def refuse_connection(*_args, **_kwargs):
        raise AssertionError("a connection was attempted")

    monkeypatch.setattr(socket.socket, "connect", refuse_connection)
    (expected,) = run(load_model(str(model_folder), LOW_CONF), make_image())
    (instances,) = run(load_model(str(path), LOW_CONF), make_image())
    assert instances.counts == expected.counts


@needs_transformers
def test_weights_that_do_not_fit_are_refused(model_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    path = shutil.copytree(model_folder, tmp_path / "mine")
    tensors = load_file(path / "model.safetensors")
    bias = tensors.pop("class_predictor.bias")
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        CheckpointError, match=r"lacks 1 tensor of .*, e\.g\. class_predictor\.bias"
    ):
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
    with pytest.raises(CheckpointError, match="describes a network of"):
        load_model(str(path), CPU)


@needs_transformers
def test_a_config_that_describes_more_than_the_weights_hold_takes_no_memory(model_folder, tmp_path):
    path = shutil.copytree(model_folder, tmp_path / "mine")
    config = json.loads((path / "config.json").read_text())
    config["dim_feedforward"] = config["encoder_feedforward_dim"] = 900_000
    config.setdefault("decoder_config", {})["decoder_ffn_dim"] = 900_000
    config["decoder_config"].setdefault("model_type", "detr")
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"describes a network of [0-9,]+ parameters, but"):
        load_model(str(path), CPU)
