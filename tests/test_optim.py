"""Groups by name and schedules, against the recorded figures of the original."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from rushes.configs.schema import GroupConfig, OptimConfig
from rushes.errors import ConfigError
from rushes.optim import (
    AutoStep,
    family,
    learning_rate_at,
    make_optimizer,
    published_group,
    schedule_factor,
    set_learning_rates,
)

CASE = "hdvila_lr_schedule"


@pytest.fixture
def recorded(shared: Path) -> dict[str, np.ndarray]:
    with np.load(shared / "parity" / "hdvila" / f"{CASE}.npz") as arrays:
        return dict(arrays)


def test_every_published_parameter_is_in_its_published_group(shared: Path) -> None:
    case = json.loads((shared / "parity" / "hdvila" / f"{CASE}.json").read_text())
    groups = case["param_groups_of_hdvila_stage1_small"]
    names = {name: group["index"] for group in groups for name in group["names"]}
    assert len(names) > 150
    assert {name: published_group(name) for name in names} == names


@pytest.mark.parametrize("schedule", ["linear", "invsqrt", "constant", "multi_step"])
def test_schedules_alone_agree_with_the_original(
    recorded: dict[str, np.ndarray], schedule: str
) -> None:
    steps = recorded["in.get_lr_sched.steps"]
    epochs = recorded["in.get_lr_sched.multi_step_epoch"]
    rates = [
        max(
            1e-8,
            5e-5
            * schedule_factor(
                schedule, int(s), 40, 4, epoch=int(e), milestones=(2, 4, 6), compat=True
            ),
        )
        for s, e in zip(steps, epochs, strict=True)
    ]
    np.testing.assert_allclose(rates, recorded[f"out.get_lr_sched.{schedule}"], rtol=1e-12)


def test_rates_of_all_groups_agree_over_the_published_runs(
    recorded: dict[str, np.ndarray],
) -> None:
    linear = OptimConfig(learning_rate=5e-5, schedule="linear", warmup_ratio=0.1)
    rates = [
        learning_rate_at(int(s), 60, 6, linear, compat=True)
        for s in recorded["in.pretrain_stage1.steps"]
    ]
    expected = recorded["out.pretrain_stage1.param_group_lr"]
    np.testing.assert_allclose(np.repeat(np.array(rates)[:, None], 12, 1), expected, rtol=1e-12)

    stepped = OptimConfig(
        learning_rate=1e-5,
        temporal=GroupConfig(learning_rate=5e-6),
        schedule="multi_step",
        milestones=(32, 64, 128, 256),
        warmup_ratio=0.01,
    )
    expected = recorded["out.msrvtt_retrieval.param_group_lr"]
    for row, step in enumerate(recorded["in.msrvtt_retrieval.steps"]):
        for column, base in ((0, None), (4, None), (8, 5e-6)):
            rate = learning_rate_at(int(step), 600, 3, stepped, base, compat=True)
            assert rate == pytest.approx(expected[row, column], rel=1e-12), (step, column)


def test_auto_step_agrees_with_the_original(recorded: dict[str, np.ndarray]) -> None:
    auto = AutoStep(tolerance=1, gamma=0.5, compat=True)
    config = OptimConfig(schedule="auto_step", warmup_ratio=0.1, learning_rate=1e-5)
    optimizer = make_optimizer(nn.Linear(1, 1, bias=False), config, compat=True)
    rows = []
    for index, score in enumerate(recorded["in.auto_step.scores"]):
        coefficient = auto.step(float(score))
        auto = AutoStep(1, 0.5, compat=True, **json.loads(json.dumps(auto.state)))  # a resume
        rates = [
            set_learning_rates(optimizer, step, 20, 5, config, True, coefficient)["transformer"]
            for step in (index + 1, 10)
        ]
        rows.append([*rates, coefficient])
    np.testing.assert_allclose(rows, recorded["out.auto_step"], rtol=1e-12)


def test_auto_step_measures_against_the_best_by_default() -> None:
    scores = [10.0, 5.0, 6.0, 7.0]  # rises, but never above the best
    published, ours = AutoStep(1, 0.5, compat=True), AutoStep(1, 0.5)
    assert [published.step(s) for s in scores] == [1.0, 1.0, 1.0, 1.0]
    assert [ours.step(s) for s in scores] == [1.0, 1.0, 0.5, 0.5]


def test_auto_step_gets_over_a_score_that_is_no_number() -> None:
    for compat in (False, True):
        auto = AutoStep(1, 0.5, compat)
        assert [auto.step(s) for s in (1.0, float("nan"), 2.0, 3.0)] == [1.0] * 4
        assert [auto.step(float("nan")) for _ in range(2)] == [1.0, 0.5]


def test_defaults_do_not_skip_a_power_nor_divide_by_zero() -> None:
    factors = [
        schedule_factor("multi_step", 10, 40, 0, epoch=e, milestones=(1, 2)) for e in range(4)
    ]
    assert factors == [1.0, 0.5, 0.25, 0.25]
    assert schedule_factor("invsqrt", 0, 40, 0) == 1.0
    assert schedule_factor("constant", 1, 40, 4) == 0.25
    assert schedule_factor("cosine", 40, 40, 4) == pytest.approx(0.0)
    assert schedule_factor("cosine", 4, 40, 4) == 1.0
    assert schedule_factor("cosine", 22, 40, 4) == pytest.approx(0.5)
    with pytest.raises(ConfigError, match="polynomial"):
        schedule_factor("polynomial", 1, 2, 0)


def test_families_of_our_names() -> None:
    assert family("video.backbone_low.layer1.0.conv1.weight") == "backbone"
    assert family("video.grid_encoder.weight") == "backbone"
    assert family("video.temporal.blocks.0.attn.qkv.weight") == "temporal"
    assert family("text.encoder.layer.0.attention.query.weight") == "transformer"
    assert family("contrastive.log_temperature") == "transformer"


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 4, 1)
        self.temporal = nn.Linear(4, 4)
        self.word_embeddings = nn.Embedding(5, 4)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 2)


def test_optimizer_gives_each_group_its_rate_and_decay() -> None:
    model = _Model()
    model.head.bias.requires_grad_(False)
    config = OptimConfig(
        learning_rate=1.0,
        weight_decay=0.5,
        backbone=GroupConfig(learning_rate=2.0),
        temporal=GroupConfig(learning_rate=3.0, weight_decay=0.25),
        schedule="constant",
        warmup_ratio=0.5,
    )
    optimizer = make_optimizer(model, config)
    table = {
        g["name"]: (len(g["params"]), g["lr"], g["weight_decay"]) for g in optimizer.param_groups
    }
    assert table == {
        "transformer": (1, 1.0, 0.5),
        "transformer_no_decay": (3, 1.0, 0.0),
        "backbone": (1, 2.0, 0.5),
        "backbone_no_decay": (1, 2.0, 0.0),
        "temporal": (1, 3.0, 0.25),
        "temporal_no_decay": (1, 3.0, 0.0),
    }
    rates = set_learning_rates(optimizer, 1, 4, 2, config)
    assert rates["temporal"] == 1.5
    assert {g["lr"] for g in optimizer.param_groups} == {0.5, 1.0, 1.5}
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ConfigError, match="no trainable"):
        make_optimizer(model, config)


def test_fused_steps_agree_with_the_plain_ones() -> None:
    torch.manual_seed(0)
    one, two = nn.Linear(8, 8), nn.Linear(8, 8)
    two.load_state_dict(one.state_dict())
    config = OptimConfig(learning_rate=1e-2, weight_decay=0.1)
    ours = make_optimizer(one, config)
    plain = torch.optim.AdamW(
        [
            {"params": [two.weight], "weight_decay": 0.1},
            {"params": [two.bias], "weight_decay": 0.0},
        ],
        lr=1e-2,
        betas=config.betas,
        eps=config.eps,
        fused=False,
    )
    for _ in range(5):
        x = torch.randn(4, 8)
        for module, optimizer in ((one, ours), (two, plain)):
            optimizer.zero_grad()
            module(x).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(one.weight, two.weight, rtol=1e-5, atol=1e-7)
