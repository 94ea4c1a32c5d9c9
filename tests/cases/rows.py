"""The rows of ../shared/cases/README.md: what is run, and what is right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.cases.runs import (
    evaluated,
    has,
    hostile_checkpoint,
    hostile_image,
    hostile_parquet,
    odd_classes,
    odd_names,
    read,
    read_odd_keys,
    read_unpacked,
    same_pixels,
    segmented,
    trained_on,
    under,
    wrappers,
)


@dataclass(frozen=True)
class Case:
    """One row.

    Attributes:
        run: Called with an empty folder; returns what happened, in a line.
        right: That line, or a function of it.
    """

    name: str
    run: Callable[[Path], str]
    right: str | Callable[[str], bool]


_LOW_RANGE = "tiff-16bit-low-range"
CASES = (
    Case("tar-concatenated, cat.tar", partial(read, "tar-concatenated/cat.tar"), has("7 ok")),
    Case(
        "tar-concatenated, onezero.tar",
        partial(read, "tar-concatenated/onezero.tar"),
        has("2 ok"),
    ),
    Case("tar-of-tars", partial(read, "tar-of-tars/ILSVRC_train.tar"), has("4 ok")),
    Case("tar-absolute-names", partial(read, "tar-absolute-names/abs.tar"), has("2 ok")),
    Case("tar-image-and-mask", partial(read, "tar-image-and-mask/seg.tar"), has("4 ok")),
    Case(
        "tar-image-and-mask, suffix",
        partial(read, "tar-image-and-mask/seg.tar", **{"source.suffixes": ["jpg"]}),
        has("2 ok"),
    ),
    Case("cmyk-without-adobe", partial(segmented, "cmyk-without-adobe"), has("2 ok; 28 masks")),
    Case(
        "cmyk-without-adobe, pixels",
        partial(
            same_pixels,
            "cmyk-without-adobe/08_cmyk_adobe.jpg",
            "cmyk-without-adobe/09_cmyk_noadobe.jpg",
        ),
        "equal",
    ),
    Case(
        "tiff-16bit-low-range",
        partial(read, f"{_LOW_RANGE}/05_scmos_off100_sig300.tif"),
        has("1 ok", "1 narrow_range"),
    ),
    Case(
        "tiff-16bit-low-range, min_max",
        partial(
            segmented,
            f"{_LOW_RANGE}/05_scmos_off100_sig300.tif",
            **{"decode.wide_range": "min_max"},
        ),
        has("1 ok; 14 masks"),
    ),
    Case(
        "tiff-multipage",
        partial(read_unpacked, "tiff-multipage/11_ome_dapi_second.ome.tif.gz"),
        has("1 ok; 1 pages_left_out"),
    ),
    Case(
        "tiff-multipage, all pages",
        partial(
            read_unpacked,
            "tiff-multipage/11_ome_dapi_second.ome.tif.gz",
            **{"decode.pages": "all"},
        ),
        has("2 ok"),
    ),
    Case("png-large-text", partial(read, "png-large-text"), has("1 ok")),
    Case("jpeg-ffda-tail", partial(read, "jpeg-ffda-tail"), has("2 ok")),
    Case(
        "jpeg-ffda-tail, pixels",
        partial(same_pixels, "jpeg-ffda-tail/app_ffda.jpg", "jpeg-ffda-tail/base.jpg"),
        "equal",
    ),
    Case(
        "jpeg-extraneous-bytes",
        partial(read, "jpeg-extraneous-bytes"),
        has("1 ok", "2 corrupt", "1 truncated"),
    ),
    Case(
        "jpeg-extraneous-bytes, not strict",
        partial(read, "jpeg-extraneous-bytes", **{"decode.strict": False}),
        has("4 ok", "3 repaired"),
    ),
    Case("two-exif-segments", partial(read, "two-exif-segments"), has("1 ok")),
    Case(
        "parquet-view-types, strings",
        partial(read, "parquet-view-types/string_view_key.parquet"),
        has("2 ok"),
    ),
    Case("parquet-view-types, bytes", partial(read, "parquet-view-types/v.parquet"), has(" ok")),
    Case("parquet-list-of-images", partial(read, "parquet-list-of-images"), has("3 ok")),
    Case(
        "parquet-hash-column",
        partial(read, "parquet-hash-column/meta.parquet"),
        has("source.allow"),
    ),
    Case(
        "s3-odd-keys",
        read_odd_keys,
        has("mix 18 ok of 18; ds 3 ok of 3; mk 2 ok of 2; lead 2 ok of 2; rp 1 ok of 1"),
    ),
    Case("manifest-hash-name", partial(read, "manifest-hash-name/list.txt"), has("2 ok")),
    Case(
        "manifest-backslash, csv",
        partial(read, "manifest-backslash/back.csv"),
        has("2 not_found"),
    ),
    Case(
        "manifest-backslash, txt",
        partial(read, "manifest-backslash/back.txt"),
        has("3 not_found"),
    ),
    Case("manifest-semicolon", partial(read, "manifest-semicolon/semi.csv"), has("2 not_found")),
    *(
        Case(
            f"coco-train-eval, evaluate {name}",
            partial(evaluated, f"coco-train-eval/{name}.json"),
            has("AP50") if name not in ("boxonly", "exifraw") else has("usage_error"),
        )
        for name in ("ok", "strid", "emptyseg", "nullseg", "backslash", "boxonly", "exifraw")
    ),
    *(
        Case(
            f"coco-train-eval, train {name}",
            partial(trained_on, f"coco-train-eval/{name}.json", images="coco-train-eval"),
            has(" labels") if name not in ("boxonly", "exifraw") else has("usage_error"),
        )
        for name in ("ok", "strid", "emptyseg", "nullseg", "backslash", "boxonly", "exifraw")
    ),
    Case(
        "train-exif-and-folders, folders",
        partial(trained_on, "train-exif-and-folders/rep.json", images="train-exif-and-folders"),
        has("2 images"),
    ),
    Case(
        "train-exif-and-folders, EXIF",
        partial(trained_on, "train-exif-and-folders/raw.json", images="train-exif-and-folders"),
        has("usage_error", "EXIF"),
    ),
    Case("checkpoint-prefixes", wrappers, has("12 of 12 loaded")),
    Case(
        "hostile, pq-dict-image",
        partial(hostile_parquet, "pq-dict-image.parquet"),
        under(300, "64 rows", "too_many_bytes"),
    ),
    Case(
        "hostile, pq-one-big",
        partial(hostile_parquet, "pq-one-big.parquet"),
        under(300, "too_many_bytes"),
    ),
    Case(
        "hostile, pq-null-rows",
        partial(hostile_parquet, "pq-null-rows.parquet"),
        under(300, "1 rows", "shard_corrupt"),  # more rows than bytes
    ),
    Case(
        "hostile, webp-anim-canvas",
        partial(hostile_image, "webp-anim-canvas.webp"),
        under(64, "pixels"),
    ),
    Case("hostile, big-bit1", partial(hostile_image, "big-bit1.png"), under(1536)),
    *(
        Case(
            f"hostile, {name}",
            partial(hostile_checkpoint, f"{name}.pt"),
            under(64, "CheckpointError"),
        )
        for name in (
            "ck-byteorder-bomb-bz2",
            "ck-hash-dag",
            "ck-badzlib",
            "ck-encrypted",
            "ck-zero-huge2",
            "ck-unicode-leak",
        )
    ),
    Case("hostile, escname.tar", partial(odd_names, "hostile/escname.tar"), has("clean")),
    Case("hostile, gt.json", partial(odd_classes, "hostile/gt.json"), has("evaluate 0", "clean")),
)
