"""Reads the exports with the libraries of others; runs in their environment, without segcore."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from expected import Expected, Found, build_folder, filled, run_checks

BUILD = build_folder()
WANTED = Expected(BUILD)
LABELS = ["cat", "dog & <b>", "tree"]


def pycocotools(folder: str, lowest: float) -> str:
    from pycocotools.coco import COCO

    coco = COCO(str(BUILD / folder / "instances-00001.json"))
    found: Found = {
        image["file_name"]: [
            (coco.annToMask(one), coco.cats[one["category_id"]]["name"])
            for one in coco.imgToAnns[image["id"]]
        ]
        for image in coco.imgs.values()
    }
    return WANTED.compare(found, lowest)


def pycocotools_results() -> str:
    """Results against the instances as truth: AP is 1, and the area is that of the mask."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = COCO(str(BUILD / "coco/instances-00001.json"))
    results = truth.loadRes(str(BUILD / "coco-results/results-00001.json"))
    evaluation = COCOeval(truth, results, "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == 1.0
    return f"mask AP {evaluation.stats[0]:.3f} of {len(results.anns)} detections"


def _by_name(dataset: object, folder: str, names: list[str]) -> Found:
    root = str(BUILD / folder / "images") + "/"
    found: Found = {}
    for path, pixels, annotation in dataset:  # type: ignore[attr-defined]
        masks = annotation.mask if annotation.mask is not None else []
        ones = found.setdefault(path.removeprefix(root), [])
        for mask, category in zip(masks, annotation.class_id, strict=True):
            assert mask.shape == pixels.shape[:2], f"{path} was not turned by its orientation"
            ones.append((mask, names[int(category)]))
    return found


def supervision_coco() -> str:
    import supervision as sv

    dataset = sv.DetectionDataset.from_coco(
        str(BUILD / "coco/images"), str(BUILD / "coco/instances-00001.json"), force_masks=True,
        use_iscrowd=False,
    )  # fmt: skip
    return WANTED.compare(_by_name(dataset, "coco", dataset.classes))


def supervision_yolo() -> str:
    """from_yolo reads one folder without subfolders: each of ours in turn."""
    import supervision as sv

    found: Found = {}
    for folder in sorted({str(Path(name).parent) for name in WANTED.images}):
        dataset = sv.DetectionDataset.from_yolo(
            str(BUILD / "yolo-seg/images" / folder), str(BUILD / "yolo-seg/labels" / folder),
            str(BUILD / "yolo-seg/data.yaml"), force_masks=True,
        )  # fmt: skip
        found |= _by_name(dataset, "yolo-seg", dataset.classes)
    assert found.keys() == WANTED.images.keys()
    ious = []
    for name, wanted in WANTED.images.items():
        for (mask, label), (other, other_label) in zip(found[name], wanted, strict=True):
            assert label == other_label
            largest = _largest_part(filled(other))
            mask = np.asarray(mask, bool)
            assert mask.shape == largest.shape
            ious.append((mask & largest).sum() / max(1, (mask | largest).sum()))
    # supervision draws polygons with OpenCV, whose outlines are part of them: half a pixel more.
    large = [iou for iou, m in zip(ious, _all_masks(), strict=True) if m.sum() > 300]
    assert min(large) > 0.8, min(large)
    return f"{len(ious)} masks; IoU to the largest part: median {np.median(ious):.3f}"


def _all_masks() -> list[np.ndarray]:
    return [_largest_part(filled(m)) for ones in WANTED.images.values() for m, _ in ones]


def _largest_part(mask: np.ndarray) -> np.ndarray:
    import cv2

    _, parts, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    return np.asarray(parts == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA])))


def datumaro(folder: str, kind: str, lowest: float) -> str:
    from datumaro.components.dataset import Dataset

    if kind == "cvat":
        path = BUILD / folder / "annotations-00001.xml"
    else:  # its importer wants the usual layout of COCO
        path = BUILD / f"{folder}-layout"
        (path / "annotations").mkdir(parents=True, exist_ok=True)
        source = BUILD / folder / "instances-00001.json"
        (path / "annotations/instances_train.json").write_bytes(source.read_bytes())
        if not (path / "images").exists():
            (path / "images").symlink_to(BUILD / folder / "images")
    dataset = Dataset.import_from(str(path), kind)
    labels = [label.name for label in dataset.categories()[_label_type()].items]
    stems = {name.rpartition(".")[0]: name for name in WANTED.images}
    found: Found = {name: [] for name in WANTED.images}
    n_as_stored = (
        0  # pictures that it does not turn by their orientation, as docs/annotation.md says
    )
    for item in dataset:
        name = stems[item.id]
        size = item.media.data.shape[:2]
        turned = next((mask.shape for mask, _ in WANTED.images[name]), size)
        assert size in (turned, turned[::-1]), name
        n_as_stored += size != turned
        # It turns the order of COCO annotations round; those of CVAT have no ids.
        ordered = item.annotations if kind == "cvat" else sorted(item.annotations, key=_id_of)
        for one in ordered:
            if one.type.name == "mask":
                found[name].append((one.image, labels[one.label]))
            elif one.type.name == "polygon":
                found[name].append((_fill(one.points), labels[one.label]))
    assert n_as_stored == 1, "datumaro turns pictures by their orientation now: say so in the docs"
    return WANTED.compare(found, lowest)


