"""How the files of ../shared/cases are run: each function gives what happens in one line."""

from __future__ import annotations

import atexit
import functools
import gzip
import importlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

import segcore
from segcore.config import load_config
from segcore.errors import ImageError, SegcoreError
from segcore.images import decode_with_warnings
from segcore.output.results import open_results
from segcore.sources import open_source, read_unit
from segcore.sources.units import UnitLimits
from segcore.storage import Storage
from segcore.text import printable
from segcore.worker.pages import image_bytes, split_pages
from tests.support import archives
from tests.support.commands import call_segcore
from tests.support.paths import ROOT, SHARED
from tests.support.run_without_ray import without_ray

CASES_FOLDER = SHARED / "cases"
MIB = 1 << 20


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


def read(name: str, folder: Path, **options: Any) -> str:
    """The same without a model: each image is read and decoded as a job does it."""
    config = load_config(
        sets=[f"{key}={json.dumps(value)}" for key, value in options.items()],
        flags={
            "input": ("input", name if "://" in name else str(CASES_FOLDER / name)),
            "output": ("output", str(folder)),
        },
    )
    counts: Counter[str] = Counter()
    warnings: Counter[str] = Counter()
    storage = Storage(config.storage)
    try:
        source = open_source(config.input, config.source, storage)
        for unit in source.units(UnitLimits()):
            for sample in split_pages(read_unit(unit, storage, config.source), config.decode):
                try:
                    if sample.error:
                        raise sample.error
                    image = decode_with_warnings(image_bytes(sample), config.decode)
                except ImageError as error:
                    counts[str(error.code)] += 1
                else:
                    counts["ok"] += 1
                    warnings.update(str(warning.code) for warning in image.warnings)
    except SegcoreError as error:
        return f"{error.code}: {error.message} {error.hint}"
    text = ", ".join(f"{n} {code}" for code, n in sorted(counts.items()))
    return text + "".join(f"; {n} {code}" for code, n in sorted(warnings.items()))


def read_unpacked(name: str, folder: Path, **options: Any) -> str:
    """The same of a file that lies there compressed."""
    path = folder / Path(name).stem
    path.write_bytes(gzip.decompress((CASES_FOLDER / name).read_bytes()))
    return read(str(path), folder, **options)


def read_odd_keys(folder: Path) -> str:
    """Rows by code of the buckets of s3job.py, on its own server of opaque keys."""
    sys.path.insert(0, str(CASES_FOLDER / "s3-odd-keys"))
    fakes3 = importlib.import_module("fakes3")
    image = archives.image_bytes(extension="jpg")
    odd = [
        *("a b", "a+b", "a%20b", "a%2Fb", "\u00fc", "\u65e5\u672c\u8a9e", "a#b", "a?b", "a&b=c"),
        *(
            "a\\b",
            "a'b\"c",
            "a~b[1]{2}^`|",
            "e\u0301",
            "sub/dir=1/\u00e4+\u00f6",
            "/x",
            "./b",
            "../b",
            "t\tb",
        ),
    ]
    buckets = {
        "mix": {"p/": b"", **{f"p/{key}.jpg": image for key in odd}},
        "ds": {"p/ok1.jpg": image, "p/2024//img2.jpg": image, "p/z.jpg": image},
        "mk": {"p": b"", "p/a.jpg": image, "p/b.jpg": image},
        "lead": {"/p/a.jpg": image, "p/b.jpg": image},
        "rp": {"p/a.jpg": image},
    }
    server = fakes3.serve(buckets, requester_pays={"rp"})
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
    }
    found = []
    for bucket, keys in buckets.items():
        uri = f"s3://{bucket}/" + ("" if bucket == "lead" else "p/")
        options = {"storage.requester_pays": True} if bucket == "rp" else {}
        n_images = sum(key.endswith(".jpg") for key in keys)
        found.append(f"{bucket} {read(uri, folder, **options)} of {n_images}")
    server.shutdown()
    return "; ".join(found)


@functools.cache
def _output_of_four_images() -> str:
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with without_ray():
        source = CASES_FOLDER / "coco-train-eval" / "train"
        return segcore.segment(str(source), f"{folder}/out").output


def evaluated(name: str, folder: Path) -> str:
    """How `segcore evaluate` ends on ground truth of the four images in coco-train-eval."""
    try:
        found = segcore.evaluate(_output_of_four_images(), str(CASES_FOLDER / name))
    except SegcoreError as error:
        return f"{error.code}: {error.message} {error.hint}"
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


def _commands(*commands: Sequence[str]) -> str:
    """Exit codes of commands, the end of what they print, and whether that is printable."""
    codes, text = [], ""
    for arguments in commands:
        done = call_segcore(*arguments)
        codes.append(f"{arguments[0]} {done.returncode}")
        text += done.stdout + done.stderr
    is_clean = all(printable(line) == line for line in text.split("\n"))
    last = " ".join(text.split())[-200:]
    return f"{', '.join(codes)}; {'clean' if is_clean else 'CONTROL CHARACTERS'}: {last}"


def odd_names(name: str, folder: Path) -> str:
    """Every command that shows names of an archive."""
    source, output = str(CASES_FOLDER / name), str(folder / "out")
    with without_ray():
        return _commands(
            ("segment", source, output),
            ("segment", source, output, "--dry-run"),
            *((command, output) for command in ("status", "failures", "verify", "history", "rank")),
            ("verify", output, "--input"),
            ("show", output, "--out", str(folder / "show.png")),
            ("report", output, "--out", str(folder / "report.html")),
            ("export", output, str(folder / "export"), "--format", "coco"),
            ("segment", source + "\x1b[31m", output),
        )


def odd_classes(name: str, folder: Path) -> str:
    """Ground truth whose classes have such names, and one image that there is."""
    images, output = folder / "in", str(folder / "out")
    images.mkdir()
    size = (640, 480)
    Image.new("RGB", size).save(images / "i000.jpg")
    truth = str(CASES_FOLDER / name)
    with without_ray():
        return _commands(
            ("segment", str(images), output),
            ("evaluate", output, truth),
            ("evaluate", output, truth, "--json"),
            ("report", output, "--out", str(folder / "r.html"), "--ground-truth", truth),
        )


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
