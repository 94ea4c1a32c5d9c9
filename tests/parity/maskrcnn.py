"""Compares segcore's Mask R-CNN with torchvision's, in an environment that has both.

    PYTHONPATH=. VENV/bin/python tests/parity/maskrcnn.py --folder JPEGS --build OUT

Weights are random: no published ones are needed. Norms collect the statistics of real images, and
each stage's outputs are scaled and shifted so that real images give up to 100 detections each, with
ragged masks. The first layout is written with the tensor names of the published file (an older
release's) and evaluated without an addend in its norms, as that file is. Compared, for each layout:

    keys       state dict as torchvision writes it, number of parameters
    input      normalised, resized and padded image: equal bits
    levels     largest difference of the pyramid, over its largest value
    proposals  from torchvision's levels: largest difference in pixels, in any order, as that of
               equal scores is not defined there (its last sort is unstable)
    align      pooled features of torchvision's proposals: largest difference over largest value
    select     detections from torchvision's logits and deltas: equal labels, scores and boxes, in
               order but for equal scores
    masks      RLE strings from torchvision's boxes and mask probabilities
    whole      JPEG file -> instances: counts, labels, scores, boxes, RLE strings

and, once, the time from mask probabilities to strings at 1920 x 1080 with 50 instances.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import agreement
import cv2
import numpy as np
import torch
import torchvision
from agreement import Detections
from maskrcnn_weights import make_peer, save, tensor
from pycocotools import mask as coco
from torch import Tensor, nn
from torchvision.models.detection import (
    MaskRCNN,
    MaskRCNN_ResNet50_FPN_V2_Weights,
    MaskRCNN_ResNet50_FPN_Weights,
)
from torchvision.models.detection.roi_heads import paste_masks_in_image

from segcore.models.base import ModelOptions
from segcore.models.maskrcnn.geometry import Frame, to_input
from segcore.models.maskrcnn.heads import Thresholds, select
from segcore.models.maskrcnn.model import MaskRCNNModel
from segcore.models.maskrcnn.network import STRIDES, V1, V2
from segcore.models.maskrcnn.paste import paste
from segcore.models.maskrcnn.roi_align import Pyramid, roi_align
from segcore.models.registry import load_model

LAYOUTS = {"v1": V1, "v2": V2}
PUBLISHED = {
    V1: MaskRCNN_ResNet50_FPN_Weights.COCO_V1,
    V2: MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1,
}


def read(path: Path) -> np.ndarray:
    """RGB pixels."""
    return cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)


class Recorder:
    """Outputs of the peer's stages while it predicts."""

    def __init__(self, peer: MaskRCNN) -> None:
        self.seen: dict[str, object] = {}
        heads = peer.roi_heads
        for name, module in {
            "input": peer.transform,
            "features": peer.backbone,
            "proposals": peer.rpn,
            "pooled": heads.box_roi_pool,
            "predicted": heads.box_predictor,
            "heads": heads,
        }.items():
            module.register_forward_hook(self._keep(name))

    def _keep(self, name: str):
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            # The heads' result is changed in place afterwards.
            self.seen[name] = [dict(r) for r in output[0]] if name == "heads" else output

        return hook


def relative(reference: Tensor, other: Tensor) -> float:
    """Largest difference over the largest value."""
    if reference.shape != other.shape:
        return float("inf")
    return float((reference - other).abs().max() / reference.abs().max())


def in_order(*columns: Tensor) -> list[list[float]]:
    """Rows of all columns, sorted."""
    return sorted(torch.cat([c.reshape(len(c), -1).double() for c in columns], dim=1).tolist())


def distance(first: list[list[float]], second: list[list[float]]) -> float:
    """Largest difference between two lists of rows."""
    if len(first) != len(second):
        return float("inf")
    return float(np.abs(np.array(first) - np.array(second)).max())


def encode(masks: Tensor) -> list[bytes]:
    """(N, 1, H, W) probabilities -> strings, as torchvision's reference scripts do."""
    bitmaps = (masks > 0.5).numpy()
    return [
        coco.encode(np.array(m[0, :, :, None], dtype=np.uint8, order="F"))[0]["counts"]
        for m in bitmaps
    ]


