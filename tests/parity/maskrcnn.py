"""Compares segcore's Mask R-CNN with torchvision's, in an environment that has both.

    PYTHONPATH=. VENV/bin/python -m tests.parity.maskrcnn --folder JPEGS --build OUT

Weights are random: no published ones are needed. Norms collect the statistics of real images, and
each stage's outputs are scaled and shifted so that real images give up to 100 detections each, with
ragged masks. The first layout is written with the tensor names of the published file (those of an
older release) and evaluated with norms that add nothing to the variance, as that file is. Compared
are, for each layout:

    keys       state dict as torchvision writes it, number of parameters
    input      normalised, resized and padded image: equal bits
    levels     largest difference of the pyramid, over its largest value
    proposals  from torchvision's levels: largest difference in pixels, in any order (the order of
               equal scores is not defined there, as its last sort is unstable)
    align      pooled features of torchvision's proposals: largest difference over largest value
    select     detections from torchvision's logits and deltas: equal labels, scores and boxes, in
               order except for equal scores
    masks      RLE strings from torchvision's boxes and mask probabilities
    end_to_end JPEG file -> instances: counts, labels, scores, boxes, RLE strings

and, once, the time from mask probabilities to strings at 1920 x 1080 with 50 instances.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torchvision
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
from segcore.models.maskrcnn.heads import Thresholds, select_detections
from segcore.models.maskrcnn.model import MaskRCNNModel
from segcore.models.maskrcnn.network import STRIDES, V1, V2
from segcore.models.maskrcnn.paste import paste
from segcore.models.maskrcnn.roi_align import Pyramid, roi_align
from segcore.models.registry import load_model
from tests.parity import agreement
from tests.parity.agreement import Detections, read_rgb, relative_difference
from tests.parity.maskrcnn_weights import make_peer, save_state_dict, to_tensor

LAYOUTS = {"v1": V1, "v2": V2}
PUBLISHED = {
    V1: MaskRCNN_ResNet50_FPN_Weights.COCO_V1,
    V2: MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1,
}


class Recorder:
    """Records the outputs of the peer's stages while it predicts.

    Attributes:
        outputs: By name of the stage, of the last image.
    """

    def __init__(self, peer: MaskRCNN) -> None:
        self.outputs: dict[str, object] = {}
        heads = peer.roi_heads
        for name, module in {
            "input": peer.transform,
            "features": peer.backbone,
            "proposals": peer.rpn,
            "pooled": heads.box_roi_pool,
            "predicted": heads.box_predictor,
            "heads": heads,
        }.items():
            module.register_forward_hook(self._make_hook(name))

    def _make_hook(self, name: str):
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            # The heads' result is changed in place afterwards.
            self.outputs[name] = [dict(r) for r in output[0]] if name == "heads" else output

        return hook


def sorted_rows(*columns: Tensor) -> list[list[float]]:
    """Rows of all columns, sorted."""
    return sorted(torch.cat([c.reshape(len(c), -1).double() for c in columns], dim=1).tolist())


def max_difference(first: list[list[float]], second: list[list[float]]) -> float:
    """Largest difference between two lists of rows; infinity for different lengths."""
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


def mask_area(counts: bytes, height: int, width: int) -> int:
    return int(coco.area({"size": [height, width], "counts": counts}))


def compare_stages(
    recorded: dict, ours: MaskRCNNModel, image: np.ndarray, result: dict, strings: list[bytes]
) -> dict:
    """Each of our stages, on the input that the peer gives to it."""
    network, device = ours._network, torch.device("cpu")
    frame: Frame = ours.preprocess(image).frame
    x = to_input(image, frame, device)
    levels = list(recorded["features"].values())
    with torch.inference_mode():
        own_levels = network.backbone(x)
        own_proposals = network.rpn(levels, frame)
        proposals = recorded["proposals"][0][0]
        pooled = roi_align(Pyramid.from_levels(levels[:4], STRIDES), proposals, 7)
        logits, deltas = recorded["predicted"]
        detections = select_detections(
            logits, deltas.unflatten(1, (-1, 4)), proposals, frame, Thresholds()
        )
    peer_detections = recorded["heads"][0]
    peer_rows, rows = (
        sorted_rows(d["scores"], d["labels"], d["boxes"])
        for d in (peer_detections, detections._asdict())
    )
    masks = paste(peer_detections["masks"][:, 0].numpy(), result["boxes"].numpy(), image.shape[:2])
    not_empty = [s for s in strings if mask_area(s, *image.shape[:2])]
    return {
        "input_equal": bool(torch.equal(x, recorded["input"][0].tensors)),
        "levels": max(map(relative_difference, levels, own_levels)),
        "proposals": [len(proposals), len(own_proposals)],
        "proposals_px": max_difference(sorted_rows(proposals), sorted_rows(own_proposals)),
        "proposals_same_order": bool(torch.equal(proposals, own_proposals)),
        "align": relative_difference(recorded["pooled"], pooled),
        "select_same": peer_rows == rows,
        "select_same_order": bool(torch.equal(detections.labels, peer_detections["labels"])),
        "masks": len(not_empty),
        "same_strings": sum(a == b for a, b in zip(not_empty, masks.counts, strict=False))
        - abs(len(not_empty) - len(masks.counts)),
    }


def compare(key: str, files: list[Path], size: int, build: Path) -> dict:
    """All comparisons for one layout."""
    architecture = LAYOUTS[key]
    images = [read_rgb(file) for file in files]
    peer = make_peer(architecture, images[:2], size)
    path = build / f"{architecture}-random.pth"
    save_state_dict(peer, architecture, path)
    ours = load_model(str(path), ModelOptions(device="cpu", imgsz=size))
    parameters = sum(p.numel() for p in ours._network.parameters())
    buffers = sum(b.numel() for b in ours._network.buffers())
    recorder = Recorder(peer)
    rows, references = [], {}
    for file, image in zip(files, images, strict=True):
        with torch.inference_mode():
            result = peer([to_tensor(image)])[0]
        strings = encode(result["masks"])
        reference = references[file.name] = Detections(
            image.shape[:2],
            result["boxes"].numpy(),
            result["scores"].numpy(),
            result["labels"].numpy(),
            strings,
        )
        prepared = [ours.preprocess(image)]
        instances = ours.postprocess(ours.forward(prepared), prepared)[0]
        rows.append(
            {
                "file": file.name,
                "stages": compare_stages(recorder.outputs, ours, image, result, strings),
                "end_to_end": agreement.compare_image(
                    reference, Detections.from_instances(instances)
                ),
            }
        )
        print(f"  {architecture} {file.name}", file=sys.stderr, flush=True)
    agreement.save_detections(build / f"{key}-peer.json", references, path, {"imgsz": size})
    return {
        "model": ours.info.architecture,
        "norm_eps": ours.info.parameters["norm_eps"],
        "min_size": size,
        "parameters": parameters,
        # The weights of norms are buffers in the first layout, and in both of ours.
        "parameters_as_published": parameters + (buffers // 2 if architecture == V2 else 0)
        == PUBLISHED[architecture].meta["num_params"],
        "images": rows,
    }


def sum_images(result: dict) -> dict:
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
        **agreement.sum_images([row["end_to_end"] for row in result["images"]]),
    }


def broken_promises(result: dict, sums: dict) -> list[str]:
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
    return [name for name, holds in checks.items() if not holds] + agreement.broken_promises(sums)


def time_masks(repeats: int = 5) -> dict:
    """CPU seconds from mask probabilities to strings: one thread, 50 masks at 1920 x 1080.

    The peer and segcore take turns.
    """
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
        peer_strings = encode(paste_masks_in_image(masks, torch.from_numpy(boxes), canvas))
        middle = time.process_time()
        counts = paste(masks[:, 0].numpy(), boxes, canvas).counts
        times["segcore"].append(time.process_time() - middle)
        times["peer"].append(middle - start)
    return {
        "instances": n,
        "canvas": canvas,
        "mean_box_px": float(sides.prod(axis=1).mean()),
        "same_strings": sum(a == b for a, b in zip(peer_strings, counts, strict=True)),
        "cpu_seconds": times,
        "ratio": float(np.median(np.array(times["peer"]) / np.array(times["segcore"]))),
    }


def main() -> int:
    """Prints a table and writes parity-maskrcnn.json."""
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
    results, any_broken = [], False
    for name in arguments.models.split(","):
        result = compare(name, files, arguments.size, arguments.build)
        sums = result["total"] = sum_images(result)
        result["broken"] = broken_promises(result, sums)
        results.append(result)
        any_broken |= bool(result["broken"])
        print(
            f"{result['model']:24}  {sums['levels']:.1e}  {sums['proposals_px']:.1e}"
            f"  {sums['align']:.1e}  {sums['select']:2}/{len(files):<2}"
            f"   {sums['same_masks']:4}/{sums['masks']:<4}  {agreement.format_row(sums)}",
            *(f"BROKEN: {', '.join(result['broken'])}" if result["broken"] else "",),
            flush=True,
        )
    speed = time_masks()
    own_ms, peer_ms = (np.median(speed["cpu_seconds"][k]) * 1e3 for k in ("segcore", "peer"))
    print(f"masks to strings, 50 at 1920 x 1080: {peer_ms:.0f} ms against {own_ms:.1f} ms, "
          f"{speed['ratio']:.0f} times; {speed['same_strings']} strings equal")  # fmt: skip
    document = {
        "torchvision": torchvision.__version__,
        "torch": torch.__version__,
        "results": results,
        "postprocessing": speed,
    }
    path = arguments.build / "parity-maskrcnn.json"
    path.write_text(json.dumps(document, indent=2) + "\n")
    return 1 if any_broken else 0


if __name__ == "__main__":
    sys.exit(main())
