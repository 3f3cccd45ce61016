"""The presets: they load, carry the published values, and never pick checkpoints on a test set."""

from __future__ import annotations

from typing import Any

import pytest

from rushes.configs.load import build_config, load_config, preset_names, read_preset
from rushes.configs.schema import RunConfig
from rushes.datasets.transforms import pixel_shapes

SIZES = ("base_model", "base_model_large")
PUBLISHED = (
    "pretrain_stage1", "pretrain_stage2", "msrvtt_retrieval", "didemo_retrieval",
    "lsmdc_retrieval", "actnet_retrieval", "msrvtt_qa", "tgif_action_qa", "tgif_transition_qa",
    "tgif_frame_qa",
)  # fmt: skip
AUTHORS = ("authors_1_stage1_low", "authors_2_stage1_high", "authors_3_stage2_low")

# length, clips, test clips, frames, stride, batch, accumulation, epochs, rates of text, backbone
# and temporal, their decays, schedule, warm-up, milestones, seed
VALUES: dict[str, tuple[Any, ...]] = {
    "pretrain_stage1": (50, 2, 2, 7, 12, 8, 1, 10, (5e-5,) * 3, (1e-3,) * 3, "linear", 0.1, (), 24),
    "pretrain_stage2": (50, 2, 2, 7, 12, 16, 2, 10, (5e-5,) * 3, (1e-3,) * 3,
                        "linear", 0.1, (), 24),
    "msrvtt_retrieval": (50, 2, 4, 7, 4, 8, 1, 200, (1e-5, 1e-5, 5e-6), (1e-4, 1e-4, 1e-3),
                         "multi_step", 0.01, (32, 64, 128, 256), 24),
    "didemo_retrieval": (50, 4, 8, 11, 2, 4, 1, 100, (5e-6,) * 3, (1e-3, 1e-1, 1e-1),
                         "multi_step", 0.1, (8, 16, 32, 64), 24),
    "lsmdc_retrieval": (50, 2, 4, 11, 3, 8, 1, 20, (5e-6,) * 3, (1e-3,) * 3,
                        "multi_step", 0.01, (4, 8, 16), 24),
    "actnet_retrieval": (50, 4, 8, 13, 4, 4, 1, 100, (5e-6,) * 3, (1e-3,) * 3,
                         "multi_step", 0.1, (8, 16, 32, 64), 24),
    "msrvtt_qa": (100, 1, 8, 7, 4, 16, 4, 20, (1e-5,) * 3, (0.3,) * 3, "linear", 0.1, (), 66),
    "tgif_action_qa": (30, 1, 8, 7, 4, 12, 4, 80, (5e-5,) * 3, (0.1,) * 3,
                       "multi_step", 0.1, (10, 20, 30, 40, 50, 60, 70), 66),
    "tgif_transition_qa": (30, 1, 8, 7, 4, 12, 4, 80, (5e-5,) * 3, (0.1,) * 3,
                           "multi_step", 0.1, (10, 20, 30, 40, 50, 60, 70), 66),
    "tgif_frame_qa": (30, 1, 8, 7, 4, 14, 4, 40, (4e-5,) * 3, (0.3,) * 3,
                      "multi_step", 0.1, (10, 15, 20, 25, 30, 35), 66),
}  # fmt: skip


def _preset(name: str) -> RunConfig:
    return build_config(read_preset(name))


@pytest.mark.parametrize("name", [n for n in preset_names() if n not in SIZES])
def test_every_preset_loads(name: str) -> None:
    _preset(name)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_values(name: str) -> None:
    c = _preset(name)
    rates = (c.optim.learning_rate, c.optim.backbone.learning_rate, c.optim.temporal.learning_rate)
    decays = (c.optim.weight_decay, c.optim.backbone.weight_decay, c.optim.temporal.weight_decay)
    found = (
        c.model.text.max_length, c.clips.num_clips, c.clips.eval_num_clips, c.clips.num_frames,
        c.clips.stride, c.train.batch_size, c.train.accumulation, c.train.epochs, rates, decays,
        c.optim.schedule, c.optim.warmup_ratio, c.optim.milestones, c.seed,
    )  # fmt: skip
    assert found == VALUES[name]
    assert (c.optim.betas, c.optim.eps, c.optim.max_grad_norm) == ((0.9, 0.98), 1e-6, 5.0)
    assert (c.clips.sampling, c.geometry.mode) == ("frames", "published")
    assert (c.model.backbone, c.model.temporal_depth, c.model.temporal_heads) == ("resnet50", 4, 16)
    assert c.model.text.config == "base_model_large"


