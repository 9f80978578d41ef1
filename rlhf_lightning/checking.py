"""Stage check: the self-check on the models, data and settings of a run."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from rlhf_lightning.artifacts import PipelineError, write_json
from rlhf_lightning.checks import Subject, check, check_table
from rlhf_lightning.data.records import Comparison
from rlhf_lightning.engines import make_sampler
from rlhf_lightning.inputs import Inputs
from rlhf_lightning.stages.ppo import PPOModule


def check_run(inputs: Inputs, folder: Path, build: Callable[..., Any], console: Console) -> dict[str, Any]:
    """Check what stage ppo would start from, print the table and write ``check.json``.

    Args:
        inputs: Of the run.
        folder: Of the stage.
        build: Builds what a node with ``_target_`` describes.
        console: Where the table goes.

    Returns:
        How many checks passed, failed and were skipped.

    Raises:
        PipelineError: When a check failed.
    """
    subject = subject_of(inputs, build)
    with console.status("") as status:
        results = check(subject, lambda name: status.update(f"check: {name}"))
    console.print(check_table(results))
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "check.json", [asdict(result) for result in results])
    counts = {outcome: sum(result.outcome == outcome for result in results) for outcome in ("pass", "fail", "skipped")}
    if counts["fail"]:
        names = ", ".join(result.name for result in results if result.outcome == "fail")
        raise PipelineError(f"{counts['fail']} of {len(results)} checks failed: {names}. See {folder / 'check.json'}.")
    console.print(f"{counts['pass']} checks passed, {counts['skipped']} skipped ({folder / 'check.json'})")
    return counts


def subject_of(inputs: Inputs, build: Callable[..., Any]) -> Subject:
    """Models, records and settings that stage ppo would have; the base model where its start is not made yet."""
    options, generation = inputs.config["ppo"], inputs.config["generation"]
    sampler = make_sampler(generation["engine"], **generation["options"])

    def make_ppo(**arguments: Any) -> PPOModule:
        module: PPOModule = build(options["module"], sampler=sampler, **arguments)
        return module

    lengths = inputs.config["data"]["lengths"]
    return Subject(
        inputs.causal_lm(options["init"] if inputs.available(options["init"]) else "base"),
        inputs.tokenizer,
        inputs.records("prompts", "train")[:64],
        inputs.records("demonstrations", "train", required=False)[:64],
        _comparisons(inputs),
        inputs.records("text", "train", required=False)[:64],
        reward=inputs.scalar_model("reward") if inputs.available("reward") else None,
        tokenization=inputs.tokenization,
        max_new_tokens=min(16, lengths["max_response_tokens"]),
        block_size=min(64, lengths["block_size"]),
        make_ppo=make_ppo,
    )


def _comparisons(inputs: Inputs) -> list[Comparison]:
    made = inputs.brings("comparisons") or inputs.runs.find("collect") is not None
    return inputs.comparisons("comparisons", "train")[:16] if made else []
