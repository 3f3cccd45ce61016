"""Our numbers against those of the original implementation under the same generated weights.

Cases are JSON files with an .npz beside them, in `parity/hdvila` of the shared folder or in the
folder that RUSHES_PARITY names. What a case is, is told by its content, not by its name; a case or
an output that is not known here fails.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rushes.modeling import losses
from tests.helpers import shared_folder
from tests.parity_figures import check_metrics, check_schedules
from tests.parity_models import Outputs, case_model, load_weights_module, run_case

FOLDER = Path(os.environ.get("RUSHES_PARITY") or shared_folder() / "parity" / "hdvila")
CASES = sorted(FOLDER.glob("*.json"))

MAPS = ("stage_features.", "cnn_low", "grid_high", "timesformer", "middle_feature")
SAFE = (
    ((*MAPS, "mlm_scores", "visual_embeddings", "vtoken_output", "sequence_", "text_out"), 5e-5),
    (("text_hidden",), 1e-5),
    (("text_features", "vis_features"), 5e-6),
)
"""Largest absolute difference by beginning of an output's name; 1e-5 for all others."""


def kind_of(case: Mapping[str, Any]) -> str:
    """What a case compares: "model", "loss", "schedule" or "metrics"; else it is not known."""
    names = {name.removeprefix("out.") for name in case["outputs"]}
    if case.get("keys"):
        return "model"
    if any(name.endswith(".grad_vis") for name in names):
        return "loss"
    if any("lr" in name or name == "auto_step" for name in names):
        return "schedule"
    if any(name.endswith((".t2v", ".v2t")) or name == "cal_cossim" for name in names):
        return "metrics"
    raise AssertionError(f"unknown case with outputs {sorted(names)}")


def tolerance(name: str, described: Mapping[str, Any]) -> float:
    """The larger of the safe value and ten times the original's own rounding noise."""
    safe = next((value for starts, value in SAFE if name.startswith(starts)), 1e-5)
    noise: float = described.get("fp64_max_abs_diff", 0.0)
    return max(safe, 10 * noise)


def compare(out: Outputs, case: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
    """Every output of the case against ours: values, and mean and deviation of the whole."""
    problems = []
    for name, described in case["outputs"].items():
        wanted = torch.from_numpy(np.array(arrays[f"out.{name}"]))
        if name not in out:
            problems.append(f"{name}: not known here")
            continue
        full = tuple(described.get("full_shape", wanted.shape))
        found = out[name]
        forms = found if isinstance(found, tuple) else (found,)
        ours = next((form for form in forms if tuple(form.shape) == full), None)
        if ours is None:
            problems.append(f"{name}: shape {[tuple(f.shape) for f in forms]}, expected {full}")
            continue
        problems += _differences(name, ours.detach(), wanted, described)
    assert not problems, "\n".join(problems)


def _differences(
    name: str, ours: Tensor, wanted: Tensor, described: Mapping[str, Any]
) -> list[str]:
    steps = described.get("step", [1] * ours.ndim)
    part = ours[tuple(slice(None, None, step) for step in steps)]
    if not wanted.is_floating_point():
        return [] if torch.equal(part, wanted) else [f"{name}: {part} != {wanted}"]
    limit = tolerance(name, described)
    found = {"values": (part.double() - wanted.double()).abs().max().item()}
    if "mean" in described and ours.numel() > 1:
        found["mean"] = abs(ours.double().mean().item() - described["mean"])
        found["std"] = abs(ours.double().std(correction=0).item() - described["std"])
    return [
        f"{name}: {what} differ by {difference:.3g}, more than {limit:.3g}"
        for what, difference in found.items()
        if not difference <= limit
    ]


def loss_outputs(case: Mapping[str, Any], arrays: Mapping[str, Any]) -> Outputs:
    """Value and gradients of each loss of the case."""
    out: Outputs = {}
    for name, config in case["config"].items():
        video = torch.from_numpy(arrays["in.vis"]).requires_grad_()
        text = torch.from_numpy(arrays[f"in.{config['text']}"]).requires_grad_()
        value = loss_value(config, text, video)
        grad_video, grad_text = torch.autograd.grad(value, [video, text])
        out |= {
            f"{name}.value": value,
            f"{name}.grad_vis": grad_video,
            f"{name}.grad_text": grad_text,
        }
    return out


def loss_value(config: Mapping[str, Any], text: Tensor, video: Tensor) -> Tensor:
    """The loss that a published configuration names."""
    owner = torch.arange(len(video)).repeat_interleave(len(text) // len(video))
    scores = text @ video.t()
    match config.get("loss_name"):
        case None:
            return losses.contrastive(scores, owner, config["temp"])
        case "NCEContrastiveLoss":
            return losses.nce(scores, owner, config["temp"])
        case "HardNegLoss":
            return losses.hard_negative_nce(scores, owner, config["hard_negative_num"])
        case "MILNCEContrastiveLoss":
            return losses.mil_nce(scores, owner, config["temp"])
        case "TripletContrastiveLoss":
            if config["measure"] == "order":
                scores = losses.order_scores(text, video)
            return losses.triplet(scores, owner, config["margin"], config["max_violation"])
    raise AssertionError(f"unknown loss {config}")


@pytest.mark.needs_shared
def test_the_folder_has_cases() -> None:
    assert CASES, f"no case in {FOLDER}"


@pytest.mark.needs_shared
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_parity(path: Path, tmp_path: Path) -> None:
    case = json.loads(path.read_text())
    with np.load(path.with_suffix(".npz")) as archive:
        arrays = dict(archive)
    match kind_of(case):
        case "model":
            parity_weights = load_weights_module(FOLDER, shared_folder())
            model = case_model(path, parity_weights, tmp_path)
            compare(run_case(model, case, arrays), case, arrays)
        case "loss":
            compare(loss_outputs(case, arrays), case, arrays)
        case "schedule":
            check_schedules(case, arrays)
        case _:
            check_metrics(case, arrays)


def test_an_unknown_case_fails() -> None:
    with pytest.raises(AssertionError, match="unknown case"):
        kind_of({"outputs": {"something_new": {}}, "keys": []})
    case = {"outputs": {"new": {"shape": [1]}}}
    with pytest.raises(AssertionError, match="not known here"):
        compare({}, case, {"out.new": np.zeros(1)})
