"""The memory that the stages of a configuration need, from the configuration: nothing is built or read."""

import copy
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Group, RenderableType
from rich.table import Table
from torch import nn
from transformers import PreTrainedConfig

from rlhf_lightning.models.loading import model_config
from rlhf_lightning.modules.ppo import FORWARD_TOKENS
from rlhf_lightning.recipe.context import Inputs
from rlhf_lightning.training.memory import MemoryPlanner, Phase, Precision

PLANNED = ("pretrain", "sft", "ppo_init", "reward", "judge", "ppo", "ppo_ptx")
"""The stages that train."""
GIB = 2**30


@dataclass(frozen=True)
class StagePlan:
    """What one stage needs.

    Args:
        stage: Name of the stage.
        rows: What its largest step reads, in words.
        phases: Each with its parts, in bytes.
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


def plan_stages(inputs: Inputs, stages: list[str]) -> list[StagePlan]:
    """Plan those of the stages that train, for the longest rows that ``data.lengths`` allows."""
    return [_plan(inputs, inputs.config, stage) for stage in PLANNED if stage in stages]


def with_remedies(inputs: Inputs, plan: StagePlan, limit: int) -> StagePlan:
    """The plan with the overrides that bring it below so many bytes: single ones, or else several together."""

    def total(config: Mapping[str, Any]) -> int:
        return _plan(inputs, config, plan.stage).peak.total

    levers = _levers(inputs.config, plan.stage)
    single = {lever.text: total(lever.applied(inputs.config)) for lever in levers}
    enough = {text: size for text, size in single.items() if size <= limit}
    if enough:
        return replace(plan, remedies=enough)
    config, names, best = inputs.config, list[str](), plan.peak.total
    for lever in levers:
        changed = lever.applied(config)
        size = total(changed)
        if size < best:
            config, names, best = changed, [*names, lever.text], size
        if best <= limit:
            break
    return replace(plan, remedies={" ".join(names): best} if names else {})


def available_memory(device: torch.device) -> int | None:
    """Bytes of the device, or of the machine or container for a CPU; None where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return None
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    words = limit.read_text(encoding="utf-8").strip() if limit.exists() else ""
    return min(physical, int(words)) if words.isdigit() else physical


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


def _plan(inputs: Inputs, config: Mapping[str, Any], stage: str) -> StagePlan:
    options, lengths = config[stage], config["data"]["lengths"]
    data, prompt, response = options["data"], lengths["max_prompt_tokens"], lengths["max_response_tokens"]
    devices = config["trainer"].get("devices")
    rows = math.ceil(data["batch_size"] / devices) if isinstance(devices, int) else data["batch_size"]
    planner = MemoryPlanner(
        _architecture(inputs, "base"),
        _precision(config),
        activation_checkpointing=options["module"].get("activation_checkpointing", False),
        optimizer_bytes=_optimizer_bytes(inputs.build(options["module"]["optimizer"])),
        reward_config=_architecture(inputs, "reward"),
        lora=options["lora"] if options.get("lora", {}).get("rank") else None,
    )
    if stage == "pretrain":
        return StagePlan(
            stage, f"{rows} rows of {lengths['block_size']} tokens", planner.language_model(rows, lengths["block_size"])
        )
    if stage in ("sft", "ppo_init"):
        words = f"{rows} rows of {prompt} + {response} tokens"
        return StagePlan(stage, words, planner.language_model(rows, prompt + response, response))
    if stage in ("reward", "judge"):
        count = 2 if data.get("as_pairs") else _most_responses(inputs)
        words = f"{rows} prompts of {prompt} tokens with {count} responses of {response}"
        return StagePlan(stage, words, planner.reward_model(rows, prompt, count, response))
    minibatch = math.ceil(rows / options["module"]["num_minibatches"])
    micro = min(options["module"]["micro_batch_size"] or minibatch, minibatch)
    text = math.ceil((data.get("text_batch_size") or 0) / options["module"]["num_minibatches"])
    phases = planner.ppo(
        rows,
        prompt,
        response,
        micro_rows=micro,
        minibatch_rows=minibatch,
        forward_tokens=FORWARD_TOKENS,
        ema=options["module"]["ema_decay"] is not None,
        text_rows=min(options["module"]["micro_batch_size"] or text, text),
        text_tokens=lengths["block_size"],
    )
    if options["module"].get("offload_frozen") and inputs.device.type != "cpu":
        waiting = ("reference", "reward")
        phases = [
            phase
            if phase.name == "score"
            else Phase(phase.name, {k: v for k, v in phase.parts.items() if k not in waiting})
            for phase in phases
        ]
    return StagePlan(stage, f"{rows} episodes of {prompt} + {response} tokens, {micro} at a time", phases)


