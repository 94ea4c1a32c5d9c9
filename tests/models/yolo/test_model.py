"""The YOLO11-seg adapter: results of an image, its batch and its neighbours."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pycocotools import mask as coco

from segcore.errors import CheckpointError, UsageError
from segcore.models.base import Model, ModelOptions
from segcore.models.checkpoints import Checkpoint, CheckpointMeta
from segcore.models.devices import exact, only_float32, pick_device, pick_precision
from segcore.models.yolo.fusion import fuse
from segcore.models.yolo.letterbox import Letterbox
from segcore.models.yolo.model import RawGroup, YoloSegModel
from segcore.models.yolo.network import build_network

SIZE = 96


def pictures():
    """Different sizes, smooth and busy."""
    rng = np.random.default_rng(4)
    out = []
    for height, width in [(96, 96), (61, 90), (150, 40), (33, 33), (200, 300)]:
        coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3))
        out.append(np.kron(coarse, np.ones((8, 8, 1)))[:height, :width].astype(np.uint8))
    return out


@pytest.fixture(scope="module")
def checkpoint():
    """Random weights that answer to the image, with about 2 % of anchors over the threshold."""
    torch.manual_seed(0)
    network = build_network("yolo11n-seg", 3)
    images = [Letterbox.fit(*p.shape[:2], SIZE).apply(p) for p in pictures()]
    batch = torch.from_numpy(np.stack(images)).float() / 255
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        network.train()(batch)
        network.eval()
        for branch in network.head.cv3:
            branch[-1].bias.zero_()
        gain = 4 / network(batch).class_logits.std()
        for branch in network.head.cv3:
            branch[-1].weight.mul_(gain)
        level = network(batch).class_logits.amax(2).quantile(0.9)
        for branch in network.head.cv3:
            branch[-1].bias.sub_(level)
    meta = CheckpointMeta(
        architecture="yolo11n-seg",
        categories=[{"id": i, "name": f"c{i}"} for i in (7, 8, 9)],
        name="random",
        licence="CC0-1.0",
        imgsz=SIZE,
        conf=0.5,
    )
    return Checkpoint(meta, network.state_dict(), "0" * 64, "random.safetensors")


@pytest.fixture(scope="module")
def model(checkpoint):
    return YoloSegModel(checkpoint, ModelOptions(device="cpu", batch_size=1))


@pytest.fixture(scope="module")
def rect(checkpoint):
    return YoloSegModel(checkpoint, ModelOptions(device="cpu", batch_size=1, shape="rect"))


def run(model, images):
    """As the pipeline does it: batches in order."""
    found = []
    for start in range(0, len(images), model.batch_size):
        prepared = [model.preprocess(image) for image in images[start : start + model.batch_size]]
        found += model.postprocess(model.forward(prepared), prepared)
    return found


def assert_same(one, other):
    assert one.counts == other.counts
    for name in ("boxes", "scores", "category_ids", "areas"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("shape", ["square", "rect"])
def test_instances_keep_their_contract(checkpoint, shape):
    model = YoloSegModel(checkpoint, ModelOptions(device="cpu", batch_size=1, shape=shape))
    assert isinstance(model, Model)
    images = pictures()
    found = run(model, images)
    assert sum(map(len, found)) > 20
    for image, instances in zip(images, found, strict=True):
        height, width = image.shape[:2]
        assert (instances.height, instances.width) == (height, width)
        assert instances.boxes.dtype == instances.scores.dtype == np.float32
        assert instances.category_ids.dtype == np.int32
        assert instances.areas.dtype == np.int64
        assert set(instances.category_ids.tolist()) <= {7, 8, 9}
        assert (np.diff(instances.scores) <= 0).all()
        assert (instances.scores > 0.5).all()
        x, y, w, h = instances.boxes.T
        assert (instances.boxes >= 0).all()
        assert (x + w <= width + 1e-3).all()
        assert (y + h <= height + 1e-3).all()
        for i, counts in enumerate(instances.counts):
            mask = coco.decode({"size": [height, width], "counts": counts})
            assert mask.sum() == instances.areas[i] > 0
            columns, rows = mask.any(axis=0).nonzero()[0], mask.any(axis=1).nonzero()[0]
            assert x[i] <= columns.min()
            assert columns.max() < x[i] + w[i] + 1e-3
            assert y[i] <= rows.min()
            assert rows.max() < y[i] + h[i] + 1e-3


@pytest.mark.parametrize("shape", ["square", "rect"])
def test_masks_equal_full_size_masks_of_the_definition(checkpoint, shape):
    model = YoloSegModel(checkpoint, ModelOptions(device="cpu", shape=shape))
    # 61 x 90: padding of no whole prototype pixels. 61 x 30 is 96 x 47, on a canvas of 96 x 64.
    image = pictures()[1] if shape == "square" else pictures()[1][:, :30]
    prepared = [model.preprocess(image)]
    groups = model.forward(prepared)
    found = model.postprocess(groups, prepared)[0]
    assert len(found) > 3
    raw = groups[0].outputs
    box = prepared[0].letterbox
    window = box.mask_window()
    assert window.upsample == 4
    rows, columns = box.canvas_height // 4, box.canvas_width // 4
    assert (rows == columns) == (shape == "square")
    # Every anchor's mask at full size; each result must be the crop of one of them.
    logits = (raw.coefficients[0] @ raw.prototypes[0].flatten(1)).view(-1, 1, rows, columns)
    logits = torch.nn.functional.interpolate(logits, scale_factor=4, mode="bilinear")
    logits = logits[..., window.top : window.bottom, window.left : window.right]
    full = torch.nn.functional.interpolate(logits, image.shape[:2], mode="bilinear")[:, 0] > 0
    boxes = box.boxes_to_image(raw.boxes()[0].numpy())
    xywh = boxes - np.pad(boxes[:, :2], ((0, 0), (2, 0)))
    for i in range(len(found)):
        got = coco.decode({"size": list(image.shape[:2]), "counts": found.counts[i]})
        differences = []
        for anchor in np.flatnonzero((xywh == found.boxes[i]).all(axis=1)):  # clipped: may be many
            x1, y1, x2, y2 = np.ceil(boxes[anchor]).astype(int)
            expected = np.zeros(image.shape[:2], np.uint8)
            expected[y1:y2, x1:x2] = full[anchor, y1:y2, x1:x2]
            differences.append((got != expected).sum())
        # torch sums in another order on small outputs: pixels whose logit is 0 within rounding.
        assert min(differences) <= 1


@pytest.mark.parametrize("shape", ["square", "rect"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_an_image_does_not_depend_on_its_neighbours(checkpoint, batch_size, shape):
    options = ModelOptions(device="cpu", batch_size=batch_size, shape=shape)
    model = YoloSegModel(checkpoint, options)
    images = pictures()
    canvases = {model.preprocess(image).pixels.shape for image in images}
    assert len(canvases) == (1 if shape == "square" else 3)
    for one, other in zip(run(model, images), run(model, images[::-1])[::-1], strict=True):
        assert_same(one, other)
    for image, instances in zip(images, run(model, images), strict=True):
        assert_same(run(model, [image])[0], instances)


def test_images_of_different_canvases_in_one_batch(checkpoint, rect, monkeypatch):
    """Where whole batches go through the network: one group for each canvas, each filled up."""
    model = YoloSegModel(checkpoint, ModelOptions(device="cpu", batch_size=6, shape="rect"))
    monkeypatch.setattr(model, "_one_by_one", False)
    ran = []
    network = model._network
    monkeypatch.setattr(model, "_network", lambda x: ran.append(tuple(x.shape)) or network(x))
    images = [*pictures(), pictures()[4][::-1]]  # the last has the canvas of the fifth
    prepared = [model.preprocess(image) for image in images]
    groups = model.forward(prepared)
    assert [group.places for group in groups] == [(0, 1, 3), (2,), (4, 5)]
    assert ran == [(6, 3, 96, 96), (6, 3, 96, 32), (6, 3, 64, 96)]
    assert [len(group.outputs.distances) for group in groups] == [3, 1, 2]
    alone = [rect.preprocess(image) for image in images]
    for group in groups:
        for row, place in enumerate(group.places):
            for got, one in zip(
                group.outputs, rect.forward([alone[place]])[0].outputs, strict=True
            ):
                assert (got[row] - one[0]).abs().max() < 1e-4 * one.abs().max()
    found = model.postprocess(groups, prepared)
    sizes = [(instances.height, instances.width) for instances in found]
    assert sizes == [image.shape[:2] for image in images]
    expected = [len(rect.postprocess(rect.forward([one]), [one])[0]) for one in alone]
    assert [len(instances) for instances in found] == expected


def both_ways(model, images):
    """Instances of one batch, found at once and one after another from the same outputs."""
    prepared = [model.preprocess(image) for image in images]
    raw = model.forward(prepared)
    letterboxes = [one.letterbox for one in prepared]
    with torch.inference_mode():
        ways = [dict(way(raw, letterboxes)) for way in (model._on_device, model._one_after_another)]
    assert sorted(ways[0]) == sorted(ways[1]) == list(range(len(images)))
    for place, expected in ways[1].items():
        assert_same(ways[0][place], expected)
        for name in ("boxes", "scores", "category_ids", "areas"):
            assert getattr(ways[0][place], name).dtype == getattr(expected, name).dtype
    return [ways[0][place] for place in range(len(images))]


@pytest.mark.parametrize("shape", ["square", "rect"])
@pytest.mark.parametrize("more", [{}, {"max_det": 3}, {"conf": 0.9}, {"conf": 1.0}, {"conf": 0.0}])
def test_results_of_a_batch_at_once_are_those_of_one_after_another(
    checkpoint, shape, more, monkeypatch
):
    options = ModelOptions(device="cpu", batch_size=6, shape=shape, **more)
    model = YoloSegModel(checkpoint, options)
    monkeypatch.setattr(model, "_one_by_one", False)  # whole groups, as on a GPU
    found = both_ways(model, [*pictures(), pictures()[4][::-1]])
    assert (sum(map(len, found)) > 0) == (more != {"conf": 1.0})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_results_on_cuda(checkpoint, precision):
    options = ModelOptions(device="cuda", batch_size=6, precision=precision)
    model = YoloSegModel(checkpoint, options)
    found = both_ways(model, pictures())
    assert sum(map(len, found)) > 20
    for one, other in zip(found, run(model, pictures()[::-1])[::-1], strict=True):
        assert_same(one, other)


def test_precision_is_of_the_network_alone_and_part_of_the_edition(checkpoint):
    plain = YoloSegModel(checkpoint, ModelOptions(device="cpu"))
    half = YoloSegModel(checkpoint, ModelOptions(device="cpu", precision="bfloat16"))
    assert plain.info.parameters["precision"] == "float32"
    assert half.info.parameters == plain.info.parameters | {"precision": "bfloat16"}
    (expected,), (got,) = (m.forward([m.preprocess(pictures()[4])]) for m in (plain, half))
    assert got.outputs.boxes().dtype == torch.float32
    assert got.outputs.prototypes.dtype == torch.bfloat16
    assert got.outputs.class_logits.dtype == torch.bfloat16
    for a, b in zip(got.outputs, expected.outputs, strict=True):
        assert 0 < (a.float() - b).norm() < 0.5 * b.norm()  # random weights amplify
    assert (got.outputs.boxes() != got.outputs.boxes().bfloat16()).float().mean() > 0.9
    found = run(half, pictures())
    assert sum(map(len, found)) > 20
    for one, other in zip(found, run(half, pictures()[::-1])[::-1], strict=True):
        assert_same(one, other)


def test_precisions_that_a_device_has_not(checkpoint):
    with pytest.raises(UsageError, match="float16 is for GPUs"):
        YoloSegModel(checkpoint, ModelOptions(device="cpu", precision="float16"))
    for precision in ("float16", "bfloat16"):
        with pytest.raises(UsageError, match="not tried on mps"):
            pick_precision(precision, torch.device("mps"))
    assert pick_precision("float32", torch.device("mps")) == torch.float32
    assert pick_precision("float16", torch.device("cuda")) == torch.float16
    only_float32("float32", "it")
    with pytest.raises(UsageError, match="bfloat16 does not apply to it"):
        only_float32("bfloat16", "it")


def test_exact_settings_last_until_the_last_thread_leaves():
    """The settings are the process's; they can be made without a GPU."""
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32, cudnn.deterministic, torch.backends.cuda.matmul.allow_tf32
    first, second = exact(torch.device("cuda")), exact(torch.device("cuda"))
    try:
        torch.backends.cuda.matmul.allow_tf32 = True
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert not cudnn.allow_tf32
        assert cudnn.deterministic
        assert not torch.backends.cuda.matmul.allow_tf32
        second.__exit__(None, None, None)
        assert (cudnn.allow_tf32, cudnn.deterministic) == before[:2]
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before[2]


