"""What only a machine with a GPU can tell, in one run of some minutes; prints JSON.

    python -m tests.measure.gpu.session --data nuclei --photos photos --out gpu.json
    python -m tests.measure.gpu.session --device cpu --quick      # checks the script itself

The parts (`--parts`, all by default) are independent: where one fails, its error is recorded and
the next part runs.

    masks       realistic instances: strings made on the device against NumPy's, same logits; by
                torch, and on a GPU by Triton
    parity      mask and box AP of each precision on a labelled set (`--data`: a folder with
                instances_val.json and images/; synthetic images without it)
    throughput  images/s from uint8 batches on the device: the forward pass; then NMS and masks, one
                step after another, and with both overlapping in two threads, each with a stream of
                its own; memory
    graph       the forward pass as a CUDA graph and by torch.compile, against eager
    peer        JPEG files (`--photos`) to strings against ultralytics, where it is installed, with
                calibrated random weights; both batched, and in float16 on a GPU
    tests       the tests of masks, NMS and model, those for CUDA among them

Needs what segcore imports for models (numpy, torch, opencv, pydantic, safetensors, pycocotools,
simplejpeg, pillow), and pytest with hypothesis for the tests; neither Ray nor storage.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from segcore import masks
from segcore.evaluation.average_precision import mask_and_box_ap
from segcore.images import DecodeOptions, decode_image
from segcore.masks import EncodedMasks, Window
from segcore.masks.device.automatic import pick_encoding
from segcore.masks.device.encode import ImageMasks, encode_images
from segcore.masks.device.torch_encode import TorchChunk
from segcore.models.base import Precision
from segcore.models.yolo.model import YoloSegModel
from segcore.training.validate import to_coco_results
from tests.measure.gpu.peer import encode_bitmaps, make_checkpoint, require_ultralytics
from tests.measure.gpu.speed import Session, graph, labelled, throughput
from tests.support.paths import ROOT

TESTS = (
    "masks/test_device.py",
    "masks/test_triton.py",
    "models/test_nms.py",
    "models/test_triton_nms.py",
    "models/yolo/test_model.py",
)


def machine(session: Session) -> dict[str, Any]:
    """Names and versions."""
    facts = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "masks_on_cpu": masks.default_backend(),
        "cpus": os.cpu_count(),
        "load": os.getloadavg(),
        "device": session.device,
        "quick": session.quick,
    }
    if session.on_gpu:
        facts |= {
            "gpu": torch.cuda.get_device_name(),
            "capability": torch.cuda.get_device_capability(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return facts


def run_tests(session: Session) -> dict[str, Any]:
    """The outcome of pytest, without the fixtures that need storage and Ray."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--noconftest",
        "--tb=short",
        "-p",
        "no:cacheprovider",
    ]
    command += [str(ROOT / "tests" / name) for name in TESTS[: 1 if session.quick else None]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    text = done.stdout[-4000:] if done.returncode else done.stdout.strip().splitlines()[-1]
    return {"exit": done.returncode, "end": text}


def compare_masks(session: Session) -> dict[str, Any]:
    """How many instances have another string, area or place than NumPy gives."""
    from tests.masks.test_device import blobs
    from tests.masks.test_from_logits import draw_logits

    rng = np.random.default_rng(0)
    shapes = [
        ((480, 640), Window.of_letterbox(80, 0, 560, 640)),
        ((1080, 1920), Window.of_letterbox(140, 0, 500, 640)),
        ((427, 640), Window.of_letterbox(106, 0, 533, 640)),
        ((3000, 4000), Window.of_letterbox(80, 0, 560, 640)),
        ((300, 200), Window.of_letterbox(0, 106, 640, 533)),
    ]
    noise = draw_logits(rng, "smooth", 100, 160, 160)
    device = torch.device(session.device)
    ways = {pick_encoding(device), TorchChunk}
    total, different = 0, dict.fromkeys((way.__name__ for way in ways), 0)
    while total < (200 if session.quick else 20_000):
        scenes = [blobs(rng, noise, 50, *shape) for shape in shapes]
        images = [
            ImageMasks(torch.from_numpy(planes).to(device), None, *rest) for planes, *rest in scenes
        ]
        expected = [masks.encode_logits(*scene) for scene in scenes]
        total += sum(len(encoded.counts) for encoded in expected)
        for way in ways:
            for pair in zip(encode_images(images, start_chunk=way), expected, strict=True):
                pairs = itertools.zip_longest(*map(_instances, pair))
                different[way.__name__] += sum(a != b for a, b in pairs)
    return {"instances": total, "different": different}


def _instances(result: EncodedMasks) -> Iterator[tuple[int, int, bytes]]:
    """(position, area, string) of each instance."""
    return zip(result.keep.tolist(), result.areas.tolist(), result.counts, strict=True)


def parity(session: Session) -> dict[str, Any]:
    """AP of each precision; it must differ from that of float32 by at most 0.002."""
    document, images = labelled(session, 3 if session.quick else 64)
    out: dict[str, Any] = {"data": "given" if session.data else "synthetic", "images": len(images)}
    precisions: list[Precision] = ["float32", "bfloat16"]
    for precision in precisions + (["float16"] if session.on_gpu else []):
        imgsz = 512 if session.quick else 704
        limits = {"conf": 0.01, "iou": 0.65, "max_det": 500, "imgsz": imgsz}
        model = session.model(precision=precision, **limits)
        detections, ids = [], list(images)
        category_ids = {category.id: category.id for category in model.info.categories}
        for start in range(0, len(ids), model.batch_size):
            batch = ids[start : start + model.batch_size]
            prepared = [model.preprocess(images[i]) for i in batch]
            results = model.postprocess(model.forward(prepared), prepared)
            for i, instances in zip(batch, results, strict=True):
                detections += to_coco_results(i, instances, category_ids)
        scores = mask_and_box_ap(document, ids, detections, 500)
        out[precision] = {
            "mask_ap": scores.mask.ap,
            "mask_ap50": scores.mask.ap50,
            "box_ap": scores.box.ap,
            "detections": len(detections),
        }
    for precision, figures in out.items():
        if isinstance(figures, dict) and precision != "float32":
            figures["mask_ap_less_float32"] = figures["mask_ap"] - out["float32"]["mask_ap"]
    return out


def segment_files(model: YoloSegModel, files: list[Path], threads: int) -> int:
    """Files to strings; decoded and preprocessed by threads while the device works. The number."""

    def prepare(file: Path) -> Any:
        return model.preprocess(decode_image(file.read_bytes(), DecodeOptions()))

    n_strings = 0
    with ThreadPoolExecutor(threads) as pool:
        prepared = pool.map(prepare, files)
        while batch := list(itertools.islice(prepared, model.batch_size)):
            for instances in model.postprocess(model.forward(batch), batch):
                n_strings += len(instances.counts)
    return n_strings


def peer(session: Session) -> dict[str, Any]:
    """Files to strings; the target is 8 times the peer's images/s."""
    if session.photos is None:
        return {"skipped": "no --photos"}
    ultralytics = require_ultralytics()

    batch_size, n_files = (2, 4) if session.quick else (32, 256)
    photos = sorted(session.photos.glob("*.jpg"))[:8]
    out: dict[str, Any] = {
        "ultralytics": ultralytics.__version__,
        "files": n_files,
        "batch": batch_size,
    }
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "yolo11n-seg-random.pt"
        make_checkpoint(photos, weights)
        files = _resized(photos, n_files, Path(folder))
        limits = {"conf": 0.25, "iou": 0.7, "max_det": 50, "imgsz": 640}
        segcore_model = session.model(
            str(weights),
            precision="float16" if session.on_gpu else "float32",
            shape="rect",
            batch_size=batch_size,
            **limits,
        )
        peer_model = ultralytics.YOLO(str(weights))
        half = {"half": True} if session.on_gpu else {}

        def run_peer() -> int:
            results = peer_model.predict(
                [str(file) for file in files], batch=batch_size, stream=True, retina_masks=True,
                device=session.device, verbose=False, **half, **limits,
            )  # fmt: skip
            return sum(len(encode_bitmaps(r.masks.data.cpu().numpy())) for r in results if r.masks)

        def run_segcore() -> int:
            return segment_files(segcore_model, files, max(1, (os.cpu_count() or 2) - 1))

        repeats = 1 if session.quick else 3
        out["instances"] = {"segcore": run_segcore(), "peer": run_peer()}
        out["segcore_images_s"] = n_files / session.seconds(run_segcore, repeats)
        out["peer_images_s"] = n_files / session.seconds(run_peer, repeats)
    out["ratio"] = out["segcore_images_s"] / out["peer_images_s"]
    return out


def _resized(photos: list[Path], n: int, folder: Path) -> list[Path]:
    """`n` JPEG files of 640x480 pixels from the photographs, repeated."""
    files = []
    for i, photo in enumerate(itertools.islice(itertools.cycle(photos), n)):
        pixels = cv2.resize(cv2.imread(str(photo)), (640, 480), interpolation=cv2.INTER_CUBIC)
        files.append(folder / f"{i:04d}.jpg")
        cv2.imwrite(str(files[-1]), pixels, [cv2.IMWRITE_JPEG_QUALITY, 90])
    return files


PARTS: dict[str, Callable[[Session], dict[str, Any]]] = {
    "masks": compare_masks,
    "parity": parity,
    "throughput": throughput,
    "graph": graph,
    "peer": peer,
    "tests": run_tests,
}


def main() -> int:
    """Run the parts, print and write what they found; 1 if a part failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: figures mean nothing")
    parser.add_argument("--data", type=Path, help="folder with instances_val.json and images/")
    parser.add_argument("--photos", type=Path, help="folder with JPEG photographs")
    parser.add_argument("--parts", default=",".join(PARTS), help="names with commas")
    parser.add_argument("--out", type=Path, help="also write the JSON there, after each part")
    options = parser.parse_args()
    names = options.parts.split(",")
    if unknown := set(names) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    session = Session(options.device, options.quick, options.data, options.photos)
    document: dict[str, Any] = {"machine": machine(session)}
    failed = False
    for name in names:
        started = time.perf_counter()
        try:
            document[name] = PARTS[name](session)
        except (Exception, SystemExit) as error:  # the next part may still tell something
            document[name] = {"error": f"{type(error).__name__}: {error}"[:2000]}
            failed = True
        document[name]["seconds"] = round(time.perf_counter() - started, 1)
        if options.out:
            options.out.write_text(json.dumps(document, indent=1, default=str))
    print(json.dumps(document, indent=1, default=str))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
