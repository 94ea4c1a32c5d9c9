"""What images can be ranked by."""

from __future__ import annotations

from enum import StrEnum

STRATA = ("category", "size", "score")  # what tells the kinds of images apart, see `facts`


class RankBy(StrEnum):
    """What images are ranked by."""

    UNCERTAIN = "uncertain"  # lowest mean score of the instances
    CROWDED = "crowded"  # most instances
    DIVERSE = "diverse"  # least like those before
    RANDOM = "random"
    STRATIFIED = "stratified"  # at random, each kind of image by its share