def area(counts: bytes, height: int, width: int) -> int:
    return int(coco.area({"size": [height, width], "counts": counts}))


def compare_stages(
    seen: dict, ours: MaskRCNNModel, image: np.ndarray, result: dict, strings: list[bytes]
) -> dict:
    """Each of our stages on the peer's input to it."""
    network, device = ours._network, torch.device("cpu")
    frame: Frame = ours.preprocess(image).frame
    x = to_input(image, frame, device)
    levels = list(seen["features"].values())
    with torch.inference_mode():
        own_levels = network.backbone(x)
        own_proposals = network.rpn(levels, frame)
        proposals = seen["proposals"][0][0]
        pooled = roi_align(Pyramid.of(levels[:4], STRIDES), proposals, 7)
        logits, deltas = seen["predicted"]
        found = select(logits, deltas.unflatten(1, (-1, 4)), proposals, frame, Thresholds())
    raw = seen["heads"][0]
    theirs, mine = (in_order(r["scores"], r["labels"], r["boxes"]) for r in (raw, found._asdict()))
    masks = paste(raw["masks"][:, 0].numpy(), result["boxes"].numpy(), image.shape[:2])
    filled = [s for s in strings if area(s, *image.shape[:2])]
    return {
        "input_equal": bool(torch.equal(x, seen["input"][0].tensors)),
        "levels": max(map(relative, levels, own_levels)),
        "proposals": [len(proposals), len(own_proposals)],
        "proposals_px": distance(in_order(proposals), in_order(own_proposals)),
        "proposals_same_order": bool(torch.equal(proposals, own_proposals)),
        "align": relative(seen["pooled"], pooled),
        "select_same": theirs == mine,
        "select_same_order": bool(torch.equal(found.labels, raw["labels"])),
        "masks": len(filled),
        "same_strings": sum(a == b for a, b in zip(filled, masks.counts, strict=False))
        - abs(len(filled) - len(masks.counts)),
    }


