"""The training loop: a stop loses nothing, the best epoch is kept, weights are averaged."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from segcore.models.registry import load_checkpoint
from segcore.training.config import OptimizerConfig, TrainConfig
from segcore.training.loop import Trainer, build_model
from segcore.training.optimizer import average_weights


@pytest.mark.faults
@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_weights(tiny_config: TrainConfig, tmp_path: Path) -> None:
    torch.manual_seed(0)
    expected = Trainer(tiny_config).run()

    stopped_config = tiny_config.model_copy(update={"output": tmp_path / "stopped"})
    stopped = Trainer(stopped_config)
    stopped.train_one_epoch()
    stopped.save()
    stopped.train_one_epoch()  # lost: the process dies before this epoch is saved
    resumed = Trainer(stopped_config)
    assert resumed.resume()
    assert resumed.epoch == 1
    weights = resumed.run()
    for name, value in expected.items():
        # The mask loss samples positives at random; with so few there is nothing to sample.
        torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-4, msg=name)
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in log] == [1, 2, 3, 4]
    assert log[-1]["losses"]["cls"] < log[0]["losses"]["cls"]


@pytest.mark.slow
def test_the_keys_of_the_saved_state_do_not_change(
    tiny_config: TrainConfig, tmp_path: Path
) -> None:
    """A run that an earlier version began can be resumed."""
    trainer = Trainer(tiny_config)
    trainer.save()
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert set(state) == {
        *("architecture", "model", "average", "optimizer", "epoch", "step", "minutes", "best"),
        *("starting_scores", "config"),
    }
    del state["starting_scores"], state["config"]  # which version 0.1 did not keep at first
    torch.save(state, tmp_path / "run" / "last.pt")
    assert trainer.resume()
    assert trainer.starting_scores == {}
    assert trainer.changes == []
    assert list(state["average"]) == list(state["model"]) == list(trainer.model.state_dict())


@pytest.mark.slow
def test_options_that_changed_since_the_last_start_are_named(tiny_config: TrainConfig) -> None:
    Trainer(tiny_config).save()
    changed = tiny_config.model_copy(
        update={
            "epochs": 8,
            "workers": 1,  # has no effect on the result
            "augment": tiny_config.augment.model_copy(update={"noise": 0.0}),
        }
    )
    trainer = Trainer(changed)
    assert trainer.resume()
    assert trainer.changes == ["augment.noise: 0.2 -> 0.0", "epochs: 4 -> 8"]


@pytest.mark.faults
def test_the_best_epoch_is_kept(tiny_config: TrainConfig) -> None:
    scores = iter([0.3, 0.9, 0.5, 0.9])
    validated: list[dict[str, torch.Tensor]] = []

    def validate(weights: dict[str, torch.Tensor]) -> dict[str, float]:
        validated.append({name: value.clone() for name, value in weights.items()})
        return {"mask_ap": next(scores)}

    best = Trainer(tiny_config, validate).run()
    assert len(validated) == 4
    assert all(torch.equal(best[name], validated[1][name]) for name in best)


@pytest.mark.parametrize("restored_at", [None, 2])
def test_the_decay_of_averaged_weights_rises_with_the_steps(restored_at: int | None) -> None:
    torch.manual_seed(0)
    config = OptimizerConfig(ema_decay=0.9, ema_ramp_steps=3)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    averaged = average_weights(model, config)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    for step in range(1, 6):
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter))
        model(torch.randn(8, 3))  # changes the buffers
        averaged.update_parameters(model)
        decay = 0.9 * (1 - math.exp(-(step + 1) / 3))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                expected[name].lerp_(value, 1 - decay)
            else:
                expected[name].copy_(value)
        if step == restored_at:
            state = averaged.module.state_dict()
            averaged = average_weights(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), config)
            averaged.module.load_state_dict(state)
            averaged.n_averaged.fill_(step + 1)
    for name, value in averaged.module.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_training_starts_from_a_model_by_its_name(tiny_config: TrainConfig) -> None:
    config = tiny_config.model_copy(update={"init": "nuclei-yolo11n"})
    model, is_pretrained = build_model(config, n_classes=1)
    weights = model.state_dict()
    assert is_pretrained
    assert not build_model(config, n_classes=2)[1]  # its class heads are new
    for name, tensor in load_checkpoint("nuclei-yolo11n").state_dict.items():
        torch.testing.assert_close(weights[name], tensor.to(weights[name].dtype))
