"""What the tables say of each segmented image: numbers to rank it by, and words for people."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segcore.output.image_rows import UnitRows, read_unit_rows
from segcore.output.results import Results
from segcore.text import plural

SIZES = ("small", "medium", "large")  # of masks, as COCO has them
_SIZE_EDGES = np.array([32.0**2, 96.0**2])  # pixels: areas below are small, and medium
_SCORE_EDGES = np.array([0.5, 0.75])
_SCORE_BANDS = ("below 0.50", "0.50 to 0.75", "0.75 or more")
_IMAGE_COLUMNS = ("image_id", "status", "n_instances", "width", "height")
_INSTANCE_COLUMNS = ("category", "score", "area")


@dataclass(frozen=True)
class ImageFacts:
    """The segmented images of one unit, N of them, in its order.

    Attributes:
        ids: Their image ids.
        n_instances: (N,) int64.
        mean_scores, lowest_scores: (N,) float64; NaN where nothing was found.
        categories: The most frequent class of each, of equal ones the first in the alphabet; "" for
            none.
        sizes: (N,) places in `SIZES` of the most frequent size, of equal ones the smaller; -1 for
            none.
        features: (N, D) float32, see `segcore.ranking.diverse`; D is 0 if not asked for.
    """

    ids: list[str]
    n_instances: np.ndarray
    mean_scores: np.ndarray
    lowest_scores: np.ndarray
    categories: list[str]
    sizes: np.ndarray
    features: np.ndarray

    def stratum(self, row: int, strata: tuple[str, ...]) -> str:
        """What an image has in common with the others of its stratum, in words."""
        if not self.n_instances[row]:
            return "nothing found"
        words = {
            "category": f"mostly {self.categories[row]}",
            "size": f"{SIZES[self.sizes[row]]} masks",
            "score": f"mean score {_SCORE_BANDS[self._score_band(row)]}",
        }
        return ", ".join(words[name] for name in strata)

    def _score_band(self, row: int) -> int:
        # As the decimal number reads: 0.75 in float32 may be a little less.
        mean = round(float(self.mean_scores[row]), 6)
        return int(np.searchsorted(_SCORE_EDGES, mean, "right"))

    def words(self, row: int) -> str:
        """How many instances there are, of which class and how certain."""
        n = int(self.n_instances[row])
        if not n:
            return "nothing found"
        return (
            f"{plural(n, 'instance')}, mostly {self.categories[row]}, "
            f"mean score {self.mean_scores[row]:.2f}"
        )


def read_counts(results: Results, unit: str) -> ImageFacts:
    """The same as `read_facts` from the `images` table alone: no scores, classes and sizes."""
    table = results.read_rows("images", unit, ("image_id", "status", "n_instances"))
    table = table.filter(pc.equal(table["status"], "ok"))
    n = table.num_rows
    nothing = np.full(n, np.nan)
    return ImageFacts(
        ids=table["image_id"].to_pylist(),
        n_instances=table["n_instances"].to_numpy().astype(np.int64),
        mean_scores=nothing,
        lowest_scores=nothing,
        categories=[""] * n,
        sizes=np.full(n, -1),
        features=np.zeros((n, 0), np.float32),
    )


def read_facts(results: Results, unit: str, columns: dict[str, int] | None = None) -> ImageFacts:
    """What the tables say of the segmented images of a unit.

    Args:
        columns: Class -> column of the features; None to leave features out.

    Raises:
        StorageError, UsageError: The unit cannot be read.
    """
    rows = read_unit_rows(results, unit, _IMAGE_COLUMNS, _INSTANCE_COLUMNS)
    is_ok = np.asarray(pc.equal(rows.images["status"], "ok"), bool)
    counts = np.diff(rows.offsets)
    owners = np.repeat(np.arange(len(counts)), counts)
    scores = rows.instances["score"].to_numpy().astype(np.float64)
    areas = rows.instances["area"].to_numpy().astype(np.float64)
    names = rows.instances["category"].combine_chunks().dictionary_encode()
    if isinstance(names, pa.ChunkedArray):
        names = names.combine_chunks()
    classes = names.dictionary.to_pylist()
    order = sorted(range(len(classes)), key=classes.__getitem__)
    place = np.empty(len(classes), np.int64)
    place[order] = np.arange(len(classes))
    codes = place[names.indices.to_numpy()] if len(classes) else np.zeros(0, np.int64)
    sorted_classes = [*(classes[i] for i in order), ""]
    main = _most_frequent(owners, codes, len(counts))
    bands = np.searchsorted(_SIZE_EDGES, areas, "right")
    features = np.zeros((len(counts), 0), np.float32)
    if columns is not None:
        column_of = np.array([columns.get(name, 0) for name in sorted_classes[:-1]], np.int64)
        wide = 1 + max(columns.values(), default=0)
        features = _features(rows, owners, column_of[codes], wide, scores, areas)
    return ImageFacts(
        ids=[i for i, ok in zip(rows.images["image_id"].to_pylist(), is_ok, strict=True) if ok],
        n_instances=counts[is_ok],
        mean_scores=_means(owners, scores, counts)[is_ok],
        lowest_scores=_lowest(rows.offsets, scores, counts)[is_ok],
        categories=[sorted_classes[code] for code in main[is_ok].tolist()],
        sizes=_most_frequent(owners, bands, len(counts))[is_ok],
        features=features[is_ok],
    )


def hash_ids(ids: list[str], seed: int) -> np.ndarray:
    """(N,) uint64: a random number for each image that depends on its id and the seed alone."""
    key = seed.to_bytes(8, "little")
    digests = (
        hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=8, key=key).digest()
        for name in ids
    )
    return np.frombuffer(b"".join(digests), "<u8")


def _means(owners: np.ndarray, values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    sums = np.bincount(owners, values, len(counts))
    return np.divide(sums, counts, out=np.full(len(counts), np.nan), where=counts > 0)


def _lowest(offsets: np.ndarray, scores: np.ndarray, counts: np.ndarray) -> np.ndarray:
    lowest = np.full(len(counts), np.nan)
    filled = np.flatnonzero(counts)
    if filled.size:
        lowest[filled] = np.minimum.reduceat(scores, offsets[filled])
    return lowest


def _most_frequent(owners: np.ndarray, codes: np.ndarray, n_images: int) -> np.ndarray:
    """(n_images,) the most frequent code of each image, of equal ones the lowest; -1 for none."""
    result = np.full(n_images, -1, np.int64)
    if owners.size:
        n_codes = int(codes.max()) + 1
        pairs, counts = np.unique(owners * n_codes + codes, return_counts=True)
        images, kinds = pairs // n_codes, pairs % n_codes
        order = np.lexsort((kinds, -counts, images))
        first = np.unique(images[order], return_index=True)[1]
        result[images[order][first]] = kinds[order][first]
    return result


def _features(
    rows: UnitRows,
    owners: np.ndarray,
    columns: np.ndarray,
    n_columns: int,
    scores: np.ndarray,
    areas: np.ndarray,
) -> np.ndarray:
    """(N, `n_columns` + 6) float32, each in [0, 1]: see `segcore.ranking.diverse`."""
    counts = np.diff(rows.offsets)
    n_images = len(counts)
    of_class = np.bincount(owners * n_columns + columns, minlength=n_images * n_columns)
    shares = of_class.reshape(n_images, n_columns) / np.maximum(counts, 1)[:, None]
    sides = [rows.images[n].cast(pa.float64()).fill_null(1).to_numpy() for n in ("width", "height")]
    pixels = np.maximum(sides[0] * sides[1], 1)
    lengths = np.sqrt(np.minimum(areas / pixels[owners], 1))
    covered = np.minimum(np.bincount(owners, areas, n_images) / pixels, 1)
    moments = []
    for values in (lengths, scores):
        mean = np.nan_to_num(_means(owners, values, counts))
        square = np.nan_to_num(_means(owners, values * values, counts))
        moments += [mean, np.sqrt(np.maximum(square - mean * mean, 0))]
    numbers = [np.minimum(np.log2(1 + counts) / 10, 1), covered, *moments]
    return np.hstack([np.sqrt(shares), np.stack(numbers, axis=1)]).astype(np.float32)
