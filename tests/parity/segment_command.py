"""From JPEG files to RLE strings through `segcore segment`, against what the peer detects in them.

The programs that run in the peers' environment leave a checkpoint, and what the peer predicts with
it from the same files. Here the command runs as a user runs it, with Ray, and its tables are read.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from tests.parity.agreement import (
    HEADING,
    Detections,
    broken_promises,
    compare_image,
    format_row,
    save_detections,
    sum_images,
)


def run_command(peer: Mapping[str, Any], folder: Path, build: Path) -> Path:
    """Runs `segcore segment` on the peer's images with its checkpoint; returns the output."""
    images, output = build / "images", build / "output"
    shutil.rmtree(build, ignore_errors=True)
    images.mkdir(parents=True)
    for name in peer["images"]:
        shutil.copy(folder / name, images)
    command = [
        *(str(Path(sys.executable).with_name("segcore")), "segment", str(images), str(output)),
        *("--model", str(build.parent / peer["checkpoint"]), "--device", "cpu", "--actors", "1"),
        # One thread, as the peers have: with another number, sums are in another order.
        *("--set", "ray.cpus_per_actor=1"),
    ]
    for key, value in peer["settings"].items():
        command += ["--set", f"model.{key}={value}"]
    with (build / "log.txt").open("w") as log:
        exit_code = subprocess.run(command, stdout=log, stderr=log, check=False).returncode
    if exit_code:
        raise SystemExit(f"segcore segment ended with {exit_code}; see {build / 'log.txt'}")
    return output


def read_tables(output: Path) -> dict[str, Detections]:
    """Detections in the published edition, by file name of the image."""
    edition = output / json.loads((output / "latest.json").read_text())["edition"]
    images = pq.read_table(edition / "images").to_pylist()
    failed = [f"{row['uri']}: {row['error_message']}" for row in images if row["status"] != "ok"]
    if failed:
        raise SystemExit("\n".join(failed))
    rows_by_image: dict[str, list[dict[str, Any]]] = {row["image_id"]: [] for row in images}
    for row in pq.read_table(edition / "instances").sort_by("instance_index").to_pylist():
        rows_by_image[row["image_id"]].append(row)
    return {
        Path(row["uri"]).name: detections_from_rows(
            (row["height"], row["width"]), rows_by_image[row["image_id"]]
        )
        for row in images
    }


def detections_from_rows(size: tuple[int, int], rows: list[dict[str, Any]]) -> Detections:
    """From rows of the table of instances."""
    columns = ("bbox_x", "bbox_y", "bbox_w", "bbox_h")
    boxes = np.array([[row[c] for c in columns] for row in rows], np.float32).reshape(-1, 4)
    return Detections(
        size,
        boxes + np.pad(boxes[:, :2], ((0, 0), (2, 0))),
        np.array([row["score"] for row in rows], np.float32),
        np.array([row["category_id"] for row in rows], int),
        [row["counts"].encode("ascii") for row in rows],
    )


def compare_with_peers(models: Sequence[str], folder: Path, build: Path) -> bool:
    """Prints a table and writes parity-segment.json; returns whether all promises hold."""
    print("segcore segment, from files to tables")
    print(f"{'model':34}{HEADING}")
    results = []
    for model in models:
        peer = json.loads((build / f"{model}-peer.json").read_text())
        detections = read_tables(run_command(peer, folder, build / f"segment-{model}"))
        save_detections(
            build / f"{model}-segcore.json",
            detections,
            Path(peer["checkpoint"]),
            peer["settings"],
        )
        rows = {
            name: compare_image(Detections.from_json(row), detections[name])
            for name, row in peer["images"].items()
        }
        sums = sum_images(list(rows.values()))
        broken = broken_promises(sums)
        results.append({"model": model, "images": rows, "total": sums, "broken": broken})
        suffix = f"  BROKEN: {', '.join(broken)}" if broken else ""
        print(f"{peer['checkpoint']:34}{format_row(sums)}{suffix}", flush=True)
    (build / "parity-segment.json").write_text(json.dumps(results, indent=2) + "\n")
    return not any(result["broken"] for result in results)
