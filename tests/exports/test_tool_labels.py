"""Labels that a tool has already: taken over where they fit, counted where they lack."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from segcore.corrections.import_corrections import import_corrections
from segcore.errors import ObjectNotFound, UsageError
from segcore.exports.export import export
from segcore.exports.options import ExportOptions
from segcore.exports.summary import ExportSummary
from segcore.output.results import Results
from segcore.storage import Storage
from tests.exports.conftest import drawn_masks

STUDIO = """<View><Image name="photo" value="$picture"/>
<{tag} name="cells" toName="photo"><Label value="Tree" alias="tree-7"/><Label value="cat"/></{tag}>
</View>"""
CONFIGS = {
    "label-studio": STUDIO.format(tag="PolygonLabels"),
    "cvat": json.dumps([{"name": "cat", "type": "mask"}, {"name": "Tree", "attributes": []}]),
    "labelme": "__ignore__\ncat\nTree\n",
    "yolo-seg": "path: .\nnames:\n  4: cat\n  9: other\n  11: Tree\n",
}
N_DOGS = sum(one.category == 5 for ones in drawn_masks().values() for one in ones)


def run(results: Results, folder: Path, form: str, text: str, **options: Any) -> ExportSummary:
    file = folder / "labels of the tool"
    file.write_text(text)
    options = {"rename": {"tree": "Tree"}, "label_config": str(file), **options}
    return export(results, str(folder / "dest"), ExportOptions(format=form, **options))


def labels_in(dest: Path, form: str) -> set[str]:
    """The labels of all masks in an export."""
    if form == "label-studio":
        tasks = json.loads((dest / "tasks-00001.json").read_bytes())
        regions = [one for task in tasks for one in task["predictions"][0]["result"]]
        return {one["value"][one["type"]][0] for one in regions}
    if form == "cvat":
        root = ElementTree.parse(dest / "annotations-00001.xml").getroot()
        return {mask.attrib["label"] for mask in root.iter("mask")}
    if form == "labelme":
        files = map(Path.read_bytes, dest.rglob("labels/**/*.json"))
        return {shape["label"] for data in files for shape in json.loads(data)["shapes"]}
    lines = [line for path in dest.rglob("*.txt") for line in path.read_text().splitlines()]
    return {line.partition(" ")[0] for line in lines}


@pytest.mark.parametrize("form", CONFIGS)
def test_masks_of_labels_that_the_tool_lacks_are_left_out_and_counted(
    results: Results, archive: Path, form: str
) -> None:
    summary = run(results, archive, form, CONFIGS[form])
    assert summary.counts["masks_of_labels_that_the_tool_lacks"] == N_DOGS
    assert any("no label for 1 class, such as 'dog & <b>'" in note for note in summary.notes)
    second = {"label-studio": "tree-7", "yolo-seg": "11"}.get(form, "Tree")
    assert labels_in(archive / "dest", form) == {"4" if form == "yolo-seg" else "cat", second}
    truth = archive / "truth.json"
    if form == "label-studio":
        return
    report = import_corrections(Storage(), str(archive / "dest"), str(truth))
    assert report.new_classes == []
    assert report.objects == summary.masks


def test_a_project_of_label_studio_gives_the_names_of_its_tags(
    results: Results, archive: Path
) -> None:
    config = STUDIO.format(tag="BrushLabels")
    run(results, archive, "label-studio", config)
    assert (archive / "dest/config.xml").read_text() == config
    for task in json.loads((archive / "dest/tasks-00001.json").read_bytes()):
        assert task["data"]["picture"]
        for region in task["predictions"][0]["result"]:
            assert (region["from_name"], region["to_name"]) == ("cells", "photo")
            assert region["type"] == "brushlabels"
            assert "rle" in region["value"]


def test_a_variable_of_the_project_may_have_any_name(results: Results, archive: Path) -> None:
    config = CONFIGS["label-studio"].replace("$picture", "$name")
    run(results, archive, "label-studio", config, images="url:https://host/{path}")
    for task in json.loads((archive / "dest/tasks-00001.json").read_bytes()):
        assert task["data"]["name"].startswith("https://host/")


@pytest.mark.parametrize(
    ("form", "text", "options", "message"),
    [
        ("label-studio", "<View>", {}, "no XML"),
        ("label-studio", "<View/>", {}, "has no BrushLabels or PolygonLabels"),
        ("label-studio", CONFIGS["label-studio"], {"masks": "exact"}, "no BrushLabels, which"),
        ("label-studio", STUDIO.format(tag="BrushLabels"), {"rename": {}, "categories": ("tree",)},
         "has a label for none of tree"),
        ("cvat", "{}", {}, "no list of labels"),
        ("cvat", '[{"name": "cat", "type": "rectangle"}, 3, {"name": 4}]', {}, "has no labels"),
        ("labelme", "\n \n", {}, "has no labels"),
        ("yolo-seg", "a: [", {}, "not valid YAML"),
        ("yolo-seg", "nc: 3", {}, "no `names`"),
        ("yolo-seg", "names: [dog]", {}, "has a label for none of cat"),
        ("coco", "cat", {}, "coco has no configuration of labels"),
    ],
)  # fmt: skip
def test_a_configuration_that_fits_nothing_is_refused_before_anything_is_written(
    results: Results, archive: Path, form: str, text: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        run(results, archive, form, text, **options)
    assert not (archive / "dest").exists()


def test_a_configuration_that_does_not_exist_is_named(results: Results, archive: Path) -> None:
    options = ExportOptions(format="cvat", label_config=str(archive / "gone.json"))
    with pytest.raises(ObjectNotFound, match=r"gone\.json"):
        export(results, str(archive / "dest"), options)
