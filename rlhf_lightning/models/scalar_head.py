"""A transformer body with one number per token: reward models and value networks."""

import copy
from pathlib import Path
from typing import Literal, cast

import torch
from jaxtyping import Bool, Float, Int
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import AutoModel, AutoModelForSequenceClassification, Cache, PreTrainedModel

from rlhf_lightning.arguments import checked
from rlhf_lightning.compat import attention_implementation, cache_options
from rlhf_lightning.models.adapter_folder import adapter_settings
from rlhf_lightning.models.architecture import check_length
from rlhf_lightning.models.attention import additive_mask, fast_attention
from rlhf_lightning.models.loading import DType, load_weights, use_fast_kernels
from rlhf_lightning.models.precision import compute_dtype
from rlhf_lightning.runs.hub import adapter_base, model_source
from rlhf_lightning.runs.model_card import signed

HEAD_FILE = "scalar_head.safetensors"
"""Holds `weight` (1 x hidden size) and `bias` (a number), where the architecture has no class for such a head."""
HEAD_PAGE = signed(f"""# A reward model

The body is read by `AutoModel.from_pretrained`, the head is `{HEAD_FILE}`. A token has the number
`last_hidden_state @ weight.T + bias`. The score of a text is that of its last token or, where the metadata of the file
say `pooling: mean`, the mean over the tokens of the response. `rlhf_lightning.models.scalar_head.load_scalar_model`
reads both.
""")
"""The card until a run writes its own."""

Pooling = Literal["last", "mean"]
"""Where the score of a response stands: at its last token, or as the mean over its tokens."""


class ScalarHeadModel(nn.Module):
    """A transformer body with one number per token: reward model and value network.

    Args:
        backbone: A body without head, from `AutoModel` or `causal_lm.base_model`; its output has `last_hidden_state`.
        hidden_size: The width d of the body.
        pooling: Where the score of a response stands (`pooled`); the paper does not say.

    The head has no bias of its own and starts with standard deviation 1 / sqrt(d + 1) (ours, as Stiennon et al. 2020);
    it computes in 32 bits, in whichever the body does.
    `bias` is the constant that puts demonstrations at mean 0 (InstructGPT, section 3.5); it is not trained.
    """

    bias: Float[Tensor, ""]

    def __init__(self, backbone: nn.Module, hidden_size: int, pooling: Pooling = "last") -> None:
        super().__init__()
        self.backbone, self.pooling = backbone, pooling
        self.head = nn.Linear(hidden_size, 1, bias=False)
        nn.init.normal_(self.head.weight, std=(hidden_size + 1) ** -0.5)
        self.register_buffer("bias", torch.zeros(()))

    @classmethod
    def from_causal_lm(cls, model: PreTrainedModel, pooling: Pooling = "last") -> "ScalarHeadModel":
        """Take over the body of a causal language model; the model itself stays as it is.

        Args:
            model: The model.
            pooling: As of the constructor.

        Raises:
            ValueError: When the model does not tell its body from its head.
        """
        if model.base_model is model:
            raise ValueError(
                f"{type(model).__name__} does not tell its body from its head, so no reward model or critic can be "
                "made of it. Take another architecture for reward.init."
            )
        head = model.get_output_embeddings()
        # What the head of words reads is what this head reads; the hidden size is another in OPT-350m.
        hidden_size = head.in_features if isinstance(head, nn.Linear) else model.config.get_text_config().hidden_size
        return cls(copy.deepcopy(model.base_model), hidden_size, pooling).to(model.device)

    def forward(
        self,
        input_ids: Int[Tensor, "rows time"],
        attention_mask: Tensor | BlockMask | None = None,
        position_ids: Int[Tensor, "rows time"] | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "rows time *width"]:
        """One number per token, in the units of the score.

        Args:
            input_ids: The tokens.
            attention_mask: `rows x time`, True on real tokens, or `rows x 1 x time x time`, True where a query (third
                axis) sees a key (fourth axis), for flex attention as a block mask. None where padding, if any, is on
                the right: no real token sees it, and attention is faster without a mask.
            position_ids: The position of each token; None counts from the left.
            cache: Keys and values of the tokens before these; those of these tokens are added to it.
        """
        if attention_mask is None and not isinstance(self.backbone, PreTrainedModel):
            attention_mask = torch.ones_like(input_ids, dtype=torch.bool)
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        if not isinstance(attention_mask, BlockMask) and (attention_mask is None or attention_mask.dim() == 2):
            check_length(self.backbone, input_ids.shape[1])
        options = {"use_cache": False} if cache is None else cache_options(self.backbone, cache)
        with fast_attention(self.backbone, input_ids.device, input_ids.shape[1]):
            eager = attention_implementation(self.backbone) == "eager"
            if eager and isinstance(attention_mask, Tensor) and attention_mask.dim() == 4:
                # Eager attention adds the mask to its scores; every other implementation reads True as "sees".
                dtype = compute_dtype(attention_mask.device, next(self.backbone.parameters()).dtype)
                attention_mask = additive_mask(attention_mask, dtype)
            options |= {"attention_mask": attention_mask, "position_ids": position_ids}
            output = self.backbone(input_ids=input_ids, **options)
        return self.values(output.last_hidden_state)

    def values(self, hidden: Float[Tensor, "rows time width"]) -> Float[Tensor, "rows time *numbers"]:
        """The number of each token from its final state, in 32 bits at least."""
        exact = torch.promote_types(self.head.weight.dtype, torch.float32)
        with torch.autocast(hidden.device.type, enabled=False):  # 16 bits would put every score on a coarse grid
            return nn.functional.linear(hidden.to(exact), self.head.weight.to(exact)).squeeze(-1) + self.bias