def compare(key: str, files: list[Path], size: int, build: Path) -> dict:
    """All comparisons for one layout."""
    architecture = LAYOUTS[key]
    images = [read(file) for file in files]
    peer = make_peer(architecture, images[:2], size)
    path = build / f"{architecture}-random.pth"
    save(peer, architecture, path)
    ours = load_model(str(path), ModelOptions(device="cpu", imgsz=size))
    parameters = sum(p.numel() for p in ours._network.parameters())
    buffers = sum(b.numel() for b in ours._network.buffers())
    recorder = Recorder(peer)
    rows, references = [], {}
    for file, image in zip(files, images, strict=True):
        with torch.inference_mode():
            result = peer([tensor(image)])[0]
        strings = encode(result["masks"])
        reference = references[file.name] = Detections(
            image.shape[:2],
            result["boxes"].numpy(),
            result["scores"].numpy(),
            result["labels"].numpy(),
            strings,
        )
        prepared = [ours.preprocess(image)]
        found = ours.postprocess(ours.forward(prepared), prepared)[0]
        rows.append(
            {
                "file": file.name,
                "stages": compare_stages(recorder.seen, ours, image, result, strings),
                "whole": agreement.compare(reference, Detections.of(found)),
            }
        )
        print(f"  {architecture} {file.name}", file=sys.stderr, flush=True)
    agreement.save(build / f"{key}-peer.json", references, path, {"imgsz": size})
    return {
        "model": ours.info.architecture,
        "norm_eps": ours.info.parameters["norm_eps"],
        "min_size": size,
        "parameters": parameters,
        # In the first layout the norms' weights count as buffers, as they do in ours in both.
        "parameters_as_published": parameters + (buffers // 2 if architecture == V2 else 0)
        == PUBLISHED[architecture].meta["num_params"],
        "images": rows,
    }


def total(result: dict) -> dict:
    """Sums and worst cases over the images."""
    stages = [row["stages"] for row in result["images"]]
    return {
        "input": all(s["input_equal"] for s in stages),
        "levels": max(s["levels"] for s in stages),
        "proposals_px": max(s["proposals_px"] for s in stages),
        "align": max(s["align"] for s in stages),
        "select": sum(s["select_same"] for s in stages),
        "masks": sum(s["masks"] for s in stages),
        "same_masks": sum(s["same_strings"] for s in stages),
        **agreement.total([row["whole"] for row in result["images"]]),
    }


def broken(result: dict, sums: dict) -> list[str]:
    """Promises that do not hold."""
    checks = {
        "parameters": result["parameters_as_published"],
        "input": sums["input"],
        "levels": sums["levels"] < 1e-5,
        "proposals": sums["proposals_px"] < 0.01,
        "align": sums["align"] < 1e-5,
        "select": sums["select"] == len(result["images"]),
        "masks": sums["same_masks"] == sums["masks"],
    }
    return [name for name, holds in checks.items() if not holds] + agreement.broken(sums)


def measure(repeats: int = 5) -> dict:
    """CPU seconds from mask probabilities to strings, one thread, in turns; 50 at 1920 x 1080."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    canvas, n = (1080, 1920), 50
    sides = np.exp(rng.uniform(np.log(30), np.log(700), (n, 2)))
    corner = rng.uniform(0, 1, (n, 2)) * (np.array([1920, 1080]) - sides)
    boxes = np.concatenate((corner, corner + sides), axis=1).astype(np.float32)
    noise = torch.from_numpy(rng.normal(0, 3, (n, 1, 7, 7)).astype(np.float32))
    masks = nn.functional.interpolate(noise, size=(28, 28), mode="bicubic").sigmoid()
    times: dict[str, list[float]] = {"peer": [], "segcore": []}
    for _ in range(repeats):
        start = time.process_time()
        theirs = encode(paste_masks_in_image(masks, torch.from_numpy(boxes), canvas))
        middle = time.process_time()
        ours = paste(masks[:, 0].numpy(), boxes, canvas)
        times["segcore"].append(time.process_time() - middle)
        times["peer"].append(middle - start)
    return {
        "instances": n,
        "canvas": canvas,
        "mean_box_px": float(sides.prod(axis=1).mean()),
        "same_strings": sum(a == b for a, b in zip(theirs, ours.counts, strict=True)),
        "cpu_seconds": times,
        "ratio": float(np.median(np.array(times["peer"]) / np.array(times["segcore"]))),
    }


def main() -> int:
    """Prints a table, writes parity-maskrcnn.json."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", default="v1,v2")
    parser.add_argument("--images", type=int, default=6)
    parser.add_argument("--size", type=int, default=800, help="shorter side, pixels")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--build", type=Path, required=True)
    arguments = parser.parse_args()
    files = sorted(arguments.folder.glob("*.jpg"))[: arguments.images]
    arguments.build.mkdir(parents=True, exist_ok=True)
    print(f"torchvision {torchvision.__version__}, torch {torch.__version__}, {len(files)} images, "
          f"shorter side {arguments.size}")  # fmt: skip
    print("model                     levels   prop px  align    select  masks    "
          f"{agreement.HEADING}")  # fmt: skip
    results, failed = [], False
    for name in arguments.models.split(","):
        result = compare(name, files, arguments.size, arguments.build)
        s = result["total"] = total(result)
        result["broken"] = broken(result, s)
        results.append(result)
        failed |= bool(result["broken"])
        print(
            f"{result['model']:24}  {s['levels']:.1e}  {s['proposals_px']:.1e}  {s['align']:.1e}"
            f"  {s['select']:2}/{len(files):<2}   {s['same_masks']:4}/{s['masks']:<4}"
            f"  {agreement.line(s)}",
            *(f"BROKEN: {', '.join(result['broken'])}" if result["broken"] else "",),
            flush=True,
        )
    speed = measure()
    ours, theirs = (np.median(speed["cpu_seconds"][k]) * 1e3 for k in ("segcore", "peer"))
    print(f"masks to strings, 50 at 1920 x 1080: {theirs:.0f} ms against {ours:.1f} ms, "
          f"{speed['ratio']:.0f} times; {speed['same_strings']} strings equal")  # fmt: skip
    document = {
        "torchvision": torchvision.__version__,
        "torch": torch.__version__,
        "results": results,
        "postprocessing": speed,
    }
    path = arguments.build / "parity-maskrcnn.json"
    path.write_text(json.dumps(document, indent=2) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
