"""The memory that the steps of a configuration need, from the configuration: nothing is built or read."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import getitem
from typing import Any

import torch
from rich.console import Group, RenderableType
from rich.table import Table
from transformers import PreTrainedConfig

from rlhf_lightning.evaluation.tables import REWARD
from rlhf_lightning.generation.rewards import FORWARD_TOKENS
from rlhf_lightning.generation.sampling_batches import rows_within
from rlhf_lightning.models.device_memory import available_memory
from rlhf_lightning.models.loading import model_config
from rlhf_lightning.models.precision import trainer_dtypes
from rlhf_lightning.recipe.context import BASE, Context
from rlhf_lightning.recipe.rewards import reward_steps
from rlhf_lightning.training.live_bytes import optimizer_bytes
from rlhf_lightning.training.memory import MemoryPlanner, Phase, Precision
from rlhf_lightning.training.resident import in_process

GIB = 2**30


@dataclass(frozen=True)
class StagePlan:
    """The memory that one step needs.

    Args:
        stage: The step's name.
        rows: What its largest batch reads, in words.
        phases: The phases of the step, each with its parts in bytes.
        remedies: Overrides, one or several together, each with what the fullest phase would need, in bytes.
    """

    stage: str
    rows: str
    phases: list[Phase]
    remedies: dict[str, int] = field(default_factory=dict)

    @property
    def peak(self) -> Phase:
        """The fullest phase."""
        return max(self.phases, key=lambda phase: phase.total)


@dataclass(frozen=True)
class Lever:
    """An override of a step that needs less memory.

    Args:
        stage: The step's name.
        path: The setting below it, as ``group.name``.
        value: The value to set.
    """

    stage: str
    path: str
    value: Any

    @property
    def text(self) -> str:
        """The override for the command line."""
        value = "null" if self.value is None else str(self.value).lower()
        return f"{self.stage}.{self.path}={value}"

    def applied(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A copy of the configuration with it."""
        changed = copy.deepcopy(dict(config))
        *groups, name = self.path.split(".")
        reduce(getitem, groups, changed[self.stage])[name] = self.value
        return changed


def with_remedies(
    plan: StagePlan,
    plan_of: Callable[[Mapping[str, Any]], StagePlan | None],
    levers: Sequence[Lever],
    config: Mapping[str, Any],
    limit: int,
) -> StagePlan:
    """The plan with the overrides that bring it below a limit: single ones, or else several together.

    Args:
        plan: The plan that does not fit.
        plan_of: From a configuration to the step's plan.
        levers: The overrides to try, in order.
        config: The configuration of the plan.
        limit: The memory that there is, in bytes.
    """

    def total(changed: Mapping[str, Any]) -> int:
        planned = plan_of(changed)
        return 0 if planned is None else planned.peak.total

    single = {lever.text: total(lever.applied(config)) for lever in levers}
    enough = {text: size for text, size in single.items() if size <= limit}
    if enough:
        return replace(plan, remedies=enough)
    names, best = list[str](), plan.peak.total
    for lever in levers:
        changed = lever.applied(config)
        size = total(changed)
        if size < best:
            config, names, best = changed, [*names, lever.text], size
        if best <= limit:
            break
    return replace(plan, remedies={" ".join(names): best} if names else {})


