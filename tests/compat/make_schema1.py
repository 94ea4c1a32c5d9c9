"""Make the stored outputs of schema 1 with the old code, and write down what that code says.

    git worktree add /elsewhere/old e8b9e42
    python tests/compat/make_schema1.py /elsewhere/old

It was run once. What it made is a fact about the old code: a test that disagrees with it is
mended in the new code, or the promise of docs/output.md is changed; not by running this again.
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
from schema1_store import (
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

# Small units, so that few images make several of them. The tars have more failed images than the
# default allows: exit code 3.
SEGMENT = {
    "loose": ["--set", "plan.images=4", "--set", "run.max_failed_fraction=0.5"],
    "tars": ["--set", "plan.images=6", "--set", "plan.bytes=11000"],
    "tables": ["--set", "plan.images=3", "--set", "run.max_failed_fraction=0.2"],
}
EVERYWHERE = ["--actors", "1"]

# A process of no machine in place of the one that made the files.
NOBODY = {
    "id": "0" * 32,
    "host": "host-of-schema1",
    "pid": 4711,
    "user": "user-of-schema1",
    "since": "2025-01-01T00:00:00+00:00",
    "machine": "0" * 16,
    "born": 1,
}

Box = tuple[int, int, int, int]  # x, y, width, height of the bright rectangle


def picture(
    box: Box | None,
    kind: str = "PNG",
    first: tuple[int, int, int] = (0, 0, 0),
    size: tuple[int, int] = (56, 40),
    **options: Any,
) -> bytes:
    """An image of (width, height) `size` with one bright rectangle, encoded."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    if box:
        x, y, w, h = box
        pixels[y : y + h, x : x + w, 1] = 220
    pixels[0, 0] = first
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, kind, **options)
    return sink.getvalue()


def turned() -> Any:
    """EXIF that says: turn by 90 degrees."""
    exif = Image.Exif()
    exif[274] = 6
    return exif


def loose_before() -> dict[str, bytes]:
    """Ten loose images: units of 4, 4 and 2."""
    return {
        "birds/0.png": picture((3, 4, 12, 9)),
        "birds/1.png": picture((20, 6, 15, 11)),
        "birds/2 blank.png": picture(None),
        # aligned to blocks of 16: a decoder cannot give other pixels at the edges
        "birds/3.jpg": picture((16, 0, 16, 32), "JPEG", size=(48, 32), quality=95, exif=turned()),
        "cells/4.png": picture((5, 5, 10, 10)),
        "cells/5.png": picture((7, 8, 20, 13), first=RAISES),
        "cells/6.png": picture((30, 2, 9, 21)),
        "cells/7.png": picture((1, 1, 30, 30))[:90],  # cut off
        "cells/8.webp": picture((10, 20, 17, 9), "WEBP", lossless=True),
        "cells/9.bmp": picture((4, 3, 9, 8), "BMP", size=(24, 16)),
    }


def loose_changes() -> dict[str, bytes]:
    """Before the second run: one image changed amid its unit, four are new."""
    return {
        "cells/4.png": picture((6, 7, 11, 12)),
        "birds/1#b.png": picture((9, 9, 14, 7)),
        "nests/10.png": picture((2, 2, 40, 30)),
        "nests/11.png": picture((33, 14, 8, 8)),
        "nests/12.png": picture((12, 5, 5, 25)),
    }


def loose_more() -> dict[str, bytes]:
    """For the next run: two are new; two changed, one of them in a unit that was carried over."""
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
    """One that is cut into three units, one that is not, one that is cut off."""
    link = tarfile.TarInfo("link.png")
    link.type, link.linkname = tarfile.SYMTYPE, "00.png"
    big: list[tuple[str, bytes] | tarfile.TarInfo] = [
        (f"{i:02d}.png", picture((i, 2 * i, 10 + i, 6))) for i in range(14)
    ]
    big.insert(3, ("labels.json", b"{}"))
    big.insert(9, link)
    big.append(("02.png", picture((40, 1, 7, 9))))  # in another unit than the first of its name
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
    """One that is cut into three units, with a name that comes twice; a row without bytes."""
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


def truth() -> bytes:
    """COCO ground truth for the loose images: some masks off by pixels, one object not found."""
    boxes: dict[str, list[Box]] = {
        "birds/0.png": [(3, 4, 12, 9)],
        "birds/1.png": [(21, 7, 15, 11), (2, 2, 6, 6)],
        "birds/2 blank.png": [],
        "cells/4.png": [(6, 7, 11, 12)],
        "cells/5.png": [(7, 8, 20, 13)],  # failed: counts as not found
        "cells/8.webp": [(10, 20, 17, 9)],
        "nests/10.png": [(3, 3, 38, 30)],
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
                    "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                    "bbox": [x, y, w, h],
                    "area": w * h,
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
        """Refuse any other code than that of the checkout, and any other commit."""
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
    """A lease file in which nothing tells on whose machine it was made."""
    document = json.loads(lease)
    assert document["released"]
    assert document.keys() >= NOBODY.keys()
    return (json.dumps({**document, **NOBODY}, indent=2) + "\n").encode()


def what_it_says(bucket: Bucket, old: OldCode, output: str) -> dict[str, Any]:
    """Status, verification and evaluation of a stored output."""
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


def what_it_does(
    bucket: Bucket,
    output: str,
    act: Callable[[], Outcome],
) -> dict[str, Any]:
    """Report and files after `act` on a fresh copy of the stored output; new files decoded."""
    bucket.reset()
    before = bucket.objects(f"output/{output}/")
    done = act()
    after = bucket.objects(f"output/{output}/")
    new = {n: o.data for n, o in after.items() if n not in before or o.data != before[n].data}
    return {
        "exit_code": done.exit_code,
        "report": steady(done.document),
        "files": {name: None if is_lease(name) else o.sha256 for name, o in after.items()},
        "parquet": {n: decoded(data) for n, data in new.items() if n.endswith(".parquet")},
        "json": {
            name: steady(json.loads(data))
            for name, data in new.items()
            if name.endswith(".json") and not is_lease(name)
        },
    }


def cases(bucket: Bucket, old: OldCode, output: str) -> dict[str, Any]:
    """What the old code does next with a stored output."""

    def extend() -> Outcome:
        bucket.put_files(STORE / "more" / output, f"archive/{output}")
        return old.segment(output)

    def retry() -> Outcome:
        return old.segment(output, "--retry-failed", mended=True)

    found = {
        "rerun": what_it_does(bucket, output, lambda: old.segment(output)),
        "extend": what_it_does(bucket, output, extend),
    }
    if output == "loose":
        found["retry"] = what_it_does(bucket, output, retry)
    return found


def expectations(
    bucket: Bucket, old: OldCode, runs: dict[str, list[Outcome]]
) -> dict[str, dict[str, Any]]:
    """All that the old code says and does about each output."""
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
            "says": what_it_says(bucket, old, output),
            "does": cases(bucket, old, output),
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
