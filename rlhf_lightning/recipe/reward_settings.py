"""What the config groups of the reward model may hold."""

from typing import Annotated, Literal, NotRequired, TypedDict

from rlhf_lightning.arguments import NonNegativeFloat, NonNegativeInt
from rlhf_lightning.models.adapter_export import Form
from rlhf_lightning.models.scalar_head import Pooling
from rlhf_lightning.recipe.schemas import Fit, LanguageModel, Lora, ValidatedRows, data_keywords
from rlhf_lightning.training.head_start import HeadScale


class RewardSettings(TypedDict):
    """Groups `reward` and `judge`."""

    init: str | None
    module: LanguageModel
    data: Annotated[ValidatedRows, data_keywords("text_share", "text_share_of", "text_batch_size")]
    fit: Fit
    lora: Lora
    rates: NotRequired[dict[str, NonNegativeFloat | None]]
    freeze_body: bool
    pooling: Pooling
    head_scale: HeadScale | None
    head_first: bool
    export: Form | None
    bias_demonstrations: NonNegativeInt
    folds: Literal["labeler", "source"] | None