@pytest.mark.parametrize("name", [*PUBLISHED, *AUTHORS])
def test_published_grids(name: str) -> None:
    c = _preset(name)
    high, low = pixel_shapes(c.geometry, "hybrid", 1, c.clips.num_frames)
    assert low is not None
    square = name.startswith("tgif")
    assert low[-2:] == ((192, 192) if square else (160, 256))
    assert c.geometry.high_size == ((768, 768) if square else (640, 1024))
    real = name in ("pretrain_stage1", "pretrain_stage2", "authors_2_stage1_high") or any(
        d.vis_format == "frame" for d in c.data.train
    )
    assert c.geometry.high == ("real" if real else "upsampled")
    assert high == (1, 3, *(c.geometry.high_size if real else low[-2:]))


@pytest.mark.parametrize("name", [*PUBLISHED, *AUTHORS, "animoji_retrieval"])
def test_checkpoints_are_never_picked_on_a_test_set(name: str) -> None:
    data = _preset(name).data
    tests = {(d.annotations, d.split) for d in data.test}
    assert tests
    for held in data.validation:
        assert (held.annotations, held.split) not in tests
        for trained in data.train:
            if trained.annotations == held.annotations:
                assert (trained.split, held.split) in {
                    ("fit", "holdout"), ("train:fit", "train:holdout"),
                }  # fmt: skip


@pytest.mark.parametrize("name", [*PUBLISHED, *AUTHORS])
def test_the_tiny_overlay_fits_every_preset(name: str) -> None:
    config = load_config(["--config", name, "--config", "tiny"])
    assert config.model.text.hidden_size < 512
    assert config.task == _preset(name).task


def test_objectives_and_frozen_parts() -> None:
    def objectives(name: str) -> list[tuple[str, float, str]]:
        return [(o.name, o.temperature, o.pool) for o in _preset(name).objectives]

    assert objectives("pretrain_stage1") == [("contrastive", 0.05, "mean")]
    assert objectives("pretrain_stage2") == [("masked_language", 0.05, "lse")]
    assert _preset("pretrain_stage2").model.freeze == ("stage1",)
    for name in ("msrvtt_retrieval", "didemo_retrieval", "lsmdc_retrieval", "actnet_retrieval"):
        assert objectives(name) == [("nce", 0.08, "mean")]
        assert not _preset(name).model.cross
    assert objectives("msrvtt_qa")[0][::2] == ("open_ended_qa", "lse")
    assert objectives("tgif_action_qa")[0][::2] == ("multiple_choice_qa", "mean")
    assert (_preset("msrvtt_qa").model.num_answers, _preset("tgif_frame_qa").model.num_answers) == (
        1500,
        1540,
    )


def test_the_authors_schedule_starts_each_part_from_the_one_before() -> None:
    first, second, third = (_preset(name) for name in AUTHORS)
    assert [c.train.epochs for c in (first, second, third)] == [6, 1, 3]
    assert second.model.weights.model == first.output_dir
    assert third.model.weights.model == second.output_dir


@pytest.mark.parametrize(
    ("name", "sizes"), [(SIZES[0], (768, 12, 3072, 12)), (SIZES[1], (1024, 16, 4096, 24))]
)
def test_bert_sizes(name: str, sizes: tuple[int, ...]) -> None:
    found = read_preset(name)
    keys = ("hidden_size", "num_attention_heads", "intermediate_size", "num_hidden_layers")
    assert tuple(found[k] for k in keys) == sizes
