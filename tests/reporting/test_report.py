"""The report as a file: inert, self-contained, within its budgets, and complete or honest."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from segcore.evaluation.evaluate import evaluate
from segcore.output.results import open_results
from segcore.reporting import gallery
from segcore.reporting.analysis import analysis_section
from segcore.reporting.cost import describe_cost
from segcore.reporting.gallery import thumbnail
from segcore.reporting.html import Markup
from segcore.reporting.page import MAX_BYTES, Section, write_page
from segcore.reporting.report import Report, ReportOptions, make_report
from segcore.storage import Storage
from tests.support.finished_output import FinishedOutput, finish_run
from tests.support.generated_output import draw_instances
from tests.support.two_editions import drift, truth_bytes, write_images

_VOID = {"meta", "input", "br"}
_HOSTILE = "<img src=x onerror=alert(1)>\"'</title><script>alert(2)</script>"


class Page(HTMLParser):
    """A page read strictly: every element is closed by its own tag."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.ids: Counter[str] = Counter()
        self.links: list[str] = []
        self.attributes: set[str] = set()
        self.policy = self.text = ""
        self._open: list[str] = []
        self.code: dict[str, str] = {}
        self.feed(data.decode())
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        assert len(values) == len(attrs), f"an attribute of {tag} comes twice"
        self.tags[tag] += 1
        self.attributes |= set(values)
        self.links += [str(values[name]) for name in ("href", "src") if name in values]
        if "id" in values:
            self.ids[str(values["id"])] += 1
        if values.get("http-equiv") == "Content-Security-Policy":
            self.policy = str(values["content"])
        if tag not in _VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in ("style", "script"):
            self.code[self._open[-1]] = data
        else:
            self.text += data


def _report(output: str, options: ReportOptions = ReportOptions()) -> tuple[Report, Page]:
    report = make_report(open_results(Storage(), output), options)
    return report, Page(report.html)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> FinishedOutput:
    return finish_run(str(tmp_path_factory.mktemp("run")), n_images=6)


def test_a_page_needs_nothing_but_itself(finished: FinishedOutput) -> None:
    report, page = _report(finished.output)
    assert report.problems == ()
    assert "7 images = 6 segmented + 1 failed" in page.text
    assert "The record of the run says the same." in page.text
    assert "not_an_image" in page.text
    hashes = {
        name: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for name, text in page.code.items()
    }
    assert page.policy.startswith("default-src 'none';")
    for name, value in hashes.items():
        assert f"{name}-src 'sha256-{value}'" in page.policy
    assert page.tags["script"] == page.tags["style"] == page.tags["h1"] == 1
    assert not [name for name in page.attributes if name.startswith("on") or name == "style"]
    anchors = [link[1:] for link in page.links if link.startswith("#")]
    assert set(anchors) <= set(page.ids)
    rest = [link for link in page.links if not link.startswith(("#", "data:image/jpeg;base64,"))]
    assert rest == []
    assert max(page.ids.values()) == 1
    assert page.tags["figure"] == 7
    assert page.tags["table"] == page.tags["caption"]


def test_the_same_output_gives_the_same_file(finished: FinishedOutput) -> None:
    assert _report(finished.output)[0].html == _report(finished.output)[0].html


def test_hostile_names_are_text(tmp_path: Path) -> None:
    found = draw_instances("nuclei", 3, 0)
    names = [f"s3://archive/photos/{i}{_HOSTILE}.png" for i in range(3)]
    write_images(str(tmp_path), {names[0]: found, names[1]: found, names[2]: None}, 2, _HOSTILE)
    report, page = _report(str(tmp_path))
    assert page.tags["script"] == 1
    assert page.tags["img"] == 0
    assert "<img src=x onerror=alert(1)>" in page.text
    assert len(report.problems) == 2  # there is no such archive
    assert "This report is not complete" in page.text


def test_known_masks_and_another_edition(tmp_path: Path) -> None:
    images = {f"s3://archive/photos/{i}.png": draw_instances("nuclei", 9, i) for i in range(6)}
    other = {name: drift(found, 5 + i) for i, (name, found) in enumerate(images.items())}
    old = write_images(f"{tmp_path}/out", images, 2, "old")
    write_images(f"{tmp_path}/out", other, 3, "new")
    truth = tmp_path / "truth.json"
    truth.write_bytes(truth_bytes(images))
    for against in (old.name, old.prefix):
        _, page = _report(f"{tmp_path}/out", ReportOptions(str(truth), against))
        for text in ("Scores", "AP75", "Precision at each recall", "Best score thresholds",
                     "Calibration", "Confusions", "Worst images", "right, ", "Errors",
                     "missed", "What changed", "vanished", "Most errors",
                     "Most changed"):  # fmt: skip
            assert text in page.text
    report, page = _report(f"{tmp_path}/out", ReportOptions(f"{tmp_path}/nix.json", "nix"))
    assert [text.partition(" left out")[0] for text in report.problems[:3]] == [
        "Scores", "Errors", "What changed:",
    ]  # fmt: skip
    assert "What was found" in page.text


