"""Models and tokenizers: loading, the scalar head, freezing."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Cache,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.activations import NewGELUActivation
from transformers.models.gpt2.tokenization_gpt2 import GPT2Tokenizer

from rlhf_lightning.attention import attention_implementation, cache_options, fast_attention
from rlhf_lightning.products import fast_products

Module = TypeVar("Module", bound=nn.Module)
_SHIPPED = Path(__file__).parent / "sandbox" / "base"
_SIZES = ("small", "medium", "large")


def model_folder(path: str) -> str:
    """The folder of a model: ``sandbox/small``, ``sandbox/medium`` and ``sandbox/large`` ship in the package.

    Any other path, or hub id, stands for itself; ``sandbox`` is short for ``sandbox/medium``.

    Raises:
        ValueError: When the sandbox has no model of that size.
    """
    name, _, size = path.partition("/")
    if name != "sandbox":
        return path
    if (size or "medium") not in _SIZES:
        raise ValueError(f"the sandbox has no model {path!r}; it has sandbox/{', sandbox/'.join(_SIZES)}.")
    return str(_SHIPPED / (size or "medium"))


def load_causal_lm(
    path: str | None = None,
    config: Mapping[str, Any] | None = None,
    *,
    dtype: str = "float32",
    attention: str = "sdpa",
    residual_dropout: float = 0.0,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load a causal language model, or make a fresh one.

    Args:
        path: A local folder, a hub id, or a shipped model (:func:`model_folder`).
        config: Instead of ``path``: ``model_type`` and the architecture's own configuration fields; the weights are
            then random.
        dtype: Name of the torch dtype of the weights; training keeps 32-bit master weights.
        attention: Attention implementation of transformers: ``sdpa``, ``eager``, ``flex_attention`` (GPU), ...
        residual_dropout: Dropout on the residual branches (0.2 for SFT in InstructGPT, appendix C.1); every other
            dropout is 0. Only for architectures that have one.
        trust_remote_code: Whether code that comes with the model may run.

    Raises:
        ValueError: When not exactly one of ``path`` and ``config`` is given, or the dropout does not exist.
    """
    architecture = model_config(path, config, trust_remote_code=trust_remote_code)
    _set_dropout(architecture, residual_dropout)
    options: dict[str, Any] = {
        "config": architecture,
        "dtype": getattr(torch, dtype),
        "attn_implementation": attention,
        "trust_remote_code": trust_remote_code,
    }
    if path is None:
        model = AutoModelForCausalLM.from_config(**options)
    else:
        model = AutoModelForCausalLM.from_pretrained(model_folder(path), use_safetensors=True, **options)
    return use_fast_kernels(cast(PreTrainedModel, model))


def model_config(
    path: str | None = None, config: Mapping[str, Any] | None = None, *, trust_remote_code: bool = False
) -> PreTrainedConfig:
    """The architecture of a model, without its weights; arguments as those of :func:`load_causal_lm`.

    Raises:
        ValueError: When not exactly one of ``path`` and ``config`` is given.
    """
    if (path is None) == (config is None):
        raise ValueError(f"a model needs either 'path' or 'config', got path={path!r} and config={config!r}.")
    if path is not None:
        found = AutoConfig.from_pretrained(model_folder(path), trust_remote_code=trust_remote_code)
    else:
        fields = dict(config or {})
        tokens = {"bos_token_id": None, "eos_token_id": None}
        found = AutoConfig.for_model(fields.pop("model_type"), **tokens | fields)
    return cast(PreTrainedConfig, found)


def use_fast_kernels(model: Module) -> Module:
    """Put faster kernels into a model; its values are the same up to rounding, its parameters the very same.

    Linear layers multiply by :func:`rlhf_lightning.products.product`. Where transformers writes out the formula of
    tanh-GELU (``gelu_new``: GPT-2 and others) stands torch's kernel: a training step takes about a fifth less time, and
    the activations that are kept for the backward pass shrink.
    """
    fast_products(model)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))
    return model


def load_tokenizer(path: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load a tokenizer and make sure that it has an EOS and a pad token that differ.

    Args:
        path: A local folder, a hub id, a shipped model, a single ``tokenizer.json``, or a folder with the original
            GPT-2 files ``encoder.json`` and ``vocab.bpe``.
        trust_remote_code: Whether code that comes with the tokenizer may run.

    Raises:
        ValueError: When the tokenizer has no EOS token.
    """
    folder = Path(model_folder(path))
    if (folder / "encoder.json").exists():
        vocabulary = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
        lines = (folder / "vocab.bpe").read_text(encoding="utf-8").splitlines()[1:]
        merges = cast(Any, [tuple(line.split()) for line in lines if line])
        tokenizer: PreTrainedTokenizerBase = GPT2Tokenizer(vocab=vocabulary, merges=merges)
    elif folder.suffix == ".json":
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder), eos_token="<|endoftext|>")
    else:
        source = str(folder) if folder.exists() else path
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    if tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer of {path} has no EOS token; responses could never end. Set one and save it.")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        # An EOS that is also padding would be masked away, and no model could learn to end.
        tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    return tokenizer


def fit_to_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Give the model the tokenizer's special tokens and, where it has more tokens, rows for them.

    New rows start at the mean of the old ones, so that the new tokens are neither likely nor unlikely.
    """
    old = cast(Tensor, model.get_input_embeddings().weight).shape[0]
    if len(tokenizer) > old:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        with torch.no_grad():
            for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
                weight = cast(Tensor, layer.weight)
                weight[old:] = weight[:old].mean(0)
    for config in (model.config, model.generation_config):
        if config is not None:
            config.pad_token_id, config.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
            config.bos_token_id = tokenizer.bos_token_id
    return model


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
            "Other sequence classifiers can be used through rlhf_lightning.scoring.TextReward."
        )
    scalar = ScalarHeadModel(use_fast_kernels(model.base_model), score.in_features)
    scalar.head.weight.data.copy_(score.weight.data)
    scalar.bias.fill_(float(getattr(model.config, "reward_bias", 0.0)))
    return scalar.to(score.weight.dtype)


def freeze(module: Module) -> Module:
    """Turn off gradients and dropout, for good."""
    return module.requires_grad_(False).eval()


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where the mask is True, the lowest number elsewhere."""
    kind = mask.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else dtype
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


def _set_dropout(config: Any, residual_dropout: float) -> None:
    for name in ("attn_pdrop", "embd_pdrop", "attention_dropout", "hidden_dropout", "embedding_dropout"):
        if hasattr(config, name):
            setattr(config, name, 0.0)
    names = [name for name in ("resid_pdrop", "residual_dropout", "hidden_dropout") if hasattr(config, name)]
    if residual_dropout and not names:
        raise ValueError(
            f"residual_dropout is {residual_dropout}, but {config.model_type} models have no residual dropout. "
            "Set it to 0."
        )
    for name in names:
        setattr(config, name, residual_dropout)
