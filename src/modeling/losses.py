"""Losses as pure functions of score matrices; no ranks, no batches, no modules.

Legend: R texts, B videos, K texts a video. `scores` is `R B`: row i is text i against all videos.
`owner` int64 `R` tells each text's video. `negative` bool `R B` tells which videos count as wrong
for a text; None: all but its own. Rows and videos that are not valid are left out by the caller.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

NEVER = -1e9
"""Score of a pair that does not compete; finite, so that a row without rivals has a gradient."""


def own_pairs(owner: Tensor, num_videos: int) -> Tensor:
    """Bool `R B`: text r belongs to video b."""
    return owner.unsqueeze(1) == torch.arange(num_videos, device=owner.device)


def true_negatives(owner: Tensor, video_key: Tensor | None, text_key: Tensor | None) -> Tensor:
    """Bool `R B`: pairs that are surely wrong.

    A pair is no negative where both videos are one (clips of it, told by `video_key`), where the
    other video has a text equal to this one (`text_key`), and where it is the text's own.

    Args:
        owner: video of each text, `R`.
        video_key: hashes, int64 `B`; None: all differ.
        text_key: hashes, int64 `R`; None: all differ.
    """
    keys = video_key if video_key is not None else torch.arange(int(owner.max()) + 1).to(owner)
    same = keys[owner].unsqueeze(1) == keys.unsqueeze(0)  # R B
    if text_key is not None:
        equal = text_key.unsqueeze(1) == text_key.unsqueeze(0)  # R R
        shared = torch.zeros_like(same, dtype=torch.int64)
        shared.index_add_(1, owner, equal.to(torch.int64))
        same = same | (shared > 0)
    return ~same


def _both_directions(scores: Tensor, owner: Tensor, negative: Tensor | None) -> tuple[Tensor, ...]:
    """Score of each text's own pair, `R`, and the negatives of its text and of its video, `R .`."""
    negative = ~own_pairs(owner, scores.shape[1]) if negative is None else negative
    own = scores.gather(1, owner.unsqueeze(1)).squeeze(1)
    of_text = scores.masked_fill(~negative, NEVER)  # R B
    of_video = of_text.t()[owner]  # R R: negatives of the video of each text
    return own, of_text, of_video


def nce(
    scores: Tensor, owner: Tensor, temperature: Tensor | float, negative: Tensor | None = None
) -> Tensor:
    """Cross-entropy over videos plus cross-entropy over texts, mean over pairs, a scalar.

    Other texts of the same video compete with none of its own texts. Half of this is the symmetric
    contrastive loss of Radford et al. 2021.
    """
    own, of_text, of_video = _both_directions(scores / temperature, owner, negative)
    total = own.new_zeros(())
    for negatives in (of_text, of_video):
        total = total + (_log_sum(own, negatives) - own).mean()
    return total


def contrastive(
    scores: Tensor, owner: Tensor, temperature: Tensor | float, negative: Tensor | None = None
) -> Tensor:
    """Symmetric cross-entropy: the mean of both directions, a scalar."""
    return 0.5 * nce(scores, owner, temperature, negative)


def hard_negative_nce(
    scores: Tensor, owner: Tensor, num_hard: int, negative: Tensor | None = None
) -> Tensor:
    """As `nce` without a temperature and with only the `num_hard` highest negatives a row."""
    own, of_text, of_video = _both_directions(scores, owner, negative)
    total = own.new_zeros(())
    for negatives in (of_text, of_video):
        hardest = negatives.topk(min(num_hard, negatives.shape[1]), dim=1).values
        total = total + (_log_sum(own, hardest) - own).mean()
    return total


def mil_nce(
    scores: Tensor, owner: Tensor, temperature: Tensor | float, negative: Tensor | None = None
) -> Tensor:
    """Any of a video's texts may be the right one (Miech et al. 2020), mean over videos.

    Pairs of a video with all its texts against those and all negatives of its row and its column.
    """
    scores = scores / temperature
    mine = own_pairs(owner, scores.shape[1])
    negative = ~mine if negative is None else negative
    right = scores.masked_fill(~mine, NEVER).logsumexp(0)  # B
    wrong = scores.masked_fill(~negative, NEVER)
    by_column = wrong.logsumexp(0)  # B: wrong texts of a video
    rows = wrong.logsumexp(1)  # R: wrong videos of a text
    by_row = torch.where(mine, rows.unsqueeze(1), NEVER).logsumexp(0)  # B
    losses = torch.stack([right, by_column, by_row]).logsumexp(0) - right
    present = mine.any(0)
    return torch.where(present, losses, 0.0).sum() / present.sum().clamp(min=1)


def triplet(
    scores: Tensor,
    owner: Tensor,
    margin: float,
    hardest: bool = False,
    negative: Tensor | None = None,
) -> Tensor:
    """Hinge of each negative against the own pair, both ways, summed; `hardest`: one a row.

    Faghri et al. 2018, "VSE++".
    """
    own, of_text, of_video = _both_directions(scores, owner, negative)
    total = own.new_zeros(())
    for negatives in (of_text, of_video):
        hinge = (margin + negatives - own.unsqueeze(1)).clamp(min=0)
        total = total + (hinge.amax(1).sum() if hardest else hinge.sum())
    return total


def order_scores(text: Tensor, video: Tensor) -> Tensor:
    """Order violation as a score, `R B`: minus the length of what the text has above the video.

    Vendrov et al. 2016, "Order-Embeddings of Images and Language".
    """
    above = (text.unsqueeze(1) - video.unsqueeze(0)).clamp(min=0)
    return -above.square().sum(-1).clamp(min=1e-24).sqrt()


def sigmoid(
    scores: Tensor,
    owner: Tensor,
    temperature: Tensor | float,
    bias: Tensor | float,
    negative: Tensor | None = None,
) -> Tensor:
    """Each pair judged alone, sum over pairs divided by texts (Zhai et al. 2023, SigLIP)."""
    mine = own_pairs(owner, scores.shape[1])
    negative = ~mine if negative is None else negative
    logits = scores / temperature + bias
    losses = -F.logsigmoid(torch.where(mine, logits, -logits))
    return torch.where(mine | negative, losses, 0.0).sum() / scores.shape[0]


def pool_clips(scores: Tensor, pool: str, dim: int) -> Tensor:
    """Scores of clips to one: "mean", "max" or "lse" (log of the sum of exponentials)."""
    if pool == "mean":
        return scores.mean(dim)
    if pool == "max":
        return scores.amax(dim)
    return scores.logsumexp(dim)


def clip_cross_entropy(scores: Tensor, labels: Tensor, pool: str) -> Tensor:
    """Cross-entropy of clips' scores, one value a sample, `B`.

    Args:
        scores: `N B C`.
        labels: int64 `B`.
        pool: "mean" and "max" pool scores first; "lse" is one softmax over clips and classes
            together, marginalised over clips.
    """
    if pool != "lse":
        return F.cross_entropy(pool_clips(scores, pool, 0), labels, reduction="none")
    rows = torch.arange(scores.shape[1], device=scores.device)
    right = scores[:, rows, labels].logsumexp(0)
    return scores.transpose(0, 1).flatten(1).logsumexp(1) - right


def _log_sum(own: Tensor, negatives: Tensor) -> Tensor:
    """log(exp(own) + sum of exp(negatives)) a row."""
    return torch.cat([own.unsqueeze(1), negatives], dim=1).logsumexp(1)
