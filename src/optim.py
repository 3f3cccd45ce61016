"""Parameter groups by name, and the learning rate as a pure function of the step.

Published rules and schedules: HD-VILA and its ancestor ClipBERT (three families of parameters with
rates of their own; linear, multi-step, inverse square root and constant schedules with warm-up, and
one that follows the validations).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rushes.configs.schema import OptimConfig
from rushes.errors import ConfigError
from rushes.log import get_logger

logger = get_logger(__name__)

FAMILIES = ("transformer", "backbone", "temporal")
FLOOR = 1e-8
"""The published code never sets a rate of zero: it sets this instead."""

_BACKBONE = ("cnn", "backbone", "grid")
_TEMPORAL = ("timesformer", "temporal")


def family(name: str) -> str:
    """Which rate a parameter takes: "transformer", "backbone" (with grid encoders) or "temporal".

    Reads published names (`cnn.`, `grid_encoder`, `timesformer.`, `transformer.`) and ours alike;
    whatever is neither visual backbone nor space-time transformer is "transformer".
    """
    first = name.split(".", 1)[0]
    if first == "transformer":
        return "transformer"
    if any(word in name for word in _TEMPORAL):
        return "temporal"
    if any(word in name for word in _BACKBONE):
        return "backbone"
    return "transformer"


def published_decay(name: str) -> bool:
    """Whether the original decays a parameter: gains of batch norm and of the space-time
    transformer's norms do decay there, all biases, BERT's norms and embedding tables do not."""
    kept = ("bias", "LayerNorm.weight", "LayerNorm.bias", "embed")
    return not any(word in name for word in kept)


def published_group(name: str) -> int:
    """Index 0 to 11 of a published parameter in the original optimiser's list of groups.

    Four a family (transformer, backbone, temporal): decayed and not, first those whose name has the
    family's multiplier prefix (`grid_encoder` for the backbone, none elsewhere), then the rest.
    """
    base = 4 * FAMILIES.index(family(name))
    prefixed = base == 4 and "grid_encoder" in name
    return base + (0 if prefixed else 2) + (0 if published_decay(name) else 1)


def decays(name: str, parameter: torch.Tensor, compat: bool = False) -> bool:
    """Whether weight decay acts on a parameter.

    Matrices and kernels decay; biases, gains, scalars and embedding tables do not. `compat` decides
    by name, as published.
    """
    if compat:
        return published_decay(name)
    return parameter.ndim > 1 and ("embed" not in name or "patch_embed" in name)


@dataclass(frozen=True)
class Group:
    """One group of the optimiser."""

    name: str
    learning_rate: float
    weight_decay: float
    parameters: tuple[str, ...]


def parameter_groups(
    named: Iterable[tuple[str, torch.Tensor]], config: OptimConfig, compat: bool = False
) -> list[Group]:
    """Groups of the given parameters, empty ones left out, in a fixed order."""
    rates = {
        "transformer": (config.learning_rate, config.weight_decay),
        "backbone": (config.backbone.learning_rate, config.backbone.weight_decay),
        "temporal": (config.temporal.learning_rate, config.temporal.weight_decay),
    }
    members: dict[tuple[str, bool], list[str]] = {}
    for name, parameter in named:
        members.setdefault((family(name), decays(name, parameter, compat)), []).append(name)
    groups = []
    for kind in FAMILIES:
        rate, decay = rates[kind]
        rate = config.learning_rate if rate is None else rate
        decay = config.weight_decay if decay is None else decay
        for decayed in (True, False):
            names = members.get((kind, decayed))
            if names:
                label = kind if decayed else f"{kind}_no_decay"
                groups.append(Group(label, rate, decay if decayed else 0.0, tuple(names)))
    return groups


def make_optimizer(
    model: nn.Module, config: OptimConfig, compat: bool = False
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; each group carries `name` and `base_lr`, and is logged.

    The fused implementation is used on CPU and CUDA.

    Raises:
        ConfigError: nothing is trainable.
    """
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        raise ConfigError("model.freeze leaves no trainable parameter")
    groups = parameter_groups(trainable.items(), config, compat)
    for group in groups:
        count = sum(trainable[name].numel() for name in group.parameters)
        logger.info(
            "group %s: %d tensors, %.3f M values, rate %g, decay %g, e.g. %s",
            group.name,
            len(group.parameters),
            count / 1e6,
            group.learning_rate,
            group.weight_decay,
            group.parameters[0],
        )
    devices = {parameter.device.type for parameter in trainable.values()}
    return torch.optim.AdamW(
        [
            {
                "params": [trainable[name] for name in group.parameters],
                "lr": group.learning_rate,
                "base_lr": group.learning_rate,
                "weight_decay": group.weight_decay,
                "name": group.name,
            }
            for group in groups
        ],
        betas=config.betas,
        eps=config.eps,
        fused=devices <= {"cpu", "cuda"},
    )


