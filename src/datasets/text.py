"""Text to token ids: WordPiece trained on the training texts, or any stored tokenizer; masking."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import WordPieceTrainer

from rushes.errors import ConfigError

BERT_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_LETTERS = 1000
"""Letters in a trained vocabulary; rarer ones become [UNK]."""
IGNORE = -100
"""Label of a token that is not predicted."""

Ids = npt.NDArray[np.int64]
_UNUSED = re.compile(r"\[unused\d+\]")


class TextTokenizer:
    """Texts to padded ids; the same object may be used by several threads.

    Args:
        tokenizer: of the `tokenizers` library, whatever its model.
        max_length: tokens of a text with its specials; longer texts are cut.
        pad, mask: their tokens; `mask` may be None (then nothing can be masked).
        specials: tokens that are never masked and never drawn as random ones.

    Attributes:
        vocab_size: ids run from 0 to `vocab_size - 1`.
        real_ids: ids of the real vocabulary: no specials, no `[unused]` ones.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        max_length: int,
        pad: str = "[PAD]",
        mask: str | None = "[MASK]",
        specials: Sequence[str] = BERT_SPECIALS,
    ) -> None:
        self.backend = Tokenizer.from_str(tokenizer.to_str())
        self.backend.no_padding()
        self.backend.enable_truncation(max_length)
        self.max_length = max_length
        vocabulary = self.backend.get_vocab()
        if pad not in vocabulary:
            raise ConfigError(
                f"tokenizer: no padding token {pad!r} in its {len(vocabulary)} entries"
            )
        self.pad_id = vocabulary[pad]
        self.mask_id = None if mask is None else vocabulary.get(mask)
        self.pad, self.mask = pad, mask
        self.specials = tuple(s for s in specials if s in vocabulary)
        self.special_ids = frozenset(vocabulary[s] for s in self.specials)
        self.vocab_size = max(vocabulary.values()) + 1
        unused = {i for token, i in vocabulary.items() if _UNUSED.fullmatch(token)}
        real = sorted(set(vocabulary.values()) - self.special_ids - unused)
        self.real_ids: Ids = np.asarray(real, dtype=np.int64)

    def encode(self, texts: Sequence[str]) -> tuple[Ids, Ids]:
        """Ids and mask, int64 `K L` with L = max_length; mask is 1 on tokens, 0 on padding."""
        ids = np.full((len(texts), self.max_length), self.pad_id, dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, text in enumerate(texts):
            tokens = self.backend.encode(text).ids
            ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        return ids, mask

    def decode(self, ids: Sequence[int] | Ids) -> str:
        """The text of ids, without specials."""
        return str(self.backend.decode([int(i) for i in ids], skip_special_tokens=True))

    def tokens(self, ids: Sequence[int] | Ids) -> list[str]:
        """The tokens of ids."""
        return [self.backend.id_to_token(int(i)) or f"<{int(i)}>" for i in ids]

    def mask_tokens(
        self, ids: Ids, mask: Ids, probability: float, generator: np.random.Generator
    ) -> tuple[Ids, Ids]:
        """Inputs and targets of masked language modelling (Devlin et al., BERT, section 3.1).

        Each token that is neither special nor padding is chosen with `probability`; of those 80 %
        become the mask token, 10 % a random token of the real vocabulary, 10 % stay.

        Returns:
            masked ids and labels, int64 as `ids`; labels are -100 where nothing is predicted.
        """
        if self.mask_id is None:
            raise ConfigError(f"masked_language: the tokenizer has no mask token ({self.mask!r})")
        may = (mask == 1) & ~np.isin(ids, list(self.special_ids))
        chosen = may & (generator.random(ids.shape) < probability)
        fate = generator.random(ids.shape)
        random_ids = self.real_ids[generator.integers(len(self.real_ids), size=ids.shape)]
        masked = np.where(chosen & (fate < 0.8), self.mask_id, ids)
        masked = np.where(chosen & (fate >= 0.8) & (fate < 0.9), random_ids, masked)
        return masked, np.where(chosen, ids, IGNORE)

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and the two files that transformers' AutoTokenizer reads."""
        folder.mkdir(parents=True, exist_ok=True)
        plain = Tokenizer.from_str(self.backend.to_str())
        plain.no_truncation()
        plain.save(str(folder / "tokenizer.json"))
        named: dict[str, Any] = {"pad_token": self.pad}
        if self.mask is not None:
            named["mask_token"] = self.mask
        for name, token in (("unk_token", "[UNK]"), ("cls_token", "[CLS]"), ("sep_token", "[SEP]")):
            if token in self.specials:
                named[name] = token
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": self.max_length,
            "additional_special_tokens": sorted(set(self.specials) - set(named.values())),
            **named,
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1), "utf-8")
        (folder / "special_tokens_map.json").write_text(json.dumps(named, indent=1), "utf-8")