class FinalStates(ScalarHeadModel):
    """The body of a model, which gives its final states in 32 bits in place of numbers.

    Args:
        model: The model; its body and what it makes of the tokens of a response are shared.
    """

    def __init__(self, model: ScalarHeadModel) -> None:
        nn.Module.__init__(self)
        self.backbone, self.pooling = model.backbone, model.pooling

    def values(self, hidden: Float[Tensor, "rows time width"]) -> Float[Tensor, "rows time *numbers"]:
        """The states themselves."""
        return hidden.to(torch.promote_types(hidden.dtype, torch.float32))


def pooled(
    model: nn.Module, values: Float[Tensor, "rows time *width"], mask: Bool[Tensor, "rows time"]
) -> Float[Tensor, "rows *width"]:
    """What a model says of responses, from what it says of their tokens.

    Args:
        model: The model; any but a `ScalarHeadModel` speaks at the last token.
        values: What it says of each token.
        mask: The tokens of the response.

    Examples:
        >>> mask = torch.tensor([[False, True, True, False]])
        >>> pooled(nn.Identity(), torch.tensor([[5.0, 1.0, 2.0, 7.0]]), mask)
        tensor([2.])
        >>> pooled(ScalarHeadModel(nn.Identity(), 2, "mean"), torch.tensor([[5.0, 1.0, 2.0, 7.0]]), mask)
        tensor([1.5000])
    """
    if getattr(model, "pooling", "last") == "mean":
        weights = mask.to(values.dtype) / mask.sum(1, keepdim=True)
        return torch.einsum("rt,rt...->r...", weights, values)
    rows, time = (torch.arange(size, device=mask.device) for size in mask.shape)
    return values[rows, (mask * time).amax(1)]


@torch.no_grad()
def widen_vocabulary(model: ScalarHeadModel, policy: PreTrainedModel) -> None:
    """Give a model rows for tokens that only the policy has, such as those that round its vocabulary up.

    They stand for no text; their embedding is the mean of the others, so that a score is hardly moved by one.

    Args:
        model: The model, changed in place; nothing happens where it has as many rows.
        policy: The policy whose responses the model will read.
    """
    body, words = model.backbone, _embedding(policy).shape[0]
    if isinstance(body, PreTrainedModel) and (old := _embedding(body).shape[0]) < words:
        body.resize_token_embeddings(words, mean_resizing=False)
        _embedding(body)[old:] = _embedding(body)[:old].mean(0)


def _embedding(model: PreTrainedModel) -> Tensor:
    return cast(Tensor, model.get_input_embeddings().weight)


@checked
def load_scalar_model(path: str, *, dtype: DType = "float32", attention: str = "sdpa") -> ScalarHeadModel:
    """Load a sequence classification folder with one label, or a body beside a head; `export_scalar_model` writes both.

    Args:
        path: A local folder or a hub id; a folder with an adapter of either kind is read with its model, and merged.
        dtype: Name of the torch dtype of the body's weights; the head stays in 32 bits.
        attention: Attention implementation of transformers.

    Raises:
        FileNotFoundError: When there is nothing at a path that is no hub id.
        ValueError: When the folder's model has more than one label or no linear `score` head, or as `load_weights`.
    """
    kernel = None if attention == "sdpa" else attention  # where a model has no sdpa, transformers takes what it has
    options = {"dtype": getattr(torch, dtype), "attn_implementation": kernel, "trust_remote_code": False}
    source = Path(model_source(path))
    head = load_file(source / HEAD_FILE) if (source / HEAD_FILE).exists() else {}
    if head and not (adapter_base(str(source)) and adapter_settings(source).get("task_type") == "SEQ_CLS"):
        body: nn.Module = load_weights(AutoModel, path, **options)
        weight, bias = head["weight"], float(head["bias"])
    else:
        model = load_weights(AutoModelForSequenceClassification, path, **options)
        score = getattr(model, "score", None)
        if not isinstance(score, nn.Linear) or score.out_features != 1:
            raise ValueError(
                f"{path} is no reward model: it needs a linear head 'score' with one label, it has {score!r}. "
                "Other sequence classifiers can be used through rlhf_lightning.TextReward."
            )
        bias = float(head["bias"] if head else getattr(model.config, "reward_bias", 0.0))
        body, weight = model.base_model, score.weight.data
    scalar = ScalarHeadModel(use_fast_kernels(body), weight.shape[1], _pooling(source / HEAD_FILE))
    scalar.head.weight.data.copy_(weight)
    scalar.bias.fill_(bias)
    return scalar


def _pooling(head: Path) -> Pooling:
    if not head.exists():
        return "last"
    with safe_open(head, "pt") as file:
        found = (file.metadata() or {}).get("pooling", "last")
    if found not in ("last", "mean"):
        raise ValueError(f"{head} says pooling={found}; last and mean are known. Take a newer rlhf_lightning.")
    return cast(Pooling, found)
