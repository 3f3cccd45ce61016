"""Captions that are wrong in one word, as hard negatives of a contrast.

A contrast over a batch asks for no more than tells its videos apart; where colours do, nothing asks
for shapes. Against its own caption with one word exchanged, a video must know that word. (Momeni et
al. 2023, "Verbs in Action", section 3.1, where a language model writes such captions; here the
words come from other captions of the batch that have them in like places.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rushes.configs.schema import ObjectiveConfig
from rushes.distributed import World
from rushes.modeling.encoded import Encoded
from rushes.modeling.inputs import BatchLike
from rushes.modeling.objectives import Heads, shared_mean, text_owners


@dataclass(frozen=True)
class SwappedWords:
    """Cross-entropy of a video's caption against `num_hard` of it with one word exchanged.

    Mean over the texts of all ranks in which some word can be exchanged. Like matching it finds its
    negatives among the samples of its own rank.
    """

    heads: Heads
    config: ObjectiveConfig

    def __call__(
        self, encoded: Encoded, batch: BatchLike, world: World, generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        assert batch.text_ids is not None, "swapped_words needs texts in the batch"
        assert batch.text_mask is not None
        owner = text_owners(batch)
        rows = batch.valid[owner].nonzero().squeeze(1)
        ids, mask = batch.text_ids[rows], batch.text_mask[rows]
        kept, wrong = exchange_words(ids, mask, self.config.num_hard, generator)  # R, R K L
        rows, mask = rows[kept], mask[kept]
        text, video = encoded.embeddings["text"].float(), encoded.embeddings["video"].float()
        if not len(rows):
            return shared_mean("swapped_words", (text.sum() + video.sum())[None][:0], rows, world)
        times = wrong.shape[1]
        others = self.heads.text_embedding(wrong.flatten(0, 1), mask.repeat_interleave(times, 0))
        options = torch.cat(
            [text[rows][:, None], torch.unflatten(others.float(), 0, (-1, times))], 1
        )
        with torch.autocast(video.device.type, enabled=False):
            scores = (options * video[owner[rows]][:, None]).sum(-1)  # R 1+K
        temperature, _ = self.heads.scale("swapped_words")
        logits = scores / temperature
        right = (logits.argmax(1) == 0).float()
        return shared_mean("swapped_words", -logits.log_softmax(1)[:, 0], right, world)


def exchange_words(
    ids: Tensor, mask: Tensor, times: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Texts with one word exchanged for a word of another text.

    A word may take the place of another where it stands elsewhere after the same or before the same
    word, and the text does not hold it yet.

    Args:
        ids, mask: texts `R L` with a mark at both ends.
        times: exchanged versions of each text.

    Returns:
        The rows that have a word to exchange, int64 `P`, and their versions, int64 `P times L`.
    """
    places = torch.arange(ids.shape[1], device=ids.device).unsqueeze(0)
    last = mask.sum(1, keepdim=True) - 2
    row, place = (mask.bool() & (places > 0) & (places <= last)).nonzero(as_tuple=True)  # M words
    word, before, after = ids[row, place], ids[row, place - 1], ids[row, place + 1]
    first, final = place == 1, place == last[row, 0]  # a mark is no neighbour
    alike = (before[:, None] == before) & ~first[:, None] & ~first
    alike |= (after[:, None] == after) & ~final[:, None] & ~final  # M M: place, other word
    alike &= (ids[:, :, None] != word).all(1)[row]  # R L M -> M M: the text lacks the word
    open_places = alike.any(1)
    kept = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    kept[row[open_places]] = True
    kept = kept.nonzero().squeeze(1)
    if not len(kept):
        return kept, ids.new_empty(0, times, ids.shape[1])
    in_text = (row == kept[:, None]) & open_places  # P M
    versions = []
    for _ in range(times):
        chosen = _draw(in_text, generator)  # P, the place that changes
        new = word[_draw(alike[chosen], generator)]
        version = ids[kept].clone()
        version[torch.arange(len(kept), device=ids.device), place[chosen]] = new
        versions.append(version)
    return kept, torch.stack(versions, 1)


def _draw(possible: Tensor, generator: torch.Generator) -> Tensor:
    """One of the possible columns of each row, all alike likely; bool `P M` -> int64 `P`."""
    dice = torch.rand(possible.shape, generator=generator, device=possible.device)
    return dice.masked_fill(~possible, -1.0).argmax(1)
