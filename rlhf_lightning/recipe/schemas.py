"""What the groups of the configuration may hold besides nodes with `_target_`: names, types and ranges.

A node that becomes the argument list of a function takes its names and types from there (`Keywords`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from annotated_types import Ge, Le
from transformers import ContinuousBatchingConfig

from rlhf_lightning.arguments import (
    Count,
    Decay,
    Fraction,
    Node,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    Share,
)
from rlhf_lightning.data.datamodule import RLHFDataModule
from rlhf_lightning.data.tokenize import TrainOn
from rlhf_lightning.evaluation.tables import REWARD
from rlhf_lightning.generation.engines import Engine, VLLMSampler
from rlhf_lightning.generation.vllm_server import VLLMServerSampler
from rlhf_lightning.models.adapter_export import Form
from rlhf_lightning.models.loading import DType
from rlhf_lightning.models.lora import with_adapters
from rlhf_lightning.recipe.rounds import LaterRounds, RoundCount
from rlhf_lightning.tokenization.formats import FormatName
from rlhf_lightning.training.fit import fit_stage


@dataclass(frozen=True)
class Keywords:
    """A node that is a list of keywords.

    Args:
        function: What takes them; those that it takes by name alone, where there are any.
        without: Keywords that the recipe gives it.
        required: Keywords that must be there, besides those without a default.
        every: Whether those count too that it takes by place.
    """

    function: Callable[..., Any]
    without: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    every: bool = False


@dataclass(frozen=True)
class Given:
    """A node with `_target_` to which the recipe gives some arguments itself.

    Args:
        names: Names of those arguments.
        nodes: Names of arguments that are `Nodes`.
        judged_later: Names of arguments for which the recipe has a check of its own.
    """

    names: tuple[str, ...]
    nodes: tuple[str, ...] = ()
    judged_later: tuple[str, ...] = ()


class Kind:
    """A node of one of several forms: `REWARD_FORMS` or `NODES`."""


REWARD_FORMS, NODES = Kind(), Kind()
Reward = Annotated[Any, REWARD_FORMS]
"""A reward by the forms of `recipe.rewards`."""
Nodes = Annotated[Any, NODES]
"""Nodes with `_target_`, in mappings by name or in lists, however deep; null is none."""

_LENGTHS = ("block_size", "max_prompt_tokens", "max_response_tokens", "prompt_template", "train_on", "format")
_PAIRS, _SHARE, _ROWS = "as_pairs", ("text_share", "text_share_of"), "text_batch_size"
Lengths = Annotated[
    dict[str, Any],
    Keywords(
        RLHFDataModule,
        ("text", "seed", "batch_size", "num_batches", "num_workers", _PAIRS, *_SHARE, _ROWS),
        _LENGTHS[:3],
    ),
]
Fit = Annotated[dict[str, Any], Keywords(fit_stage, ("loggers", "hyperparameters", "tags"))]
Lora = Annotated[dict[str, Any], Keywords(with_adapters, required=("rank",))]
LanguageModel = Annotated[Node, Given(("model",))]
Ppo = Annotated[Node, Given(("policy", "reference", REWARD, "value", "tokenizer", "sampler", "max_new_tokens", "seed"))]


class Rows(TypedDict, total=False):
    """Which records a step learns from."""

    max_train: Count | None
    leave_out: list[str] | None


class ValidatedRows(Rows, total=False):
    """And validates on."""

    max_validation: NonNegativeInt | None


def data_keywords(*without: str) -> Keywords:
    """What `data` of a step may hold: arguments of the data module, without those."""
    return Keywords(RLHFDataModule, ("text", "seed", *_LENGTHS, *without))


class PretrainSettings(TypedDict):
    """Group `pretrain`."""

    module: LanguageModel
    data: Annotated[ValidatedRows, data_keywords(_PAIRS, *_SHARE, _ROWS)]
    fit: Fit
    on_weights: bool
    export_dtype: DType


class FineTuningSettings(TypedDict):
    """Groups `sft` and `ppo_init`."""

    module: LanguageModel
    data: Annotated[ValidatedRows, data_keywords(_PAIRS, _ROWS)]
    fit: Fit
    lora: Lora
    rates: NotRequired[dict[str, NonNegativeFloat]]
    export: Form | None
    residual_dropout: Decay
    keep_epochs: bool
    keep_every: Count | None


class PpoSettings(TypedDict):
    """Groups `ppo` and `ppo_ptx`."""

    init: str
    reference: str
    reward: Reward
    value_init: str | None
    module: Ppo
    data: Annotated[Rows, data_keywords(_PAIRS, *_SHARE)]
    fit: Fit
    lora: Lora
    rates: NotRequired[dict[str, NonNegativeFloat]]
    value_rates: NotRequired[dict[str, NonNegativeFloat]]
    export: Form | None
    validate_every: Count | None
    validation_prompts: Count | None
    validation_judge: Reward
    keep: Literal["best"] | None


class PromptCounts(TypedDict):
    """Prompts to ask, by split."""

    train: Count
    validation: NotRequired[NonNegativeInt]
    test: NotRequired[NonNegativeInt]


class CurateSettings(TypedDict):
    """Group `curate`."""

    few_shot: list[str]
    evaluation: list[str | dict[str, Any]]
    curator: Node


class ModelSettings(TypedDict):
    """Group `model`; what is not a node is there to be referred to."""

    causal_lm: Node
    tokenizer: Node
    path: NotRequired[str]
    tokenizer_path: NotRequired[str]
    size: NotRequired[Literal["small", "medium", "large"]]
    documents: NotRequired[Count]
    eos: NotRequired[str | list[str] | None]
    stop: NotRequired[str | list[str] | None]
    chat_template: NotRequired[str | None]
    date: NotRequired[str | None]


class DataSettings(TypedDict):
    """Group `data`; what is not a node is there to be referred to."""

    source: Node
    lengths: Lengths
    root: NotRequired[str | None]
    on_error: NotRequired[Literal["stop", "quarantine"]]
    labels: NotRequired[str | None]
    format: NotRequired[FormatName | None]
    train_on: NotRequired[TrainOn]
    id: NotRequired[str]
    tasks: NotRequired[str]


class GenerationSettings(TypedDict):
    """Node `generation`."""

    engine: Engine
    options: Mapping[str, Any]
    batch_tokens: Count | None
    cuda_graphs: NotRequired[bool]


class Batching(TypedDict, total=False):
    """Ranges of what `ContinuousBatchingConfig` takes, and does not look at itself."""

    page_size: Annotated[int, Ge(4)]
    block_size: Annotated[int, Ge(4)] | None
    num_blocks: Count | None
    max_batch_tokens: Count | None
    max_memory_percent: Share | None
    max_requests_per_batch: Count | None
    max_blocks_per_request: NonNegativeInt | None
    q_padding_interval_size: NonNegativeInt
    kv_padding_interval_size: NonNegativeInt
    default_compile_level: Annotated[int, Ge(0), Le(3)]
    scheduler_type: Literal["fifo", "prefill_first"]
    safety_margin: Fraction | None
    seed: NonNegativeInt | None
    cpu_offload_space: NonNegativeFloat | None
    cpu_offload_space_safety_threshold: Fraction
    max_queue_size: NonNegativeInt
    cpu_group_timeout: PositiveFloat | None


ENGINES: dict[str, Any] = {
    "loop": None,
    "transformers": Annotated[Batching, Keywords(ContinuousBatchingConfig)],
    "vllm": Annotated[dict[str, Any], Keywords(VLLMSampler)],
    "vllm_server": Annotated[dict[str, Any], Keywords(VLLMServerSampler)],
}
"""What the options of each engine are; our loop has none."""


class PathSettings(TypedDict):
    """Group `paths`."""

    runs: str


class Settings(TypedDict):
    """The whole tree, but for the steps."""

    paths: PathSettings
    trainer: Annotated[Node, Given((), ("logger", "callbacks"), ("precision",))]
    logger: Nodes
    callbacks: Nodes
    data: DataSettings
    model: ModelSettings
    generation: GenerationSettings
    stages: str | list[str]
    run: str
    upstream: str | list[str] | None
    rounds: RoundCount
    later_rounds: LaterRounds
    overwrite: bool
    keep_going: bool
    plan: bool
    seed: Annotated[int, Ge(0), Le(2**32 - 1)]
    tags: list[str]
    shared: list[str]
    optimized_metric: str | list[str] | None
    allowed_targets: list[str]


SHORTHANDS: Mapping[str, Mapping[str, Any]] = {
    "model": dict.fromkeys(("path", "size", "eos", "stop", "chat_template", "date")),
    "data": {
        "root": None,
        "on_error": "stop",
        "labels": None,
        "format": None,
        "train_on": "last",
        "id": None,
        "tasks": None,
    },
}
"""Settings that nodes beside them refer to, each with the value that says nothing."""