def train_tokenizer(texts: Iterable[str], vocab_size: int, folder: Path) -> None:
    """Train an uncased WordPiece with BERT's specials and write it to `folder`.

    The same texts in any order give the same tokenizer. The trainer numbers the letters that go on
    a word (`##a`) in the order of a randomised hash table, and breaks ties by those numbers; so
    they are given to it, sorted, among the special tokens, and only its vocabulary is kept.

    Args:
        texts: training texts.
        vocab_size: upper limit; small corpora give fewer.
        folder: made if absent.
    """
    distinct = sorted(set(texts))
    if not distinct:
        raise ConfigError("there are no training texts to train a tokenizer on")
    learner = _bert_pipeline(models.WordPiece(unk_token="[UNK]"))
    letters = _letters(learner, distinct)
    trainer = WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*BERT_SPECIALS, *(f"##{letter}" for letter in letters)],
        initial_alphabet=letters,
        limit_alphabet=len(letters),
        show_progress=False,
    )
    learner.train_from_iterator(distinct, trainer)
    vocabulary = models.WordPiece(learner.get_vocab(), unk_token="[UNK]")
    tokenizer = _bert_pipeline(vocabulary)
    tokenizer.add_special_tokens(list(BERT_SPECIALS))
    _add_frame(tokenizer)
    TextTokenizer(tokenizer, max_length=512).save(folder)


def _letters(tokenizer: Tokenizer, texts: Sequence[str]) -> list[str]:
    """The commonest letters of the texts, sorted."""
    normalizer = tokenizer.normalizer
    assert normalizer is not None
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(normalizer.normalize_str(text))
    kept = sorted(counts, key=lambda letter: (-counts[letter], letter))[:MAX_LETTERS]
    return sorted(letter for letter in kept if not letter.isspace())


def load_tokenizer(source: str | Path, max_length: int) -> TextTokenizer:
    """A tokenizer from a folder (tokenizer.json or BERT's vocab.txt) or a hub id.

    Raises:
        ConfigError: nothing there, with what was looked for.
    """
    folder = Path(source)
    if (folder / "tokenizer.json").is_file():
        backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
        return _with_specials(backend, _read_specials(folder), max_length)
    if (folder / "vocab.txt").is_file():
        return TextTokenizer(_from_vocabulary(folder), max_length)
    return _from_transformers(str(source), max_length)


def _bert_pipeline(model: Any, lowercase: bool = True) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    return tokenizer


def _add_frame(tokenizer: Tokenizer) -> None:
    """[CLS] text [SEP]."""
    separator, first = tokenizer.token_to_id("[SEP]"), tokenizer.token_to_id("[CLS]")
    assert separator is not None, "BERT's specials were added before"
    assert first is not None, "BERT's specials were added before"
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", separator), ("[CLS]", first))


def _from_vocabulary(folder: Path) -> Tokenizer:
    lowercase = True
    config = folder / "tokenizer_config.json"
    if config.is_file():
        lowercase = bool(json.loads(config.read_text("utf-8")).get("do_lower_case", True))
    vocabulary = models.WordPiece.read_file(str(folder / "vocab.txt"))
    missing = [s for s in BERT_SPECIALS if s not in vocabulary]
    if missing:
        raise ConfigError(f"{folder / 'vocab.txt'}: lacks {missing}")
    tokenizer = _bert_pipeline(models.WordPiece(vocabulary, unk_token="[UNK]"), lowercase)
    tokenizer.add_special_tokens(list(BERT_SPECIALS))
    _add_frame(tokenizer)
    return tokenizer


def _read_specials(folder: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            for key, value in json.loads((folder / name).read_text("utf-8")).items():
                token = value.get("content") if isinstance(value, dict) else value
                if key.endswith("_token") and isinstance(token, str):
                    found[key] = token
    return found


def _with_specials(backend: Tokenizer, named: dict[str, str], max_length: int) -> TextTokenizer:
    vocabulary = backend.get_vocab()
    added = [
        token.content for token in backend.get_added_tokens_decoder().values() if token.special
    ]
    pads = (named.get("pad_token"), "[PAD]", "<pad>", named.get("eos_token"))
    pad = next((token for token in pads if token in vocabulary), None)
    if pad is None:
        raise ConfigError(f"tokenizer: no padding token; named specials: {named}")
    masks = (named.get("mask_token"), "[MASK]", "<mask>")
    mask = next((token for token in masks if token in vocabulary), None)
    specials = tuple(dict.fromkeys([*BERT_SPECIALS, *named.values(), *added]))
    return TextTokenizer(backend, max_length, pad, mask, specials)


def _from_transformers(source: str, max_length: int) -> TextTokenizer:
    from transformers import AutoTokenizer  # slow to import, and seldom needed

    try:
        loaded = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"model.text.tokenizer={source!r}: no tokenizer.json or vocab.txt there, and no hub "
            f"tokenizer of this name could be loaded ({str(error).splitlines()[0]}); supply a "
            "folder, or null to train one on the training texts"
        ) from error
    backend = getattr(loaded, "backend_tokenizer", None)
    if not isinstance(backend, tokenizers.Tokenizer):
        raise ConfigError(f"model.text.tokenizer={source!r}: it has no fast tokenizer")
    named = {k: str(v) for k, v in loaded.special_tokens_map.items() if isinstance(v, str)}
    return _with_specials(backend, named, max_length)