def _id_of(annotation: object) -> int:
    return int(annotation.id)  # type: ignore[attr-defined]


def _label_type() -> object:
    from datumaro.components.annotation import AnnotationType

    return AnnotationType.label


def _fill(points: list[float]) -> np.ndarray:
    from pycocotools import mask as coco

    height, width = next(ones[0][0].shape for ones in WANTED.images.values() if ones)
    return np.asarray(coco.decode(coco.frPyObjects([list(points)], height, width))[:, :, 0])


def cvat_sdk_masks() -> str:
    from xml.etree import ElementTree

    from cvat_sdk.masks import decode_mask, encode_mask

    found: Found = {}
    root = ElementTree.parse(BUILD / "cvat/annotations-00001.xml").getroot()
    for image in root.iter("image"):
        width, height = int(image.attrib["width"]), int(image.attrib["height"])
        ones = found.setdefault(image.attrib["name"], [])
        for element in image.iter("mask"):
            left, top, w, h = (int(element.attrib[k]) for k in ("left", "top", "width", "height"))
            runs = [int(run) for run in element.attrib["rle"].split(",")]
            points = [*runs, left, top, left + w - 1, top + h - 1]
            mask = np.asarray(decode_mask(points, image_width=width, image_height=height))
            assert encode_mask(mask) == points
            ones.append((mask, element.attrib["label"]))
    return WANTED.compare(found)


def label_studio(folder: str, lowest: float) -> str:
    from label_studio_sdk.converter.brush import decode_rle
    from label_studio_sdk.label_interface import LabelInterface

    interface = LabelInterface((BUILD / folder / "config.xml").read_text())
    found: Found = {}
    for task in json.loads((BUILD / folder / "tasks-00001.json").read_bytes()):
        (prediction,) = task["predictions"]
        errors = interface.validate_prediction(prediction, return_errors=True)
        assert not errors, errors
        parts: dict[int, list] = {}
        for region in prediction["result"]:
            parts.setdefault(region["meta"]["mask"], []).append(region)
        found[task["data"]["name"]] = [_region(regions, decode_rle) for regions in parts.values()]
    return WANTED.compare(found, lowest) + ", validate_prediction without errors"


def _region(regions: list, decode_rle: object) -> tuple[np.ndarray, str]:
    first = regions[0]
    width, height = first["original_width"], first["original_height"]
    if first["type"] == "brushlabels":
        values = np.asarray(decode_rle(first["value"]["rle"]))  # type: ignore[operator]
        return values.reshape(height, width, 4)[:, :, 3] > 0, first["value"]["brushlabels"][0]
    whole = np.zeros((height, width), bool)
    for region in regions:
        points = np.array(region["value"]["points"]) / 100 * (width, height)
        whole |= _fill(points.ravel().tolist()) > 0
    return whole, first["value"]["polygonlabels"][0]


def hugging_face() -> str:
    import datasets
    from pycocotools import mask as coco

    rows = datasets.load_dataset(
        "parquet", data_files=str(BUILD / "hf/data/*.parquet"), split="train",
        cache_dir=str(BUILD / "cache"),
    )  # fmt: skip
    assert isinstance(rows.features["image"], datasets.Image)
    feature = rows.features["objects"]["category"]
    labels = (feature.feature if hasattr(feature, "feature") else feature[0]).names
    assert labels == LABELS
    found: Found = {}
    for row in rows:
        size = [row["height"], row["width"]]
        turned = row["width"], row["height"]
        assert row["image"].size == turned, f"{row['file_name']} was not turned by its orientation"
        found[row["file_name"]] = [
            (coco.decode({"size": size, "counts": counts}), labels[label])
            for counts, label in zip(
                row["objects"]["counts"], row["objects"]["category"], strict=True
            )
        ]
    return WANTED.compare(found)


CHECKS = {
    "coco: pycocotools": lambda: pycocotools("coco", 1.0),
    "coco, polygons: pycocotools": lambda: pycocotools("coco-polygons", 0.3),
    "coco-results: pycocotools loadRes, COCOeval": pycocotools_results,
    "coco: supervision": supervision_coco,
    "coco: datumaro": lambda: datumaro("coco", "coco_instances", 1.0),
    "yolo-seg: supervision": supervision_yolo,
    "cvat: datumaro": lambda: datumaro("cvat", "cvat", 1.0),
    "cvat: cvat_sdk.masks": cvat_sdk_masks,
    "label-studio, polygons: label-studio-sdk": lambda: label_studio("label-studio", 0.3),
    "label-studio, brush: label-studio-sdk": lambda: label_studio("label-studio-brush", 1.0),
    "hf: datasets": hugging_face,
}

if __name__ == "__main__":
    sys.exit(run_checks(CHECKS))
