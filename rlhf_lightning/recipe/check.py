"""Step check: the self-check on the models, data and settings of a run."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, TypedDict, get_args

import torch

from rlhf_lightning.checks import Subject, check, check_table
from rlhf_lightning.checks.result import Outcome
from rlhf_lightning.data.records import Comparison
from rlhf_lightning.evaluation.tables import REWARD
from rlhf_lightning.generation.engines import make_sampler
from rlhf_lightning.models.precision import trainer_dtypes
from rlhf_lightning.modules.ppo import PPOModule
from rlhf_lightning.recipe.context import BASE, COLLECT, Context
from rlhf_lightning.recipe.inputs import records_lacking
from rlhf_lightning.recipe.model_names import models_lacking
from rlhf_lightning.recipe.rewards import INIT
from rlhf_lightning.recipe.stage import Stage
from rlhf_lightning.runs.files import write_json
from rlhf_lightning.runs.folders import PipelineError

PPO = "ppo"
"""The step whose start is checked."""


class CheckSettings(TypedDict):
    """The step has none."""


@dataclass(frozen=True)
class Checking(Stage):
    """Checks what step ppo would start from; nothing is skipped or resumed."""

    schema: ClassVar[type] = CheckSettings
    keeps_artifact: ClassVar[bool] = False
    samples: ClassVar[bool] = True

    def parents(self, context: Context) -> dict[str, str]:
        """None that are recorded."""
        return {}

    def models(self, context: Context) -> dict[str, str]:
        """The policy's start and the reward model, as far as they are there."""
        return {INIT: _start(context), **({REWARD: REWARD} if context.available(REWARD) else {})}

    def lacks(self, context: Context) -> Iterator[str]:
        """Prompts, and the models as far as they are named rightly."""
        yield from models_lacking(context, self.models)
        yield from records_lacking(context, "prompts")

    def run(self, context: Context, folder: Path) -> dict[str, Any]:
        """Print the table and write ``check.json``.

        Returns:
            How many checks passed, failed, broke off with an error and were skipped.

        Raises:
            PipelineError: When a check failed or broke off.
        """
        subject = subject_of(context)
        with context.console.status("") as status:

            def tell(name: str) -> None:
                status.update(f"check: {name}")
                context.heartbeat.note(f"checking {name}")

            results = check(subject, tell)
        context.console.print(check_table(results))
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "check.json", [asdict(result) for result in results])
        counts: dict[str, Any] = {
            outcome: sum(result.outcome == outcome for result in results) for outcome in get_args(Outcome)
        }
        said = {"fail": "", "error": " (broke off)"}
        bad = [f"{result.name}{said[result.outcome]}" for result in results if result.outcome in said]
        if bad:
            raise PipelineError(
                f"{len(bad)} of {len(results)} checks failed: {', '.join(bad)}. See {folder / 'check.json'}."
            )
        written = folder / "check.json"
        context.console.print(f"{counts['pass']} checks passed, {counts['skipped']} skipped ({written})")
        return counts


def subject_of(context: Context) -> Subject:
    """Models, records and settings that step ppo would have; the base model where its start is not made yet."""
    options, trainer = context.config[PPO], context.config["trainer"]
    sampler = make_sampler(**context.config["generation"])

    def make_ppo(**arguments: Any) -> PPOModule:
        module: PPOModule = context.build(options["module"], sampler=sampler, **arguments)
        return module

    lengths = context.config["data"]["lengths"]
    own_reference = options["reference"] not in (INIT, options["init"])
    weights, autocast = trainer_dtypes(trainer.get("precision"))
    demonstrations = context.records("demonstrations", "train", required=False)
    subject = Subject(
        context.causal_lm(_start(context)),
        context.tokenizer,
        context.records("prompts", "train")[:64],
        demonstrations[:64],
        _comparisons(context),
        context.records("text", "train", required=False)[:64],
        reward=context.scalar_model(REWARD) if context.available(REWARD) else None,
        tokenization=context.tokenization,
        max_new_tokens=min(8, lengths["max_response_tokens"]),
        block_size=min(32, lengths["block_size"]),
        make_ppo=make_ppo,
        reference=context.causal_lm(options["reference"]) if own_reference else None,
        lora=options["lora"],
        autocast=autocast,
        folder=_folder(context),
        centring=demonstrations[: context.config[REWARD]["bias_demonstrations"]],
    )
    for model in (subject.policy, subject.reference, subject.reward):
        if model is not None and weights is not None:
            torch.nn.Module.to(model, weights)
    return subject


def _start(context: Context) -> str:
    init: str = context.config[PPO][INIT]
    return init if context.available(init) else BASE


def _folder(context: Context) -> str | None:
    path = context.model_path(_start(context)) or context.config["model"]["causal_lm"].get("path")
    return None if path is None else str(path)


def _comparisons(context: Context) -> list[Comparison]:
    made = context.brings("comparisons") or context.runs.find(COLLECT) is not None
    return context.comparisons("comparisons", "train")[:16] if made else []
