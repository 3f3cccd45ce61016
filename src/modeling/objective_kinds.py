"""Which objective a name means."""

from __future__ import annotations

from collections.abc import Callable

from rushes.configs.schema import ObjectiveConfig
from rushes.modeling.objectives import (
    CONTRASTIVE,
    CaptionWords,
    Contrastive,
    Heads,
    MaskedLanguage,
    Matching,
    MultipleChoice,
    Objective,
    OpenEndedAnswers,
)
from rushes.modeling.swapped import SwappedWords


def make_objective(config: ObjectiveConfig, heads: Heads) -> Objective:
    """The objective that a config names."""
    if config.name in CONTRASTIVE:
        return Contrastive(heads, config)
    kinds: dict[str, Callable[[Heads, ObjectiveConfig], Objective]] = {
        "caption_words": CaptionWords,
        "swapped_words": SwappedWords,
        "masked_language": MaskedLanguage,
        "matching": Matching,
        "open_ended_qa": OpenEndedAnswers,
        "multiple_choice_qa": MultipleChoice,
    }
    return kinds[config.name](heads, config)
