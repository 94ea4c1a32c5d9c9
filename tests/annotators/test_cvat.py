"""The function for CVAT's auto-annotation, with stand-ins for CVAT's types.

tests/readers/cvat_function.py runs CVAT's own driver over it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segcore.annotators import cvat
from segcore.errors import UsageError
from tests.annotators.conftest import drawn_masks
from tests.support.masks_output import HEIGHT, WIDTH

IMAGE = Image.new("RGB", (WIDTH, HEIGHT))


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> None:
    """As much of cvat-sdk as the function calls."""
    package, module = ModuleType("cvat_sdk"), ModuleType("cvat_sdk.auto_annotation")
    names: dict[str, Any] = {
        "DetectionFunctionSpec": SimpleNamespace,
        "label_spec": lambda name, id, **more: SimpleNamespace(name=name, id=id, **more),
        "shape": lambda label_id, **more: SimpleNamespace(label_id=label_id, **more),
    }
    vars(module).update(names)
    vars(package).update(auto_annotation=module)
    monkeypatch.setitem(sys.modules, "cvat_sdk", package)
    monkeypatch.setitem(sys.modules, "cvat_sdk.auto_annotation", module)


def _context(name: str, threshold: float | None = None, *, polygons: bool = False) -> Any:
    return SimpleNamespace(frame_name=name, conf_threshold=threshold, conv_mask_to_poly=polygons)


def _mask(points: list[float]) -> np.ndarray:
    """A mask as CVAT reads it: runs of the box row by row, zeros first, and two corners."""
    *runs, left, top, right, bottom = map(int, points)
    box = np.repeat(np.arange(len(runs)) % 2, runs)
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top : bottom + 1, left : right + 1] = box.reshape(bottom - top + 1, right - left + 1)
    return mask


@pytest.mark.usefixtures("api")
def test_masks_labels_and_thresholds(archive: Path) -> None:
    function = cvat.create(str(archive / "out"), sets="export.rename={cat: lynx}")
    assert [label.name for label in function.spec.labels] == ["lynx", "dog & <b>", "tree"]
    assert {label.type for label in function.spec.labels} == {"mask"}
    for name, drawn in drawn_masks().items():
        shapes = function.detect(_context(f"in/{name}"), IMAGE)
        assert [shape.label_id for shape in shapes] == [0, 1]
        assert {shape.type for shape in shapes} == {"mask"}
        for shape, one in zip(shapes, drawn, strict=True):
            assert (_mask(shape.points) == one.mask).all()
        assert len(function.detect(_context(name, 0.85), IMAGE)) == 1
    assert function.detect(_context("empty.png"), IMAGE) == []
    assert function.n_unknown == 0


@pytest.mark.usefixtures("api")
def test_polygons_where_cvat_asks_for_them(archive: Path, caplog: pytest.LogCaptureFixture) -> None:
    function = cvat.create(str(archive / "out"))
    shapes = function.detect(_context("north/a.png", polygons=True), IMAGE)
    assert {shape.type for shape in shapes} == {"polygon"}
    assert len({shape.group for shape in shapes}) == 2  # of many parts; the other is a group, too
    assert "lost holes" in caplog.text
    chosen = cvat.create(str(archive / "out"), sets="export.masks=polygons")
    assert {label.type for label in chosen.spec.labels} == {"polygon"}
    again = chosen.detect(_context("north/a.png"), IMAGE)
    assert [shape.points for shape in again] == [shape.points for shape in shapes]


@pytest.mark.usefixtures("api")
def test_what_is_not_certain_stays_as_it_is_or_ends_the_command(
    archive: Path, caplog: pytest.LogCaptureFixture
) -> None:
    function = cvat.create(str(archive / "out"))
    turned = IMAGE.transpose(Image.Transpose.ROTATE_90)
    for name, image in [("a.png", IMAGE), ("zz\x1b.png", IMAGE), ("c.png", turned)]:
        assert function.detect(_context(name), image) == []
    assert function.n_unknown == 3
    for reason in ("several images", "zz?.png: no image", "ignored its EXIF orientation"):
        assert reason in caplog.text
    strict = cvat.create(str(archive / "out"), on_unknown="error")
    with pytest.raises(UsageError, match=r"several images .* Nothing was uploaded"):
        strict.detect(_context("a.png"), IMAGE)


@pytest.mark.usefixtures("api")
def test_many_unknown_images_are_not_all_named(
    archive: Path, caplog: pytest.LogCaptureFixture
) -> None:
    function = cvat.create(str(archive / "out"))
    for number in range(200):
        function.detect(_context(f"zz{number}.png"), IMAGE)
    assert caplog.text.count("nothing was annotated") == 50
    assert caplog.text.count("are not named") == 1
    assert function.n_unknown == 200


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"on_unknown": "ask"}, "on_unknown=ask"),
        ({"sets": "export.min_scroe=1"}, "did you mean `export.min_score`"),
        ({"sets": "export.categories=[car]"}, "the model has no class 'car'"),
        ({"dest": "nowhere"}, "is no export of segcore"),
        ({"edition": "other"}, "other"),
        ({}, "cvat-sdk is not installed"),
    ],
)
def test_wrong_parameters_are_one_sentence(
    archive: Path, parameters: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cvat_sdk", None)
    with pytest.raises(UsageError, match=message) as error:
        cvat.create(str(archive / "out"), **parameters)  # type: ignore[arg-type]
    if not parameters:
        assert error.value.hint == "Install it: pip install 'segcore[cvat]'"
