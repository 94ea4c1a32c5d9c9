"""Logits of queries -> instances, as in `post_process_instance_segmentation` of transformers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from segcore.models.checks import check_finite

_QUERIES_PER_CHUNK = 16  # whose logits are resized together: bounds memory


class QueryDetections(NamedTuple):
    """Instances before their masks are at full size, best score first.

    Attributes:
        scores: (N,) float32.
        labels: (N,) int64, positions in the list of classes.
        masks: (N, h, w) bool, on the grid of the logits.
    """

    scores: np.ndarray
    labels: np.ndarray
    masks: np.ndarray


def detect_queries(
    class_logits: Tensor, mask_logits: Tensor, conf: float, grid: tuple[int, int] | None
) -> QueryDetections:
    """Queries of one image -> instances with a score of at least `conf`.

    The rule of `post_process_instance_segmentation` in transformers: of all pairs of query and
    class take the Q most probable (softmax; "no object" left out); a mask is where the logit is
    over 0; the score is the probability of the class times the mean probability inside the mask.

    Args:
        class_logits: (Q, C + 1) float32.
        mask_logits: (Q, h, w) float32.
        conf: The lowest score.
        grid: Height and width to which logits are first resized (bilinear), or None.

    Raises:
        NotFinite: Logits are not.
    """
    check_finite("class or mask logits", class_logits, mask_logits)
    num_queries, num_classes = class_logits.shape[0], class_logits.shape[1] - 1
    probabilities = class_logits.softmax(-1)[:, :-1].flatten()
    # A stable sort instead of topk: the same pairs, and equal ones in the same order everywhere.
    sorted_probabilities, pairs = probabilities.sort(descending=True, stable=True)
    # No score exceeds the probability of its class, so most queries need no mask.
    count = int((sorted_probabilities[:num_queries].double() >= conf).sum())
    sorted_probabilities, pairs = sorted_probabilities[:count], pairs[:count]
    shape = grid or tuple(mask_logits.shape[1:])
    if not count:
        return QueryDetections(
            np.zeros(0, np.float32), np.zeros(0, np.int64), np.zeros((0, *shape), bool)
        )
    mask_scores, bitmaps = [], []
    for chunk in (pairs // num_classes).split(_QUERIES_PER_CHUNK):
        logits = mask_logits[chunk]
        if grid is not None:
            logits = interpolate(logits[None], size=grid, mode="bilinear", align_corners=False)[0]
        logits = logits.flatten(1)
        inside = logits > 0
        mask_scores.append((logits.sigmoid() * inside).sum(1) / (inside.sum(1) + 1e-6))
        bitmaps.append(inside.cpu())
    scores = (sorted_probabilities * torch.cat(mask_scores)).cpu()
    best = scores.sort(descending=True, stable=True).indices
    best = best[scores[best].double() >= conf]
    return QueryDetections(
        scores[best].numpy(),
        (pairs.cpu()[best] % num_classes).numpy(),
        torch.cat(bitmaps)[best].unflatten(1, shape).numpy(),
    )


def nearest_indices(source: int, target: int) -> np.ndarray:
    """(target,) int64: which of `source` pixels each of `target` takes in torch's ``nearest``."""
    line = torch.arange(source, dtype=torch.float32)[None, None]
    return interpolate(line, size=target, mode="nearest")[0, 0].long().numpy()
