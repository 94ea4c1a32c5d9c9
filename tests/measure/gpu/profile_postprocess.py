"""Where the time of a batch goes: milliseconds of each step, and a profile of its kernels.

    python -m tests.measure.gpu.profile_postprocess FOLDER [--model NAME] [--device cuda]

FOLDER holds JPEG files, such as FOLDER/loose of `make_archive`. Prints one JSON object with the
milliseconds and, after it, the tables of torch's profiler.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from segcore.images import DecodeOptions, decode_image
from segcore.instances import Instances
from segcore.models.nms import detect_batch
from segcore.models.yolo.model import PreparedImage, RawGroup, YoloSegModel
from tests.measure.gpu.speed import MODEL, Session

LIMITS = {"conf": 0.25, "iou": 0.7, "max_det": 50}
_TABLE_ROWS = 25


def prepare_batch(model: YoloSegModel, folder: Path) -> list[PreparedImage]:
    """A batch of the model's size from the first files of the folder, repeated if they are few."""
    files = sorted(folder.glob("*.jpg"))[: model.batch_size]
    if not files:
        raise SystemExit(f"no *.jpg in {folder}")
    pixels = [decode_image(file.read_bytes(), DecodeOptions()) for file in files]
    repeated = itertools.islice(itertools.cycle(pixels), model.batch_size)
    return [model.preprocess(image) for image in repeated]


def step_times(
    session: Session, model: YoloSegModel, prepared: list[PreparedImage], repeats: int
) -> dict[str, Any]:
    """Milliseconds of each step of one batch, and what it found."""
    batch = torch.from_numpy(np.stack([image.pixels for image in prepared])).to(session.device)
    raw = model.infer(batch)

    def postprocess(outputs: Any) -> list[Instances]:
        return model.postprocess([RawGroup(tuple(range(len(prepared))), outputs)], prepared)

    with torch.inference_mode():
        seconds = {
            "forward": session.seconds(lambda: model.infer(batch), repeats),
            "nms": session.seconds(
                lambda: detect_batch(raw.boxes, raw.class_logits, *LIMITS.values()), repeats
            ),
            "nms_and_masks": session.seconds(lambda: postprocess(raw), repeats),
            "all": session.seconds(lambda: postprocess(model.infer(batch)), repeats),
        }
    return {
        "device": session.device,
        "batch": len(prepared),
        "instances": sum(map(len, postprocess(raw))),
        **{f"{name}_ms": round(1e3 * value, 2) for name, value in seconds.items()},
    }


def profile_tables(
    session: Session, model: YoloSegModel, prepared: list[PreparedImage], repeats: int
) -> str:
    """The profiler's tables for some batches from canvases on the host to instances."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * session.on_gpu
    with profile(activities=activities) as profiler:
        for _ in range(repeats):
            model.postprocess(model.forward(prepared), prepared)
        session.wait()
    averages = profiler.key_averages()
    keys = ["self_device_time_total"] * session.on_gpu + ["self_cpu_time_total"]
    return "\n".join(
        averages.table(sort_by=key, row_limit=_TABLE_ROWS, max_name_column_width=60) for key in keys
    )


def main() -> None:
    """Measure, profile and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default=MODEL, help="bundled name or checkpoint of YOLO11-seg")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    session = Session(options.device, quick=False, data=None, photos=None)
    model = session.model(
        options.model,
        precision=session.half if session.on_gpu else "float32",
        imgsz=options.imgsz,
        shape="square",
        batch_size=options.batch_size,
        **LIMITS,
    )
    prepared = prepare_batch(model, options.folder)
    print(json.dumps(step_times(session, model, prepared, options.repeats)), flush=True)
    print(profile_tables(session, model, prepared, max(1, options.repeats // 3)))


if __name__ == "__main__":
    main()
