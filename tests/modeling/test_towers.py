"""Towers: any size, frame count and backbone; checkpointing, bf16, compilation change nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rushes.errors import ConfigError
from rushes.modeling.backbones import ImageBackbone, PixelNorm
from rushes.modeling.folding import FoldedConv2d
from rushes.modeling.hybrid import _thin
from rushes.modeling.timesformer import DropPath, TimeSformer
from rushes.modeling.upsample import enlarge_high
from tests.modeling.small import NO_NOISE, small_batch, small_model


def open_temporal_branches(model: nn.Module) -> None:
    """Undo the zeros that temporal branches and time embeddings start with."""
    for tower in model.modules():
        if isinstance(tower, TimeSformer):
            nn.init.normal_(tower.time_embed)
            for layer in tower.modules():
                if isinstance(layer, nn.Linear):
                    nn.init.normal_(layer.weight, std=0.2)


def pixels(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("high", "frames", "grid"),
    [
        ((128, 192), 7, (2, 3)),
        ((64, 64), 3, (1, 1)),
        ((160, 224), 11, (3, 4)),
        ((96, 64), 2, (2, 1)),
    ],
)
def test_any_size_and_frame_count(
    high: tuple[int, int], frames: int, grid: tuple[int, int]
) -> None:
    model = small_model().eval()
    low = (high[0] // 4, high[1] // 4)
    encoded = model.encode_video(pixels(2, 3, 3, *high), pixels(2, 3, frames - 1, 3, *low))
    assert encoded["video", "token"].grid == grid
    assert encoded["video", "token"].values.shape == (2, 3 * grid[0] * grid[1], 32)
    assert encoded["video", "segment"].values.shape == (2, 3, 32)
    assert torch.allclose(encoded.embeddings["video"].norm(dim=1), torch.ones(2))
    assert model.clip_embeddings(encoded).shape == (2, 3, 32)


@pytest.mark.parametrize("kind", ["hybrid", "frames_mean"])
@pytest.mark.parametrize("inputs", ["high", "low", "hybrid"])
@pytest.mark.parametrize(("cell", "grid"), [(64, (2, 3)), (32, (4, 6)), (16, (8, 12))])
def test_the_grid_may_be_finer(kind: str, inputs: str, cell: int, grid: tuple[int, int]) -> None:
    model = small_model(model={"kind": kind, "inputs": inputs, "grid_cell": cell}).eval()
    frames = 3 if inputs == "low" else 2
    encoded = model.encode_video(pixels(1, 2, 3, 128, 192), pixels(1, 2, frames, 3, 32, 48))
    assert encoded["video", "token"].grid == grid


def test_group_norm_gives_the_same_in_either_layout() -> None:
    arguments = {"layers": [1, 1, 1, 1], "channels": [32] * 4, "norm_layer": "groupnorm"}
    backbone = ImageBackbone("resnet18", (16, 32), arguments=arguments)
    norm = backbone.model.bn1
    plain = nn.GroupNorm(norm.num_groups, norm.num_channels, norm.eps)
    maps = torch.randn(2, norm.num_channels, 6, 9).to(memory_format=torch.channels_last)
    ours, theirs = (maps.clone().requires_grad_() for _ in range(2))
    found, expected = norm(ours), plain(theirs)
    assert found.is_contiguous(memory_format=torch.channels_last)
    weights = torch.randn_like(expected)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)
    torch.testing.assert_close(norm.weight.grad, plain.weight.grad)


@pytest.mark.parametrize("kind", ["hybrid", "frames_mean"])
@pytest.mark.parametrize("inputs", ["high", "low", "hybrid"])
def test_each_input_is_used_and_no_other(kind: str, inputs: str) -> None:
    model = small_model(model={"kind": kind, "inputs": inputs}).eval()
    open_temporal_branches(model)
    high, low = pixels(1, 2, 3, 64, 64), pixels(1, 2, 4, 3, 16, 16)
    base = model.video_embedding(high, low)
    for name, changed in (
        ("high", model.video_embedding(255 - high, low)),
        ("low", model.video_embedding(high, 255 - low)),
    ):
        assert torch.equal(changed, base) == (inputs not in (name, "hybrid"))
    with pytest.raises(ConfigError, match=f"model.inputs is {inputs}"):
        model.encode_video(None, None)


def test_frames_mean_knows_no_order_and_hybrid_does() -> None:
    brightness = torch.arange(0, 240, 40).view(1, 1, 6, 1, 1, 1)
    low = brightness.expand(1, 1, 6, 3, 16, 16).to(torch.uint8)
    high = pixels(1, 1, 3, 64, 64)
    turned = low.flip(2)
    mean = small_model(model={"kind": "frames_mean"}).eval()
    assert torch.allclose(
        mean.video_embedding(high, low), mean.video_embedding(high, turned), atol=1e-5
    )
    hybrid = small_model().eval()
    open_temporal_branches(hybrid)
    assert not torch.allclose(
        hybrid.video_embedding(high, low), hybrid.video_embedding(high, turned), atol=1e-3
    )


def test_sizes_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"\(128, 128\).*\(30, 32\).*four times"):
        small_model().encode_video(pixels(1, 1, 3, 128, 128), pixels(1, 1, 2, 3, 30, 32))


def test_a_middle_frame_of_low_size_is_enlarged_on_the_way_in() -> None:
    model = small_model().eval()
    small, low = pixels(1, 2, 3, 32, 32), pixels(1, 2, 2, 3, 32, 32)
    large = enlarge_high(small, low)
    assert large.shape[-2:] == (128, 128)
    assert torch.equal(model.video_embedding(small, low), model.video_embedding(large, low))


def test_thinning_takes_every_fourth_row_and_column() -> None:
    maps = torch.arange(8 * 12.0).view(1, 1, 8, 12)
    wanted = nn.functional.interpolate(maps, scale_factor=1 / 4, recompute_scale_factor=False)
    assert torch.equal(_thin(maps, (2, 3)), wanted)
    assert torch.equal(_thin(maps.repeat(1, 1, 1, 1), (2, 3)), maps[..., ::4, ::4])


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resnet18", {}),
        ("resnet10t", {}),
        ("efficientnet_lite0", {}),
        ("mobilenetv3_small_050", {}),
        ("convnext_atto", {}),
        ("vit_tiny_patch16_224", {"embed_dim": 32, "depth": 3, "num_heads": 2}),
        ("vit_small_patch14_dinov2", {"embed_dim": 48, "depth": 3, "num_heads": 4}),
        ("resnet18", {"norm_layer": "groupnorm"}),
    ],
)
def test_backbones_serve_the_model(name: str, arguments: dict[str, Any]) -> None:
    model = small_model(model={"backbone": name, "backbone_args": arguments}).train()
    encoded = model.encode_video(pixels(1, 1, 3, 128, 192), pixels(1, 1, 2, 3, 32, 48))
    assert encoded["video", "token"].grid == (2, 3)
    torch.autograd.backward(encoded.embeddings["video"].sum())
    without = [n for n, p in model.video.named_parameters() if p.grad is None]
    # A getter keeps whole ViTs, of which the last norm is not reached.
    assert all("norm" in name or "cls_token" in name or "mask" in name for name in without)


def test_unknown_backbones_are_named() -> None:
    with pytest.raises(ConfigError, match="resnet_of_mine"):
        ImageBackbone("resnet_of_mine", (16, 32))


def test_pixels_are_normed_as_the_weights_want() -> None:
    resnet = ImageBackbone("resnet50", (32,))
    norm = PixelNorm(resnet.mean, resnet.std)
    published = norm(torch.full((1, 3, 1, 1), 200, dtype=torch.uint8))
    wanted = (200 - torch.tensor([123.675, 116.28, 103.53])) / torch.tensor([58.395, 57.12, 57.375])
    assert torch.allclose(published.flatten(), wanted, atol=1e-6)
    # EfficientNet-Lite as TensorFlow trained it: (x - 127) / 128.
    overlay = {"mean": [127 / 255] * 3, "std": [128 / 255] * 3}
    lite = ImageBackbone(
        "efficientnet_lite0", (16,), arguments={"bn_eps": 1e-3, "pretrained_cfg_overlay": overlay}
    )
    assert lite.mean == pytest.approx((127.0,) * 3)
    assert lite.std == pytest.approx((128.0,) * 3)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "efficientnet_lite0"])
def test_folded_norms_give_the_same_maps_and_gradients(name: str) -> None:
    torch.manual_seed(0)
    plain = ImageBackbone(name, (16, 32), frozen_norm=False)
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.0)
    folded = ImageBackbone(name, (16, 32), frozen_norm=True)
    folded.load_state_dict(plain.state_dict())
    assert sum(isinstance(module, FoldedConv2d) for module in folded.modules()) > 15
    image = torch.randn(1, 3, 64, 64)
    plain.eval(), folded.train()
    for ours, theirs in zip(folded(image), plain(image), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4 * theirs.abs().max().item())
    for model in (plain, folded):
        torch.autograd.backward(model(image)[-1].square().mean())
    for (key, ours), theirs in zip(folded.named_parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        error = (ours.grad - theirs.grad).abs().max()
        assert error <= 1e-3 * theirs.grad.abs().max() + 1e-7, key


def test_random_weights_under_frozen_norms_start_as_identities() -> None:
    model = small_model()
    gains = [p for n, p in model.video.named_parameters() if n.endswith("0.bn2.weight")]
    assert len(gains) == 7  # four stages at high resolution, three at low
    assert not any(gain.any() for gain in gains)
    deep = ImageBackbone("resnet50", (32,), frozen_norm=True)
    deep.zero_last_gains()
    assert deep(torch.randn(1, 3, 64, 64))[-1].abs().max() < 100


@pytest.mark.parametrize("frozen", [True, False])
def test_batch_norm_statistics_move_only_where_allowed(frozen: bool) -> None:
    model = small_model(model={"frozen_norm": frozen}).train()
    before = {k: v.clone() for k, v in model.state_dict().items() if "running" in k}
    torch.autograd.backward(model.encode(small_batch()).embeddings["video"].sum())
    after = model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items()) == frozen


def test_checkpointing_gives_the_same_gradients() -> None:
    values: dict[str, Any] = {"model": {"cross": True, "text": {"dropout": 0.1}}}
    values["objectives"] = [{"name": "masked_language"}]
    gradients = []
    for checkpointing in (False, True):
        values["model"]["gradient_checkpointing"] = checkpointing
        model = small_model(**values).train()
        torch.manual_seed(3)
        batch = small_batch()
        encoded = model.encode(batch)
        assert batch.masked_labels is not None
        logits = model.word_logits(
            encoded["masked_text", "token"],
            encoded["video", "token"],
            torch.arange(4),
            batch.masked_labels >= 0,
            "lse",
        )
        torch.autograd.backward(logits.square().mean())
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], rtol=1e-4, atol=1e-7), name


def test_bf16_is_close_to_float32() -> None:
    model = small_model(model={"cross": True}).eval()
    batch = small_batch()
    full = model.encode(batch).embeddings
    with torch.autocast("cpu", torch.bfloat16):
        half = model.encode(batch).embeddings
    for name, value in full.items():
        assert half[name].dtype == torch.float32
        assert (half[name] * value).sum(1).min() > 0.995


@pytest.mark.parametrize("backbone", ["resnet18", "vit_tiny_patch16_224"])
def test_towers_compile_without_graph_breaks(backbone: str) -> None:
    arguments = {} if backbone == "resnet18" else {"embed_dim": 32, "depth": 3, "num_heads": 2}
    model = small_model(
        model={"backbone": backbone, "backbone_args": arguments, "cross": True, **NO_NOISE["model"]}
    ).train()
    batch = small_batch(2)
    assert batch.high is not None
    assert batch.low is not None
    torch._dynamo.reset()
    video = torch.compile(model.video, fullgraph=True, backend="eager")
    text = torch.compile(model.text, fullgraph=True, backend="eager")
    high, low = batch.high.flatten(0, 1), batch.low.flatten(0, 1)
    assert torch.allclose(video(high, low), model.video(high, low), atol=1e-5)
    hidden = text(batch.text_ids, batch.text_mask)
    assert torch.allclose(hidden, model.text(batch.text_ids, batch.text_mask), atol=1e-5)
    assert model.cross_encoder is not None
    cross = torch.compile(model.cross_encoder, fullgraph=True, backend="eager")
    words = hidden.detach()
    found, pooled = cross(words, batch.text_mask, words)
    assert found.shape == (2, 16, 32)
    assert pooled.shape == (2, 32)


def test_compiled_model_keeps_its_names() -> None:
    plain, compiled = small_model(), small_model(model={"compile": True})
    assert list(plain.state_dict()) == list(compiled.state_dict())


def test_positions_are_interpolated_as_published() -> None:
    tower = TimeSformer(8, 1, 2, (10, 16), 7)
    nn.init.normal_(tower.time_embed)
    assert tower.positions(10, 16) is tower.position_embed
    grid = tower.position_embed.detach().view(10, 16, 8).numpy()
    wanted = (grid[0, 0] + grid[0, 1] + grid[1, 0] + grid[1, 1]) / 4  # 5x8: centres fall between
    np.testing.assert_allclose(tower.positions(5, 8)[0, 0].detach().numpy(), wanted, atol=1e-6)
    times = tower.times(13).detach()[0]
    assert torch.allclose(times[6], tower.time_embed[0, 3])
    assert torch.allclose(times[0], tower.time_embed[0, 0])


def test_drop_path_drops_whole_rows_and_keeps_the_mean() -> None:
    drop = DropPath(0.25).train()
    torch.manual_seed(0)
    out = drop(torch.ones(4000, 2, 3), (4000, 1, 1))
    rows = out.flatten(1)
    assert ((rows == rows[:, :1]).all(1)).all()
    assert rows.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert out.mean().item() == pytest.approx(1.0, abs=0.03)
    assert drop.eval()(out, (4000, 1, 1)) is out
