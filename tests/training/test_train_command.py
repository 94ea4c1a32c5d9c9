"""`segcore train` leaves a checkpoint that loads, with its card."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import Result
from typer.testing import CliRunner

from segcore.cli import train
from segcore.cli.console import new_app
from segcore.errors import Interrupted
from segcore.evaluation.average_precision import AveragePrecision, Scores
from segcore.exit_codes import ExitCode
from segcore.models.base import ModelOptions
from segcore.models.registry import load_model, read_checkpoint
from segcore.training.config import TrainConfig
from segcore.training.loop import Trainer
from segcore.training.train import TrainReport
from segcore.training.train import train as run_training
from segcore.training.validate import summarize_scores


@pytest.mark.faults
def test_the_command_leaves_a_model_that_loads(tiny_config: TrainConfig, tmp_path: Path) -> None:
    config_file = tmp_path / "train.yaml"
    document = tiny_config.model_dump(mode="json")
    document["validation"]["imgsz"] = 96
    config_file.write_text(yaml.safe_dump(document))
    arguments = [str(config_file), "--json", "--set", "epochs=2"]
    app = new_app()
    app.command()(train.command)
    first = CliRunner().invoke(app, arguments)
    assert first.exit_code == 0, first.output
    report = json.loads(first.stdout)
    assert report["scores"]["n_images"] == 6
    assert report["starting_scores"] == {}  # they were random
    assert "before" not in first.stderr
    assert "Training on 6 images with 18 objects: 2 epochs of 2 steps, measured" in first.stderr
    assert "Epoch 2 of 2: mask AP50-95 0." in first.stderr
    pieces = sorted((tiny_config.output / "logs").glob("*.log"))
    assert "Done with epoch 2 of 2" in "".join(piece.read_text() for piece in pieces)
    card = Path(report["card"]).read_text()
    assert f"`segcore train {config_file} --set epochs=2`" in card
    assert re.search(r"\| weights \| of epoch [12] of 2 \|", card)
    assert "CC0-1.0" in card
    assert f"| {tiny_config.seed} |" in card
    assert hashlib.sha256(Path(report["checkpoint"]).read_bytes()).hexdigest() in card

    model = load_model(report["checkpoint"], ModelOptions(device="cpu"))
    assert [(c.id, c.name) for c in model.info.categories] == [(7, "disc")]
    assert model.info.parameters["imgsz"] == 96

    def weights(result: Result) -> dict[str, torch.Tensor]:
        return read_checkpoint(json.loads(result.stdout)["checkpoint"]).state_dict

    initial = weights(first)
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 0, again.output
    assert "All epochs in" in again.stderr
    assert "Training on" not in again.stderr
    assert json.loads(again.stdout)["scores"] == report["scores"]
    # Fine-tuning takes over all of its tensors, and --restart really begins anew.
    copy = shutil.copy(report["checkpoint"], tmp_path / "copy.safetensors")
    fine_tuning = [*arguments, "--restart", "--set", f"init={copy}", "--set", "optimizer.lr=1e-9"]
    second = CliRunner().invoke(app, [*fine_tuning, "--set", "epochs=1"])
    assert second.exit_code == 0, second.output
    assert "Starting over: 2 epochs in" in second.stderr
    before = json.loads(second.stdout)["starting_scores"]
    for name in ("ap", "ap50", "ap75"):
        assert before[f"mask_{name}"] == pytest.approx(report["scores"]["mask"][name], abs=0.02)
    card = Path(report["card"]).read_text()
    assert f"| box, before training | {before['box_ap']:.3f} | {before['box_ap50']:.3f}" in card
    log = (tiny_config.output / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in log] == [1]
    for name, tensor in initial.items():
        if tensor.ndim > 1:
            torch.testing.assert_close(weights(second)[name], tensor, rtol=2e-3, atol=1e-4)


def test_a_stopped_training_says_what_is_kept(
    tiny_config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(trainer: Trainer) -> None:
        trainer.epoch = 1
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "train_one_epoch", interrupt)
    with pytest.raises(Interrupted, match="1 of 4 epochs is done") as stopped:
        run_training(tiny_config)
    assert stopped.value.exit_code == ExitCode.INTERRUPTED
    (piece,) = (tiny_config.output / "logs").glob("*.log")
    assert "Ended early: Interrupted: Stopped. 1 of 4 epochs" in piece.read_text()


def test_a_training_that_is_stopped_in_its_first_epoch_does_not_speak_of_resuming(
    tiny_config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(trainer: Trainer) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "train_one_epoch", interrupt)
    with pytest.raises(Interrupted, match="0 of 4 epochs are done") as stopped:
        run_training(tiny_config)
    assert stopped.value.hint == "The same command begins again."


def test_the_card_names_the_options_without_secrets() -> None:
    arguments = train._without_secrets(
        "my file.yaml", ["epochs=2", "init=https://user:pass@host/w.pt?token=secret"]
    )
    assert arguments.startswith("'my file.yaml' --set epochs=2 --set ")
    assert "host/w.pt" in arguments
    assert not any(word in arguments for word in ("user", "pass", "secret"))


@pytest.mark.parametrize(("before", "n_sentences"), [(None, 0), (0.4, 0), (0.5, 2), (0.6, 2)])
def test_a_training_that_gained_nothing_says_so(before: float | None, n_sentences: int) -> None:
    precision = AveragePrecision(0.5, 0.7, 0.6, 0.5, 0.5, 0.5, 0.8, 0.9)
    scores = Scores(precision, precision, (), 6, 18, 20, 100)
    start = {} if before is None else summarize_scores(scores) | {"mask_ap": before}
    report = TrainReport(Path("a.safetensors"), Path("a.md"), scores, start)
    assert len(report.advice()) == n_sentences
    assert ("before   AP50-95" in report.summary()) == (before is not None)
