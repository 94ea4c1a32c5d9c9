"""Damaged files of every kind of input: rows, a result or one sentence, and soon.

    python -m tests.measure.mutants                       # 1,000 of each kind; six minutes of CPU
    python -m tests.measure.mutants --count 5000 png tar  # so many of these kinds

Each kind is read in a process of its own, whose memory is limited to what it has and 3 GiB. The
exit code is 1 if a file makes segcore raise anything but its own errors, say what would steer a
terminal, take more than 10 s of CPU, or end the process. Checkpoints: tests/models/test_mutants.py.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

from PIL import Image

from segcore.errors import ImageError, SegcoreError
from segcore.evaluation.truth_file import load_ground_truth
from segcore.images import DecodeOptions, decode_with_warnings
from segcore.sources import Sample, SourceOptions, open_source, read_unit
from segcore.sources.units import UnitLimits
from segcore.storage import Storage
from segcore.training.config import DataConfig
from segcore.training.data import label_images
from segcore.training.labelled_images import read_labelled_set
from segcore.worker.pages import image_bytes, split_pages
from tests.support.archives import image_bytes as small_image
from tests.support.archives import parquet_bytes, tar_bytes
from tests.support.checkpoint_mutants import BLIND
from tests.support.coco_states import clean_document
from tests.support.image_files import corpus
from tests.support.manifest_files import make_manifest

IMAGES = ("jpeg", "png", "webp", "tiff", "bmp", "gif", "avif", "jp2")
MANIFESTS = ("txt", "csv", "tsv", "jsonl")
KINDS = (*IMAGES, "heic", "tar", "parquet", *MANIFESTS, "manifest.parquet", "truth", "train")
LIMIT_S = 10.0
LIMIT_BYTES = 3 << 30
_TOKENS = (
    b"null",
    b"-1",
    b"1e999",
    b"NaN",
    b"9" * 400,
    b'"\\ud800"',
    b"[]",
    b"{}",
    b'"',
    b"\0",
    b"",
)


def _good_files(kind: str) -> list[bytes]:
    """Files of a kind that are read whole."""
    if kind in IMAGES:
        return [data for name, data in sorted(corpus().items()) if name.startswith(kind)]
    if kind == "heic":
        return _heic_files()
    images = {f"d/{i}.{ext}": small_image(i, ext) for i, ext in enumerate(("png", "jpg", "webp"))}
    if kind == "tar":
        inner = tar_bytes(images.items())
        long_name = {"n" * 200 + ".png": small_image()}
        return [inner, inner + inner, tar_bytes([("x.tar", inner)]), tar_bytes(long_name.items())]
    if kind == "parquet":
        values = list(images.values())
        structs = [{"bytes": data, "path": name} for name, data in images.items()]
        return [
            parquet_bytes({"key": list(images), "image": values}, 2),
            parquet_bytes({"image": structs}),
            parquet_bytes({"image": [values, values[:1]]}),
        ]
    if kind == "manifest.parquet":
        return [parquet_bytes({"uri": ["a.png", "b.png", None], "n": [1, 2, 3]}, 2)]
    if kind in ("truth", "train"):
        return [json.dumps(clean_document(), indent=1).encode()]
    manifests = (make_manifest(number) for number in range(200))
    return [file.data for file in manifests if file.kind == kind and file.rows][:20]


def _heic_files() -> list[bytes]:
    """Empty where its encoder is not installed."""
    try:
        from tests.grid.others import heic_files
    except ImportError:
        return []
    return [file.data for file in heic_files()[:8]]


def make_mutant(good: list[bytes], number: int) -> bytes:
    """The mutant with this number."""
    random = Random(number)
    data = random.choice(good)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        is_text = data[:1] in b'{["#' or b"\n" in data[:60]
        mutate = _change_token if is_text and random.random() < 0.8 else random.choice(BLIND)
        data = mutate(data, random) if data else b"x"
    return data


def _change_token(data: bytes, random: Random) -> bytes:
    """A number, a word or a mark of JSON or of a table becomes another."""
    words = b'0123456789"[]{}:,;\n\t'
    places = [at for at, byte in enumerate(data) if byte in words]
    if not places:
        return data
    at = random.choice(places)
    return data[:at] + random.choice(_TOKENS) + data[at + random.choice((0, 1, 3)) :]


def _read_image(path: Path) -> str:
    options = DecodeOptions(pages=("first", "all")[path.stat().st_size % 2])
    outcome = "ok"
    sample = Sample("an image", "file", "", path.read_bytes())
    for page in split_pages(iter([sample]), options):
        try:
            decode_with_warnings(image_bytes(page), options)
        except ImageError as error:
            _check_text(error.message)
            outcome = "refused"
    return outcome


def _read_archive(path: Path) -> str:
    """Its rows; images are read, and those of archives decoded."""
    storage, options = Storage(), SourceOptions(allow_empty=True)
    outcome = "ok"
    for unit in open_source(str(path), options, storage).units(UnitLimits()):
        for sample in read_unit(unit, storage, options):
            try:
                decode_with_warnings(image_bytes(sample), DecodeOptions())
            except ImageError as error:
                _check_text(error.message)
                outcome = "failed rows"
    return outcome


def _read_truth(path: Path) -> str:
    load_ground_truth(path.read_bytes(), path.name)
    return "ok"


def _read_training_set(path: Path) -> str:
    data = {"images": path.parent, "train": path, "val": path}
    label_images(read_labelled_set(path, DataConfig.model_validate(data)))
    return "ok"


def _write_training_images(folder: Path) -> None:
    for image in clean_document()["images"]:
        file = folder / image["file_name"]
        file.parent.mkdir(exist_ok=True)
        Image.new("RGB", (image["width"], image["height"])).save(file)


def _check_text(message: str) -> None:
    assert message.isprintable(), f"a message that is not printable: {message!r}"


def _reader(kind: str) -> Callable[[Path], str]:
    if kind in (*IMAGES, "heic"):
        return _read_image
    return {"truth": _read_truth, "train": _read_training_set}.get(kind, _read_archive)


def _try_one(read: Callable[[Path], str], path: Path) -> tuple[str, str]:
    """(outcome, what should not have happened)."""
    started = time.process_time()
    outcome = wrong = ""
    try:
        outcome = read(path)
    except SegcoreError as error:
        outcome = "refused"
        if not all(line.isprintable() for line in error.message.split("\n")):
            wrong = f"a message that is not printable: {error.message!r}"
    except BaseException as error:  # a panic of a library is not an Exception
        outcome, wrong = "FOREIGN", f"{type(error).__name__}: {error}"
    seconds = time.process_time() - started
    return outcome, wrong or (f"{seconds:.1f} s of CPU" if seconds > LIMIT_S else "")


def _try_many(kind: str, first: int, count: int, answers: Path) -> None:
    """In a process of its own: a line of JSON for each file."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries write their warnings past Python
    warnings.simplefilter("ignore")
    good, read = _good_files(kind), _reader(kind)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + LIMIT_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    suffix = kind.rpartition(".")[2] if kind not in ("truth", "train") else "json"
    path = answers.parent / f"mutant.{suffix}"
    if kind == "train":
        _write_training_images(path.parent)
    with answers.open("a") as sink:
        for number in range(first, count):
            path.write_bytes(make_mutant(good, number))
            answer = _try_one(read, path)
            sink.write(json.dumps((number, *answer)) + "\n")
            sink.flush()