def test_the_closer_look_has_the_numbers_of_the_evaluation(tmp_path: Path) -> None:
    images = {f"s3://archive/photos/{i}.png": draw_instances("nuclei", 9, i) for i in range(5)}
    other = {name: drift(found, 5 + i) for i, (name, found) in enumerate(images.items())}
    write_images(f"{tmp_path}/out", other, 3, "new")
    truth = tmp_path / "truth.json"
    truth.write_bytes(truth_bytes(images))
    measured = evaluate(Storage(), f"{tmp_path}/out", str(truth))
    section = analysis_section(measured, 400_000)
    classes = [one for one in measured.analysis.per_class if one.precision]
    middle = np.mean([one.precision[50][50] for one in classes])
    assert f'IoU 0.50, recall 0.50</th><td class="n">{middle:.3f}</td>' in section
    assert section.count("<polyline") == section.count('class="line l') > 10
    for one in classes:
        assert one.best is not None
        assert f'<td class="n">{one.best.f1:.3f}</td>' in section
    assert f"by {measured.analysis.calibration_error:.3f} on average" in section
    small = analysis_section(measured, 2_000)
    assert "more rows left out." in small


def test_a_truth_without_objects_has_no_curves(tmp_path: Path) -> None:
    images = {"s3://archive/photos/0.png": draw_instances("nuclei", 2, 0)}
    write_images(f"{tmp_path}/out", images, 3, "new")
    truth = tmp_path / "truth.json"
    document = json.loads(truth_bytes(images)) | {"annotations": []}
    truth.write_text(json.dumps(document))
    section = analysis_section(evaluate(Storage(), f"{tmp_path}/out", str(truth)), 400_000)
    assert "Precision at each recall" not in section
    assert "Calibration" in section


def test_the_cost_follows_from_the_record_of_the_run() -> None:
    values = {"timings": {"plan": 360.0, "segment": 3240.0}, "images_this_time": 36_000,
              "images_per_second": 10.0}  # fmt: skip
    assert list(describe_cost(values, 4.0)) == [
        ("Cost, at 4 an hour", "4 for the last execution: 1 h from its start to its end, "
         "36,000 images"),
        ("Cost of a million images", "111.1, at 10 images/s (extrapolated)"),
    ]  # fmt: skip
    for damaged in ({}, {"timings": "x"}, {**values, "images_this_time": None}):
        ((_, text),) = describe_cost(damaged, 4.0)
        assert "does not say how long" in str(text)


def test_an_image_that_is_gone_is_said(tmp_path: Path) -> None:
    finished = finish_run(str(tmp_path), n_images=3)
    (tmp_path / "in" / "image01.png").unlink()
    report, page = _report(finished.output)
    assert len(report.problems) == 1
    assert "image01.png" in report.problems[0]
    assert "cannot be read today" in page.text
    assert page.tags["image"] == 2


def test_masks_fit_into_the_budget(
    finished: FinishedOutput, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = _report(finished.output)
    monkeypatch.setattr("segcore.reporting.report._FIGURE_BYTES", 7 * 4000)
    small, page = _report(finished.output)
    assert len(small.html) < len(whole.html)
    assert "not drawn: no room" in page.text


def test_a_section_over_its_budget_is_left_out() -> None:
    section = Section("one", "One", Markup("<p>" + "x" * 2000 + "</p>"), 1000)
    page = Page(write_page("t", "s", [section]))
    assert "Left out: it would take 2.0 KiB" in page.text
    assert "xxx" not in page.text


def test_all_budgets_together_are_less_than_a_file() -> None:
    from segcore.reporting import report

    budgets = [value for name, value in vars(report).items() if name.endswith("_BYTES")]
    # Figures are in the gallery, and there may be two sections of changes.
    shared = report._FIGURE_BYTES - report._CHANGES_BYTES
    assert sum(budgets) - shared + len(write_page("t", "s", [])) < MAX_BYTES
    assert report._FIGURE_BYTES < report._GALLERY_BYTES


def _luminance(colour: str) -> float:
    """Relative luminance of WCAG 2 of #rgb or #rrggbb."""
    digits = "".join(2 * d for d in colour[1:]) if len(colour) == 4 else colour[1:]
    channels = np.array([int(digits[i : i + 2], 16) for i in (0, 2, 4)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


@pytest.mark.parametrize("theme", [0, 1])
def test_text_stands_out_in_both_themes(theme: int) -> None:
    style = Page(write_page("t", "s", [])).code["style"]
    rule = re.findall(r":root\{(.*?)\}", style, re.DOTALL)[theme]
    colours = dict(re.findall(r"--([a-z]+):(#[0-9a-f]{3,6})", rule))
    for name, least in {"ink": 4.5, "soft": 4.5, "accent": 4.5, "warn": 4.5, "bar": 3.0}.items():
        for ground in ("paper", "panel"):
            pair = sorted((_luminance(colours[name]), _luminance(colours[ground])))
            assert (pair[1] + 0.05) / (pair[0] + 0.05) >= least, (name, ground)


def test_thumbnails_are_small() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (900, 1400, 3)).astype(np.uint8)
    assert len(thumbnail(noise)) <= gallery._MAX_THUMBNAIL_BYTES
    assert len(thumbnail(noise[:1])) <= gallery._MAX_THUMBNAIL_BYTES