def test_fusing_keeps_the_outputs(checkpoint):
    network = checkpoint.network()
    canvas = Letterbox.fit(200, 300, SIZE).apply(pictures()[4])
    batch = torch.from_numpy(canvas)[None].float() / 255
    with torch.inference_mode():
        before = network(batch)
        after = fuse(network)(batch)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in network.modules())
    for a, b in zip(before, after, strict=True):
        assert (a - b).abs().max() < 1e-4 * a.abs().max()


def test_options_come_before_the_defaults_of_the_checkpoint(checkpoint):
    info = YoloSegModel(checkpoint, ModelOptions(device="cpu")).info
    assert info.weights_sha256 == "0" * 64
    assert [c.id for c in info.categories] == [7, 8, 9]
    assert (info.parameters["imgsz"], info.parameters["conf"]) == (SIZE, 0.5)
    assert info.parameters["shape"] == "square"
    options = ModelOptions(device="cpu", imgsz=64, shape="rect", conf=0.0, iou=0.4, max_det=5)
    model = YoloSegModel(checkpoint, options)
    assert model.info.parameters["conf"] == 0.0
    assert model.info.parameters["imgsz"] == 64
    assert model.info.parameters["shape"] == "rect"
    (instances,) = run(model, pictures()[:1])
    assert 0 < len(instances) <= 5