@dataclass(frozen=True)
class _Lever:
    """An override of a stage that needs less memory."""

    stage: str
    path: str
    value: Any

    @property
    def text(self) -> str:
        """For the command line."""
        value = "null" if self.value is None else str(self.value).lower()
        return f"{self.stage}.{self.path}={value}"

    def applied(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A copy of the configuration with it."""
        changed = copy.deepcopy(dict(config))
        group, name = self.path.split(".")
        changed[self.stage][group][name] = self.value
        return changed


def _levers(config: Mapping[str, Any], stage: str) -> list[_Lever]:
    """From what costs nothing to what changes the run."""
    module, data = config[stage]["module"], config[stage]["data"]
    levers = []
    if stage in ("ppo", "ppo_ptx"):
        micro = module["micro_batch_size"] or math.ceil(data["batch_size"] / module["num_minibatches"])
        levers += [_Lever(stage, "module.micro_batch_size", size) for size in (micro // 4, 1) if 1 <= size < micro]
    if stage in ("ppo", "ppo_ptx") and not module["offload_frozen"] and torch.cuda.is_available():
        levers.append(_Lever(stage, "module.offload_frozen", True))
    if not module.get("activation_checkpointing", False):
        levers.append(_Lever(stage, "module.activation_checkpointing", True))
    if stage in ("ppo", "ppo_ptx") and not config[stage]["lora"]["rank"]:
        levers.append(_Lever(stage, "lora.rank", 16))
    if stage in ("ppo", "ppo_ptx") and module["ema_decay"] is not None:
        levers.append(_Lever(stage, "module.ema_decay", None))
    sizes = (data["batch_size"] // 2, data["batch_size"] // 8)
    return levers + [_Lever(stage, "data.batch_size", size) for size in sizes if size >= 1]


def _architecture(inputs: Inputs, name: str) -> PreTrainedConfig:
    """Of the base model; of the reward model where there is one already."""
    if name == "reward" and inputs.available("reward"):
        return model_config(str(inputs.model_path("reward")))
    path = inputs.model_path("base")
    node = inputs.config["model"]["causal_lm"]
    trust = node.get("trust_remote_code", False)
    config = model_config(
        str(path) if path else node.get("path"), node.get("config") if path is None else None, trust_remote_code=trust
    )
    text: Any = config.get_text_config()
    text.vocab_size = max(text.vocab_size, len(inputs.tokenizer))
    return config


def _precision(config: Mapping[str, Any]) -> Precision:
    weights = getattr(torch, config["model"]["causal_lm"].get("dtype", "float32"))
    name = str(config["trainer"].get("precision") or "32-true")
    true = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}
    mixed = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
    return Precision(true.get(name, weights), mixed.get(name))


def _optimizer_bytes(factory: Callable[..., torch.optim.Optimizer]) -> float:
    """State per byte of parameters, from one step of the optimizer on a few numbers."""
    parameter = nn.Parameter(torch.zeros(64, 64))
    parameter.grad = torch.zeros_like(parameter)
    optimizer = factory([parameter])
    optimizer.step()
    state = [value for value in optimizer.state[parameter].values() if isinstance(value, torch.Tensor)]
    size = sum(value.numel() * value.element_size() for value in state if value.numel() > 1)
    return size / (parameter.numel() * parameter.element_size())


def _most_responses(inputs: Inputs) -> int:
    if inputs.brings("comparisons"):
        return max(len(comparison.ranks) for comparison in inputs.records("comparisons", "train"))
    return int(inputs.config["collect"]["sampling"]["max_responses"])
