"""Make the stored outputs of schema 1 with the old code, and record what that code reports.

    git worktree add ../old e8b9e42
    python -m tests.compat.make_schema1 ../old

The result is a fact about the old code. When a test disagrees with it, fix the new code, or change
the promise in docs/output.md; do not run this again to make the test pass.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.compat.schema1_store import (
    BUCKET,
    ROOT_URI,
    STORE,
    Bucket,
    Outcome,
    arguments,
    decoded,
    is_lease,
    run,
    steady,
)

COMMIT = "e8b9e42"
MODEL = "fake_models:BrightModel"
RAISES = (255, 0, 255)  # a first pixel of this colour makes the model raise, unless mended

# Small units, so that a few images fill several. More tar members fail than the default allows,
# which records exit code 3.
SEGMENT = {
    "loose": ["--set", "plan.images=4", "--set", "run.max_failed_fraction=0.5"],
    "tars": ["--set", "plan.images=6", "--set", "plan.bytes=11000"],
    "tables": ["--set", "plan.images=3", "--set", "run.max_failed_fraction=0.2"],
}
EVERYWHERE = ["--actors", "1"]

# Replaces the process, host and user that held the lease on the machine that made the files.
NOBODY = {
    "id": "0" * 32,
    "host": "host-of-schema1",
    "pid": 4711,
    "user": "user-of-schema1",
    "since": "2025-01-01T00:00:00+00:00",
    "machine": "0" * 16,
    "born": 1,
}

Box = tuple[int, int, int, int]  # x, y, width, height of the bright area of an image


def picture(
    box: Box | None,
    kind: str = "PNG",
    first: tuple[int, int, int] = (0, 0, 0),
    size: tuple[int, int] = (56, 40),
    round_: bool = True,
    **options: Any,
) -> bytes:
    """An image of (width, height) `size` with one bright ellipse, or a rectangle, encoded."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    if box:
        x, y, w, h = box
        across = (2 * np.arange(w) + 1 - w) / w
        down = (2 * np.arange(h) + 1 - h) / h
        bright = across[None] ** 2 + down[:, None] ** 2 <= 1 if round_ else np.True_
        pixels[y : y + h, x : x + w, 1] = 220 * bright
    pixels[0, 0] = first
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, kind, **options)
    return sink.getvalue()


def blocks() -> bytes:
    """A JPEG with EXIF orientation, its edges on 16-pixel blocks so that all decoders agree."""
    exif = Image.Exif()
    exif[274] = 6
    box = (16, 0, 16, 32)
    return picture(box, "JPEG", size=(48, 32), round_=False, quality=95, exif=exif)


def loose_before() -> dict[str, bytes]:
    """Ten loose images: units of 4, 4 and 2."""
    return {
        "birds/0.png": picture((3, 4, 12, 9)),
        "birds/1.png": picture((20, 6, 15, 11)),
        "birds/2 blank.png": picture(None),
        "birds/3.jpg": blocks(),
        "cells/4.png": picture((5, 5, 10, 10)),
        "cells/5.png": picture((7, 8, 20, 13), first=RAISES),
        "cells/6.png": picture((30, 2, 9, 21)),
        "cells/7.png": picture((1, 1, 30, 30))[:90],  # cut off
        "cells/8.webp": picture((10, 20, 17, 9), "WEBP", lossless=True),
        "cells/9.bmp": picture((4, 3, 9, 8), "BMP", size=(24, 16)),
    }


def loose_changes() -> dict[str, bytes]:
    """Made before the second run: one image in the middle of a unit changes, four are new."""
    return {
        "cells/4.png": picture((6, 7, 11, 12)),
        "birds/1#b.png": picture((9, 9, 14, 7)),
        "nests/10.png": picture((2, 2, 46, 34)),
        "nests/11.png": picture((33, 14, 8, 8)),
        "nests/12.png": picture((12, 5, 5, 25)),
    }


