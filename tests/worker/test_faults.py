"""Faults of our own, injected at each stage: they cost one image, are called by their name, and
the log has the traceback with the image it came from."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import segcore
from segcore.errors import ErrorCode, NotFinite
from segcore.images import DecodeOptions, decoding, jpeg
from segcore.models.base import ModelOptions
from segcore.output.parts import Parts
from segcore.sources import SourceOptions
from segcore.storage import Storage
from segcore.worker import unit_results
from segcore.worker.faults import is_own_model
from segcore.worker.image_worker import ImageWorker
from segcore.worker.read_options import ReadOptions
from segcore.worker.unit_worker import UnitWorker
from tests.support.bright_images import boxed_png, unit_of_files
from tests.support.fake_models import BrightModel
from tests.support.image_files import save

BAD_WIDTH = 77
NAMES = [f"{i}.png" for i in range(5)]
BAD = "2.png"
ERRORS = [
    TypeError("no"), KeyError("no"), ZeroDivisionError("no"), ValueError("no"), RuntimeError("no"),
]  # fmt: skip
Stage = Callable[[pytest.MonkeyPatch, BrightModel, Exception], None]


class UserModel(BrightModel):
    """Raises what `failures` says for the stage, on images of `BAD_WIDTH`."""

    def __init__(self) -> None:
        super().__init__(ModelOptions(batch_size=2))
        self.failures: dict[str, Exception] = {}

    def _fail(self, stage: str, images: list[np.ndarray]) -> None:
        if stage in self.failures and any(image.shape[1] == BAD_WIDTH for image in images):
            raise self.failures[stage]

    def preprocess(self, image: np.ndarray) -> Any:
        self._fail("preprocess", [image])
        return super().preprocess(image)

    def forward(self, prepared: Any) -> list[np.ndarray]:
        self._fail("forward", [item.image for item in prepared])
        return super().forward(prepared)

    def postprocess(self, raw: list[np.ndarray], prepared: Any) -> list[Any]:
        self._fail("postprocess", raw)
        results = super().postprocess(raw, prepared)
        pairs = list(zip(raw, results, strict=True))
        if "result" in self.failures:
            return [None if mask.shape[1] == BAD_WIDTH else r for mask, r in pairs]
        if "text" in self.failures:  # no table of text takes such a string
            return [
                replace(r, counts=[b"\xff\xfe"]) if mask.shape[1] == BAD_WIDTH else r
                for mask, r in pairs
            ]
        return results


class OwnModel(UserModel):
    """The same, as if it were one of ours."""


OwnModel.__module__ = "segcore.models.own"


def _model_stage(name: str) -> Stage:
    def inject(patch: pytest.MonkeyPatch, model: BrightModel, error: Exception) -> None:
        model.failures[name] = error  # type: ignore[attr-defined]

    return inject


def _decode_stage(patch: pytest.MonkeyPatch, model: BrightModel, error: Exception) -> None:
    original = decoding.apply_orientation

    def fail(rgb: np.ndarray, orientation: int) -> np.ndarray:
        if rgb.shape[1] == BAD_WIDTH:
            raise error
        return original(rgb, orientation)

    patch.setattr(decoding, "apply_orientation", fail)


def _write_stage(patch: pytest.MonkeyPatch, model: BrightModel, error: Exception) -> None:
    for module in (unit_results, __import__("segcore.output.parts", fromlist=["parts"])):
        original = module.instances_table

        def fail(results: Any, categories: Any, original: Any = original) -> Any:
            if any(row.instances and row.width == BAD_WIDTH for row in results):
                raise error
            return original(results, categories)

        patch.setattr(module, "instances_table", fail)


def _parts(folder: Path) -> tuple[ReadOptions, Parts]:
    options = ReadOptions(Storage(), SourceOptions(), DecodeOptions(), 2, 1 << 20)
    return options, Parts(Storage(), str(folder / "out"), "e", "r", "CC0-1.0", ((1, "bright"),))


def _rows(folder: Path, unit: str) -> list[dict[str, Any]]:
    return pq.read_table(folder / "out" / "images" / f"{unit}.parquet").to_pylist()


def _segment(folder: Path, model: BrightModel, one_by_one: bool) -> dict[str, str | None]:
    """Name of each image -> its error code."""
    contents = {name: boxed_png(10, BAD_WIDTH if name == BAD else 20) for name in NAMES}
    unit = unit_of_files(folder, contents)
    options, parts = _parts(folder)
    if one_by_one:
        worker = ImageWorker(model, options, parts)
        worker.open(unit, 0, False)
        rows = []
        while worker.read_next() is not None:
            rows.append(worker.segment())
        worker.commit(unit, rows, False)
    else:
        UnitWorker(model, options, parts).segment(unit)
    rows = _rows(folder, unit.unit)
    return {row["image_id"].rpartition("/")[2]: row["error_code"] for row in rows}


def _logged(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if hasattr(record, "traceback")]


OWN = ErrorCode.INTERNAL_ERROR
MODEL = ErrorCode.MODEL_ERROR
STAGES: list[tuple[str, Stage, ErrorCode, ErrorCode]] = [  # code with a model of ours, of a user
    ("decode", _decode_stage, OWN, OWN),
    ("preprocess", _model_stage("preprocess"), OWN, MODEL),
    ("postprocess", _model_stage("postprocess"), OWN, MODEL),
    ("forward", _model_stage("forward"), MODEL, MODEL),  # raised outside of our package
    ("write", _write_stage, OWN, OWN),
]


@pytest.mark.slow
@pytest.mark.parametrize("one_by_one", [False, True], ids=["unit", "image"])
@pytest.mark.parametrize("make_model", [OwnModel, UserModel])
@pytest.mark.parametrize("stage", STAGES, ids=[name for name, *_ in STAGES])
def test_a_fault_costs_one_image_and_is_not_damage(
    tmp_path, caplog, stage, make_model, one_by_one
) -> None:
    name, inject, own_code, user_code = stage
    expected = own_code if make_model is OwnModel else user_code
    first = len(name) + one_by_one  # each error comes in some of the cases
    for number, error in enumerate([ERRORS[first % 5], ERRORS[(first + 2) % 5]]):
        with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.INFO):
            caplog.clear()
            model = make_model()
            inject(patch, model, error)
            folder = tmp_path / str(number)
            folder.mkdir()
            codes = _segment(folder, model, one_by_one)
            logged = _logged(caplog)
        assert codes == {name: str(expected) if name == BAD else None for name in NAMES}, error
        assert len(logged) == 1
        assert logged[0].image.endswith(BAD)
        assert logged[0].error.startswith(f"{type(error).__name__} at ")
        assert "Traceback" in logged[0].traceback


def test_weights_that_give_no_numbers_are_the_models_fault(tmp_path, caplog) -> None:
    model = OwnModel()
    model.failures["postprocess"] = NotFinite("the network gave scores that are not finite")
    assert _segment(tmp_path, model, False)[BAD] == "model_error"


@pytest.mark.parametrize("failure", ["result", "text"])
def test_results_of_ours_that_cannot_be_read_or_written(tmp_path, caplog, failure) -> None:
    model = OwnModel()
    model.failures[failure] = ValueError()
    codes = _segment(tmp_path, model, False)
    expected = "model_error" if failure == "result" else "internal_error"
    assert codes == {name: expected if name == BAD else None for name in NAMES}


def test_a_fault_that_is_not_about_an_image_leaves_the_unit_undone(tmp_path, monkeypatch) -> None:
    def fail(*args: Any) -> None:
        raise TypeError("no")

    monkeypatch.setattr("segcore.output.parts.encode_part", fail)
    with pytest.raises(TypeError):
        _segment(tmp_path, OwnModel(), False)
    assert not list((tmp_path / "out").glob("images/*"))


@pytest.mark.parametrize(
    ("statement", "code"),
    [
        ("undefined_name", "internal_error"),
        ("data.no_such_name", "internal_error"),
        ("{}['x']", "internal_error"),
        ("int('x')", "corrupt"),  # decoders say so, too: it cannot be told from damage
    ],
)
def test_a_wrong_call_of_a_decoder_is_not_damage(tmp_path, monkeypatch, statement, code) -> None:
    """The statements are compiled as if they stood in a module of segcore."""
    source = f"import simplejpeg\ndef broken(data, *args, **kwargs):\n    return {statement}\n"
    names: dict[str, Any] = {}
    place = Path(segcore.__file__).parent / "images" / "jpeg.py"
    exec(compile(source, str(place), "exec"), names)
    monkeypatch.setattr(jpeg, "_decode_pixels", names["broken"])
    picture = np.zeros((16, 16, 3), np.uint8)
    unit = unit_of_files(tmp_path, {"a.jpg": save(picture, "JPEG")})
    options, parts = _parts(tmp_path)
    counts = UnitWorker(BrightModel(), options, parts).segment(unit)
    assert counts.failures == {code: 1}


def test_models_are_told_apart() -> None:
    assert is_own_model(OwnModel())
    assert not is_own_model(UserModel())
