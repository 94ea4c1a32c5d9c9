"""Training: targets are right, the loss has its minimum where it should, a stop loses nothing."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from click.testing import Result
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from typer.testing import CliRunner

from segcore.cli import train
from segcore.cli.console import new_app
from segcore.errors import UsageError
from segcore.models.base import ModelOptions
from segcore.models.registry import load_model, read_checkpoint
from segcore.models.yolo.network import HeadOutputs, anchor_grid
from segcore.training.assign import assign, paired_iou
from segcore.training.augment import random_crop
from segcore.training.config import AugmentConfig, LossWeights, TrainConfig
from segcore.training.data import compact, load_images, read_coco
from segcore.training.loop import Trainer
from segcore.training.loss import (
    SegmentationLoss,
    Targets,
    complete_iou_loss,
    coverage,
    distribution_loss,
)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_every_object_gets_anchors_and_no_anchor_gets_two_objects(seed: int) -> None:
    rng = np.random.default_rng(seed)
    centres, _ = anchor_grid(96, 96, torch.zeros(1))
    count = int(rng.integers(1, 12))
    # Far apart on a 3 x 4 grid, so that no object can lose all anchors to a neighbour.
    cells = rng.choice(12, count, replace=False)
    middle = np.stack(((cells % 3) * 32 + 16, (cells // 3) * 24 + 12), 1)
    half = rng.uniform(0.5, 10, (count, 2))
    boxes = torch.tensor(np.concatenate((middle - half, middle + half), 1), dtype=torch.float32)
    anchors = len(centres)
    predicted = torch.cat((centres - 6, centres + 6), 1)[None] + torch.tensor(
        rng.normal(0, 2, (1, anchors, 4)), dtype=torch.float32
    )
    scores = torch.tensor(rng.uniform(0.01, 0.99, (1, anchors, 2)), dtype=torch.float32)
    classes = torch.tensor(rng.integers(0, 2, (1, count)))
    valid = torch.ones(1, count, dtype=torch.bool)
    match = assign(scores, predicted, centres, boxes[None], classes, valid)

    assert match.anchor.unique().numel() == match.anchor.numel()
    assert (match.truth.bincount(minlength=count) <= 10).all()
    assert set(match.truth.tolist()) == set(range(count))
    assert ((match.quality >= 0) & (match.quality <= 1)).all()
    iou = paired_iou(predicted[0, match.anchor], boxes[match.truth])
    for g in range(count):  # the best-aligned anchor of an object is worth its best IoU
        mine = match.truth == g
        assert match.quality[mine].max() == pytest.approx(iou[mine].max().item(), abs=1e-5)


def test_padding_is_never_assigned() -> None:
    centres, _ = anchor_grid(64, 64, torch.zeros(1))
    boxes = torch.tensor([[[0.0, 0, 64, 64], [0, 0, 64, 64]]])
    match = assign(
        torch.full((1, len(centres), 1), 0.5),
        boxes[:, :1].expand(1, len(centres), 4),
        centres,
        boxes,
        torch.zeros(1, 2, dtype=torch.int64),
        torch.tensor([[True, False]]),
    )
    assert len(match.truth) == 10
    assert (match.truth == 0).all()


def test_box_losses_are_zero_only_at_the_truth() -> None:
    truth = torch.tensor([[10.0, 20, 30, 60]])
    assert complete_iou_loss(truth, truth).item() == pytest.approx(0, abs=1e-6)
    far = torch.tensor([[100.0, 20, 120, 60]])
    near = torch.tensor([[40.0, 20, 60, 60]])
    assert complete_iou_loss(far, truth) > complete_iou_loss(near, truth) > 1
    wide = torch.tensor([[0.0, 30, 40, 50]])  # same centre and area, other shape
    square = torch.tensor(
        [[20 - 800**0.5 / 2, 40 - 800**0.5 / 2, 20 + 800**0.5 / 2, 40 + 800**0.5 / 2]]
    )
    assert complete_iou_loss(wide, truth) > complete_iou_loss(square, truth)


def test_distribution_loss_is_least_between_the_two_bins() -> None:
    target = torch.full((1, 4), 3.25)
    right = torch.full((1, 4, 16), -20.0)
    right[..., 3], right[..., 4] = math.log(0.75), math.log(0.25)
    wrong = right.roll(1, dims=-1)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert distribution_loss(right.flatten(1), target).item() == pytest.approx(entropy, abs=1e-4)
    assert distribution_loss(wrong.flatten(1), target).item() > entropy + 1


def test_coverage_is_the_share_of_each_cell() -> None:
    labels = torch.zeros(8, 8, dtype=torch.int32)
    labels[0:4, 0:2] = 1
    labels[4:8, 4:8] = 2
    shares = coverage(labels, torch.tensor([0, 1]))
    assert shares.tolist() == [[[0.5, 0], [0, 0]], [[0, 0], [0, 1]]]


def _perfect_heads(size: int, box: list[float], labels: torch.Tensor) -> HeadOutputs:
    """Outputs that say exactly what is there, for one object of one class."""
    centres, strides = anchor_grid(size, size, torch.zeros(1))
    sides = torch.cat((centres - torch.tensor(box[:2]), torch.tensor(box[2:]) - centres), 1)
    sides = (sides / strides).clamp(0, 14.99)
    low = sides.floor()
    logits = torch.full((len(centres), 4, 16), -30.0)
    logits.scatter_(2, low.long()[..., None], (1 - (sides - low)).clamp(min=1e-9).log()[..., None])
    high = (sides - low).clamp(min=1e-9).log()[..., None]
    logits.scatter_(2, low.long()[..., None] + 1, high)
    inside = ((centres > torch.tensor(box[:2])) & (centres < torch.tensor(box[2:]))).all(1)
    cls = torch.where(inside, 12.0, -12.0)[None, :, None]
    proto = torch.zeros(1, 32, size // 4, size // 4)
    proto[0, 0] = torch.where(coverage(labels, torch.tensor([0]))[0] > 0.5, 15.0, -15.0)
    coefficients = torch.zeros(1, len(centres), 32)
    coefficients[..., 0] = 1
    return HeadOutputs(logits.flatten(1)[None], cls, coefficients, proto)


def test_loss_prefers_the_truth() -> None:
    labels = torch.zeros(64, 64, dtype=torch.int32)
    labels[16:48, 8:40] = 1
    targets = Targets(
        torch.tensor([[[8.0, 16, 40, 48]]]),
        torch.zeros(1, 1, dtype=torch.int64),
        torch.ones(1, 1, dtype=torch.bool),
        labels[None],
    )
    loss = SegmentationLoss(LossWeights())
    _, right = loss(_perfect_heads(64, [8, 16, 40, 48], labels), targets)
    _, moved = loss(_perfect_heads(64, [16, 16, 48, 48], labels.roll(8, 1)), targets)
    assert right["box"] < 0.02 < moved["box"]
    assert right["mask"] < 0.02 < moved["mask"]
    assert right["dfl"] < moved["dfl"]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_crops_keep_image_and_labels_together(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.zeros((60, 90), np.int32)
    labels[20:40, 30:60] = 1
    labels[45:58, 5:25] = 2
    image = np.repeat((labels * 100).astype(np.uint8)[..., None], 3, 2)
    config = AugmentConfig(crop=64, min_side=64, max_side=128, colour=0, noise=0)
    crop, crop_labels = random_crop(image, labels, config, rng)
    assert crop.shape == (64, 64, 3)
    # Away from edges, where interpolation mixes, the colour must be that of the label.
    for k in (1, 2):
        inner = cv2.erode((np.pad(crop_labels, 2) == k).astype(np.uint8), np.ones((5, 5)))
        assert (crop[inner[2:-2, 2:-2] > 0] == k * 100).all()
    renumbered, boxes, kept = compact(crop_labels, 2)
    for g, (box, old) in enumerate(zip(boxes, kept, strict=True)):
        y, x = np.nonzero(renumbered == g + 1)
        assert box.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]
        assert ((renumbered == g + 1) == (crop_labels == old + 1)).all()


@pytest.fixture
def tiny(tmp_path: Path) -> TrainConfig:
    """Six images with bright discs on dark ground, as a COCO data set."""
    rng = np.random.default_rng(0)
    document: dict = {"images": [], "annotations": [], "categories": [{"id": 7, "name": "disc"}]}
    for i in range(6):
        image = np.full((96, 96), 20, np.uint8)
        for _ in range(3):
            mask = np.zeros((96, 96), np.uint8)
            centre = [int(v) for v in rng.integers(15, 80, 2)]
            cv2.circle(mask, centre, int(rng.integers(7, 14)), 1, -1)
            image[mask > 0] = 220
            rle = coco_mask.encode(np.asfortranarray(mask))
            rle["counts"] = rle["counts"].decode()
            entry = {"id": len(document["annotations"]) + 1, "image_id": i, "category_id": 7}
            document["annotations"].append({**entry, "segmentation": rle, "iscrowd": 0})
        cv2.imwrite(str(tmp_path / f"{i}.png"), image)
        document["images"].append({"id": i, "file_name": f"{i}.png", "height": 96, "width": 96})
    (tmp_path / "gt.json").write_text(json.dumps(document))
    return TrainConfig.model_validate(
        {
            "name": "tiny",
            "licence": "CC0-1.0",
            "output": tmp_path / "run",
            "data": {
                "images": tmp_path,
                "train": tmp_path / "gt.json",
                "val": tmp_path / "gt.json",
            },
            "augment": {"crop": 96, "min_side": 96, "max_side": 96},
            "optimizer": {"warmup_steps": 2},
            "epochs": 4,
            "batch_size": 3,
            "device": "cpu",
        }
    )


def test_a_stopped_run_goes_on_to_the_same_weights(tiny: TrainConfig, tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = Trainer(tiny)
    expected = whole.run()

    first = Trainer(tiny.model_copy(update={"output": tmp_path / "cut"}))
    first._epoch()
    first.save()
    first._epoch()  # lost: the process dies before this epoch is saved
    second = Trainer(tiny.model_copy(update={"output": tmp_path / "cut"}))
    assert second.resume()
    assert second.epoch == 1
    got = second.run()
    for name, value in expected.items():
        # The mask loss samples positives at random; with so few there is nothing to sample.
        torch.testing.assert_close(got[name], value, rtol=1e-3, atol=1e-4, msg=name)
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in log] == [1, 2, 3, 4]
    assert log[-1]["losses"]["cls"] < log[0]["losses"]["cls"]


def test_the_best_epoch_is_kept(tiny: TrainConfig) -> None:
    scores = iter([0.3, 0.9, 0.5, 0.9])
    seen: list[dict[str, torch.Tensor]] = []

    def validate(weights: dict[str, torch.Tensor]) -> dict[str, float]:
        seen.append({k: v.clone() for k, v in weights.items()})
        return {"mask_ap": next(scores)}

    best = Trainer(tiny, validate).run()
    assert len(seen) == 4
    assert all(torch.equal(best[k], seen[1][k]) for k in best)


def test_bad_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read the annotations .*none\.json"):
        read_coco(tmp_path / "none.json")
    bad = tmp_path / "bad.json"
    bad.write_text("{")
    with pytest.raises(UsageError, match="is not JSON"):
        read_coco(bad)
    bad.write_text('{"images": []}')
    with pytest.raises(UsageError, match="no annotations, categories"):
        read_coco(bad)
    entry = {"id": 1, "file_name": "gone.png", "height": 4, "width": 4}
    bad.write_text(json.dumps({"images": [entry], "annotations": [], "categories": []}))
    with pytest.raises(UsageError, match=r"gone\.png"):
        load_images(bad, tmp_path)


def test_the_command_leaves_a_model_that_loads(tiny: TrainConfig, tmp_path: Path) -> None:
    config = tmp_path / "train.yaml"
    document = tiny.model_dump(mode="json")
    document["validation"]["imgsz"] = 96
    config.write_text(yaml.safe_dump(document))
    arguments = [str(config), "--json", "--set", "epochs=2"]
    app = new_app()
    app.command()(train.command)
    first = CliRunner().invoke(app, arguments)
    assert first.exit_code == 0, first.output
    report = json.loads(first.stdout)
    assert report["scores"]["n_images"] == 6
    card = Path(report["card"]).read_text()
    assert "CC0-1.0" in card
    assert f"| {tiny.seed} |" in card
    assert hashlib.sha256(Path(report["checkpoint"]).read_bytes()).hexdigest() in card

    model = load_model(report["checkpoint"], ModelOptions(device="cpu"))
    assert [(c.id, c.name) for c in model.info.categories] == [(7, "disc")]
    assert model.info.parameters["imgsz"] == 96

    def kernels(result: Result) -> dict[str, torch.Tensor]:
        return read_checkpoint(json.loads(result.stdout)["checkpoint"]).state_dict

    start = kernels(first)
    # Fine-tuning from it takes over all of its tensors, and --restart really begins anew.
    kept = shutil.copy(report["checkpoint"], tmp_path / "kept.safetensors")
    again = [*arguments, "--restart", "--set", f"init={kept}", "--set", "optimizer.lr=1e-9"]
    second = CliRunner().invoke(app, [*again, "--set", "epochs=1"])
    assert second.exit_code == 0, second.output
    log = (tiny.output / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in log] == [1]
    for name, tensor in start.items():
        if tensor.ndim > 1:
            torch.testing.assert_close(kernels(second)[name], tensor, rtol=2e-3, atol=1e-4)
