"""The YOLO11-seg adapter: results of an image, alone and in a batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pycocotools import mask as coco

from segcore.errors import CheckpointError, UsageError
from segcore.models.base import Model, ModelOptions
from segcore.models.checkpoints import Checkpoint, CheckpointMeta
from segcore.models.yolo import model as yolo_model
from segcore.models.yolo.checkpoint import load_network
from segcore.models.yolo.fusion import fuse
from segcore.models.yolo.letterbox import Letterbox
from segcore.models.yolo.model import RawGroup, YoloSegModel
from segcore.models.yolo.network import build_network

SIZE = 96  # pixels, of the canvas


def make_images():
    """Images of different sizes, made of coloured blocks."""
    rng = np.random.default_rng(4)
    images = []
    for height, width in [(96, 96), (61, 90), (150, 40), (33, 33), (200, 300)]:
        coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3))
        images.append(np.kron(coarse, np.ones((8, 8, 1)))[:height, :width].astype(np.uint8))
    return images


@pytest.fixture(scope="module")
def checkpoint():
    """Random weights whose outputs depend on the image; about 2 % of anchors are detections."""
    torch.manual_seed(0)
    network = build_network("yolo11n-seg", 3)
    canvases = [Letterbox.fit(*image.shape[:2], SIZE).apply(image) for image in make_images()]
    batch = torch.from_numpy(np.stack(canvases)).float() / 255
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
def rect_model(checkpoint):
    return YoloSegModel(checkpoint, ModelOptions(device="cpu", batch_size=1, shape="rect"))


def run(model, images):
    """Instances of each image, as the pipeline finds them: batches in order."""
    results = []
    for start in range(0, len(images), model.batch_size):
        prepared = [model.preprocess(image) for image in images[start : start + model.batch_size]]
        results += model.postprocess(model.forward(prepared), prepared)
    return results


COLUMNS = ("boxes", "scores", "category_ids", "areas")


def assert_same(first, second):
    assert first.counts == second.counts
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


@pytest.mark.parametrize("shape", ["square", "rect"])
def test_instances_keep_their_contract(checkpoint, shape):
    model = YoloSegModel(checkpoint, ModelOptions(device="cpu", batch_size=1, shape=shape))
    assert isinstance(model, Model)
    images = make_images()
    results = run(model, images)
    assert sum(map(len, results)) > 20
    for image, instances in zip(images, results, strict=True):
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
    # 61 x 90: the padding is not a whole number of prototype pixels. 61 x 30 becomes 96 x 47, on a
    # canvas of 96 x 64.
    image = make_images()[1] if shape == "square" else make_images()[1][:, :30]
    prepared = [model.preprocess(image)]
    groups = model.forward(prepared)
    instances = model.postprocess(groups, prepared)[0]
    assert len(instances) > 3
    outputs = groups[0].outputs
    letterbox = prepared[0].letterbox
    window = letterbox.mask_window()
    assert window.upsample == 4
    rows, columns = letterbox.canvas_height // 4, letterbox.canvas_width // 4
    assert (rows == columns) == (shape == "square")
    # Every anchor's mask at full size; each result must be the crop of one of them.
    logits = outputs.coefficients[0] @ outputs.prototypes[0].flatten(1)
    logits = logits.view(-1, 1, rows, columns)
    logits = torch.nn.functional.interpolate(logits, scale_factor=4, mode="bilinear")
    logits = logits[..., window.top : window.bottom, window.left : window.right]
    full = torch.nn.functional.interpolate(logits, image.shape[:2], mode="bilinear")[:, 0] > 0
    boxes = letterbox.boxes_to_image(outputs.boxes()[0].numpy())
    xywh = boxes - np.pad(boxes[:, :2], ((0, 0), (2, 0)))
    for i in range(len(instances)):
        mask = coco.decode({"size": list(image.shape[:2]), "counts": instances.counts[i]})
        differences = []
        # Several anchors may have the same box, as boxes are clipped.
        for anchor in np.flatnonzero((xywh == instances.boxes[i]).all(axis=1)):
            x1, y1, x2, y2 = np.ceil(boxes[anchor]).astype(int)
            expected = np.zeros(image.shape[:2], np.uint8)
            expected[y1:y2, x1:x2] = full[anchor, y1:y2, x1:x2]
            differences.append((mask != expected).sum())
        # torch sums in another order on small outputs: pixels whose logit is 0 within rounding.
        assert min(differences) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["square", "rect"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_an_image_does_not_depend_on_its_neighbours(checkpoint, batch_size, shape):
    options = ModelOptions(device="cpu", batch_size=batch_size, shape=shape)
    model = YoloSegModel(checkpoint, options)
    images = make_images()
    canvases = {model.preprocess(image).pixels.shape for image in images}
    assert len(canvases) == (1 if shape == "square" else 3)
    for first, second in zip(run(model, images), run(model, images[::-1])[::-1], strict=True):
        assert_same(first, second)
    for image, instances in zip(images, run(model, images), strict=True):
        assert_same(run(model, [image])[0], instances)


@pytest.mark.slow
def test_images_of_different_canvases_in_one_batch_go_through_in_groups(
    checkpoint, rect_model, monkeypatch
):
    """Where whole batches go through the network: one group for each canvas, each filled up."""
    model = YoloSegModel(checkpoint, ModelOptions(device="cpu", batch_size=6, shape="rect"))
    monkeypatch.setattr(model, "_one_by_one", False)
    input_shapes = []
    network = model._network
    monkeypatch.setattr(
        model, "_network", lambda x: input_shapes.append(tuple(x.shape)) or network(x)
    )
    images = [*make_images(), make_images()[4][::-1]]  # the last has the canvas of the fifth
    prepared = [model.preprocess(image) for image in images]
    groups = model.forward(prepared)
    assert [group.indices for group in groups] == [(0, 1, 3), (2,), (4, 5)]
    assert input_shapes == [(6, 3, 96, 96), (6, 3, 96, 32), (6, 3, 64, 96)]
    assert [len(group.outputs.distances) for group in groups] == [3, 1, 2]
    prepared_alone = [rect_model.preprocess(image) for image in images]
    for group in groups:
        for row, index in enumerate(group.indices):
            outputs_alone = rect_model.forward([prepared_alone[index]])[0].outputs
            for actual, expected in zip(group.outputs, outputs_alone, strict=True):
                assert (actual[row] - expected[0]).abs().max() < 1e-4 * expected.abs().max()
    results = model.postprocess(groups, prepared)
    sizes = [(instances.height, instances.width) for instances in results]
    assert sizes == [image.shape[:2] for image in images]
    counts_alone = [
        len(rect_model.postprocess(rect_model.forward([image]), [image])[0])
        for image in prepared_alone
    ]
    assert [len(instances) for instances in results] == counts_alone


def postprocess_both_ways(model, images):
    """Instances of one batch; postprocessed on the device, and equal if done one by one."""
    prepared = [model.preprocess(image) for image in images]
    raw = model.forward(prepared)
    letterboxes = [image.letterbox for image in prepared]
    with torch.inference_mode():
        on_device = dict(model._postprocess_on_device(raw, letterboxes))
        one_by_one = dict(model._postprocess_one_by_one(raw, letterboxes))
    assert sorted(on_device) == sorted(one_by_one) == list(range(len(images)))
    for index, expected in one_by_one.items():
        assert_same(on_device[index], expected)
        for name in COLUMNS:
            assert getattr(on_device[index], name).dtype == getattr(expected, name).dtype
    return [on_device[index] for index in range(len(images))]


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["square", "rect"])
@pytest.mark.parametrize(
    "thresholds", [{}, {"max_det": 3}, {"conf": 0.9}, {"conf": 1.0}, {"conf": 0.0}]
)
def test_postprocessing_on_the_device_gives_the_results_of_one_by_one(
    checkpoint, shape, thresholds, monkeypatch
):
    options = ModelOptions(device="cpu", batch_size=6, shape=shape, **thresholds)
    model = YoloSegModel(checkpoint, options)
    monkeypatch.setattr(model, "_one_by_one", False)  # whole groups, as on a GPU
    results = postprocess_both_ways(model, [*make_images(), make_images()[4][::-1]])
    assert (sum(map(len, results)) > 0) == (thresholds != {"conf": 1.0})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_results_on_cuda_are_the_same_either_way_and_in_any_batch(checkpoint, precision):
    options = ModelOptions(device="cuda", batch_size=6, precision=precision)
    model = YoloSegModel(checkpoint, options)
    results = postprocess_both_ways(model, make_images())
    assert sum(map(len, results)) > 20
    for first, second in zip(results, run(model, make_images()[::-1])[::-1], strict=True):
        assert_same(first, second)


@pytest.mark.slow
def test_precision_is_of_the_network_alone_and_part_of_the_edition(checkpoint):
    plain = YoloSegModel(checkpoint, ModelOptions(device="cpu"))
    half = YoloSegModel(checkpoint, ModelOptions(device="cpu", precision="bfloat16"))
    assert plain.info.parameters["precision"] == "float32"
    assert half.info.parameters == plain.info.parameters | {"precision": "bfloat16"}
    (expected,), (group,) = (m.forward([m.preprocess(make_images()[4])]) for m in (plain, half))
    assert group.outputs.boxes().dtype == torch.float32
    assert group.outputs.prototypes.dtype == torch.bfloat16
    assert group.outputs.class_logits.dtype == torch.bfloat16
    for a, b in zip(group.outputs, expected.outputs, strict=True):
        assert 0 < (a.float() - b).norm() < 0.5 * b.norm()  # random weights amplify
    boxes = group.outputs.boxes()
    assert (boxes != boxes.bfloat16()).float().mean() > 0.9
    results = run(half, make_images())
    assert sum(map(len, results)) > 20
    for first, second in zip(results, run(half, make_images()[::-1])[::-1], strict=True):
        assert_same(first, second)


@pytest.mark.slow
def test_a_batch_that_was_collected_before_its_size_was_lowered(checkpoint, monkeypatch):
    model = YoloSegModel(checkpoint, ModelOptions(device="cpu", batch_size=5))
    monkeypatch.setattr(model, "_one_by_one", False)  # whole groups, as on a GPU
    shapes = []
    infer = model.infer
    monkeypatch.setattr(model, "infer", lambda pixels: shapes.append(pixels.shape) or infer(pixels))
    prepared = [model.preprocess(make_images()[4]) for _ in range(5)]
    model.batch_size = 2
    groups = model.forward(prepared)
    assert [group.indices for group in groups] == [(0, 1), (2, 3), (4,)]
    assert [len(group.outputs.class_logits) for group in groups] == [2, 2, 1]
    assert {shape[0] for shape in shapes} == {2}  # the network gets full batches of the new size
    assert len(model.postprocess(groups, prepared)) == 5


def test_a_precision_that_the_device_does_not_have_is_refused(checkpoint):
    with pytest.raises(UsageError, match="float16 is for GPUs"):
        YoloSegModel(checkpoint, ModelOptions(device="cpu", precision="float16"))


def test_fusing_keeps_the_outputs(checkpoint):
    network = load_network(checkpoint)
    canvas = Letterbox.fit(200, 300, SIZE).apply(make_images()[4])
    batch = torch.from_numpy(canvas)[None].float() / 255
    with torch.inference_mode():
        before = network(batch)
        after = fuse(network)(batch)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in network.modules())
    for a, b in zip(before, after, strict=True):
        assert (a - b).abs().max() < 1e-4 * a.abs().max()


@pytest.mark.slow
def test_options_are_preferred_to_the_defaults_of_the_checkpoint(checkpoint):
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
    (instances,) = run(model, make_images()[:1])
    assert 0 < len(instances) <= 5


def test_an_image_without_detections_has_an_empty_result(checkpoint):
    model = YoloSegModel(checkpoint, ModelOptions(device="cpu", conf=1.0))
    (instances,) = run(model, make_images()[1:2])
    assert len(instances) == 0
    assert (instances.height, instances.width) == (61, 90)


def test_masks_without_a_pixel_are_dropped(model):
    image = make_images()[0]
    prepared = [model.preprocess(image)]
    (group,) = model.forward(prepared)
    assert len(model.postprocess([group], prepared)[0]) > 0
    outputs = group.outputs
    without_masks = outputs._replace(coefficients=outputs.coefficients * 0)
    assert len(model.postprocess([RawGroup((0,), without_masks)], prepared)[0]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("max_bytes", [1, 40_000, 10 << 20])
def test_masks_in_pieces_are_those_of_one_product(checkpoint, monkeypatch, max_bytes):
    model = YoloSegModel(checkpoint, ModelOptions(device="cpu", conf=0.0, max_det=101))
    whole = run(model, make_images())
    n_products = []
    monkeypatch.setattr(yolo_model, "_MAX_LOGIT_BYTES", max_bytes)
    encode = yolo_model.encode_logits
    monkeypatch.setattr(
        yolo_model, "encode_logits", lambda *args: n_products.append(len(args[0])) or encode(*args)
    )
    for expected, actual in zip(whole, run(model, make_images()), strict=True):
        assert len(expected) > 40
        assert_same(actual, expected)
    if max_bytes == 10 << 20:
        assert len(n_products) == len(whole)
    else:
        assert 16 <= min(n_products) <= max(n_products) < 32


@pytest.mark.slow
@pytest.mark.parametrize("plane", [(160, 160), (96, 160), (40, 24), (8, 8)])
def test_products_in_pieces_are_one_product_to_the_bit(plane):
    generator = torch.Generator().manual_seed(5)
    prototypes = torch.randn(32, plane[0] * plane[1], generator=generator)
    for n in [*range(1, 40), 63, 64, 65, 100, 300, 301]:
        coefficients = torch.randn(n, 32, generator=generator)
        slices = yolo_model._slices(n, 1 << 40)  # as many as there may be
        assert sum(len(coefficients[piece]) for piece in slices) == n
        assert min(len(coefficients[piece]) for piece in slices) >= min(n, 16)
        pieces = [coefficients[piece] @ prototypes for piece in slices]
        assert torch.equal(torch.cat(pieces), coefficients @ prototypes)


def test_batches_over_the_batch_size_are_refused(model):
    prepared = [model.preprocess(make_images()[0])] * 2
    with pytest.raises(ValueError, match="1 to 1 images, got 2"):
        model.forward(prepared)


def test_weights_of_another_size_are_refused(checkpoint):
    wrong = Checkpoint(
        checkpoint.meta.model_copy(update={"architecture": "yolo11s-seg"}),
        checkpoint.state_dict,
        "",
        "n.safetensors",
    )
    with pytest.raises(CheckpointError, match="does not fit yolo11s-seg"):
        YoloSegModel(wrong)
