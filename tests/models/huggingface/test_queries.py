"""Queries -> instances, against the definition written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from segcore.models.huggingface.queries import detect_queries, nearest_indices


def detect_by_definition(class_logits, mask_logits, conf):
    """The rule of `detect_queries` without a grid, pair by pair of query and class, float64."""
    exp = np.exp(class_logits.astype(np.float64))
    probabilities = (exp / exp.sum(1, keepdims=True))[:, :-1]
    pairs = [(p, q, c) for q, row in enumerate(probabilities) for c, p in enumerate(row)]
    detections = []
    for p, q, c in sorted(pairs, reverse=True)[: len(class_logits)]:
        inside = mask_logits[q] > 0
        logits = mask_logits[q][inside].astype(np.float64)
        score = p * (1 / (1 + np.exp(-logits))).sum() / (inside.sum() + 1e-6)
        if score >= conf:
            detections.append((score, c, inside))
    return sorted(detections, key=lambda detection: -detection[0])


@pytest.mark.parametrize("conf", [0.0, 0.1, 0.3, 0.999])
def test_queries_become_instances_by_the_definition(conf):
    rng = np.random.default_rng(3)
    class_logits = rng.normal(0, 2, (40, 4)).astype(np.float32)
    mask_logits = rng.normal(0, 3, (40, 9, 12)).astype(np.float32)
    detections = detect_queries(
        torch.from_numpy(class_logits), torch.from_numpy(mask_logits), conf, None
    )
    expected = detect_by_definition(class_logits, mask_logits, conf)
    assert len(detections.scores) == len(expected)
    assert (len(expected) > 0) == (conf < 0.9)
    np.testing.assert_allclose(detections.scores, [score for score, _, _ in expected], rtol=1e-5)
    assert detections.labels.tolist() == [label for _, label, _ in expected]
    for mask, (_, _, inside) in zip(detections.masks, expected, strict=True):
        np.testing.assert_array_equal(mask, inside)


@pytest.mark.parametrize(("source", "target"), [(384, 480), (384, 100), (7, 7), (384, 4032)])
def test_nearest_indices_are_those_of_torch(source, target):
    line = torch.rand(1, 1, source, 1)
    expected = torch.nn.functional.interpolate(line, size=(target, 3), mode="nearest")[0, 0, :, 1]
    assert torch.equal(
        line[0, 0, :, 0][torch.from_numpy(nearest_indices(source, target))], expected
    )
