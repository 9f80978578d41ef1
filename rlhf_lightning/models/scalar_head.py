"""A transformer body with one number per token: reward models and value networks."""

import copy
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import AutoModelForSequenceClassification, Cache, PreTrainedModel

from rlhf_lightning.models.attention import attention_implementation, cache_options, fast_attention
from rlhf_lightning.models.loading import use_fast_kernels


class ScalarHeadModel(nn.Module):
    """A transformer body with one number per token: reward model and value network.

    Args:
        backbone: Body without head, from ``AutoModel`` or ``causal_lm.base_model``; its output has
            ``last_hidden_state``.
        hidden_size: Width d of the body.

    The head has no bias of its own and starts with standard deviation 1 / sqrt(d + 1) (Stiennon et al. 2020).
    ``bias`` is the constant that puts demonstrations at mean 0 (InstructGPT, section 3.5); it is not trained.
    """

    bias: Float[Tensor, ""]

    def __init__(self, backbone: nn.Module, hidden_size: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(hidden_size, 1, bias=False)
        nn.init.normal_(self.head.weight, std=(hidden_size + 1) ** -0.5)
        self.register_buffer("bias", torch.zeros(()))

    @classmethod
    def from_causal_lm(cls, model: PreTrainedModel) -> "ScalarHeadModel":
        """Take over the body of a causal language model; the model itself stays as it is."""
        return cls(copy.deepcopy(model.base_model), model.config.get_text_config().hidden_size)

    def forward(
        self,
        input_ids: Int[Tensor, "rows time"],
        attention_mask: Tensor | BlockMask | None = None,
        position_ids: Int[Tensor, "rows time"] | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "rows time"]:
        """One number per token, in the units of the score.

        Args:
            input_ids: Tokens.
            attention_mask: ``rows x time``, True on real tokens, or ``rows x 1 x time x time``, True where a query
                (third axis) sees a key (fourth axis), for flex attention as a block mask. None where padding, if any,
                is on the right: no real token sees it, and attention is faster without a mask.
            position_ids: Position of each token; None counts from the left.
            cache: Keys and values of the tokens before these; the own ones are added to it.
        """
        if attention_mask is None and not isinstance(self.backbone, PreTrainedModel):
            attention_mask = torch.ones_like(input_ids, dtype=torch.bool)
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        options = {"use_cache": False} if cache is None else cache_options(self.backbone, cache)
        with fast_attention(self.backbone, input_ids.device, input_ids.shape[1]):
            eager = attention_implementation(self.backbone) == "eager"
            if eager and isinstance(attention_mask, Tensor) and attention_mask.dim() == 4:
                # Eager attention adds the mask to its scores; every other implementation reads True as "sees".
                attention_mask = _additive(attention_mask, self.head.weight.dtype)
            output = self.backbone(
                input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **options
            )
        hidden = output.last_hidden_state.to(self.head.weight.dtype)
        return cast(Tensor, self.head(hidden).squeeze(-1) + self.bias)


def load_scalar_model(path: str, *, dtype: str = "float32", attention: str = "sdpa") -> ScalarHeadModel:
    """Load a sequence classification folder with one label, such as :func:`export_scalar_model` writes.

    Raises:
        ValueError: When the folder's model has more than one label or no linear ``score`` head.
    """
    model = AutoModelForSequenceClassification.from_pretrained(
        path,
        dtype=getattr(torch, dtype),
        attn_implementation=attention,
        use_safetensors=True,
        trust_remote_code=False,
    )
    score = getattr(model, "score", None)
    if not isinstance(score, nn.Linear) or score.out_features != 1:
        raise ValueError(
            f"{path} is no reward model: it needs a linear head 'score' with one label, it has {score!r}. "
            "Other sequence classifiers can be used through rlhf_lightning.generation.rewards.TextReward."
        )
    scalar = ScalarHeadModel(use_fast_kernels(model.base_model), score.in_features)
    scalar.head.weight.data.copy_(score.weight.data)
    scalar.bias.fill_(float(getattr(model.config, "reward_bias", 0.0)))
    return scalar.to(score.weight.dtype)


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where the mask is True, the lowest number elsewhere."""
    kind = mask.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else dtype
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
