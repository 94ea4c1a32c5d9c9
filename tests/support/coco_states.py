"""COCO documents with fields in every state that JSON allows, and what is right for each.

A `State` changes one entry of a document. Its effect says what a document that pycocotools can
evaluate has in its place; `expected` builds that document from the clean one, independently of how
segcore reads the other.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

HEIGHT, WIDTH = 60, 80
MISSING = object()
NAN, INFINITY, HUGE = math.nan, math.inf, 10**30

# Effects
SAME = "same"  # as if the entry had not been changed
DROP = "drop"  # the annotation does not count
REFUSE = "refuse"  # one sentence, and the command ends


@dataclass(frozen=True)
class Put:
    """The clean document has this value; None for area and bbox: that of the mask."""

    value: Any


@dataclass(frozen=True)
class State:
    """One field in one state.

    Attributes:
        value: What the field gets; MISSING removes it. A function gets the entry and returns it.
        references: Whether the annotations that name the entry by this id follow it.
        has_note: Whether segcore must say something; None: it may.
    """

    table: str
    field: str
    name: str
    value: Any
    effect: Any
    references: bool = False
    has_note: bool | None = True

    def __str__(self) -> str:
        return f"{self.table}.{self.field}-{self.name}"


def clean_document() -> dict[str, Any]:
    """Three images, three classes, twelve rectangles and two crowds."""
    images = [
        {"id": i, "file_name": f"f/{i}.png", "width": WIDTH, "height": HEIGHT} for i in (1, 2, 3)
    ]
    categories = [{"id": k, "name": f"c{k}"} for k in (1, 2, 3)]
    annotations = []
    for i, k, row in itertools.product((1, 2, 3), (1, 2), (0, 1)):
        x, y, side = 3 + 30 * (k - 1), 4 + 27 * row, 14 + 2 * i + 3 * row
        annotations.append(_rectangle(len(annotations) + 1, i, k, x, y, side, side - 2))
    for i in (1, 2):
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        mask[30:58, 60:78] = 1
        flat = mask.ravel(order="F")
        edges = np.flatnonzero(np.diff(flat)) + 1
        runs = np.diff(edges, prepend=0, append=flat.size).tolist()
        crowd = _rectangle(len(annotations) + 1, i, 2, 60, 30, 18, 28)
        segmentation = {"size": [HEIGHT, WIDTH], "counts": runs}
        annotations.append({**crowd, "segmentation": segmentation, "iscrowd": 1})
    return {"images": images, "categories": categories, "annotations": annotations}


def _rectangle(id_: int, image: int, category: int, x: int, y: int, w: int, h: int) -> dict:
    return {
        "id": id_,
        "image_id": image,
        "category_id": category,
        "segmentation": [corners(x, y, w, h)],
        "area": float(w * h),
        "bbox": [float(v) for v in (x, y, w, h)],
        "iscrowd": 0,
    }


def corners(x: float, y: float, w: float, h: float) -> list[float]:
    """A rectangle as a polygon."""
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def detections() -> list[dict[str, Any]]:
    """Shifted copies of the objects; `image` and `category` are names.

    No two scores are equal: which of them counts first depends on the order of the ids.
    """
    rng = np.random.default_rng(0)
    found = []
    for annotation in clean_document()["annotations"]:
        x, y, w, h = annotation["bbox"]
        for score in (0.9, 0.6):
            mask = np.zeros((HEIGHT, WIDTH), np.uint8)
            dx, dy = (int(v) for v in rng.integers(-3, 4, 2))
            left, top = int(max(0, x + dx)), int(max(0, y + dy))
            mask[top : int(y + dy + h), left : int(x + dx + w)] = 1
            rle = coco_mask.encode(np.asfortranarray(mask))
            found.append(
                {
                    "image": f"f/{annotation['image_id']}.png",
                    "category": f"c{annotation['category_id']}",
                    "score": score - 0.001 * len(found),
                    "segmentation": rle,
                    "bbox": coco_mask.toBbox(rle).tolist(),
                }
            )
    return found


def states() -> Iterator[State]:
    """Every field in every state."""
    yield from _id_states()
    yield from _reference_states()
    yield from _segmentation_states()
    yield from _number_states()
    yield from _crowd_states()
    yield from _image_states()
    yield from _category_states()


_NEVER_AN_ID = {
    "missing": MISSING, "null": None, "nan": NAN, "infinity": INFINITY, "true": True,
    "list": [1], "object": {"a": 1}, "empty": "", "fraction": 1.5, "nested": [[[]]],
}  # fmt: skip


def _id_states() -> Iterator[State]:
    strange = _NEVER_AN_ID | {"text": "a1", "huge": HUGE, "negative": -4, "float": 2.0}
    for name, value in strange.items():
        # For pycocotools true is 1, the id of another annotation.
        has_note = None if value is True else False
        yield State("annotations", "id", name, value, SAME, has_note=has_note)
    for name, value in {"zero": 0, "duplicate": 1}.items():
        yield State("annotations", "id", name, value, SAME)
    for table in ("images", "categories"):
        for name, value in _NEVER_AN_ID.items():
            yield State(table, "id", name, value, REFUSE)
        yield State(table, "id", "duplicate", 3, REFUSE)
        for name, value in {"zero": 0, "negative": -7, "huge": HUGE, "word": "img_001"}.items():
            yield State(table, "id", name, value, SAME, references=True, has_note=False)
        yield State(table, "id", "float", lambda row: {**row, "id": float(row["id"])}, SAME,
                    has_note=False)  # fmt: skip
        yield State(table, "id", "number-as-text", lambda row: {**row, "id": str(row["id"])}, SAME)
    for table in ("images", "annotations", "categories"):
        effect = DROP if table == "annotations" else REFUSE
        for name, value in {"null": None, "number": 5, "text": "x", "list": []}.items():
            yield State(table, "(row)", name, lambda row, value=value: value, effect)


def _reference_states() -> Iterator[State]:
    for field in ("image_id", "category_id"):
        unknown = _NEVER_AN_ID | {"unknown": 99, "word": "unknown", "huge": HUGE}
        for name, value in unknown.items():
            yield State("annotations", field, name, value, DROP)
        yield State("annotations", field, "as-text",
                    lambda row, f=field: {**row, f: str(row[f])}, SAME)  # fmt: skip
        yield State("annotations", field, "float",
                    lambda row, f=field: {**row, f: float(row[f])}, SAME,
                    has_note=False)  # fmt: skip


def _segmentation_states() -> Iterator[State]:
    good = corners(5, 6, 20, 15)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[6:21, 5:25] = 1
    compressed = coco_mask.encode(mask)["counts"].decode()
    size, n = [HEIGHT, WIDTH], HEIGHT * WIDTH
    runs = [306] + [15, 45] * 19 + [15]
    runs.append(n - sum(runs))
    rle = {"size": size, "counts": runs}
    dropped = {
        "missing": MISSING, "null": None, "empty": [], "object": {}, "text": "x", "number": 5,
        "true": True, "nan": NAN, "empty-polygon": [[]], "empty-polygons": [[], []],
        "nulls": [None], "flat": good, "two-points": [good[:4]], "odd": [good[:7]],
        "one-point": [good[:2]], "nan-inside": [[NAN, *good[1:]]],
        "infinity-inside": [[*good[:5], INFINITY, 3, 4]], "far": [[1e30, *good[1:]]],
        "huge": [[HUGE, *good[1:]]], "very-huge": [[10**400, *good[1:]]],
        "minus-far": [[*good[:7], -1e300]], "texts": [[str(v) for v in good]],
        "null-inside": [[None, *good[1:]]], "true-inside": [[True, *good[1:]]],
        "pairs": [[[1, 2], [30, 2], [30, 40]]], "deep": [[[[[[1]]]]]],
        "objects": [{"x": 1, "y": 2}], "text-polygon": ["1 2 3 4 5 6"],
        "zigzag": [[0, 0, 80, 60] * 30_000],
        "rle-other-size": {**rle, "size": [WIDTH, HEIGHT]}, "rle-no-size": {"counts": runs},
        "rle-size-null": {**rle, "size": None}, "rle-size-one": {**rle, "size": [HEIGHT]},
        "rle-size-text": {**rle, "size": ["60", "80"]}, "rle-size-nan": {**rle, "size": [60, NAN]},
        "rle-size-huge": {**rle, "size": [HUGE, HUGE]}, "rle-no-counts": {"size": size},
        "rle-counts-null": {**rle, "counts": None}, "rle-counts-number": {**rle, "counts": 7},
        "rle-counts-empty": {**rle, "counts": []}, "rle-text-empty": {**rle, "counts": ""},
        "rle-short": {**rle, "counts": runs[:-1]}, "rle-long": {**rle, "counts": [*runs, 0, 5]},
        "rle-negative": {**rle, "counts": [-5, n + 5]}, "rle-texts": {**rle, "counts": ["306"]},
        "rle-huge": {**rle, "counts": [HUGE]}, "rle-nan": {**rle, "counts": [NAN, n]},
        "rle-fraction": {**rle, "counts": [0.5, n - 0.5]}, "rle-true": {**rle, "counts": [True]},
        "rle-nested": {**rle, "counts": [runs]}, "rle-garbage": {**rle, "counts": "\x00~ü"},
        "rle-cut": {**rle, "counts": compressed[:-1]},
        "rle-joined": {**rle, "counts": compressed * 2},
        "rle-endless": {**rle, "counts": "o" * 50}, "rle-list-bad": [{**rle, "size": [1, 1]}],
    }  # fmt: skip
    for name, value in dropped.items():
        yield State("annotations", "segmentation", name, value, DROP)
    plain = Put([good])
    whole = Put(rle)
    kept = {
        "polygon-as-integers": ([[int(v) for v in good]], plain, False),
        "polygon-and-empty": ([good, []], plain, True),
        "polygon-and-odd": ([good[:7], good], plain, True),
        "polygon-and-nan": ([good, [NAN] * 6], plain, True),
        "polygon-and-null": ([good, None], plain, True),
        "polygon-and-two-points": ([good, good[:4]], plain, True),
        "two-polygons": ([good, corners(1, 1, 9, 9)], Put([good, corners(1, 1, 9, 9)]), False),
        "outside": ([corners(-30, -20, 50, 50)], Put([corners(-30, -20, 50, 50)]), False),
        "far-outside": ([corners(-300, 9, 900, 9)], Put([corners(-300, 9, 900, 9)]), False),
        "no-pixel": ([corners(-20, -20, 9, 9)], Put([corners(-20, -20, 9, 9)]), True),
        "line": ([[1, 1, 5, 5, 9, 9]], Put([[1, 1, 5, 5, 9, 9]]), None),
        "compressed": ({**rle, "counts": compressed}, whole, False),
        "uncompressed": (rle, whole, False),
        "float-runs": ({**rle, "counts": [float(v) for v in runs]}, whole, False),
        "float-size": ({**rle, "size": [60.0, 80.0]}, whole, False),
        "rle-list": ([rle], whole, False),
        "rle-list-compressed": ([{**rle, "counts": compressed}, rle], whole, False),
        "rle-empty-mask": ({**rle, "counts": [n]}, Put({**rle, "counts": [n]}), True),
        "rle-full": ({**rle, "counts": [0, n]}, Put({**rle, "counts": [0, n]}), False),
    }  # fmt: skip
    for name, (value, effect, has_note) in kept.items():
        yield State("annotations", "segmentation", name, value, effect, has_note=has_note)


def _number_states() -> Iterator[State]:
    never_numbers = {
        "text": "274", "nan": NAN, "infinity": INFINITY, "minus-infinity": -INFINITY,
        "true": True, "list": [1.0], "object": {}, "nested": [[]], "huge": HUGE, "empty": "",
    }  # fmt: skip
    for field in ("area", "bbox"):
        for name, value in {"missing": MISSING, "null": None}.items():
            yield State("annotations", field, name, value, Put(None), has_note=False)
        for name, value in never_numbers.items():
            yield State("annotations", field, name, value, Put(None))
    for name, value in {"negative": -5.0, "far": 1e300}.items():
        yield State("annotations", "area", name, value, Put(None))
    for value in (0, 1, 5000.5, 1e9):
        yield State("annotations", "area", str(value), value, Put(value), has_note=False)
    boxes = {
        "empty-list": [], "three": [1, 2, 3], "five": [1, 2, 3, 4, 5], "nan-inside": [1, NAN, 3, 4],
        "infinity-inside": [1, 2, INFINITY, 4], "negative": [20, 20, -5, 9], "far": [1e300] * 4,
        "texts": ["1", "2", "3", "4"], "nulls": [None] * 4, "trues": [True] * 4,
        "lists": [[1], [2], [3], [4]], "huge-inside": [HUGE, 1, 1, 1],
    }  # fmt: skip
    for name, value in boxes.items():
        yield State("annotations", "bbox", name, value, Put(None))
    for value in ([0, 0, 0, 0], [5.5, 6.5, 20.25, 0], [-10, -10, 300, 300]):
        yield State("annotations", "bbox", str(value), value, Put(value), has_note=False)


def _crowd_states() -> Iterator[State]:
    for name, value in {"missing": MISSING, "null": None, "false": False, "float": 0.0}.items():
        yield State("annotations", "iscrowd", name, value, Put(0), has_note=False)
    for name, value in {"true": True, "one": 1, "float-one": 1.0}.items():
        yield State("annotations", "iscrowd", name, value, Put(1), has_note=False)
    for value in (2, -1, 0.5, 256, HUGE, "1"):
        yield State("annotations", "iscrowd", f"crowd {value!r}", value, Put(1))
    yield State("annotations", "iscrowd", "text-zero", "0", Put(0))
    bad = {"text": "yes", "empty": "", "nan": NAN, "infinity": INFINITY, "list": [], "object": {}}
    for name, value in bad.items():
        yield State("annotations", "iscrowd", name, value, DROP)


def _image_states() -> Iterator[State]:
    bad = {"missing": MISSING, "null": None, "empty": "", "number": 5, "list": ["a"], "true": True}
    for name, value in bad.items():
        yield State("images", "file_name", name, value, REFUSE)
    yield State("images", "file_name", "unknown", "nowhere.png", REFUSE)
    spellings: dict[str, Callable[[str], str]] = {
        "backslash": lambda name: name.replace("/", "\\"),
        "drive": lambda name: "C:\\data\\" + name.replace("/", "\\"),
        "dots": lambda name: f"./{name}",
        "folders": lambda name: f"/data/train/{name}",
        "parent": lambda name: f"../x/{name}",
        "without-folder": lambda name: name.split("/")[-1],
    }
    for name, spell in spellings.items():
        yield State("images", "file_name", name,
                    lambda row, spell=spell: {**row, "file_name": spell(row["file_name"])}, SAME,
                    has_note=False)  # fmt: skip
    for field, right in (("width", WIDTH), ("height", HEIGHT)):
        for name, value in {"missing": MISSING, "null": None}.items():
            yield State("images", field, name, value, SAME)
        yield State("images", field, "float", float(right), SAME, has_note=False)
        sizes = {
            "text": str(right), "fraction": right + 0.5, "other": right + 1, "zero": 0,
            "negative": -right, "nan": NAN, "infinity": INFINITY, "true": True, "list": [right],
            "huge": HUGE, "large": 2**33,
        }  # fmt: skip
        for name, value in sizes.items():
            yield State("images", field, name, value, REFUSE)
    yield State("images", "(row)", "swapped",
                lambda row: {**row, "width": HEIGHT, "height": WIDTH}, REFUSE)  # fmt: skip


def _category_states() -> Iterator[State]:
    bad = {
        "missing": MISSING, "null": None, "empty": "", "blank": "  ", "true": True, "list": ["a"],
        "object": {}, "nan": NAN,
    }  # fmt: skip
    for name, value in bad.items():
        yield State("categories", "name", name, value, REFUSE)
    others = {"markup": "[/x]", "escape": "\x1b[31mred", "surrogate": "\ud800", "long": "x" * 9999}
    for name, value in (others | {"number": 5}).items():
        yield State("categories", "name", name, value, Put(str(value)))
    for name, value in {"case": str.upper, "spaces": lambda text: f" {text} "}.items():
        yield State("categories", "name", name,
                    lambda row, change=value: {**row, "name": change(row["name"])}, SAME,
                    has_note=False)  # fmt: skip


_ENTRY = {"images": 0, "categories": 0, "annotations": 1}


def changed(*chosen: State, apart: bool = False) -> dict[str, Any]:
    """The clean document with these states; the second one in another entry where `apart`."""
    document = clean_document()
    for k, state in enumerate(sorted(chosen, key=lambda s: s.table == "annotations")):
        rows = document[state.table]
        place = _ENTRY[state.table] + (k if apart else 0)
        before = rows[place]
        if callable(state.value):
            rows[place] = state.value(before)
        elif state.value is MISSING:
            rows[place] = {key: v for key, v in before.items() if key != state.field}
        else:
            rows[place] = {**before, state.field: copy.deepcopy(state.value)}
        if state.references:
            key = "image_id" if state.table == "images" else "category_id"
            for annotation in document["annotations"]:
                if annotation[key] == before["id"]:
                    annotation[key] = state.value
    return document


def expected(*chosen: State, apart: bool = False) -> dict[str, Any] | None:
    """The document that pycocotools evaluates in its place; None where it is refused."""
    if any(state.effect == REFUSE for state in chosen):
        return None
    document = clean_document()
    dropped = set()
    for k, state in enumerate(sorted(chosen, key=lambda s: s.table == "annotations")):
        place = _ENTRY[state.table] + (k if apart else 0)
        if state.effect == DROP:
            dropped.add(place)
        elif isinstance(state.effect, Put):
            document[state.table][place][state.field] = copy.deepcopy(state.effect.value)
    annotations = [a for i, a in enumerate(document["annotations"]) if i not in dropped]
    for annotation in annotations:
        segmentation = annotation["segmentation"]
        rle = coco_mask.frPyObjects(segmentation, HEIGHT, WIDTH)
        rle = coco_mask.merge(rle) if isinstance(rle, list) else rle
        if annotation["area"] is None:
            annotation["area"] = float(coco_mask.area(rle))
        if annotation["bbox"] is None:
            annotation["bbox"] = coco_mask.toBbox(rle).tolist()
    document["annotations"] = annotations
    return document