def loose_more() -> dict[str, bytes]:
    """For the extended archive: two are new, two change, one of these in a carried unit."""
    return {
        "birds/1.png": picture((21, 7, 13, 10)),
        "cells/6.png": picture((31, 3, 8, 20)),
        "nests/13.png": picture((8, 18, 22, 6)),
        "nests/14.tif": picture((3, 2, 10, 7), "TIFF", size=(24, 16), compression="tiff_lzw"),
    }


def tar(members: Iterable[tuple[str, bytes] | tarfile.TarInfo]) -> bytes:
    """A tar of (name, content) pairs; a TarInfo stands for a member without content."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            info = tarfile.TarInfo(member[0])
            info.size = len(member[1])
            archive.addfile(info, io.BytesIO(member[1]))
    return sink.getvalue()


def tars() -> dict[str, bytes]:
    """One tar cut into three units, one left whole, and one that is truncated."""
    link = tarfile.TarInfo("link.png")
    link.type, link.linkname = tarfile.SYMTYPE, "00.png"
    big: list[tuple[str, bytes] | tarfile.TarInfo] = [
        (f"{i:02d}.png", picture((i, 2 * i, 10 + i, 6))) for i in range(14)
    ]
    big.insert(3, ("labels.json", b"{}"))
    big.insert(9, link)
    big.append(("02.png", picture((40, 1, 7, 9))))  # same name, different unit
    small = [("a.png", picture((1, 2, 3, 4))), ("a.png", picture((5, 6, 7, 8)))]
    cut = tar([(f"c{i}.png", picture((i, i, 20, 20))) for i in range(4)])
    return {
        "big.tar": tar(big),
        "cut.tar": cut[:3200],
        "small.tar": tar([*small, ("b/c.png", picture(None))]),
    }


def tars_more() -> dict[str, bytes]:
    """One more shard."""
    return {"later.tar": tar([(f"l{i}.png", picture((3 * i, i, 9, 9))) for i in range(3)])}


def table(rows: list[tuple[str, bytes | None]], rows_per_group: int) -> bytes:
    """A Parquet shard in the layout of the Hugging Face hub."""
    images = [{"bytes": data, "path": path} for path, data in rows]
    sink = io.BytesIO()
    pq.write_table(pa.table({"image": images}), sink, row_group_size=rows_per_group)
    return sink.getvalue()


def tables() -> dict[str, bytes]:
    """One file cut into three units, with a repeated name; one with a row that has no bytes."""
    long: list[tuple[str, bytes | None]] = [
        (f"{i}.png", picture((2 * i, i, 12, 11))) for i in range(8)
    ]
    long.append(("1.png", picture((30, 30, 5, 5))))
    short: list[tuple[str, bytes | None]] = [
        ("x.png", picture((11, 3, 6, 14))),
        ("y.png", None),
        ("z.png", picture((13, 3, 16, 4))),
    ]
    return {"part-0.parquet": table(long, 3), "part-1.parquet": table(short, 100)}


def tables_more() -> dict[str, bytes]:
    """One more shard."""
    return {"part-2.parquet": table([("p.png", picture((4, 4, 4, 4))), ("q.png", b"no image")], 9)}


def octagon(box: Box) -> list[float]:
    """A polygon close to the ellipse in a box."""
    x, y, w, h = box
    p, q = w / 4, h / 4
    corners = [(p, 0), (w - p, 0), (w, q), (w, h - q), (w - p, h), (p, h), (0, h - q), (0, q)]
    return [value for a, b in corners for value in (x + a, y + b)]


def truth() -> bytes:
    """COCO ground truth for the loose images: some masks are shifted, some objects not found."""
    boxes: dict[str, list[Box]] = {
        "birds/0.png": [(3, 4, 12, 9)],
        "birds/1.png": [(21, 7, 15, 11), (2, 2, 6, 6)],
        "birds/2 blank.png": [],
        "cells/4.png": [(6, 7, 11, 12)],
        "cells/5.png": [(7, 8, 20, 13)],  # the model fails here
        "cells/8.webp": [(10, 20, 17, 9)],
        "nests/10.png": [(3, 3, 44, 34)],
        "nests/11.png": [(33, 14, 8, 9)],
        "nests/12.png": [(13, 5, 5, 22)],
    }
    images, annotations = [], []
    for number, (name, found) in enumerate(boxes.items(), 1):
        images.append({"id": number, "file_name": name, "width": 56, "height": 40})
        for x, y, w, h in found:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 7,
                    "segmentation": [octagon((x, y, w, h))],
                    "bbox": [x, y, w, h],
                    "area": w * h * 7 / 8,
                    "iscrowd": 0,
                }
            )
    document = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 7, "name": "bright"}],
    }
    return (json.dumps(document, indent=1) + "\n").encode()


class OldCode:
    """Commands of a checkout of `COMMIT`, run in processes of their own.

    Args:
        aws: The S3 server's variables.
    """

    def __init__(self, checkout: Path, aws: dict[str, str]) -> None:
        self.checkout = checkout
        paths = os.pathsep.join([str(checkout), str(checkout / "tests")])
        self.environment = {**os.environ, **aws, "PYTHONPATH": paths}

    def check(self) -> None:
        """Make sure that exactly this commit runs, not an installed segcore."""
        head = ["git", "-C", str(self.checkout), "rev-parse", "HEAD"]
        dirty = ["git", "-C", str(self.checkout), "status", "--porcelain"]
        where = [sys.executable, "-c", "import segcore, jobs; print(segcore.__file__)"]
        assert self._output(head).startswith(COMMIT), f"{self.checkout} is not {COMMIT}"
        assert not self._output(dirty).strip(), f"{self.checkout} has changes"
        assert Path(self._output(where).strip()).parent == self.checkout / "segcore"

    def _output(self, command: list[str]) -> str:
        return subprocess.check_output(command, cwd=self.checkout, env=self.environment, text=True)

    def __call__(self, *args: str, mended: bool = False) -> Outcome:
        environment = self.environment
        if mended:
            environment = {**environment, "FAKE_MODEL_MENDED": str(self.checkout)}
        return run([sys.executable, "-m", "jobs.cli", *args], self.checkout, environment)

    def segment(self, output: str, *more: str, mended: bool = False) -> Outcome:
        args = arguments([*SEGMENT[output], *EVERYWHERE, *more], output)
        print(f"segment {output} {' '.join(more)}", file=sys.stderr)
        return self("segment", *args, "--model", MODEL, mended=mended)


def store(folder: str, files: dict[str, bytes]) -> None:
    """Write files below a folder of the store."""
    for name, data in files.items():
        path = STORE / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def make_outputs(bucket: Bucket, old: OldCode) -> dict[str, list[Outcome]]:
    """Run the old code over the archives; store archives and outputs."""
    before, loose = loose_before(), {**loose_before(), **loose_changes()}
    for name, data in before.items():
        bucket.put(f"archive/loose/{name}", data)
    runs = {"loose": [old.segment("loose")], "tars": [], "tables": []}
    store("archive/loose", loose)
    store("archive/tars", tars())
    store("archive/tables", tables())
    store("more/loose", loose_more())
    store("more/tars", tars_more())
    store("more/tables", tables_more())
    store("", {"truth.json": truth()})
    bucket.put_files(STORE / "archive", "archive")
    for output, outcomes in runs.items():
        outcomes.append(old.segment(output))
    found = bucket.objects("output/")
    store("output", {n: nobody(o.data) if is_lease(n) else o.data for n, o in found.items()})
    return runs


def nobody(lease: bytes) -> bytes:
    """A lease file with nothing in it about the machine it was made on."""
    document = json.loads(lease)
    assert document["released"]
    assert document.keys() >= NOBODY.keys()
    return (json.dumps({**document, **NOBODY}, indent=2) + "\n").encode()


def reports_about(bucket: Bucket, old: OldCode, output: str) -> dict[str, Any]:
    """What status, verify and evaluate print about a stored output."""
    uri = f"{ROOT_URI}output/{output}"
    commands = {"status": ["status", uri], "verify": ["verify", uri]}
    if output == "loose":
        commands["evaluate"] = ["evaluate", uri, ROOT_URI + "truth.json"]
    bucket.reset()
    said = {}
    for name, command in commands.items():
        done = old(*command, "--json")
        said[name] = {"exit_code": done.exit_code, "document": done.document}
    return said


def after(
    bucket: Bucket,
    output: str,
    act: Callable[[], Outcome],
) -> dict[str, Any]:
    """Report and files after `act` on a fresh copy of the stored output; changed files decoded."""
    bucket.reset()
    before = bucket.objects(f"output/{output}/")
    done = act()
    now = bucket.objects(f"output/{output}/")
    new = {n: o.data for n, o in now.items() if n not in before or o.data != before[n].data}
    return {
        "exit_code": done.exit_code,
        "report": steady(done.document),
        "files": {name: None if is_lease(name) else o.sha256 for name, o in now.items()},
        "parquet": {n: decoded(data) for n, data in new.items() if n.endswith(".parquet")},
        "json": {
            name: steady(json.loads(data))
            for name, data in new.items()
            if name.endswith(".json") and not is_lease(name)
        },
    }


def dry_runs(bucket: Bucket, old: OldCode, output: str) -> dict[str, Any]:
    """What the old code would do next with a stored output."""
    bucket.reset()
    bucket.extend(output)
    extended = old.segment(output, "--dry-run").document
    bucket.reset()
    bucket.forget_plans(output)
    return {"extended": extended, "replanned": old.segment(output, "--dry-run").document}


def cases(bucket: Bucket, old: OldCode, output: str) -> dict[str, Any]:
    """What the old code does next with a stored output, each time from a fresh copy."""

    def extend() -> Outcome:
        bucket.extend(output)
        return old.segment(output)

    def retry() -> Outcome:
        return old.segment(output, "--retry-failed", mended=True)

    found = {
        "rerun": after(bucket, output, lambda: old.segment(output)),
        "extend": after(bucket, output, extend),
    }
    if output == "loose":
        found["retry"] = after(bucket, output, retry)
    return found


def expectations(
    bucket: Bucket, old: OldCode, runs: dict[str, list[Outcome]]
) -> dict[str, dict[str, Any]]:
    """All that is expected of each output."""
    found = {}
    for output, outcomes in runs.items():
        files = {
            path.relative_to(STORE / "output" / output).as_posix(): path.read_bytes()
            for path in sorted((STORE / "output" / output).rglob("*.*"))
        }
        newest = outcomes[-1].document
        plan = decoded(files[f"{newest['edition']}/plans/{newest['run']}.parquet"])
        found[output] = {
            "segment": [*SEGMENT[output], *EVERYWHERE],
            "edition": newest["edition"],
            "units": [row["unit"] for row in plan["rows"]],
            "runs": [{"exit_code": done.exit_code, "report": done.document} for done in outcomes],
            "reports": reports_about(bucket, old, output),
            "dry_runs": dry_runs(bucket, old, output),
            "next": cases(bucket, old, output),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", type=Path, help=f"Work tree of commit {COMMIT}, unchanged.")
    checkout = parser.parse_args().checkout.resolve()
    sys.path.insert(0, str(checkout))
    from segcore.loopback_s3 import LoopbackS3

    shutil.rmtree(STORE, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder, LoopbackS3(folder, BUCKET) as server:
        bucket = Bucket(server.environment)
        old = OldCode(checkout, server.environment)
        old.check()
        runs = make_outputs(bucket, old)
        document = {
            "commit": COMMIT,
            "pyarrow": pa.__version__,
            "outputs": expectations(bucket, old, runs),
        }
    store("", {"expected.json": (json.dumps(document, indent=1) + "\n").encode()})


if __name__ == "__main__":
    main()
