"""The rows of ../shared/cases/README.md: what is run, and what is right."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import segcore
from segcore.errors import SegcoreError
from segcore.output.results import open_results
from segcore.storage import Storage
from segcore.text import printable
from tests.support.paths import ROOT, SHARED
from tests.support.run_without_ray import without_ray

CASES_FOLDER = SHARED / "cases"
MIB = 1 << 20


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


def segmented(name: str, folder: Path, **options: Any) -> str:
    """Rows by status and code, masks, and warnings of an input."""
    allowed = {"run.max_failed_fraction": 1.0}
    try:
        with without_ray():
            report = segcore.segment(
                str(CASES_FOLDER / name), str(folder / "out"), options=allowed | options
            )
    except SegcoreError as error:
        return f"{error.code}: {error.message} {error.hint}"
    rows = open_results(Storage(), report.output).to_arrow("images").to_pylist()
    counts = Counter(str(row["error_code"] or "ok") for row in rows)
    warnings = Counter(w.partition(":")[0] for row in rows for w in row["warnings"])
    text = ", ".join(f"{n} {code}" for code, n in sorted(counts.items()))
    text += f"; {sum(row['n_instances'] for row in rows)} masks"
    return text + "".join(f"; {n} {code}" for code, n in sorted(warnings.items()))


def evaluated(name: str, folder: Path) -> str:
    """How `segcore evaluate` ends on ground truth of the four images in coco-train-eval."""
    source = CASES_FOLDER / "coco-train-eval" / "train"
    with without_ray():
        report = segcore.segment(str(source), str(folder / "out"))
    try:
        found = segcore.evaluate(report.output, str(CASES_FOLDER / name))
    except SegcoreError as error:
        return f"{error.code}: {error.message}"
    return f"AP50 {found.scores.mask.ap50:.3f}; notes: {len(found.notes)}"


def trained_on(name: str, folder: Path, images: str) -> str:
    """What reading a training set gives."""
    from segcore.training.config import DataConfig
    from segcore.training.data import label_images
    from segcore.training.labelled_images import read_labelled_set

    path = CASES_FOLDER / name
    data = {"images": CASES_FOLDER / images, "train": path, "val": path}
    try:
        labelled = read_labelled_set(path, DataConfig.model_validate(data))
        n_labels = sum(len(item.classes) for item in label_images(labelled))
    except SegcoreError as error:
        return f"{error.code}: {error.message}"
    return f"{len(labelled.images)} images, {n_labels} labels; notes: {len(labelled.notes)}"


def same_pixels(first: str, second: str, folder: Path, **options: Any) -> str:
    """Whether two files have the same pixels."""
    pixels = []
    for name in (first, second):
        data = (CASES_FOLDER / name).read_bytes()
        pixels.append(segcore_pixels(data, **options))
    return "equal" if (pixels[0] == pixels[1]).all() else "different"


def segcore_pixels(data: bytes, **options: Any) -> Any:
    from segcore.images import DecodeOptions, decode_image

    return decode_image(data, DecodeOptions(**options))


def in_process(code: str, *arguments: str) -> tuple[str, int, int]:
    """Output, exit code and most memory in MiB, beside what was loaded, of Python code."""
    script = (
        "import resource, sys, torch, cv2, pyarrow.parquet\n"
        "from segcore.images import decode_image\n"
        "from segcore.models.registry import read_checkpoint\n"
        "import segcore\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"try:\n    {code}\n"
        "except Exception as error:\n    print(type(error).__name__, str(error)[:200])\n"
        "used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before\n"
        "print('MiB', used >> 10)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=ROOT, env=environment, text=True,
        capture_output=True, timeout=300, check=False,
        preexec_fn=partial(resource.setrlimit, resource.RLIMIT_CPU, (240, 240)),
    )  # fmt: skip
    text = done.stdout + done.stderr
    n_mib = int(text.rpartition("MiB ")[2].split()[0]) if "MiB " in text else -1
    return text.partition("MiB ")[0].strip(), done.returncode, n_mib


def hostile_image(name: str, folder: Path) -> str:
    """Most memory of decoding a file, and what came out."""
    code = "print('ok', decode_image(open(sys.argv[1], 'rb').read()).shape)"
    text, _, n_mib = in_process(code, str(CASES_FOLDER / "hostile" / name))
    return f"{n_mib} MiB; {text}"


def hostile_checkpoint(name: str, folder: Path) -> str:
    """Most memory of reading a checkpoint, and the sentence."""
    code = "read_checkpoint(sys.argv[1]); print('loaded')"
    text, _, n_mib = in_process(code, str(CASES_FOLDER / "hostile" / name))
    return f"{n_mib} MiB; {text}"


def hostile_parquet(name: str, folder: Path) -> str:
    """Rows of a Parquet shard, read in a process of its own, and most memory."""
    code = (
        "from tests.support.archives import codes, open_and_read; from collections import Counter; "
        "from segcore.storage import Storage; "
        "_, s = open_and_read(sys.argv[1], Storage()); "
        "print(len(s), 'rows', dict(Counter(codes(s).values())))"
    )
    text, _, n_mib = in_process(code, str(CASES_FOLDER / "hostile" / name))
    return f"{n_mib} MiB; {text}"


def command(*arguments: str) -> Callable[[Path], str]:
    """Exit code and the end of what a command of segcore prints; no control character may come."""

    def run(folder: Path) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "segcore", *(a.format(out=folder) for a in arguments)],
            cwd=CASES_FOLDER, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True,
            text=True, timeout=300, check=False,
        )  # fmt: skip
        text = done.stdout + done.stderr
        is_clean = all(printable(line) == line for line in text.split("\n"))
        last = " ".join(text.split())[-200:]
        return f"exit {done.returncode}, {'clean' if is_clean else 'CONTROL CHARACTERS'}: {last}"

    return run


def under(limit_mib: int, *words: str) -> Callable[[str], bool]:
    """At most so much memory, and these words."""

    def is_right(found: str) -> bool:
        n_mib = int(found.split()[0])
        return 0 <= n_mib <= limit_mib and all(word in found for word in words)

    return is_right


def has(*words: str) -> Callable[[str], bool]:
    """All of these words occur."""
    return lambda found: all(word in found for word in words)


def wrappers(folder: Path) -> str:
    """Names in wrappers of trainers, as recipe.py writes them, and names of classes."""
    import torch

    from segcore.models.registry import read_checkpoint
    from segcore.models.yolo.network import build_network

    weights = dict(build_network("yolo11n-seg", 2, True).state_dict())
    files: dict[str, object] = {
        "plain": weights,
        "wrapped": {"model": weights, "epoch": 3},
        "names": {"state_dict": weights, "names": {0: "cell", 1: "dirt"}},
        "half": {key: value.half() for key, value in weights.items()},
    }
    for prefix in ("model.", "module.", "_orig_mod.", "module._orig_mod.model."):
        files[prefix] = {prefix + key: value for key, value in weights.items()}
        files["state_dict " + prefix] = {"state_dict": files[prefix]}
    n_loaded, refused = 0, []
    for number, (name, content) in enumerate(files.items()):
        path = folder / f"{number}.pt"
        torch.save(content, path, _use_new_zipfile_serialization=number % 2 == 0)
        try:
            read_checkpoint(str(path))
        except SegcoreError as error:
            refused.append(f"{name}: {error.message[:80]}")
        else:
            n_loaded += 1
    return f"{n_loaded} of {len(files)} loaded" + "".join(f"; {text}" for text in refused)


_LOW_RANGE = "tiff-16bit-low-range"
CASES = (
    Case("tar-concatenated, cat.tar", partial(segmented, "tar-concatenated/cat.tar"), has("7 ok")),
    Case(
        "tar-concatenated, onezero.tar",
        partial(segmented, "tar-concatenated/onezero.tar"),
        has("2 ok"),
    ),
    Case("tar-of-tars", partial(segmented, "tar-of-tars/ILSVRC_train.tar"), has("4 ok")),
    Case("tar-absolute-names", partial(segmented, "tar-absolute-names/abs.tar"), has("2 ok")),
    Case("tar-image-and-mask", partial(segmented, "tar-image-and-mask/seg.tar"), has("4 ok")),
    Case(
        "tar-image-and-mask, suffix",
        partial(segmented, "tar-image-and-mask/seg.tar", **{"source.suffixes": ["jpg"]}),
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
        partial(segmented, f"{_LOW_RANGE}/05_scmos_off100_sig300.tif"),
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
    Case("png-large-text", partial(segmented, "png-large-text"), has("1 ok")),
    Case("jpeg-ffda-tail", partial(segmented, "jpeg-ffda-tail"), has("2 ok")),
    Case(
        "jpeg-ffda-tail, pixels",
        partial(same_pixels, "jpeg-ffda-tail/app_ffda.jpg", "jpeg-ffda-tail/base.jpg"),
        "equal",
    ),
    Case("jpeg-extraneous-bytes", partial(segmented, "jpeg-extraneous-bytes"), has("1 ok", "3 ")),
    Case(
        "jpeg-extraneous-bytes, not strict",
        partial(segmented, "jpeg-extraneous-bytes", **{"decode.strict": False}),
        has("4 ok", "3 repaired"),
    ),
    Case("two-exif-segments", partial(segmented, "two-exif-segments"), has("1 ok")),
    Case(
        "parquet-view-types, strings",
        partial(segmented, "parquet-view-types/string_view_key.parquet"),
        has("2 ok"),
    ),
    Case(
        "parquet-view-types, bytes", partial(segmented, "parquet-view-types/v.parquet"), has(" ok")
    ),
    Case("parquet-list-of-images", partial(segmented, "parquet-list-of-images"), has("3 ok")),
    Case(
        "parquet-hash-column",
        partial(segmented, "parquet-hash-column/meta.parquet"),
        has("source.allow"),
    ),
    Case("manifest-hash-name", partial(segmented, "manifest-hash-name/list.txt"), has("2 ok")),
    Case(
        "manifest-backslash, csv",
        partial(segmented, "manifest-backslash/back.csv"),
        has("2 not_found"),
    ),
    Case(
        "manifest-backslash, txt",
        partial(segmented, "manifest-backslash/back.txt"),
        has("3 not_found"),
    ),
    Case(
        "manifest-semicolon", partial(segmented, "manifest-semicolon/semi.csv"), has("2 not_found")
    ),
    *(
        Case(
            f"coco-train-eval, evaluate {name}",
            partial(evaluated, f"coco-train-eval/{name}.json"),
            has("AP50") if name != "exifraw" else has("exif"),
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
    Case(
        "hostile, escname.tar",
        command("segment", "hostile/escname.tar", "{out}/o", "--dry-run"),
        has("exit 0, clean"),
    ),
    Case("hostile, gt.json", command("evaluate", "{out}", "hostile/gt.json"), has("exit 2, clean")),
)
