"""Writes exports of hard masks and has the libraries of others read them.

    python -m tests.readers              # the first run makes two environments (some GB)
    python -m tests.readers --no-server  # without Label Studio's server and labelme

Readers are oracles, never dependencies, so each runs in an environment of its own: that of
libraries, and that of Label Studio's server and of labelme, which is GPL. The table on stdout has
a line for each reader; the exit code is 1 if one of them reads something else than was exported.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import numpy as np
from pycocotools.coco import COCO

from segcore.corrections.import_corrections import import_corrections
from segcore.exports.export import export
from segcore.exports.options import ExportOptions
from segcore.output.results import open_results
from segcore.storage import Storage
from tests.exports.conftest import PICTURES, drawn_masks
from tests.support.environments import environment
from tests.support.jobs import write_files
from tests.support.masks_output import write_results
from tests.support.paths import ROOT

BUILD = ROOT / "build" / "readers"
LIBRARIES = (
    "pycocotools", "supervision==0.31.*", "datumaro==1.13.*", "cvat-sdk[masks]",
    "label-studio-sdk", "datasets==5.*", "opencv-python-headless<4.13",
)  # fmt: skip
BESIDE = ("cvat-sdk[masks]", "cvat-cli")  # beside segcore: the extra `cvat`
PEERS = ("label-studio", "labelme==6.3.1")
CATEGORIES = {3: "cat", 5: "dog & <b>", 9: "tree"}
EXPORTS: dict[str, dict[str, object]] = {
    "coco": {"format": "coco", "images": "copy"},
    "coco-polygons": {"format": "coco", "images": "copy", "masks": "polygons", "tolerance": 0},
    "coco-results": {"format": "coco-results"},
    "yolo-seg": {"format": "yolo-seg", "images": "copy", "tolerance": 0},
    "cvat": {"format": "cvat", "images": "copy"},
    "cvat-polygons": {"format": "cvat", "images": "copy", "masks": "polygons", "tolerance": 0},
    "label-studio": {"format": "label-studio", "images": "copy", "tolerance": 0},
    "label-studio-brush": {"format": "label-studio", "images": "copy", "masks": "exact"},
    "labelme": {"format": "labelme", "images": "copy"},
    "hf": {"format": "hf", "images": "copy"},
}


def reader_python(packages: tuple[str, ...]) -> Path:
    """Python of the environment with these packages."""
    if packages == PEERS:  # one after the other: together they have no solution
        return environment(".venv-exports-peers", *([package] for package in packages))
    if packages == BESIDE:
        return environment(".venv-exports-cvat", packages, sees_this_one=True)
    return environment(".venv-exports", packages)


def write_exports() -> None:
    """All exports, and the masks that a reader must find in them."""
    shutil.rmtree(BUILD, ignore_errors=True)
    write_files(BUILD / "in", PICTURES)
    write_results(str(BUILD / "in"), str(BUILD / "out"), drawn_masks())
    results = open_results(Storage(), str(BUILD / "out"))
    names: dict[str, str] = {}
    for name, options in EXPORTS.items():
        summary = export(results, str(BUILD / name), ExportOptions.model_validate(options))
        print(f"{name}: {summary.masks} masks, {summary.counts}", file=sys.stderr)
    for image in json.loads((BUILD / "coco/instances-00001.json").read_bytes())["images"]:
        names[image["segcore_image_id"].removeprefix(f"{BUILD}/in/")] = image["file_name"]
    expected = [
        {"name": names[path], "mask": number, "category": CATEGORIES[one.category]}
        for path in PICTURES
        for number, one in enumerate(drawn_masks().get(path, []))
    ]
    (BUILD / "expected.json").write_text(
        json.dumps({"images": sorted(names.values()), "masks": expected})
    )
    masks = [one.mask for path in PICTURES for one in drawn_masks().get(path, [])]
    np.save(BUILD / "expected.npy", np.array(masks))


def main() -> int:
    """Write, read, compare; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--no-server", action="store_true", help="only the libraries")
    arguments = parser.parse_args()
    write_exports()
    scripts = [("libraries.py", LIBRARIES), ("cvat_function.py", BESIDE)]
    if not arguments.no_server:
        scripts += [("label_studio_server.py", PEERS), ("labelme_loader.py", PEERS)]
    failed = 0
    with label_studio_backend() as url:
        for script, packages in scripts:
            python = reader_python(packages)
            command = [str(python), str(Path(__file__).parent / script), str(BUILD), url]
            paths = os.environ | {"PYTHONPATH": str(ROOT) if packages == BESIDE else ""}
            failed |= subprocess.run(command, env=paths, check=False).returncode
    if not arguments.no_server:
        failed |= not imports_what_the_server_exported()
    return 1 if failed else 0


@contextlib.contextmanager
def label_studio_backend() -> Iterator[str]:
    """`segcore label-studio` on a free port; its URL."""
    command = [sys.executable, "-m", "segcore", "label-studio", str(BUILD / "out"), "--port", "0"]
    command += ["--dest", str(BUILD / "label-studio"), "--set", "export.tolerance=0"]
    with (BUILD / "backend.log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip
        try:
            assert process.stderr is not None
            for line in process.stderr:
                log.write(line)
                if found := re.search(r"at (http://\S+);", line):
                    break
            else:
                raise SystemExit(f"segcore label-studio ended; see {BUILD}/backend.log")
            Thread(target=lambda: log.writelines(process.stderr or ()), daemon=True).start()
            yield found[1]
        finally:
            process.terminate()
            process.wait(30)


def imports_what_the_server_exported() -> bool:
    """Whether brush masks that the server stored come back through `segcore import` exactly."""
    folder = BUILD / "label-studio-brush"
    truth = BUILD / "truth.json"
    source = BUILD / "label-studio-brush-exported.json"
    if not source.exists():
        print("FAILED  label-studio, brush: the server exported nothing")
        return False
    import_corrections(Storage(), str(source), str(truth), dest=str(folder))
    coco = COCO(str(truth))
    n_equal = 0
    for image in coco.imgs.values():
        wanted = drawn_masks().get(image["file_name"], [])
        found = coco.imgToAnns.get(image["id"], [])
        pairs = zip(found, wanted, strict=True)
        n_equal += sum((coco.annToMask(one) == other.mask).all() for one, other in pairs)
    n_wanted = sum(map(len, drawn_masks().values()))
    verdict = "ok     " if n_equal == n_wanted else "FAILED "
    print(f"{verdict} label-studio, brush: server, then segcore import  {n_equal} masks equal")
    return n_equal == n_wanted


if __name__ == "__main__":
    sys.exit(main())