def plan_view(plan: StagePlan, available: int | None) -> RenderableType:
    """A table of GiB per part and phase, and a sentence on whether it fits."""
    unit, name = (GIB, "GiB") if plan.peak.total >= GIB else (GIB // 1024, "MiB")

    def number(size: int) -> str:
        return f"{size / unit:.2f}"

    table = Table()
    table.add_column(name)
    for phase in plan.phases:
        table.add_column(phase.name, justify="right", style="bold" if phase is plan.peak else "")
    for part in dict.fromkeys(part for phase in plan.phases for part in phase.parts):
        table.add_row(part, *(number(phase.parts[part]) if part in phase.parts else "" for phase in plan.phases))
    table.add_section()
    table.add_row("together", *(number(phase.total) for phase in plan.phases))
    there = "" if available is None else f", and there are {number(available)}"
    lines = [f"It needs {number(plan.peak.total)} {name} at its fullest, in '{plan.peak.name}'{there}."]
    if available is not None and plan.peak.total > available:
        enough = any(total <= available for total in plan.remedies.values())
        words = "Any of these is enough:" if enough else "This helps, and is not enough:"
        lines.append(f"[bold red]It does not fit.[/] {words if plan.remedies else ''}")
        lines += [f"  {overrides}: {number(total)} {name}" for overrides, total in plan.remedies.items()]
    return Group(f"[bold]Memory of stage {plan.stage}[/]: {plan.rows}", table, *lines, "")


def text_plan(context: Context, config: Mapping[str, Any], stage: str) -> StagePlan:
    """Pretraining on full blocks of text."""
    return _rows_plan(context, config, stage, config["data"]["lengths"]["block_size"], None)


def demonstrations_plan(context: Context, config: Mapping[str, Any], stage: str) -> StagePlan:
    """Fine-tuning on the longest prompts and responses."""
    return _rows_plan(context, config, stage, *lengths_of(config))


def _rows_plan(context: Context, config: Mapping[str, Any], stage: str, tokens: int, response: int | None) -> StagePlan:
    rows = _rows(config, stage)
    micro = min(config[stage]["module"].get("micro_batch_size") or rows, rows)
    phases = _planner(context, config, stage).language_model(rows, tokens + (response or 0), response, micro)
    words = f"{rows} rows of {tokens}{'' if response is None else f' + {response}'} tokens, {micro} at a time"
    return StagePlan(stage, words, in_process(phases, context.device))


def rankings_plan(context: Context, config: Mapping[str, Any], stage: str, responses: int) -> StagePlan:
    """Reward modelling on the longest prompts with so many of the longest responses."""
    rows, prompt, response = _rows(config, stage), *lengths_of(config)
    count = 2 if config[stage]["data"].get("as_pairs") else responses
    micro = min(config[stage]["module"]["micro_batch_size"] or rows, rows)
    words = f"{rows} prompts of {prompt} tokens with {count} responses of {response}, {micro} at a time"
    options = {"micro_prompts": micro, "freeze_body": config[stage]["freeze_body"]}
    phases = _planner(context, config, stage).reward_model(rows, prompt, count, response, **options)
    return StagePlan(stage, words, in_process(phases, context.device))


def ppo_plan(context: Context, config: Mapping[str, Any], stage: str) -> StagePlan:
    """PPO on rollouts of the longest prompts and responses."""
    module, data, text_tokens = config[stage]["module"], config[stage]["data"], config["data"]["lengths"]["block_size"]
    rows, prompt, response = _rows(config, stage), *lengths_of(config)
    minibatch = math.ceil(rows / module["num_minibatches"])
    micro = min(module["micro_batch_size"] or minibatch, minibatch)
    text = math.ceil((data.get("text_batch_size") or 0) / module["num_minibatches"])
    phases = _planner(context, config, stage).ppo(
        rows,
        prompt,
        response,
        micro_rows=micro,
        minibatch_rows=minibatch,
        forward_tokens=FORWARD_TOKENS,
        sampled_rows=sampled_rows(context, config),
        ema=module["ema_decay"] is not None,
        text_rows=min(module["micro_batch_size"] or text, text),
        text_tokens=text_tokens,
    )
    judge = config[stage]["validation_judge"]
    if judge is not None and reward_steps(context, judge):  # it waits on the CPU between validations
        size = phases[0].parts[REWARD]
        phases[:2] = [Phase(phase.name, {**phase.parts, "validation judge": size}) for phase in phases[:2]]
    if module.get("offload_frozen") and context.device.type != "cpu":
        phases = [
            phase if phase.name == "score" else Phase(phase.name, _without(phase.parts, "reference", REWARD))
            for phase in phases
        ]
    words = f"{rows} episodes of {prompt} + {response} tokens, {micro} at a time"
    return StagePlan(stage, words, in_process(phases, context.device))


def training_levers(config: Mapping[str, Any], stage: str) -> list[Lever]:
    """Overrides of any step that trains, from what costs nothing to what changes the run."""
    return [*_micro_levers(config, stage), *_model_levers(config, stage), *_batch_levers(config, stage)]


def ppo_levers(config: Mapping[str, Any], stage: str) -> list[Lever]:
    """Smaller micro-batches, frozen models on the CPU, adapters, no moving average, smaller batches."""
    module, levers = config[stage]["module"], _micro_levers(config, stage)
    if not module["offload_frozen"] and torch.cuda.is_available():
        levers.append(Lever(stage, "module.offload_frozen", True))
    levers += _model_levers(config, stage)
    if module["ema_decay"] is not None:
        levers.append(Lever(stage, "module.ema_decay", None))
    return levers + _batch_levers(config, stage)


def _micro_levers(config: Mapping[str, Any], stage: str) -> list[Lever]:
    """Parts of a batch, of which the gradient is the same."""
    module = config[stage]["module"]
    together = math.ceil(config[stage]["data"]["batch_size"] / module.get("num_minibatches", 1))
    micro = module.get("micro_batch_size", 1) or together  # a step that does not know them has the smallest
    return [Lever(stage, "module.micro_batch_size", size) for size in (micro // 4, 1) if 1 <= size < micro]


def _model_levers(config: Mapping[str, Any], stage: str) -> list[Lever]:
    on = config[stage]["module"].get("activation_checkpointing", False)
    checkpointing = [] if on else [Lever(stage, "module.activation_checkpointing", True)]
    full = config[stage].get("lora", {"rank": 1})["rank"] == 0
    return [*checkpointing, *([Lever(stage, "lora.rank", 16)] if full else [])]


def _batch_levers(config: Mapping[str, Any], stage: str) -> list[Lever]:
    size = config[stage]["data"]["batch_size"]
    return [Lever(stage, "data.batch_size", part) for part in (size // 2, size // 8) if part >= 1]


def _without(parts: Mapping[str, int], *names: str) -> dict[str, int]:
    return {name: size for name, size in parts.items() if name not in names}


def _planner(context: Context, config: Mapping[str, Any], stage: str) -> MemoryPlanner:
    """The planner for a step that trains, with a configuration."""
    options = config[stage]
    return MemoryPlanner(
        architecture_of(context, BASE),
        precision_of(config),
        activation_checkpointing=options["module"].get("activation_checkpointing", False),
        optimizer_bytes=optimizer_bytes(context.build(options["module"]["optimizer"])),
        reward_config=architecture_of(context, REWARD),
        lora=options["lora"] if options.get("lora", {}).get("rank") else None,
        device=context.device.type,
    )


def _rows(config: Mapping[str, Any], stage: str) -> int:
    """Rows of a batch that one process reads."""
    size: int = config[stage]["data"]["batch_size"]
    devices = config["trainer"].get("devices")
    return math.ceil(size / devices) if isinstance(devices, int) else size


def lengths_of(config: Mapping[str, Any]) -> tuple[int, int]:
    """Tokens of the longest prompt and of the longest response."""
    lengths = config["data"]["lengths"]
    return lengths["max_prompt_tokens"], lengths["max_response_tokens"]


def architecture_of(context: Context, name: str) -> PreTrainedConfig:
    """The architecture of the base model; of the reward model where there is one already."""
    if name == REWARD and context.available(REWARD):
        return model_config(str(context.model_path(REWARD)))
    path = context.model_path(BASE)
    node = context.config["model"]["causal_lm"]
    trust = node.get("trust_remote_code", False)
    config = model_config(
        str(path) if path else node.get("path"), node.get("config") if path is None else None, trust_remote_code=trust
    )
    text: Any = config.get_text_config()
    text.vocab_size = max(text.vocab_size, len(context.tokenizer))
    return config


def sampled_rows(context: Context, config: Mapping[str, Any]) -> int:
    """Rows of a sampling batch."""
    precision, row, tokens = precision_of(config), sum(lengths_of(config)), config["generation"]["batch_tokens"]
    if tokens:
        return max(1, int(tokens) // row)
    width = (precision.autocast or precision.weights).itemsize
    return rows_within(architecture_of(context, BASE), width, row, available_memory(context.device))


def precision_of(config: Mapping[str, Any], *, trained: bool = True) -> Precision:
    """How a step keeps its numbers; the trainer gives the weights another type in training alone."""
    weights = getattr(torch, config["model"]["causal_lm"].get("dtype", "float32"))
    true, mixed = trainer_dtypes(config["trainer"].get("precision"))
    return Precision((trained and true) or weights, mixed)