def test_nothing_found_is_an_empty_result(checkpoint):
    model = YoloSegModel(checkpoint, ModelOptions(device="cpu", conf=1.0))
    (instances,) = run(model, pictures()[1:2])
    assert len(instances) == 0
    assert (instances.height, instances.width) == (61, 90)


def test_masks_without_a_pixel_are_dropped(model):
    image = pictures()[0]
    prepared = [model.preprocess(image)]
    (group,) = model.forward(prepared)
    kept = model.postprocess([group], prepared)[0]
    assert len(kept) > 0
    raw = group.outputs
    nothing = raw._replace(coefficients=raw.coefficients * 0)
    assert len(model.postprocess([RawGroup((0,), nothing)], prepared)[0]) == 0


def test_too_many_images_at_once(model):
    prepared = [model.preprocess(pictures()[0])] * 2
    with pytest.raises(ValueError, match="1 to 1 images, got 2"):
        model.forward(prepared)


def test_devices():
    assert pick_device("cpu").type == "cpu"
    with pytest.raises(UsageError, match="no device named 'gpu'"):
        pick_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="'cuda:3' is not on this machine"):
            pick_device("cuda:3")


def test_weights_of_another_size_are_refused(checkpoint):
    other = Checkpoint(
        checkpoint.meta.model_copy(update={"architecture": "yolo11s-seg"}),
        checkpoint.state_dict,
        "",
        "n.safetensors",
    )
    with pytest.raises(CheckpointError, match="does not fit yolo11s-seg"):
        YoloSegModel(other)
