"""Stage check: the self-check on the models, data and settings of a run."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import torch
from rich.console import Console

from rlhf_lightning.checks import Subject, check, check_table
from rlhf_lightning.checks.result import Outcome
from rlhf_lightning.data.records import Comparison
from rlhf_lightning.generation.engines import make_sampler
from rlhf_lightning.modules.ppo import PPOModule
from rlhf_lightning.recipe.context import Inputs
from rlhf_lightning.runs.files import write_json
from rlhf_lightning.runs.folders import PipelineError


def check_run(inputs: Inputs, folder: Path, build: Callable[..., Any], console: Console) -> dict[str, Any]:
    """Check what stage ppo would start from, print the table and write ``check.json``.

    Args:
        inputs: Of the run.
        folder: Of the stage.
        build: Builds what a node with ``_target_`` describes.
        console: Where the table goes.

    Returns:
        How many checks passed, failed, broke off with an error and were skipped.

    Raises:
        PipelineError: When a check failed or broke off.
    """
    subject = subject_of(inputs, build)
    with console.status("") as status:
        results = check(subject, lambda name: status.update(f"check: {name}"))
    console.print(check_table(results))
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "check.json", [asdict(result) for result in results])
    counts: dict[str, Any] = {outcome: sum(own.outcome == outcome for own in results) for outcome in get_args(Outcome)}
    bad = [result.name for result in results if result.outcome in ("fail", "error")]
    if bad:
        raise PipelineError(
            f"{len(bad)} of {len(results)} checks failed: {', '.join(bad)}. See {folder / 'check.json'}."
        )
    console.print(f"{counts['pass']} checks passed, {counts['skipped']} skipped ({folder / 'check.json'})")
    return counts


def subject_of(inputs: Inputs, build: Callable[..., Any]) -> Subject:
    """Models, records and settings that stage ppo would have; the base model where its start is not made yet."""
    options, generation, trainer = inputs.config["ppo"], inputs.config["generation"], inputs.config["trainer"]
    sampler = make_sampler(generation["engine"], **generation["options"])

    def make_ppo(**arguments: Any) -> PPOModule:
        module: PPOModule = build(options["module"], sampler=sampler, **arguments)
        return module

    lengths = inputs.config["data"]["lengths"]
    start = options["init"] if inputs.available(options["init"]) else "base"
    own_reference = options["reference"] not in ("init", options["init"])
    precision = str(trainer.get("precision") or "32-true")
    weights = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}.get(precision)
    demonstrations = inputs.records("demonstrations", "train", required=False)
    subject = Subject(
        inputs.causal_lm(start),
        inputs.tokenizer,
        inputs.records("prompts", "train")[:64],
        demonstrations[:64],
        _comparisons(inputs),
        inputs.records("text", "train", required=False)[:64],
        reward=inputs.scalar_model("reward") if inputs.available("reward") else None,
        tokenization=inputs.tokenization,
        max_new_tokens=min(8, lengths["max_response_tokens"]),
        block_size=min(32, lengths["block_size"]),
        make_ppo=make_ppo,
        reference=inputs.causal_lm(options["reference"]) if own_reference else None,
        lora=options["lora"],
        autocast={"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision),
        centring=demonstrations[: inputs.config["reward"]["bias_demonstrations"]],
    )
    for model in (subject.policy, subject.reference, subject.reward):
        if model is not None and weights is not None:
            torch.nn.Module.to(model, weights)
    return subject


def _comparisons(inputs: Inputs) -> list[Comparison]:
    made = inputs.brings("comparisons") or inputs.runs.find("collect") is not None
    return inputs.comparisons("comparisons", "train")[:16] if made else []