def try_kind(kind: str, count: int) -> tuple[Counter[str], list[str]]:
    """Counts of outcomes of a kind; what should not have happened."""
    counts: Counter[str] = Counter()
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        answers = Path(folder) / "answers"
        done = 0
        while done < count:
            answers.write_text("")
            child = os.fork()
            if not child:
                try:
                    _try_many(kind, done, count, answers)
                finally:
                    os._exit(0)
            _, status = os.waitpid(child, 0)
            for line in answers.read_text().splitlines():
                number, outcome, what = json.loads(line)
                counts[outcome] += 1
                done = number + 1
                if what:
                    wrong.append(f"{kind} {number}: {what[:300]}")
            if done < count:
                counts["DIED"] += 1
                wrong.append(f"{kind} {done}: the process ended with {status}")
                done += 1
    return counts, wrong


def main() -> int:
    """Try the kinds that are asked for; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--count", type=int, default=1000)
    arguments = parser.parse_args()
    all_wrong = []
    for kind in arguments.kinds or KINDS:
        if not _good_files(kind):
            print(f"{kind:18} its encoder is not installed")
            continue
        started = time.monotonic()
        counts, wrong = try_kind(kind, arguments.count)
        text = ", ".join(f"{n:,} {outcome}" for outcome, n in sorted(counts.items()))
        print(f"{kind:18}{text}; {time.monotonic() - started:.0f} s", flush=True)
        all_wrong += wrong
    print("\n".join([*all_wrong, f"{len(all_wrong)} that should not have happened"]))
    return 1 if all_wrong else 0


if __name__ == "__main__":
    sys.exit(main())
