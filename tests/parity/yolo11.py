"""Compares segcore with ultralytics, which is only called, in the peers' environment.

    PYTHONPATH=. VENV/bin/python -m tests.parity.yolo11 \
        --models n,s --images 6 --folder JPEGS --build OUT

Weights are random: no published ones are needed. Batch norms first collect the statistics of real
images, and class logits are spread and shifted so that a few of a thousand anchors pass; this gives
hundreds of varied detections with ragged masks. Compared are, for each size:

    keys        names and shapes of the state dict, number of parameters
    heads       largest difference of the raw outputs, over their largest value; unfused, fp32
    nms         detections from the same raw outputs: anchors' classes and scores equal, in order
    masks       RLE strings from the same boxes, coefficients and prototypes
    end_to_end  JPEG file -> instances of both, each with its own fused network: counts, classes,
                scores, boxes, RLE strings, IoU of masks whose strings differ
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
import ultralytics
from pycocotools import mask as coco
from ultralytics import YOLO
from ultralytics.nn.tasks import SegmentationModel
from ultralytics.utils import nms, ops

from segcore.masks import encode_logits
from segcore.models.base import ModelOptions
from segcore.models.nms import detect
from segcore.models.registry import load_model, read_checkpoint
from segcore.models.yolo import network as yolo11
from segcore.models.yolo.checkpoint import load_network
from segcore.models.yolo.letterbox import Letterbox
from tests.parity import agreement
from tests.parity.agreement import Detections, read_rgb, relative_difference

PARAMETERS = {"n": 2_876_848, "s": 10_113_248, "m": 22_420_896, "l": 27_678_368, "x": 62_142_656}
NUM_CLASSES, CONF, IOU, MAX_DET, SIZE = 80, 0.25, 0.7, 300, 640
SETTINGS = {"imgsz": SIZE, "conf": CONF, "iou": IOU, "max_det": MAX_DET}
PASSING_SHARE = 0.003  # of the anchors, over the threshold


def make_batch(images: list[np.ndarray]) -> torch.Tensor:
    """Letterboxed images as network input."""
    pixels = [Letterbox.fit(*image.shape[:2], SIZE).apply(image) for image in images]
    return torch.from_numpy(np.stack(pixels)).float() / 255


def make_checkpoint(size: str, images: list[np.ndarray], path: Path) -> None:
    """Writes an official-style checkpoint (pickled fp16 module) that gives varied detections."""
    torch.manual_seed(11)
    model = SegmentationModel(f"yolo11{size}-seg.yaml", ch=3, nc=NUM_CLASSES, verbose=False)
    model.names = {i: f"thing {i}" for i in range(NUM_CLASSES)}
    model.task = "segment"
    model.args = {"task": "segment", "imgsz": SIZE}
    batch = make_batch(images)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # cumulative average
    with torch.no_grad():
        model.train()(batch)
        model.eval()
        class_layers = [branch[-1] for branch in model.model[-1].cv3]
        ours = yolo11.build_network(f"yolo11{size}-seg", NUM_CLASSES, has_activation(model)).eval()
        ours.load_state_dict(model.state_dict())
        for layer in class_layers:
            layer.bias.zero_()
        ours.load_state_dict(model.state_dict())
        best = ours(batch).class_logits.amax(dim=2)
        # Each image has its own level; with their median, most images have detections.
        level = best.quantile(1 - PASSING_SHARE, dim=1).median()
        threshold = np.log(CONF / (1 - CONF))
        # No score may be so close to 1 that classes tie in fp32: the peer would take the first
        # class, segcore the one with the larger logit.
        gain = (6 - threshold) / (best.max() - level)
        for layer in class_layers:
            layer.weight *= gain
            layer.bias += threshold - gain * level
    for norm in norms:
        norm.momentum = 0.03
    torch.save({"epoch": -1, "model": model.half(), "ema": None, "train_args": {}}, path)


def has_activation(model: SegmentationModel) -> bool:
    """Whether the first convolution of the peer's SPPF has an activation."""
    return not isinstance(model.model[9].cv1.act, torch.nn.Identity)


def to_xywh(boxes: torch.Tensor) -> torch.Tensor:
    """x1 y1 x2 y2 -> centre, width, height."""
    low, high = boxes.split(2, dim=-1)
    return torch.cat(((low + high) / 2, high - low), dim=-1)


