"""Every command of docs/loop.md, in order: the second round's pre-labels are better."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from segcore.cli import main
from segcore.exports.formats.rle_pack import pack_mask
from tests.support import markdown
from tests.support.drawn_cells import write_pictures, write_truth
from tests.support.run_without_ray import without_ray

PAGE = "docs/loop.md"


def _row_runs(mask: np.ndarray) -> np.ndarray:
    """Run lengths of a mask row by row, zeros first."""
    flat = np.concatenate(([0], mask.ravel().astype(np.int8)))
    edges = np.flatnonzero(np.diff(flat))
    return np.diff(edges, prepend=0, append=mask.size)


def _annotate(folder: Path, drawn: dict[str, list[np.ndarray]]) -> None:
    """What Label Studio exports when somebody has drawn each object and deleted the others."""
    tasks = json.loads((folder / "round1/tasks-00001.json").read_bytes())
    assert len(tasks) == len(drawn)
    for number, task in enumerate(tasks, 1):
        regions = [
            {
                "id": f"r{k}", "type": "brushlabels", "from_name": "brush", "to_name": "image",
                "original_width": mask.shape[1], "original_height": mask.shape[0],
                "image_rotation": 0,
                "value": {
                    "format": "rle", "rle": list(pack_mask(_row_runs(mask))),
                    "brushlabels": ["nucleus"],
                },
            }
            for k, mask in enumerate(drawn[task["data"]["name"]])
        ]  # fmt: skip
        task |= {"id": number, "annotations": [{"id": number, "result": regions}]}
    (folder / "corrected.json").write_text(json.dumps(tasks))


def _run(line: str) -> Any:
    words = shlex.split(line)
    assert words[0] == "segcore"
    done = CliRunner().invoke(main.app, [*words[1:], "--json"])
    assert done.exit_code == 0, f"{line}: {done.output}"
    return json.loads(done.stdout)


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_the_second_round_is_better(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    drawn = write_pictures(tmp_path / "photos", 24, 100)
    new = write_pictures(tmp_path / "more", 8, 900)
    write_truth(tmp_path / "more.json", new, "nucleus")
    answers = {}
    for block in markdown.blocks(PAGE):
        if block.language == "yaml":
            (tmp_path / "loop.yaml").write_text(block.text)
            continue
        for line in block.commands():
            with without_ray():
                answers[line] = _run(line)
            if line.startswith("segcore prelabel photos/"):
                _annotate(tmp_path, drawn)
    imported, compared, before, after = [
        next(answer for line, answer in answers.items() if line.startswith(f"segcore {words}"))
        for words in ("import", "compare", "evaluate before/", "evaluate masks2/")
    ]
    n_drawn = sum(map(len, drawn.values()))
    assert imported["objects"] == n_drawn
    assert imported["left_out"] == 0
    edits = compared["changes"]
    assert edits["same"] + edits["moved"] + edits["appeared"] == n_drawn
    assert edits["vanished"] > n_drawn // 4  # the discs
    score_before, score_after = before["scores"]["mask"]["ap"], after["scores"]["mask"]["ap"]
    assert score_after > score_before + 0.15, (score_before, score_after)
    assert after["scores"]["mask"]["ap50"] > 0.9
