"""Schedules and metrics of parity cases, from our own functions, for any preset or matrix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rushes.metrics import compat_metrics
from rushes.optim import FLOOR, AutoStep, schedule_factor

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]


def check_schedules(case: Mapping[str, Any], arrays: Arrays) -> None:
    """Every rate of the case to 1e-12, relative."""
    for name in case["outputs"]:
        ours = _schedule(name, case["config"], arrays)
        np.testing.assert_allclose(ours, arrays[f"out.{name}"], rtol=1e-12, err_msg=name)


def _schedule(name: str, config: Mapping[str, Any], arrays: Arrays) -> Array:
    preset, _, what = name.partition(".")
    if what == "param_group_lr":
        return _group_rates(preset, config[preset], arrays)
    if preset == "get_lr_sched":
        values = config[preset]
        epochs = arrays[f"in.{preset}.multi_step_epoch"]
        milestones = values["decay_epochs"]
        return _rates(what, values["learning_rate"], values, arrays, preset, epochs, milestones)
    if preset.startswith("auto_step"):
        return _auto_step(config[preset], arrays[f"in.{preset}.scores"])
    raise AssertionError(f"unknown schedule {name}")


def _group_rates(preset: str, config: Mapping[str, Any], arrays: Arrays) -> Array:
    """Twelve groups: transformer (0-3), backbones and grid encoders (4-7), temporal (8-11)."""
    epochs = arrays.get(f"in.{preset}.n_epoch", np.zeros(len(arrays[f"in.{preset}.steps"]), int))
    rate, cnn_rate = config["learning_rate"], config.get("cnn_learning_rate")
    cnn_rate = rate if cnn_rate is None else cnn_rate
    temporal_rate = config.get("align_learning_rate", rate)
    multiplied = rate * config.get("transformer_lr_mul", 1.0)
    cnn_multiplied = cnn_rate * config.get("cnn_lr_mul", 1.0)
    families = (
        (multiplied, "decay", "step_decay_epochs", 2),
        (rate, "decay", "step_decay_epochs", 2),
        (cnn_multiplied, "cnn_lr_decay", "cnn_step_decay_epochs", 2),
        (cnn_rate, "cnn_lr_decay", "cnn_step_decay_epochs", 2),
        (temporal_rate, "decay", "step_decay_epochs", 4),
    )
    columns = []
    for base, kind, milestones, count in families:
        column = _rates(
            config[kind], base, config, arrays, preset, epochs, config.get(milestones) or ()
        )
        columns += [column] * count
    return np.stack(columns, axis=1)


def _rates(
    kind: str,
    base: float,
    config: Mapping[str, Any],
    arrays: Arrays,
    preset: str,
    epochs: Array,
    milestones: Any,
) -> Array:
    total = config["num_train_steps"]
    warmup = int(config["warmup_ratio"] * total)
    factors = [
        schedule_factor(
            kind,
            int(step),
            total,
            warmup,
            epoch=int(epoch),
            milestones=tuple(milestones),
            gamma=config.get("gamma", 0.5),
            compat=True,
        )
        for step, epoch in zip(arrays[f"in.{preset}.steps"], epochs, strict=True)
    ]
    return np.array([base * factor if factor > 0 else FLOOR for factor in factors])


def _auto_step(config: Mapping[str, Any], scores: Array) -> Array:
    auto = AutoStep(config["tolerance"], config["gamma"], compat=True)
    warmup = int(config["warmup_ratio"] * config["num_train_steps"])
    rows = []
    for index, score in enumerate(scores):
        coefficient = auto.step(float(score))
        rates = [
            config["learning_rate"] * coefficient * factor
            for factor in (
                schedule_factor("auto_step", step, config["num_train_steps"], warmup, compat=True)
                for step in (index + 1, 10)
            )
        ]
        rows.append([*rates, coefficient])
    return np.array(rows)


def check_metrics(case: Mapping[str, Any], arrays: Arrays) -> None:
    """Recalls and ranks exactly; similarities to float32 rounding."""
    for name in case["outputs"]:
        wanted = arrays[f"out.{name}"]
        matrix, _, direction = name.partition(".")
        if direction in ("t2v", "v2t"):
            both = compat_metrics(torch.from_numpy(arrays[f"in.{matrix}"]))
            ours = both[("t2v", "v2t").index(direction)]
            assert ours == tuple(wanted.tolist()), name
        elif name == "cal_cossim":
            left, right = (torch.from_numpy(arrays[f"in.{side}"]) for side in ("a", "b"))
            np.testing.assert_allclose((left @ right.t()).numpy(), wanted, rtol=0, atol=1e-5)
        else:
            raise AssertionError(f"unknown metric {name}")
