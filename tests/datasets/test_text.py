"""The tokenizer: trained, stored, read back, and masked as BERT's recipe says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rushes.datasets.text import BERT_SPECIALS, TextTokenizer, load_tokenizer, train_tokenizer
from rushes.errors import ConfigError

TEXTS = [
    f"a {size} {color} {shape} moves {way}"
    for size in ("small", "large")
    for color in ("red", "green", "blue", "yellow")
    for shape in ("circle", "square", "star")
    for way in ("left", "right", "up", "down")
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(TEXTS, 300, path)
    return path


def test_training_does_not_depend_on_order_or_repeats(folder: Path, tmp_path: Path) -> None:
    train_tokenizer(reversed(TEXTS * 2), 300, tmp_path)
    again = (tmp_path / "tokenizer.json").read_text("utf-8")
    assert again == (folder / "tokenizer.json").read_text("utf-8")


def test_texts_are_framed_padded_and_cut(folder: Path) -> None:
    tokenizer = load_tokenizer(folder, 8)
    ids, mask = tokenizer.encode(["A red star", "a small green circle moves left and right and up"])
    assert ids.shape == mask.shape == (2, 8)
    assert tokenizer.tokens(ids[0])[:5] == ["[CLS]", "a", "red", "star", "[SEP]"]
    assert mask.sum(1).tolist() == [5, 8]
    assert set(ids[0, 5:]) == {tokenizer.pad_id}
    assert tokenizer.tokens(ids[1])[-1] == "[SEP]"
    assert tokenizer.decode(ids[0]) == "a red star"
    assert ids.max() < tokenizer.vocab_size


def test_transformers_reads_what_we_write(folder: Path) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder)
    ours, _ = load_tokenizer(folder, 16).encode([TEXTS[5]])
    assert theirs(TEXTS[5])["input_ids"] == [i for i in ours[0].tolist() if i != 0]
    assert (theirs.pad_token, theirs.mask_token) == ("[PAD]", "[MASK]")


def test_a_bert_vocabulary_file_gives_berts_ids(tmp_path: Path) -> None:
    words = [*BERT_SPECIALS, "[unused0]", "a", "red", "star", "##s", "!"]
    (tmp_path / "vocab.txt").write_text("\n".join(words), "utf-8")
    tokenizer = load_tokenizer(tmp_path, 8)
    ids, _ = tokenizer.encode(["A red stars!"])
    assert tokenizer.tokens(ids[0])[:7] == ["[CLS]", "a", "red", "star", "##s", "!", "[SEP]"]
    assert ids[0, :7].tolist() == [2, 6, 7, 8, 9, 10, 3]
    assert words.index("[unused0]") not in tokenizer.real_ids
    (tmp_path / "vocab.txt").write_text("a\nb\n", "utf-8")
    with pytest.raises(ConfigError, match=r"lacks \['\[PAD\]'"):
        load_tokenizer(tmp_path, 8)


def test_a_cased_vocabulary_keeps_case(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join([*BERT_SPECIALS, "A", "a"]), "utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}), "utf-8")
    ids, _ = load_tokenizer(tmp_path, 4).encode(["A"])
    assert ids[0, 1] == 5


def test_a_missing_tokenizer_says_what_to_supply(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.text\.tokenizer=.*supply a folder"):
        load_tokenizer(tmp_path / "nothing", 8)


def test_masking_follows_the_recipe(folder: Path) -> None:
    tokenizer = load_tokenizer(folder, 12)
    ids, mask = tokenizer.encode(TEXTS * 60)
    masked, labels = tokenizer.mask_tokens(ids, mask, 0.15, np.random.default_rng(0))
    special = np.isin(ids, list(tokenizer.special_ids))
    assert np.array_equal(masked[special], ids[special])
    assert np.all(labels[special] == -100)
    chosen = labels != -100
    assert np.array_equal(labels[chosen], ids[chosen])
    assert np.array_equal(masked[~chosen], ids[~chosen])
    count = int(chosen.sum())
    assert count / int((~special).sum()) == pytest.approx(0.15, abs=0.01)
    as_mask = masked[chosen] == tokenizer.mask_id
    kept = masked[chosen] == ids[chosen]
    assert as_mask.mean() == pytest.approx(0.8, abs=0.02)
    random = ~as_mask & ~kept
    assert random.mean() == pytest.approx(0.1, abs=0.02)
    drawn = masked[chosen][random]
    assert not set(drawn.tolist()) & tokenizer.special_ids
    assert len(set(drawn.tolist())) > 0.8 * len(tokenizer.real_ids)


def test_masks_depend_on_the_generator_alone(folder: Path) -> None:
    tokenizer = load_tokenizer(folder, 12)
    ids, mask = tokenizer.encode(TEXTS[:8])
    first, again, other = (
        tokenizer.mask_tokens(ids, mask, 0.5, np.random.default_rng(seed))[0] for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_tokenizer_without_a_mask_cannot_mask(folder: Path) -> None:
    backend = load_tokenizer(folder, 12).backend
    tokenizer = TextTokenizer(backend, 12, mask=None)
    ids, mask = tokenizer.encode(["a red star"])
    with pytest.raises(ConfigError, match="no mask token"):
        tokenizer.mask_tokens(ids, mask, 0.15, np.random.default_rng(0))
