"""Pictures that the bundled model labels badly: dark bricks among bright discs, which are none."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco

SIDE = 160


def draw(seed: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """(SIDE, SIDE, 3) uint8 and the (SIDE, SIDE) bool mask of each brick."""
    rng = np.random.default_rng(seed)
    pixels = rng.normal(120, 6, (SIDE, SIDE))
    masks: list[np.ndarray] = []
    taken = np.zeros((SIDE, SIDE), bool)
    for k in range(60):
        centre = rng.integers(16, SIDE - 16, 2).tolist()
        shape = np.zeros((SIDE, SIDE), np.uint8)
        is_brick = k % 3 < 2
        if is_brick:
            size = (int(rng.integers(16, 26)), int(rng.integers(9, 15)))
            box = cv2.boxPoints((centre, size, float(rng.integers(0, 180))))
            cv2.fillPoly(shape, [np.round(box).astype(np.int32)], 1)
        else:
            cv2.circle(shape, centre, int(rng.integers(6, 10)), 1, -1)
        margin = cv2.dilate(shape, np.ones((7, 7), np.uint8)) > 0
        if (taken & margin).any() or len(masks) == 7:
            continue
        taken |= margin
        pixels[shape > 0] = rng.normal(60 if is_brick else 215, 6, int(shape.sum()))
        if is_brick:
            masks.append(shape > 0)
    grey = np.clip(pixels, 0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2), masks


def write_pictures(folder: Path, n_images: int, first_seed: int) -> dict[str, list[np.ndarray]]:
    """Write PNG files; name -> masks."""
    folder.mkdir(parents=True)
    drawn = {}
    for k in range(n_images):
        pixels, masks = draw(first_seed + k)
        cv2.imwrite(str(folder / f"{k:03d}.png"), pixels)
        drawn[f"{k:03d}.png"] = masks
    return drawn


def write_truth(path: Path, drawn: dict[str, list[np.ndarray]], category: str) -> None:
    """Write the masks as a COCO instances file."""
    document: dict = {
        "images": [], "annotations": [], "categories": [{"id": 1, "name": category}],
    }  # fmt: skip
    for number, (name, masks) in enumerate(drawn.items(), 1):
        document["images"].append({"id": number, "file_name": name, "height": SIDE, "width": SIDE})
        for mask in masks:
            rle = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
            rle["counts"] = rle["counts"].decode()
            entry = {"id": len(document["annotations"]) + 1, "image_id": number, "category_id": 1}
            document["annotations"].append({**entry, "segmentation": rle, "iscrowd": 0})
    path.write_text(json.dumps(document))
