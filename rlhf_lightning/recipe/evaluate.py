"""Stage evaluate: every policy on the same held-out prompts, and what judges, metadata and probes say of it."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from rlhf_lightning.data.loader import collate_lm, collate_prompts
from rlhf_lightning.evaluation.policies import PolicySamples, policy_results, pretraining_loss, sample_policy
from rlhf_lightning.evaluation.probes import run_probe
from rlhf_lightning.generation.rewards import TextScorer
from rlhf_lightning.models.scalar_head import ScalarHeadModel
from rlhf_lightning.recipe.context import Inputs, counted
from rlhf_lightning.runs.files import write_json
from rlhf_lightning.runs.folders import PipelineError
from rlhf_lightning.training.progress import progress_bar

FEW_SHOT = "prompted"
"""The policy that is the base model behind a few-shot prefix."""


def evaluate_policies(
    inputs: Inputs,
    folder: Path,
    judge: ScalarHeadModel | TextScorer,
    build: Callable[..., Any],
    console: Console,
    say_dropped: Callable[[dict[str, int]], None],
) -> dict[str, Any]:
    """Sample, judge and measure every policy that ``evaluate.policies`` names and that can be loaded.

    Args:
        inputs: Models, prompts and texts.
        folder: Gets ``samples.json``, all responses with what was found on each.
        judge: Whose scores make the win rates.
        build: Builds the object that a node with ``_target_`` describes.
        console: Where progress goes.
        say_dropped: Told how many prompts were left out, by reason.

    Returns:
        ``policies``, ``baseline`` and ``prompts``.

    Raises:
        PipelineError: When the baseline is not among the policies.
    """
    options = inputs.config["evaluate"]
    names = [name for name in options["policies"] if _available(inputs, name)]
    if options["baseline"] not in names:
        raise PipelineError(f"evaluate.baseline={options['baseline']} is not among the policies {names}.")
    reference = inputs.causal_lm(options["reference"])
    reward = inputs.scalar_model("reward") if inputs.available("reward") else None
    judges = {name: build(node) for name, node in (options["judges"] or {}).items()}
    metadata = build(options["metadata"]) if options["metadata"] else None
    probes: Sequence[Any] = build(options["probes"]) if options["probes"] else []
    tokenization = inputs.tokenization
    prompts = tokenization.prompts(inputs.records("prompts", "test")[: options["num_prompts"]])
    say_dropped(tokenization.dropped)
    texts = inputs.records("text", "test", required=False)[: options["num_texts"]]
    blocks = tokenization.texts(texts, inputs.config["data"]["lengths"]["block_size"])
    batches = inputs.batches(prompts, collate_prompts, options["batch_size"])
    asked = [prompt.text for prompt in prompts]
    samples: dict[str, PolicySamples] = {}
    losses = {}
    with progress_bar(console) as bar:
        task = bar.add_task("evaluate", total=len(names) * (len(prompts) + len(probes)), figures="")
        for name in names:
            bar.update(task, figures=name)
            policy = inputs.causal_lm("base" if name == FEW_SHOT else name)
            prefix = options["few_shot_prefix"] if name == FEW_SHOT else None
            inputs.check_lengths(policy, name, prefix or "")
            own = samples[name] = sample_policy(
                policy,
                reference,
                counted(batches, policy.device, partial(bar.advance, task)),
                inputs.tokenizer,
                judge=judge,
                reward=reward,
                max_new_tokens=tokenization.max_response_tokens,
                temperature=options["temperature"],
                seed=inputs.config["seed"],
                prefix=prefix,
                stop=options["base_stop"] if name in ("base", FEW_SHOT) else None,
            )
            own.judges = {other: list(score(asked, own.responses)) for other, score in judges.items()}
            own.metadata = metadata(asked, own.responses) if metadata else {}
            for probe in probes if name != FEW_SHOT else ():
                own.probes[probe.name] = run_probe(policy, inputs.tokenizer, probe, seed=inputs.config["seed"])
                bar.advance(task)
            if blocks and name != FEW_SHOT:
                losses[name] = pretraining_loss(policy, inputs.batches(blocks, collate_lm, 32))
    write_json(folder / "samples.json", {"prompts": asked, **{name: asdict(own) for name, own in samples.items()}})
    results = policy_results(samples, options["baseline"], losses)
    return {"policies": results, "baseline": options["baseline"], "prompts": len(prompts)}


def _available(inputs: Inputs, name: str) -> bool:
    if name == FEW_SHOT:
        return bool(inputs.config["evaluate"]["few_shot_prefix"])
    return name == "base" or inputs.available(name)