def schedule_factor(
    schedule: str,
    step: int,
    total_steps: int,
    warmup_steps: int,
    *,
    epoch: int = 0,
    milestones: Sequence[int] = (),
    gamma: float = 0.5,
    compat: bool = False,
) -> float:
    """What the base rate is multiplied by at optimiser step `step`, counted from 1.

    `compat` keeps two quirks of the original: `constant` has no warm-up, and `multi_step` skips a
    power of gamma after its last milestone.

    Args:
        schedule: "linear" (to 0 at `total_steps`), "cosine", "multi_step", "invsqrt", "constant",
            "auto_step" (see `AutoStep`).
        warmup_steps: steps over which the factor rises from 0 to 1.
        epoch: epochs done, for `multi_step`.

    Raises:
        ConfigError: unknown schedule.
    """
    if compat and schedule == "constant":
        return 1.0
    if warmup_steps > 0 and step <= warmup_steps:
        return step / warmup_steps
    left = max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))
    if schedule == "linear":
        return left
    if schedule == "cosine":
        return 0.5 * (1.0 - float(torch.cos(torch.tensor(torch.pi * left, dtype=torch.float64))))
    if schedule == "invsqrt":
        return float((max(1, warmup_steps) / max(1, step)) ** 0.5)
    if schedule == "multi_step":
        passed = sum(epoch >= milestone for milestone in milestones)
        if compat and milestones and passed == len(milestones):
            passed += 1
        return float(gamma**passed)
    if schedule in ("constant", "auto_step"):  # the latter's own factor comes on top
        return 1.0
    raise ConfigError(f"optim.schedule: unknown schedule {schedule!r}")


def learning_rate_at(
    step: int,
    total_steps: int,
    steps_per_epoch: int,
    config: OptimConfig,
    base: float | None = None,
    compat: bool = False,
) -> float:
    """The rate at optimiser step `step`, counted from 1; a pure function, so that resume is exact.

    Args:
        total_steps: steps of the whole run.
        steps_per_epoch: optimiser steps an epoch, for `multi_step`.
        base: the group's own rate; None takes `config.learning_rate`.
        compat: published quirks (see `schedule_factor`), the floor of 1e-8 instead of 0, and
            milestones that act one step early, on an epoch's last step.
    """
    done = step if compat else max(0, step - 1)
    factor = schedule_factor(
        config.schedule,
        step,
        total_steps,
        int(config.warmup_ratio * total_steps),
        epoch=done // max(1, steps_per_epoch),
        milestones=config.milestones,
        gamma=config.gamma,
        compat=compat,
    )
    rate = (config.learning_rate if base is None else base) * factor
    return FLOOR if compat and rate <= 0 else rate


def set_learning_rates(
    optimizer: torch.optim.Optimizer,
    step: int,
    total_steps: int,
    steps_per_epoch: int,
    config: OptimConfig,
    compat: bool = False,
    coefficient: float = 1.0,
) -> dict[str, float]:
    """Set each group's rate for the step about to be taken (counted from 1); the rates by name.

    Args:
        coefficient: what `AutoStep` has come to.
    """
    rates = {}
    for group in optimizer.param_groups:
        group["lr"] = coefficient * learning_rate_at(
            step, total_steps, steps_per_epoch, config, group["base_lr"], compat
        )
        rates[group["name"]] = group["lr"]
    return rates


@dataclass
class AutoStep:
    """The schedule `auto_step`: a factor that falls by `gamma` where validations do not rise.

    Args:
        tolerance: validations in a row without a rise that are forgiven.
        gamma: factor.
        compat: a rise is measured against the score before, as published, not against the best.

    Attributes:
        coefficient: what rates are multiplied by after the warm-up.
        reference: the score that the next one is measured against.
        without_rise: validations since the last rise or fall of the coefficient.
    """

    tolerance: int
    gamma: float
    compat: bool = False
    coefficient: float = 1.0
    reference: float | None = None
    without_rise: int = 0

    def step(self, score: float) -> float:
        """Take in one score; the coefficient that holds from now on."""
        rises = self.reference is None or score > self.reference
        if rises:
            self.without_rise = 0
        else:
            self.without_rise += 1
            if self.without_rise > self.tolerance:
                self.coefficient *= self.gamma
                self.without_rise = 0
        if not math.isnan(score) and (rises or self.compat):
            self.reference = score
        return self.coefficient

    @property
    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold."""
        names = ("coefficient", "reference", "without_rise")
        return {name: getattr(self, name) for name in names}