def encode(masks: np.ndarray) -> list[bytes]:
    """(N, H, W) bitmaps -> RLE strings by pycocotools."""
    return [coco.encode(np.asfortranarray(m.astype(np.uint8)))["counts"] for m in masks]


def compare_heads(peer: SegmentationModel, ours: yolo11.YOLO11Seg, batch: torch.Tensor) -> dict:
    """Raw outputs of both networks, unfused."""
    with torch.inference_mode():
        (prediction, prototypes), raw = peer(batch)[0], ours(batch)
    prediction = prediction.transpose(1, 2)
    return {
        "boxes": relative_difference(prediction[..., :4], to_xywh(raw.boxes())),
        "classes": relative_difference(
            prediction[..., 4 : 4 + NUM_CLASSES], raw.class_logits.sigmoid()
        ),
        "coefficients": relative_difference(prediction[..., 4 + NUM_CLASSES :], raw.coefficients),
        "prototypes": relative_difference(prototypes, raw.prototypes),
    }


def compare_stages(raw: yolo11.HeadOutputs, images: list[np.ndarray]) -> dict:
    """NMS and masks of both from the same raw outputs."""
    scores = raw.class_logits.sigmoid()
    prediction = torch.cat((to_xywh(raw.boxes()), scores, raw.coefficients), dim=2).transpose(1, 2)
    theirs = nms.non_max_suppression(
        prediction, CONF, IOU, max_det=MAX_DET, nc=NUM_CLASSES, max_time_img=1e9
    )
    ours = detect(raw.boxes, raw.class_logits, CONF, IOU, MAX_DET)
    same_nms = num_detections = num_masks = same_masks = 0
    for i, (peer_rows, detections, image) in enumerate(zip(theirs, ours, images, strict=True)):
        num_detections += len(detections.anchors)
        same_nms += int(
            len(peer_rows) == len(detections.anchors)
            and torch.equal(peer_rows[:, 5].long(), detections.classes)
            and torch.equal(peer_rows[:, 4], detections.scores)
            and torch.equal(peer_rows[:, 6:], raw.coefficients[i, detections.anchors])
        )
        canvas = image.shape[:2]
        letterbox = Letterbox.fit(*canvas, SIZE)
        boxes = letterbox.boxes_to_image(detections.boxes.numpy())
        coefficients = raw.coefficients[i, detections.anchors]
        peer_masks = ops.process_mask_native(
            raw.prototypes[i], coefficients, torch.from_numpy(boxes), canvas
        )
        logits = (coefficients @ raw.prototypes[i].flatten(1)).unflatten(1, (SIZE // 4, SIZE // 4))
        counts = encode_logits(logits.numpy(), boxes, canvas, letterbox.mask_window()).counts
        strings = zip(encode(peer_masks.numpy()), peer_masks, strict=True)
        reference = [string for string, mask in strings if mask.any()]
        num_masks += len(reference)
        same_masks += sum(a == b for a, b in zip(reference, counts, strict=False))
        same_masks -= abs(len(reference) - len(counts))
    return {
        "detections": num_detections,
        "images": len(images),
        "nms_same_images": same_nms,
        "masks": num_masks,
        "same_strings": same_masks,
    }


def predict(peer: YOLO, path: Path) -> Detections:
    """The peer's prediction from a file; its input has the shape of the image, as by default."""
    result = peer.predict(str(path), **SETTINGS, rect=True, retina_masks=True, device="cpu",
                          verbose=False)[0]  # fmt: skip
    boxes = result.boxes
    return Detections(
        result.orig_shape,
        boxes.xyxy.numpy(),
        boxes.conf.numpy(),
        boxes.cls.numpy().astype(int),
        [] if result.masks is None else encode(result.masks.data.numpy()),
    )


def compare_end_to_end(path: Path, files: list[Path], reference_path: Path) -> dict:
    """From files to instances, each side with its own fused network."""
    peer = YOLO(str(path))
    ours = load_model(str(path), ModelOptions(device="cpu", shape="rect", **SETTINGS))
    references, rows = {}, []
    seconds = {"peer": 0.0, "segcore": 0.0}
    for file in files:
        start = time.perf_counter()
        reference = references[file.name] = predict(peer, file)
        middle = time.perf_counter()
        prepared = [ours.preprocess(read_rgb(file))]
        instances = ours.postprocess(ours.forward(prepared), prepared)[0]
        seconds["peer"] += middle - start
        seconds["segcore"] += time.perf_counter() - middle
        rows.append(agreement.compare_image(reference, Detections.from_instances(instances)))
    agreement.save_detections(reference_path, references, path, {**SETTINGS, "shape": "rect"})
    return {**agreement.sum_images(rows), "seconds": seconds}


def compare(size: str, files: list[Path], build: Path) -> dict:
    """All comparisons for one size of the network."""
    images = [read_rgb(file) for file in files]
    path = build / f"yolo11{size}-seg-random.pt"
    make_checkpoint(size, images, path)
    # The peer's own loading, unfused; the file was written a moment ago by this script.
    peer = torch.load(path, map_location="cpu", weights_only=False)["model"].float().eval()
    checkpoint = read_checkpoint(path)
    ours = load_network(checkpoint)
    peer_tensors, tensors = peer.state_dict(), ours.state_dict()
    parameters = sum(p.numel() for p in ours.parameters())
    with torch.inference_mode():
        raw = ours(make_batch(images))
    return {
        "model": checkpoint.meta.architecture,
        "parameters": parameters,
        "parameters_as_published": parameters == PARAMETERS[size]
        and sum(p.numel() for p in peer.parameters()) == parameters,
        "tensors": len(tensors),
        "same_keys": {k: v.shape for k, v in peer_tensors.items()}
        == {k: v.shape for k, v in tensors.items()},
        "same_weights": all(torch.equal(peer_tensors[k], tensors[k]) for k in peer_tensors),
        "same_names": [c.name for c in checkpoint.meta.categories] == list(peer.names.values()),
        "sppf_activation": [has_activation(peer), checkpoint.meta.sppf_activation],
        "heads_relative": compare_heads(peer, ours, make_batch(images[:2])),
        "stages": compare_stages(raw, images),
        "end_to_end": compare_end_to_end(path, files, build / f"{size}-peer.json"),
    }


def broken_promises(result: dict) -> list[str]:
    """Promises that do not hold."""
    stages = result["stages"]
    checks = {
        "parameters": result["parameters_as_published"],
        "keys": result["same_keys"] and result["same_weights"] and result["same_names"],
        "SPPF": result["sppf_activation"][0] == result["sppf_activation"][1],
        "heads": max(result["heads_relative"].values()) < 1e-4,
        "NMS": stages["nms_same_images"] == stages["images"],
        "masks": stages["same_strings"] == stages["masks"],
    }
    broken = [name for name, holds in checks.items() if not holds]
    return broken + agreement.broken_promises(result["end_to_end"])


def main() -> int:
    """Prints a table and writes parity.json."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", required=True)
    parser.add_argument("--images", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--build", type=Path, required=True)
    arguments = parser.parse_args()
    files = sorted(arguments.folder.glob("*.jpg"))[: arguments.images]
    results, any_broken = [], False
    print(f"ultralytics {ultralytics.__version__}, torch {torch.__version__}, {len(files)} images")
    print(f"model        parameters  heads    NMS    masks    {agreement.HEADING}")
    for size in arguments.models.split(","):
        result = compare(size, files, arguments.build)
        result["broken"] = broken_promises(result)
        results.append(result)
        stages = result["stages"]
        print(
            f"{result['model']:12} {result['parameters']:10,}"
            f"  {max(result['heads_relative'].values()):.1e}"
            f"  {stages['nms_same_images']:2}/{stages['images']:<2}"
            f"  {stages['same_strings']:4}/{stages['masks']:<4}"
            f"  {agreement.format_row(result['end_to_end'])}",
            *(f"BROKEN: {', '.join(result['broken'])}" if result["broken"] else "",),
            flush=True,
        )
        any_broken |= bool(result["broken"])
    document = {
        "ultralytics": ultralytics.__version__,
        "torch": torch.__version__,
        "images": [file.name for file in files],
        "results": results,
    }
    (arguments.build / "parity.json").write_text(json.dumps(document, indent=2) + "\n")
    return 1 if any_broken else 0


if __name__ == "__main__":
    sys.exit(main())
