"""In which fields two editions differ, for a person."""

from __future__ import annotations

from dataclasses import replace

from segcore.images import DecodeOptions
from segcore.models.base import Category, ModelInfo
from segcore.output.edition import Edition, make_edition
from segcore.output.edition_changes import EditionChanges, compare_with_older, describe_differences
from segcore.output.latest import publish, read_published
from segcore.output.layout import OutputLayout
from segcore.storage import Storage

INFO = ModelInfo(
    name="model",
    architecture="yolo11n-seg",
    weights_sha256="0" * 64,
    licence="CC0-1.0",
    categories=(Category(1, "nucleus"),),
    parameters={"conf": 0.25, "imgsz": 640},
)
CHANGED = {
    "model.parameters.conf: 0.25 -> 0.5": replace(INFO, parameters={"conf": 0.5, "imgsz": 640}),
    "model.parameters.iou: unset -> 0.7": replace(
        INFO, parameters={"conf": 0.25, "imgsz": 640, "iou": 0.7}
    ),
    f"model.weights_sha256: {'0' * 39}… -> {'1' * 39}…": replace(INFO, weights_sha256="1" * 64),
    "model.categories: 1 entry -> 2 entries": replace(
        INFO, categories=(Category(1, "nucleus"), Category(2, "cell"))
    ),
    "model.name: model -> other?[31m": replace(INFO, name="other\x1b[31m"),
    "model.result_version: 1 -> 2": replace(INFO, result_version=2),
}


def _document(info: ModelInfo, **decode: object) -> dict[str, object]:
    return make_edition(info, DecodeOptions.model_validate(decode)).document


def test_each_field_is_named_with_both_values() -> None:
    before = _document(INFO)
    for sentence, info in CHANGED.items():
        assert describe_differences(before, _document(info)) == [sentence]
    assert describe_differences(before, before) == []
    assert describe_differences(before, _document(INFO, strict=False)) == [
        "decode.strict: unset -> false"
    ]
    assert describe_differences(before, _document(replace(INFO, licence="MIT"))) == []


def test_the_list_is_bounded() -> None:
    after = {"model": {f"field{i}": "x" * 1000 for i in range(500)}}
    lines = describe_differences({}, after)
    assert len(lines) == 21
    assert lines[-1] == "and 480 more fields"
    assert all(len(line) < 100 for line in lines)


def _write(storage: Storage, output: OutputLayout, edition: Edition) -> None:
    layout = output.edition(edition.name)
    storage.write(layout.edition_json, edition.to_json())
    storage.write(layout.run_record("ab"), b"{}")


def test_the_edition_to_compare_with(folder: str) -> None:
    storage, output = Storage(), OutputLayout(folder)
    first, second, third = (
        make_edition(replace(INFO, result_version=i), DecodeOptions()) for i in (1, 2, 3)
    )

    def compare(edition: Edition) -> EditionChanges | None:
        published = read_published(storage, output).edition
        return compare_with_older(storage, output, edition, published)

    assert compare(first) is None
    _write(storage, output, first)
    changes = compare(second)  # new, beside one that is not published
    assert changes is not None
    assert (changes.older, changes.fields) == (first.name, ("model.result_version: 1 -> 2",))
    _write(storage, output, second)
    assert compare(second) is None  # not new any more
    publish(storage, output.edition(first.name), "ab", "success")
    for edition in (second, third):
        changes = compare(edition)
        assert changes is not None
        assert changes.older == first.name
    assert compare(first) is None
    storage.write(output.edition(first.name).edition_json, b"{")
    assert compare(third) is None
