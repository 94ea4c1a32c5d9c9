"""Known masks over the images of a report: exact, complete or counted, under a box of their own."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from segcore import masks
from segcore.output.layout import EditionLayout
from segcore.output.results import open_results
from segcore.reporting import report as report_module
from segcore.reporting.outlines import outline_path
from segcore.reporting.report import ReportOptions, make_report
from segcore.storage import Storage
from tests.support.masks_output import (
    HEIGHT,
    WIDTH,
    Drawn,
    mask_family,
    picture,
    write_results,
)

_BOX = 'id="show-known"'
_FAMILY = mask_family()


def _truth(names: list[str], width: int = WIDTH) -> dict:
    """Each of the hard masks in each image, as RLE, the last one as a crowd region."""
    rles = [masks.encode(mask).decode() for mask in _FAMILY.values()]
    annotations = [
        {
            "id": i * len(rles) + j + 1, "image_id": i, "category_id": 9 if j % 2 else 7,
            "segmentation": {"size": [HEIGHT, WIDTH], "counts": text},
            "iscrowd": int(j == len(rles) - 1),
        }
        for i in range(len(names)) for j, text in enumerate(rles)
    ]  # fmt: skip
    return {
        "images": [
            {"id": i, "file_name": name, "width": width, "height": HEIGHT}
            for i, name in enumerate(names)
        ],
        "annotations": annotations,
        "categories": [{"id": 9, "name": "tree"}, {"id": 7, "name": "<b>lamp</b>\x1b"}],
    }


@pytest.fixture
def layout(tmp_path: Path) -> EditionLayout:
    (tmp_path / "in").mkdir()
    names = [f"i{i}.png" for i in range(3)]
    for i, name in enumerate(names):
        (tmp_path / "in" / name).write_bytes(picture(i))
    (tmp_path / "truth.json").write_text(json.dumps(_truth(names[:2])))
    drawn = {name: [Drawn(_FAMILY["hard"], 9, 0.8), Drawn(_FAMILY["full"], 3, 0.5)]
             for name in names}  # fmt: skip
    return write_results(f"{tmp_path}/in", f"{tmp_path}/out", drawn)


def _html(layout: EditionLayout, truth: str, **options: int) -> str:
    results = open_results(Storage(), layout.prefix)
    return make_report(results, ReportOptions(truth, **options)).html.decode()


def _layers(html: str) -> list[str]:
    return re.findall(r'<g class="known">(.*?)</g>', html, re.DOTALL)


def test_they_are_drawn_exactly_over_the_images_that_have_them(
    layout: EditionLayout, tmp_path: Path
) -> None:
    html = _html(layout, f"{tmp_path}/truth.json")
    layers = _layers(html)
    assert len(layers) == 2  # of three images, each is drawn once, and one is not in the truth
    expected = []
    for mask in _FAMILY.values():
        rows, columns = np.nonzero(mask)
        box = columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1
        expected.append(outline_path(masks.encode(mask).decode(), box, HEIGHT, WIDTH))
    for layer in layers:
        assert re.findall(r' d="([^"]*)"', layer) == expected
        titles = re.findall(r"<title>([^<]*)</title>", layer)
        assert titles[1] == "known: tree"
        assert titles[-1] == "known: tree (crowd region)"
        assert titles[0].startswith("known: &lt;b&gt;lamp")
    assert html.count(_BOX) == 1
    assert html.count("; 8 known objects, 60 x 40 pixels") == 4  # caption and label of each


def test_without_known_masks_there_is_no_box(layout: EditionLayout, tmp_path: Path) -> None:
    assert _BOX not in _html(layout, "")
    document = json.loads((tmp_path / "truth.json").read_text())
    (tmp_path / "empty.json").write_text(json.dumps({**document, "annotations": []}))
    html = _html(layout, f"{tmp_path}/empty.json")
    assert _BOX not in html
    assert "; 0 known objects" in html


def test_masks_of_another_size_than_the_image_are_not_drawn(
    layout: EditionLayout, tmp_path: Path
) -> None:
    names = [f"i{i}.png" for i in range(3)]
    truth = _truth(names)
    truth["images"][0]["width"] = 90  # so that its masks fit no image
    (tmp_path / "sizes.json").write_text(json.dumps(truth))
    assert len(_layers(_html(layout, f"{tmp_path}/sizes.json"))) == 2


def test_neither_side_takes_all_the_room(
    layout: EditionLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _html(layout, f"{tmp_path}/truth.json")
    jpeg = max(map(len, re.findall(r"base64,([^\"]*)", whole)))
    monkeypatch.setattr(report_module, "_FIGURE_BYTES", 3 * (jpeg + 4000 + 1800))
    html = _html(layout, f"{tmp_path}/truth.json")
    for layer in _layers(html):
        assert 0 < layer.count("<path") < 8
    assert "not drawn: no room" in html
    assert html.count('<g class="masks"><path') == 3
