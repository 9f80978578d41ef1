"""The paper's care with data: curation of prompts, demonstrations and rankings, and the data card."""

from rlhf_lightning.curation.card import card_page, data_card
from rlhf_lightning.curation.curator import Curator
from rlhf_lightning.curation.few_shot import few_shot_examples, read_few_shot
from rlhf_lightning.curation.filters import LanguageFilter, PersonalFilter
from rlhf_lightning.curation.groups import GroupSplits
from rlhf_lightning.curation.keys import kept_per_key
from rlhf_lightning.curation.language import LanguageIdentifier
from rlhf_lightning.curation.near import near_duplicate_groups
from rlhf_lightning.curation.overlap import EvaluationOverlap
from rlhf_lightning.curation.personal import find_personal, masked
from rlhf_lightning.curation.presidio import PresidioFinder
from rlhf_lightning.curation.thinning import Thinning

__all__ = [
    "Curator",
    "EvaluationOverlap",
    "GroupSplits",
    "LanguageFilter",
    "LanguageIdentifier",
    "PersonalFilter",
    "PresidioFinder",
    "Thinning",
    "card_page",
    "data_card",
    "few_shot_examples",
    "find_personal",
    "kept_per_key",
    "masked",
    "near_duplicate_groups",
    "read_few_shot",
]
