"""segcore against ultralytics, which is only called; one thread, pinned to one core.

Every ratio is a median of pairs: the peer and segcore take turns in this one process, and the two
times of each pair are divided. Times are CPU seconds of the process, which other processes disturb
less than seconds of the clock; both are recorded.

    masks       coefficients, prototypes and boxes of 50 instances -> RLE strings. The peer:
                process_mask_native (retina masks), empty ones dropped, pycocotools.mask.encode.
    strings     how many strings of both are identical, over many canvases and letterboxes
    end_to_end  JPEG files -> RLE strings with the same weights. The peer: predict with retina
                masks, then pycocotools. Both with an input of the image's shape (peer, compiled,
                numpy) and with a square one (peer_square, square). Random weights, calibrated as
                for parity, and max_det instances in every image.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
import ultralytics
from pycocotools import mask as coco
from ultralytics import YOLO
from ultralytics.utils import ops

from segcore.images import DecodeOptions, decode_image
from segcore.masks import default_backend, encode_logits
from segcore.models.base import InputShape, ModelOptions
from segcore.models.registry import load_model
from segcore.models.yolo import model as yolo_seg
from segcore.models.yolo.letterbox import Letterbox
from tests.parity import yolo11 as parity

CANVASES = {"640x480": (480, 640), "1080p": (1080, 1920), "12 MP": (3000, 4000)}
TARGETS = {  # ratios of the peer's time to ours
    "numpy": {"640x480": 10, "1080p": 40, "12 MP": 150},
    "compiled": {"640x480": 25, "1080p": 150, "12 MP": 500},
}
SIZE, NUM_PROTOTYPES = 640, 32
IMPLEMENTATIONS = ("numpy", "compiled")  # of the masks of segcore


def random_outputs(rng: np.random.Generator, canvas: tuple[int, int], n: int) -> dict:
    """Like a network's for one image: ragged blobs, boxes of 5 to 40 % of each side."""
    coarse = rng.standard_normal((1, NUM_PROTOTYPES, 20, 20)).astype(np.float32)
    smooth = torch.nn.functional.interpolate(
        torch.from_numpy(coarse), (SIZE // 4, SIZE // 4), mode="bicubic"
    )[0]
    prototypes = smooth + 0.05 * torch.from_numpy(
        rng.standard_normal(smooth.shape).astype(np.float32)
    )
    sides = np.exp(rng.uniform(np.log(0.05), np.log(0.4), (n, 2))) * (canvas[1], canvas[0])
    corner = rng.uniform(0, 1, (n, 2)) * ((canvas[1], canvas[0]) - sides)
    boxes = np.concatenate((corner, corner + sides), axis=1).astype(np.float32)
    coefficients = rng.standard_normal((n, NUM_PROTOTYPES)).astype(np.float32)
    return {
        "prototypes": prototypes.contiguous(),
        "coefficients": torch.from_numpy(coefficients),
        "boxes": boxes,
        "canvas": canvas,
    }


def peer_strings(outputs: dict) -> list[bytes]:
    """The peer's retina masks, empty ones dropped, as COCO strings."""
    boxes = torch.from_numpy(outputs["boxes"])
    masks = ops.process_mask_native(
        outputs["prototypes"], outputs["coefficients"], boxes, outputs["canvas"]
    )
    masks = masks[masks.amax((-2, -1)) > 0]
    return parity.encode(masks.numpy())


def own_strings(outputs: dict, by: str) -> list[bytes]:
    """The masks of segcore as COCO strings."""
    prototypes, canvas = outputs["prototypes"], outputs["canvas"]
    logits = (outputs["coefficients"] @ prototypes.flatten(1)).unflatten(1, prototypes.shape[1:])
    window = Letterbox.fit(*canvas, SIZE).mask_window()
    return encode_logits(logits.numpy(), outputs["boxes"], canvas, window, backend=by).counts


def time_call(work: Callable[[], object]) -> tuple[float, float]:
    """(CPU seconds, seconds) of one call."""
    clock, cpu = time.perf_counter(), time.process_time()
    work()
    return time.process_time() - cpu, time.perf_counter() - clock


def time_in_turns(
    sides: dict[str, Callable[[], object]], repeats: int, calls: dict[str, int]
) -> dict:
    """Times of all sides in turns; those that are quick get several `calls` at a time."""
    for work in sides.values():
        work()
    torch.set_num_threads(1)  # the peer may have changed it
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, work in sides.items():
            k = calls.get(name, 1)
            cpu, clock = time_call(lambda work=work, k=k: [work() for _ in range(k)])
            times[name].append((cpu / k, clock / k))
    peer = np.array(times["peer"])
    out: dict = {"cpu_ms": {}, "min_cpu_ms": {}, "clock_ms": {}}
    out |= {"ratio": {}, "ratio_spread": {}, "ratio_clock": {}}
    for name, pairs in times.items():
        own = np.array(pairs)
        out["min_cpu_ms"][name] = float(own[:, 0].min() * 1e3)
        out["cpu_ms"][name], out["clock_ms"][name] = (np.median(own, axis=0) * 1e3).tolist()
        if name != "peer":
            ratios = peer / own
            out["ratio"][name] = float(np.median(ratios[:, 0]))
            out["ratio_spread"][name] = [float(ratios[:, 0].min()), float(ratios[:, 0].max())]
            out["ratio_clock"][name] = float(np.median(ratios[:, 1]))
    return out


def compare_masks(repeats: int) -> dict:
    """Post-processing of 50 instances at three sizes."""
    results = {}
    for name, canvas in CANVASES.items():
        outputs = random_outputs(np.random.default_rng(1), canvas, 50)
        sides: dict[str, Callable[[], object]] = {"peer": functools.partial(peer_strings, outputs)}
        sides |= {by: functools.partial(own_strings, outputs, by) for by in IMPLEMENTATIONS}
        result = time_in_turns(sides, repeats, {"numpy": 5, "compiled": 20})
        reference = peer_strings(outputs)
        box_sides = outputs["boxes"][:, 2:] - outputs["boxes"][:, :2]
        result["same_strings"] = {
            by: count_equal(reference, own_strings(outputs, by)) for by in IMPLEMENTATIONS
        }
        result["instances"] = len(reference)
        result["mean_box_px"] = float(box_sides.prod(axis=1).mean())
        results[name] = result
        for by in IMPLEMENTATIONS:
            low, high = result["ratio_spread"][by]
            print_row(
                f"post-processing {name}, {by}",
                f"{result['cpu_ms']['peer']:9.1f} ms",
                f"{result['cpu_ms'][by]:8.2f} ms",
                f"{result['ratio'][by]:7.1f} ({low:.0f} to {high:.0f})",
                f">= {TARGETS[by][name]}",
            )
    return results


def count_equal(a: list[bytes], b: list[bytes]) -> int:
    """Number of strings that are equal, in order; 0 for lists of different lengths."""
    return sum(x == y for x, y in zip(a, b, strict=False)) if len(a) == len(b) else 0


def compare_strings(total: int) -> dict:
    """Share of identical strings, at sizes of photographs, whatever the letterbox."""
    rng = np.random.default_rng(2)
    common = [(480, 640), (427, 640), (640, 427), (375, 500), (333, 500), (720, 1280), (960, 1280)]
    instances = identical = images_with_another_count = 0
    different: list[dict] = []
    while instances < total:
        canvas = common[int(rng.integers(len(common)))]
        if rng.random() < 0.4:
            canvas = (int(rng.integers(200, 1000)), int(rng.integers(200, 1000)))
        outputs = random_outputs(rng, canvas, 50)
        reference, own = peer_strings(outputs), own_strings(outputs, default_backend())
        instances += len(reference)
        if len(reference) != len(own):
            images_with_another_count += 1
            continue
        for a, b in zip(reference, own, strict=True):
            identical += a == b
            if a != b:
                different.append({"canvas": canvas, "pixels": count_different_pixels(a, b, canvas)})
    share = identical / instances
    print_row(f"identical strings of {instances:,}", "", "", f"{100 * share:.4f} %", ">= 99.99 %")
    return {
        "instances": instances,
        "identical": identical,
        "images_with_another_count": images_with_another_count,
        "different": different,
    }


def count_different_pixels(a: bytes, b: bytes, canvas: tuple[int, int]) -> int:
    """Number of pixels in which two masks differ."""
    first, second = (coco.decode({"size": list(canvas), "counts": c}) for c in (a, b))
    return int((first != second).sum())


def make_files(folder: Path, build: Path, canvas: tuple[int, int], n: int) -> list[Path]:
    """Photographs at exactly this size, JPEG quality 90."""
    files = []
    for photo in sorted(folder.glob("*.jpg"))[:n]:
        file = build / f"{canvas[1]}x{canvas[0]}-{photo.name}"
        pixels = cv2.resize(cv2.imread(str(photo)), canvas[::-1], interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(file), pixels, [cv2.IMWRITE_JPEG_QUALITY, 90])
        files.append(file)
    return files


def compare_end_to_end(folder: Path, build: Path, repeats: int, sizes: list[str]) -> dict:
    """From JPEG files to strings; files are in the page cache for both."""
    photos = sorted(folder.glob("*.jpg"))[:8]
    weights = build / "yolo11n-seg-random.pt"
    parity.make_checkpoint("n", [parity.read_rgb(photo) for photo in photos], weights)
    results = {}
    for name, n_files, max_det, target in (("640x480", 8, 10, 1.3), ("12 MP", 2, 50, 15)):
        if name not in sizes:
            continue
        files = make_files(folder, build, CANVASES[name], 8)
        ours, conf, files = choose_threshold(weights, files, max_det, n_files)
        square = load_ours(weights, conf, max_det, "square")
        peers = {
            rect: make_peer_predict(YOLO(str(weights)), conf, max_det, rect)
            for rect in (True, False)
        }
        sides: dict[str, Callable[[], list]] = {
            "peer": functools.partial(peers[True], files),
            "peer_square": functools.partial(peers[False], files),
            **{by: functools.partial(segment_all, ours, files, by) for by in IMPLEMENTATIONS},
            "square": functools.partial(segment_all, square, files, "compiled"),
        }
        counting = {side: with_counts(work) for side, work in sides.items()}
        result = time_in_turns({side: work for side, (work, _) in counting.items()}, repeats, {})
        result |= {"files": len(files), "conf": conf, "max_det": max_det, "instances": {}}
        for side, (_, counts) in counting.items():
            result["instances"][side] = counts[-1] / len(files)
            for clock in ("cpu_ms", "min_cpu_ms", "clock_ms"):
                result[clock][side] /= len(files)
        results[name] = result
        for by in (*IMPLEMENTATIONS, "square"):
            low, high = result["ratio_spread"][by]
            print_row(
                f"end to end {name}, {max_det} masks, {by}",
                f"{result['cpu_ms']['peer']:9.1f} ms",
                f"{result['cpu_ms'][by]:8.1f} ms",
                f"{result['ratio'][by]:7.2f} ({low:.2f} to {high:.2f})",
                f">= {target}",
            )
        print(f"{'':4}the peer with the square input: {result['cpu_ms']['peer_square']:.1f} ms")
    return results


def load_ours(weights: Path, conf: float, max_det: int, shape: InputShape) -> yolo_seg.YoloSegModel:
    """The model of segcore."""
    options = {"conf": conf, "iou": 0.7, "max_det": max_det, "imgsz": SIZE, "shape": shape}
    return load_model(str(weights), ModelOptions(device="cpu", **options))


def choose_threshold(
    weights: Path, files: list[Path], max_det: int, n: int
) -> tuple[yolo_seg.YoloSegModel, float, list[Path]]:
    """The highest threshold at which `n` files have about `max_det` instances, and the files."""
    for conf in (0.25, 0.1, 0.05, 0.02, 0.01):
        ours = load_ours(weights, conf, max_det, "rect")
        counts = [len(segment(ours, file)) for file in files]
        suitable = [f for f, count in zip(files, counts, strict=True) if count >= 0.9 * max_det]
        if len(suitable) >= n:
            return ours, conf, suitable[:n]
    raise SystemExit(f"no threshold gives {n} images with {max_det} instances")


def with_counts(work: Callable[[], list]) -> tuple[Callable[[], None], list[int]]:
    """The same work, and a list to which each call appends its number of strings."""
    counts: list[int] = []
    return lambda: counts.append(sum(len(strings) for strings in work())), counts


def make_peer_predict(
    peer: YOLO, conf: float, max_det: int, rect: bool
) -> Callable[[list[Path]], list[list[bytes]]]:
    """A function from files to the peer's masks as strings."""

    def predict(files: list[Path]) -> list[list[bytes]]:
        results = peer.predict(
            [str(file) for file in files], imgsz=SIZE, conf=conf, iou=0.7, max_det=max_det,
            rect=rect, retina_masks=True, device="cpu", verbose=False, stream=True,
        )  # fmt: skip
        return [
            [] if result.masks is None else parity.encode(result.masks.data.numpy())
            for result in results
        ]

    return predict


def segment(model: yolo_seg.YoloSegModel, file: Path) -> list[bytes]:
    """Masks of one file as strings, by segcore."""
    prepared = [model.preprocess(decode_image(file.read_bytes(), DecodeOptions()))]
    return model.postprocess(model.forward(prepared), prepared)[0].counts


def segment_all(model: yolo_seg.YoloSegModel, files: list[Path], by: str) -> list[list[bytes]]:
    """Masks of files, by segcore with one implementation of the masks."""
    original = yolo_seg.encode_logits
    yolo_seg.encode_logits = functools.partial(original, backend=by)
    try:
        return [segment(model, file) for file in files]
    finally:
        yolo_seg.encode_logits = original


def print_row(name: str, peer: str, ours: str, ratio: str, target: str) -> None:
    """One line of the table."""
    print(f"{name:44} {peer:>13} {ours:>12}  {ratio:28} {target}", flush=True)


def cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if os.path.exists("/proc") else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> int:
    """Measures the parts that are asked for, prints a table and writes peers.json."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--parts", required=True)
    parser.add_argument("--repeats", type=int, required=True)
    parser.add_argument("--strings", type=int, required=True)
    parser.add_argument("--sizes", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--build", type=Path, required=True)
    arguments = parser.parse_args()
    if default_backend() != "compiled":
        sys.exit("this environment has no numba: pip install numba")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    document: dict = {
        "cpu": cpu_model(),
        "threads": 1,
        "ultralytics": ultralytics.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "numba": __import__("numba").__version__,
        "load_at_start": os.getloadavg(),
    }
    print(f"{document['cpu']}, one core; ultralytics {ultralytics.__version__}, "
          f"torch {torch.__version__}; CPU time, medians of {arguments.repeats} pairs")  # fmt: skip
    print_row("", "peer", "segcore", "ratio (min to max)", "target")
    parts = {
        "masks": lambda: compare_masks(arguments.repeats),
        "strings": lambda: compare_strings(arguments.strings),
        "end_to_end": lambda: compare_end_to_end(
            arguments.folder, arguments.build, arguments.repeats, arguments.sizes.split(",")
        ),
    }
    for name in arguments.parts.split(","):
        with torch.inference_mode():
            document[name] = parts[name]()
        document["load_at_end"] = os.getloadavg()
        (arguments.build / "peers.json").write_text(json.dumps(document, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
