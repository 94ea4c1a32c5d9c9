"""Ground truth with fields in any state: the numbers of pycocotools, a note, or one sentence.

The other reader is pycocotools on the document that is right for that state. Where pycocotools can
evaluate the document as it is and gives other numbers, segcore must have said something.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import json
import math
import os
import random
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from segcore.errors import SegcoreError, UsageError
from segcore.evaluation.average_precision import mask_and_box_ap
from segcore.evaluation.matching import ImageRow, match_categories, match_images
from segcore.evaluation.truth_file import load_ground_truth
from tests.support.coco_states import (
    HEIGHT,
    REFUSE,
    SAME,
    WIDTH,
    State,
    changed,
    clean_document,
    detections,
    expected,
    states,
)
from tests.support.paths import ROOT

NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "recall", "recall50")
STATES = tuple(states())
DETECTIONS = detections()
MODEL_CLASSES = {1: "c1", 2: "c2", 3: "c3"}


def segcore_ap(document: dict[str, Any]) -> tuple[dict[str, list[float]], list[str]]:
    """AP of `DETECTIONS` as `segcore evaluate` computes it, and its notes."""
    truth = load_ground_truth(json.dumps(document).encode(), "truth.json")
    rows = [ImageRow(f"/d/s.tar#f/{i}.png", "/d/s.tar", WIDTH, HEIGHT, False) for i in (1, 2, 3)]
    match = match_images(rows, truth.images.values())
    notes = match.check("out", "truth.json", allow_missing=False)
    for image_id, size in match.shown_size.items():
        truth.set_size(image_id, *size)
    truth.require_objects(match.image_ids.values())
    classes, _ = match_categories(MODEL_CLASSES, truth.categories)
    results = [
        {
            **detection,
            "image_id": match.image_ids[f"/d/s.tar#{detection['image']}"],
            "category_id": classes[int(detection["category"][1])],
        }
        for detection in DETECTIONS
        if int(detection["category"][1]) in classes
    ]
    notes += ["a class has no detections"] * (len(classes) < len(truth.categories))
    scores = mask_and_box_ap(truth, match.image_ids.values(), results)
    numbers = {
        kind: [getattr(getattr(scores, kind), name) for name in NAMES] for kind in ("mask", "box")
    }
    return numbers, notes + truth.remarks.sentences()


def pycocotools_ap(document: dict[str, Any]) -> dict[str, list[float]]:
    """The same by pycocotools alone."""
    images = {image["file_name"]: image["id"] for image in document["images"]}
    classes = {c["name"].strip().casefold(): c["id"] for c in document["categories"]}
    results = [
        {**d, "image_id": images[d["image"]], "category_id": classes[d["category"]]}
        for d in DETECTIONS
        if d["category"] in classes
    ]
    numbers = {}
    for kind, name in (("segm", "mask"), ("bbox", "box")):
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO()
            coco.dataset = json.loads(json.dumps(document))
            coco.createIndex()
            keys = (
                "image_id",
                "category_id",
                "score",
                "segmentation" if kind == "segm" else "bbox",
            )
            found = coco.loadRes([{key: result[key] for key in keys} for result in results])
            evaluation = COCOeval(coco, found, kind)
            evaluation.params.maxDets = [500]
            evaluation.evaluate()
            evaluation.accumulate()
        precision, recall = evaluation.eval["precision"][..., 0], evaluation.eval["recall"][..., 0]
        parts = [precision[..., 0], precision[0, ..., 0], precision[5, ..., 0]]
        parts += [precision[..., size] for size in (1, 2, 3)] + [recall[..., 0], recall[0, :, 0]]
        numbers[name] = [p[p > -1].mean() if (p > -1).any() else math.nan for p in parts]
    return numbers


@functools.cache
def _cached_ap(document: str) -> dict[str, list[float]]:
    return pycocotools_ap(json.loads(document))


def check(*chosen: State, apart: bool = False) -> None:
    """Compare what segcore makes of these states with what is right."""
    document, right = changed(*chosen, apart=apart), expected(*chosen, apart=apart)
    label = " and ".join(map(str, chosen))
    if right is None:
        with pytest.raises(UsageError) as caught:
            segcore_ap(document)
        assert len(caught.value.message) < 1500, label
        return
    numbers, notes = segcore_ap(document)
    for kind, values in _cached_ap(json.dumps(right)).items():
        np.testing.assert_allclose(numbers[kind], values, rtol=0, atol=1e-12, err_msg=label)
    wanted = [state.has_note for state in chosen]
    if any(wanted):
        assert notes, label
    elif None not in wanted:
        assert not notes, label


@pytest.mark.parametrize("state", STATES[::6], ids=str)
def test_a_field_in_any_state(state: State) -> None:
    check(state)


def pairs() -> list[tuple[State, State]]:
    """Two states of each pair of fields, and of a field with itself; no id and its references."""
    by_field: dict[tuple[str, str], list[State]] = {}
    for state in STATES:
        by_field.setdefault((state.table, state.field), []).append(state)
    chosen = []
    rng = random.Random(0)
    for (a, first), (b, second) in itertools.combinations_with_replacement(by_field.items(), 2):
        if {a[1], b[1]} & {"image_id", "category_id"} and "id" in (a[1], b[1]):
            continue
        if "(row)" in (a[1], b[1]) and a[0] == b[0]:
            continue
        drawn = list(itertools.product(first, second))
        chosen += rng.sample(drawn, min(len(drawn), 8))
    return chosen


def _collide(first: State, second: State) -> bool:
    """Two entries with one id, or one name: not the same as each state alone."""
    same_field = (first.table, first.field) == (second.table, second.field)
    return same_field and first.table != "annotations" and first.field in ("id", "name")


def test_pairs_of_states_sampled() -> None:
    for first, second in random.Random(1).sample(pairs(), 15):
        if not _collide(first, second):
            check(first, second, apart=first.field == second.field)


@pytest.mark.faults
@pytest.mark.timeout(1200)
def test_a_field_in_every_state_and_in_pairs() -> None:
    for state in STATES:
        check(state)
    for first, second in pairs():
        if not _collide(first, second):
            check(first, second, apart=first.field == second.field)


@pytest.mark.faults
@pytest.mark.timeout(1200)
def test_where_pycocotools_reads_the_file_itself_other_numbers_have_a_note() -> None:
    """In a process for each document: pycocotools may crash, or take all memory."""
    code = "from tests.evaluation.test_coco_states import _print_raw_numbers; _print_raw_numbers()"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    raw = dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))
    assert len(raw) > 60, done.stderr  # those that pycocotools can evaluate at all
    for state in STATES:
        if str(state) not in raw:
            continue
        try:
            numbers, notes = segcore_ap(changed(state))
        except SegcoreError:
            continue
        same = all(
            np.allclose(numbers[kind], raw[str(state)][kind], rtol=0, atol=1e-12, equal_nan=True)
            for kind in numbers
        )
        assert same or notes, state


def _print_raw_numbers() -> None:
    import resource

    for state in STATES:
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
            resource.setrlimit(resource.RLIMIT_CPU, (4, 4))
            with contextlib.suppress(Exception):
                sys.stdout.write(json.dumps([str(state), pycocotools_ap(changed(state))]) + "\n")
                sys.stdout.flush()
            os._exit(0)
        os.waitpid(child, 0)


@pytest.mark.parametrize(
    "text",
    [
        "", "null", "5", '"x"', "[]", "{", "{}", "[" * 100_000, '{"images": ' * 5_000, "NaN",
        '{"images": {}, "annotations": [], "categories": []}',
        '{"images": [], "annotations": null, "categories": []}',
        '{"images": [{"id": ' + "9" * 5_000 + "}]}",
        '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "x"}]}',
    ],
)  # fmt: skip
def test_what_is_no_ground_truth_is_one_sentence(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_ground_truth(text.encode(), "truth.json")
    assert "truth.json" in caught.value.message


def test_every_effect_and_field_is_generated() -> None:
    assert {state.table for state in STATES} == {"images", "annotations", "categories"}
    assert {REFUSE, SAME, "drop"} <= {s.effect for s in STATES if isinstance(s.effect, str)}
    assert len({str(state) for state in STATES}) == len(STATES) > 250
    numbers, notes = segcore_ap(clean_document())
    assert 0.2 < numbers["mask"][0] < 0.95
    assert not notes


@pytest.mark.slow
def test_many_annotations_and_classes_take_linear_time() -> None:
    def seconds(n: int) -> float:
        document = clean_document()
        document["categories"] = [{"id": k, "name": f"c{k}"} for k in range(1, 17)]
        shape = document["annotations"][0]
        document["annotations"] = [
            {**shape, "id": i, "image_id": 1 + i % 3, "category_id": 1 + i % 16} for i in range(n)
        ]
        started = time.process_time()
        segcore_ap(document)
        return time.process_time() - started

    seconds(5_000)  # many are matched by compiled code, which is imported once
    small = seconds(1_000)
    assert seconds(5_000) < 10 * small + 0.5
