"""Frozen means frozen: bits equal after steps, no dropout inside, no drift of batch norms."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rushes.distributed import SingleWorld
from tests.modeling.small import small_batch, small_model

STAGE1 = ("video.", "text.", "video_projection.", "text_projection.")
FROZEN = {
    "stage1": STAGE1,
    "stage1_vision": ("video.", "video_projection."),
    "text": ("text.",),
    "backbone": ("video.high_backbone.", "video.low_backbone."),
}


@pytest.mark.parametrize("part", list(FROZEN))
@pytest.mark.parametrize("frozen_norm", [True, False])
def test_frozen_parts_keep_their_bits_and_the_rest_moves(part: str, frozen_norm: bool) -> None:
    model = small_model(
        model={
            "cross": True,
            "freeze": [part],
            "frozen_norm": frozen_norm,
            "text": {"dropout": 0.3, "attention_dropout": 0.3},
        },
        objectives=[{"name": "contrastive"}, {"name": "masked_language"}],
    )
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for step in range(2):
        model.train(step % 2 == 0)  # as after a validation
        model.train()
        encoded = model.encode(small_batch())
        total = torch.zeros(())
        for _, objective in model.objectives(step).values():
            figures = objective(encoded, small_batch(), SingleWorld(), torch.Generator())
            total = total + next(v for k, v in figures.items() if k.endswith("_loss"))
        optimizer.zero_grad()
        torch.autograd.backward(total)
        optimizer.step()
    after = model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert not [name for name in moved if name.startswith(FROZEN[part])]
    assert any(name.startswith("cross_encoder.layers") for name in moved)
    if part != "stage1":
        assert any(name.startswith(STAGE1) for name in moved)


def test_frozen_towers_are_deterministic_in_training() -> None:
    values: dict[str, Any] = {
        "temporal_drop_path": 0.5,
        "text": {"dropout": 0.5, "attention_dropout": 0.5},
    }
    frozen = small_model(model={**values, "freeze": ["stage1"]}).train()
    noisy = small_model(model=values).train()
    batch = small_batch()
    for model, same in ((frozen, True), (noisy, False)):
        first, second = model.encode(batch), model.encode(batch)
        for key in (("text", "token"), ("video", "token")):
            assert torch.equal(first[key].values, second[key].values) == same
    assert not frozen.encode(batch)["video", "token"].values.requires_grad


def test_first_stages_of_the_backbone_can_be_frozen_alone() -> None:
    model = small_model(model={"frozen_stages": 2})
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    stem = ("conv1.", "bn1.", "layer1.", "layer2.")
    assert frozen == {
        name
        for name, _ in model.named_parameters()
        if "_backbone.model." in name and name.split("_backbone.model.")[1].startswith(stem)
    }
