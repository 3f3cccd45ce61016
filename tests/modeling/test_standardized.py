"""Towers without norms: scales hold through any depth, and no picture sees another."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rushes.errors import ConfigError
from rushes.modeling.backbones import ImageBackbone, PixelNorm
from tests.modeling.small import small_batch, small_model


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "efficientnet_lite0", "resnetv2_50"])
def test_scales_hold_through_any_depth(name: str) -> None:
    torch.manual_seed(0)
    tower = ImageBackbone(name, (16, 32), standardized=True)
    for module in tower.modules():
        assert not isinstance(module, nn.modules.batchnorm._BatchNorm | nn.GroupNorm | nn.LayerNorm)
    normalise = PixelNorm(tower.mean, tower.std)
    maps = tower(normalise(torch.randint(0, 256, (2, 3, 128, 128)).float()))
    for values in maps:
        assert 0.1 < values.std() < 10
    torch.autograd.backward(maps[-1].square().mean())
    for key, parameter in tower.named_parameters():
        if parameter.ndim > 1:
            assert parameter.grad is not None, key
            assert torch.isfinite(parameter.grad).all(), key


def test_no_picture_sees_another_and_kernels_have_no_mean() -> None:
    torch.manual_seed(0)
    tower = ImageBackbone("resnet18", (16,), standardized=True).train()
    pictures = torch.randn(4, 3, 64, 64)
    (together,) = tower(pictures)
    for i in range(4):
        (alone,) = tower(pictures[i : i + 1])
        assert torch.allclose(alone[0], together[i], atol=1e-4)
    # A kernel without a mean does not see what all its inputs have in common.
    stem = tower.model.conv1
    (flat, raised) = (stem(torch.zeros(1, 3, 32, 32)), stem(torch.ones(1, 3, 32, 32)))
    assert torch.allclose(flat[..., 8, 8], raised[..., 8, 8], atol=1e-5)


def test_only_convolutional_towers_can_do_without_norms() -> None:
    with pytest.raises(ConfigError, match=r"model\.standardized: vit_tiny"):
        ImageBackbone("vit_tiny_patch16_224", (16,), standardized=True)


@pytest.mark.parametrize("kind", ["hybrid", "frames_mean"])
def test_models_take_it_and_pool_by_the_strongest_cell(kind: str) -> None:
    values = {"kind": kind, "standardized": True, "video_pool": "max"}
    model = small_model(model=values).eval()
    batch = small_batch(2, clips=3)
    encoded = model.encode_video(batch.high, batch.low)
    cells = torch.unflatten(encoded["video", "token"].values, 1, (3, -1))  # B N S D
    assert torch.equal(encoded["video", "segment"].values, cells.amax(2))
    pooled = encoded["video", "segment"].pooled
    assert pooled is not None
    assert torch.allclose(pooled, cells.amax(2).mean(1))
    mean = small_model(model={"kind": kind}).eval().encode_video(batch.high, batch.low)
    cells = torch.unflatten(mean["video", "token"].values, 1, (3, -1))
    assert torch.allclose(mean["video", "segment"].values, cells.mean(2), atol=1e-6)
