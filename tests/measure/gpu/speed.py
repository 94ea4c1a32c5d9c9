"""Speed of each step on a device; parts of `tests.measure.gpu.session`."""

from __future__ import annotations

import itertools
import json
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from segcore import masks
from segcore.images import DecodeOptions, decode_image
from segcore.masks.device.torch_encode import TorchChunk
from segcore.models.base import ModelOptions, Precision
from segcore.models.registry import load_model
from segcore.models.yolo import model as yolo_model
from segcore.models.yolo.model import RawGroup, YoloSegModel
from segcore.testing.synthetic import render_scene

MODEL = "nuclei-yolo11n"


@dataclass(frozen=True)
class Session:
    """What was asked for, and how to time work on that device."""

    device: str
    quick: bool
    data: Path | None
    photos: Path | None

    @property
    def on_gpu(self) -> bool:
        """Whether the device is one of CUDA."""
        return self.device.startswith("cuda")

    @property
    def half(self) -> Precision:
        """The reduced precision for throughput on this device."""
        return "float16" if self.on_gpu else "bfloat16"

    def wait(self) -> None:
        """Return when the device has done what it was given."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], Any], repeats: int) -> float:
        """Median time of a call, after one that is not counted."""
        times = []
        for _ in range(1 + repeats):
            self.wait()
            started = time.perf_counter()
            work()
            self.wait()
            times.append(time.perf_counter() - started)
        return statistics.median(times[1:])

    def launches(self, work: Callable[[], Any]) -> int | None:
        """Kernels that a call launches; None where there is no GPU."""
        if not self.on_gpu:
            return None
        work()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            work()
            self.wait()
        return sum("LaunchKernel" in event.name for event in profiler.events())

    def model(self, name: str = MODEL, **options: Any) -> YoloSegModel:
        """A model on the device."""
        model = load_model(name, ModelOptions(device=self.device, **options))
        assert isinstance(model, YoloSegModel)
        return model


def labelled(session: Session, max_images: int) -> tuple[dict[str, Any], dict[int, np.ndarray]]:
    """A COCO document, and pixels (H, W, 3) uint8 by image id."""
    if session.data is not None:
        document = json.loads((session.data / "instances_val.json").read_text())
        document["images"] = document["images"][:max_images]
        images = {
            entry["id"]: decode_image(
                (session.data / "images" / entry["file_name"]).read_bytes(), DecodeOptions()
            )
            for entry in document["images"]
        }
        document["annotations"] = [a for a in document["annotations"] if a["image_id"] in images]
        return document, images
    images, entries, annotations = {}, [], []
    for index in range(max_images):
        scene = render_scene(0, index)
        height, width = scene.labels.shape
        images[index + 1] = np.repeat(scene.pixels[:, :, None], 3, axis=2)
        entries.append({"id": index + 1, "height": height, "width": width, "file_name": str(index)})
        for label in range(1, int(scene.labels.max()) + 1):
            counts = masks.encode(scene.labels == label)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": 1,
                    "iscrowd": 0,
                    "area": masks.area(counts),
                    "bbox": list(masks.bbox(counts, height, width)),
                    "segmentation": {"size": [height, width], "counts": counts.decode()},
                }
            )
    category = {"id": 1, "name": "nucleus"}
    return {"images": entries, "annotations": annotations, "categories": [category]}, images


def overlapped(model: YoloSegModel, batch: torch.Tensor, prepared: list, batches: int) -> None:
    """Run batches whose postprocessing runs in a second thread, on a stream of its own."""
    on_gpu = batch.device.type == "cuda"
    places = tuple(range(len(prepared)))
    free_slots = threading.Semaphore(2)  # for raw outputs that are held at once

    def postprocess(raw: Any, ready: Any, stream: Any) -> None:
        try:
            if on_gpu:
                with torch.cuda.stream(stream):
                    stream.wait_event(ready)
                    model.postprocess([RawGroup(places, raw)], prepared)
            else:
                model.postprocess([RawGroup(places, raw)], prepared)
        finally:
            free_slots.release()

    stream = torch.cuda.Stream() if on_gpu else None
    with ThreadPoolExecutor(1) as pool:
        pending = []
        for _ in range(batches):
            free_slots.acquire()
            raw = model.infer(batch)
            ready = torch.cuda.current_stream().record_event() if on_gpu else None
            pending.append(pool.submit(postprocess, raw, ready, stream))
        for future in pending:
            future.result()


def throughput(session: Session) -> dict[str, Any]:
    """Images/s from batches on the device; the targets are 5,000 and 0.8 of the forward pass."""
    size = 2 if session.quick else 32
    _, images = labelled(session, size)
    out: dict[str, Any] = {}
    precisions: list[Precision] = ["float32", session.half]
    for precision in precisions:
        model = session.model(precision=precision, imgsz=640, shape="square", batch_size=size)
        prepared = [model.preprocess(image) for image in images.values()]
        prepared = list(itertools.islice(itertools.cycle(prepared), size))
        if session.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        out[precision] = rates(session, model, prepared)
        if session.on_gpu:
            out[precision]["peak_bytes"] = torch.cuda.max_memory_allocated()
    return out


def rates(session: Session, model: YoloSegModel, prepared: list) -> dict[str, Any]:
    """Images/s of each step, alone and together."""
    size, repeats, batches = len(prepared), *((1, 2) if session.quick else (10, 40))
    places = tuple(range(size))
    batch = torch.from_numpy(np.stack([p.pixels for p in prepared])).to(session.device)
    raw = model.infer(batch)

    def after(outputs: Any) -> list:
        return model.postprocess([RawGroup(places, outputs)], prepared)

    def after_by_torch() -> list:
        with mock.patch.multiple(
            yolo_model, pick_encoding=lambda _: TorchChunk, pick_find_kept=lambda _: None
        ):
            return after(raw)

    def copied() -> torch.Tensor:
        return torch.from_numpy(np.stack([p.pixels for p in prepared])).to(session.device)

    with torch.inference_mode():
        seconds = {
            "forward": session.seconds(lambda: [model.infer(batch) for _ in range(4)], repeats) / 4,
            "nms": session.seconds(lambda: model._detect_on_device(raw), repeats),
            "nms_and_masks": session.seconds(lambda: after(raw), repeats),
            "nms_and_masks_by_torch": session.seconds(after_by_torch, repeats),
            "one_after_another": session.seconds(lambda: after(model.infer(batch)), repeats),
            "overlapped": session.seconds(lambda: overlapped(model, batch, prepared, batches), 2)
            / batches,
            "stack_and_copy_to_device": session.seconds(copied, repeats),
        }
    return {
        "batch": size,
        "kernels": model.describe_kernels(),
        "launches": session.launches(lambda: after(raw)),
        "launches_by_torch": session.launches(after_by_torch),
        "instances_per_image": sum(map(len, after(raw))) / size,
        **{f"{name}_images_s": size / one for name, one in seconds.items()},
        "overlapped_of_forward": seconds["forward"] / seconds["overlapped"],
    }


def graph(session: Session) -> dict[str, Any]:
    """The forward pass alone: eager, as a CUDA graph, and compiled."""
    size, repeats, imgsz = (1, 1, 64) if session.quick else (32, 10, 640)
    out: dict[str, Any] = {}
    model = session.model(precision=session.half, imgsz=imgsz, shape="square", batch_size=size)
    batch = torch.zeros((size, 3, imgsz, imgsz), dtype=torch.uint8, device=session.device)
    out["eager_images_s"] = size / session.seconds(lambda: model.infer(batch), repeats)
    if not session.on_gpu:
        return out | {"graph": "needs CUDA"}
    with torch.inference_mode():
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                expected = model.infer(batch)
        torch.cuda.current_stream().wait_stream(side)
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            got = model.infer(batch)
        captured.replay()
        out["graph_same_bits"] = all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
        out["graph_images_s"] = size / session.seconds(captured.replay, repeats)
        compiled = torch.compile(model._network)
        ready = batch.float().div_(255).to(model._dtype)
        ready = ready.contiguous(memory_format=torch.channels_last)
        out["compiled_images_s"] = size / session.seconds(lambda: compiled(ready), repeats)
    return out
