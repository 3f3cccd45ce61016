"""Objectives: independent of the split over ranks, blind to false negatives and bad videos."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rushes.datasets.batch import Batch
from rushes.distributed import SingleWorld, World
from rushes.modeling import losses
from rushes.modeling.model import VideoTextModel
from rushes.modeling.objectives import caption_words
from tests.modeling.small import NO_NOISE, on_ranks, rows_of, small_batch, small_model

JOINT = ["contrastive", "nce", "hard_negative_nce", "mil_nce", "triplet", "sigmoid"]


def run(model: VideoTextModel, batch: Batch, world: World | None = None) -> dict[str, Tensor]:
    """Sum of losses, backward, and all figures."""
    generator = torch.Generator().manual_seed(0)
    encoded = model.encode(batch)
    figures: dict[str, Tensor] = {}
    for _, objective in model.objectives(0).values():
        figures |= objective(encoded, batch, world or SingleWorld(), generator)
    losses_only = [value for name, value in figures.items() if name.endswith("_loss")]
    torch.autograd.backward(torch.stack(losses_only).sum())
    return figures


def model_for(name: str, **objective: Any) -> VideoTextModel:
    values: dict[str, Any] = {"objectives": [{"name": name, **objective}]}
    if name not in JOINT and name != "caption_words":
        values["model"] = {"cross": True, **NO_NOISE["model"]}
        if name.endswith("_qa"):
            values["task"] = name
    else:
        values |= NO_NOISE
    return small_model(num_answers=3, **values).train()


@pytest.mark.parametrize(
    "name",
    [*JOINT, "caption_words", "masked_language", "open_ended_qa", "multiple_choice_qa"],
)
def test_the_split_over_ranks_changes_nothing(name: str) -> None:
    learnt = {"learnable_temperature": True} if name == "contrastive" else {}
    model = model_for(name, **learnt)
    num_texts = 3 if name in ("multiple_choice_qa", "mil_nce") else 1
    batch = small_batch(5, num_texts=num_texts)
    valid = torch.tensor([True, True, False, True, True])
    batch = replace(batch, valid=valid, video_key=torch.tensor([1, 2, 3, 1, 5]))
    models = [copy.deepcopy(model) for _ in range(2)]
    whole = run(model, batch)
    shares = ([0, 1, 2], [3, 4])  # ranks differ in size and in valid samples

    def rank(world: Any) -> dict[str, Tensor]:
        return run(models[world.rank], rows_of(batch, shares[world.rank]), world)

    figures = on_ranks(2, rank)
    key = f"{name}_loss"
    average = sum(share[key].item() for share in figures) / 2
    assert average == pytest.approx(whole[key].item(), rel=1e-5)
    others = [dict(m.named_parameters()) for m in models]
    for parameter_name, parameter in model.named_parameters():
        if parameter.grad is None:
            continue
        grads = [other[parameter_name].grad for other in others]
        mean = sum(torch.zeros_like(parameter) if g is None else g for g in grads) / 2
        close = torch.allclose(torch.as_tensor(mean), parameter.grad, rtol=2e-4, atol=2e-6)
        assert close, parameter_name


def test_which_pairs_are_true_negatives() -> None:
    owner = torch.arange(4)
    same_video = losses.true_negatives(owner, torch.tensor([0, 1, 2, 0]), None)
    same_text = losses.true_negatives(owner, None, torch.tensor([0, 1, 2, 0]))
    expected = ~torch.eye(4, dtype=torch.bool)
    expected[0, 3] = expected[3, 0] = False
    assert torch.equal(same_video, expected)
    assert torch.equal(same_text, expected)
    two_texts = torch.tensor([0, 0, 1, 1])  # texts 1 and 2 are equal, of videos 0 and 1
    found = losses.true_negatives(two_texts, None, torch.tensor([7, 8, 8, 9]))
    assert found.tolist() == [[False, True], [False, False], [False, False], [True, False]]


@pytest.mark.parametrize("name", JOINT)
def test_twins_cost_nothing_and_strangers_do(name: str) -> None:
    model = model_for(name).eval()
    batch = rows_of(small_batch(4), [0, 0])
    twins = replace(batch, video_key=torch.tensor([5, 5]), text_key=torch.tensor([1, 1]))
    strangers = replace(batch, video_key=torch.tensor([5, 6]), text_key=torch.tensor([1, 2]))
    rivals = {
        k: run(model, b)[f"{name}_loss"].item() for k, b in (("no", twins), ("yes", strangers))
    }
    alone = run(model, rows_of(batch, [0]))[f"{name}_loss"].item()
    assert rivals["no"] == pytest.approx(alone, abs=1e-5)
    assert rivals["yes"] > alone + 1e-4


def test_a_twin_does_not_push_its_twin_away() -> None:
    text = torch.nn.functional.normalize(torch.randn(3, 8), dim=1)
    owner = torch.arange(2)
    alone = losses.contrastive(text[:1] @ text[:1].t(), owner[:1], 0.1)
    twins = text[[0, 0]]
    negative = losses.true_negatives(owner, torch.tensor([5, 5]), None)
    together = losses.contrastive(twins @ twins.t(), owner, 0.1, negative)
    assert together.item() == pytest.approx(alone.item()) == pytest.approx(0.0)
    naive = losses.contrastive(twins @ twins.t(), owner, 0.1)
    assert naive.item() > 0.6


@pytest.mark.parametrize("name", [*JOINT, "masked_language", "matching", "open_ended_qa"])
def test_bad_videos_take_no_part(name: str) -> None:
    model = model_for(name).eval()
    batch = small_batch(4, valid=torch.tensor([True, False, True, True]))
    found = run(model, batch)[f"{name}_loss"]
    assert batch.high is not None
    other = replace(batch, high=batch.high.clone())
    assert other.high is not None
    other.high[1] = 255 - other.high[1]
    assert run(model, other)[f"{name}_loss"].item() == found.item()
    none = replace(batch, valid=torch.zeros(4, dtype=torch.bool))
    model.zero_grad()
    if name != "matching":
        empty = run(model, none)[f"{name}_loss"]
        assert empty.item() == 0
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        assert all(not grad.any() for grad in grads)


def test_matching_draws_negatives_that_are_wrong() -> None:
    model = model_for("matching")
    batch = small_batch(4, video_key=torch.tensor([0, 1, 2, 0]))
    encoded = model.encode(batch)
    (_, objective) = model.objectives(0)["matching"]
    owner = torch.arange(4)
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        texts, videos = objective._pairs(encoded, batch, owner, generator)  # type: ignore[attr-defined]
        assert len(texts) == 12
        assert torch.equal(texts[:4], videos[:4])
        pairs = set(zip(texts[4:].tolist(), videos[4:].tolist(), strict=True))
        assert all(a != b for a, b in pairs)
        assert not pairs & {(0, 3), (3, 0)}
    alone = rows_of(batch, [0])
    figures = objective(model.encode(alone), alone, SingleWorld(), torch.Generator())
    assert figures["matching_loss"].isfinite()


def test_words_of_captions_are_counted_once_a_text_and_marks_not_at_all() -> None:
    batch = small_batch(2, num_texts=2)
    ids = torch.tensor([[1, 7, 7, 2, 0], [1, 7, 9, 8, 2], [1, 2, 0, 0, 0], [1, 5, 2, 0, 0]])
    batch = replace(batch, text_ids=ids, text_mask=(ids > 0).long())
    expected = torch.zeros(2, 10)
    expected[0, 7], expected[0, 8], expected[0, 9], expected[1, 5] = 2, 1, 1, 1
    assert torch.equal(caption_words(batch, 10), expected)


def test_words_of_captions_are_learnt_and_a_text_without_words_costs_nothing() -> None:
    model = model_for("caption_words")
    batch = small_batch(3)
    assert batch.text_ids is not None
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    before = run(model, batch)["caption_words_loss"].item()
    for _ in range(15):
        optimizer.step()
        optimizer.zero_grad()
        after = run(model, batch)
    assert after["caption_words_loss"] < before - 1
    assert after["caption_words_accuracy"] == 1
    empty = torch.zeros_like(batch.text_ids)
    empty[:, 0], empty[:, 1] = 1, 2
    silent = replace(batch, text_ids=empty, text_mask=(empty > 0).long())
    assert run(model, silent)["caption_words_loss"] == 0


def test_turns_are_drawn_by_ratio_and_step() -> None:
    values: dict[str, Any] = {
        "objectives": [
            {"name": "contrastive", "ratio": 2},
            {"name": "sigmoid", "ratio": 1, "start_step": 10},
        ],
        "train": {"objective_choice": "turns"},
    }
    model, twin = small_model(**values), small_model(seed=1, **values)
    drawn = [next(iter(model.objectives(step))) for step in range(610)]
    assert drawn == [next(iter(twin.objectives(step))) for step in range(610)]
    assert set(drawn[:10]) == {"contrastive"}
    assert 340 < drawn[10:].count("contrastive") < 460
    summed = small_model(objectives=values["objectives"])
    assert set(summed.objectives(9)) == {"contrastive"}
    assert set(summed.objectives(10)) == {"contrastive", "sigmoid"}


def test_learnable_temperature_moves_and_is_bounded() -> None:
    model = small_model(objectives=[{"name": "contrastive", "learnable_temperature": True}])
    run(model, small_batch())
    scale = model.log_scales["contrastive"]
    assert scale.grad is not None
    assert scale.grad.abs() > 0
    with torch.no_grad():
        scale.fill_(50.0)
    temperature, _ = model.scale("contrastive")
    assert isinstance(temperature, Tensor)
    assert temperature.item() == pytest.approx(0.01, rel=1e-4)
    assert torch.autograd.grad(temperature, scale)[0].abs() > 0  # it can come back


def test_log_sum_exp_over_clips_is_shifted_only_in_compat() -> None:
    hidden = torch.zeros(2, 4, 3)
    ours, published = small_model(), small_model(model={"compat": True})
    assert torch.equal(ours.pool_hidden(hidden, "lse", 1), torch.zeros(2, 3))
    assert published.pool_hidden(hidden, "lse", 1)[0, 0].item() == pytest.approx(1.3862944)
