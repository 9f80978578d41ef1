"""Steps ppo and ppo_ptx: the policy against the reward model (InstructGPT, 3.5, equation 2, C.4)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from rlhf_lightning.evaluation.plots import Curve
from rlhf_lightning.evaluation.tables import REWARD
from rlhf_lightning.generation.engines import make_sampler
from rlhf_lightning.models.adapter_export import export_trained
from rlhf_lightning.models.export import sampling_as_trained
from rlhf_lightning.models.lora import ppo_models
from rlhf_lightning.modules.ppo import PPOModule
from rlhf_lightning.recipe.context import Context
from rlhf_lightning.recipe.inputs import rollouts_lacking, rows_of
from rlhf_lightning.recipe.memory_plan import Lever, StagePlan, ppo_levers, ppo_plan
from rlhf_lightning.recipe.ppo_curves import PPO_CURVES
from rlhf_lightning.recipe.ppo_validation import PromptValidation, judge_fingerprints, judge_steps, validation_lacking
from rlhf_lightning.recipe.rewards import (
    INIT,
    critic_start,
    report_cut,
    reward_fingerprints,
    reward_lacking,
    reward_of,
    reward_steps,
)
from rlhf_lightning.recipe.schemas import PpoSettings
from rlhf_lightning.recipe.stage import TrainingStage
from rlhf_lightning.training.callbacks import SampleTable

REFERENCE, VALUE = "reference", "value_init"
"""Settings and parents: where the policy starts, where the KL penalty pulls to, and where the critic starts."""


@dataclass(frozen=True)
class PolicyOptimization(TrainingStage):
    """Trains a policy by PPO; with ``module.ptx_coef`` above 0 also on pretraining text."""

    reads: str = "prompts"

    schema = PpoSettings
    samples: ClassVar[bool] = True
    unit: ClassVar[str] = "iteration"
    curves: ClassVar[tuple[Curve, ...]] = PPO_CURVES

    def parents(self, context: Context) -> dict[str, str]:
        """The policy's start, the reward models of steps, and reference and critic's start where they are others."""
        options = context.config[self.name]
        parents = {INIT: options[INIT], **reward_steps(context, options[REWARD])}
        others = {role: options[role] for role in (REFERENCE, VALUE) if options[role] not in (INIT, None)}
        return {**parents, **others, **judge_steps(context, self.name)}

    def identity(self, context: Context) -> dict[str, Any]:
        """With every part of the reward, also those that are no models of steps."""
        identity = super().identity(context)
        rewards = reward_fingerprints(context, context.config[self.name][REWARD])
        return {**identity, "parents": identity["parents"] | rewards | judge_fingerprints(context, self.name)}

    def lacks(self, context: Context) -> Iterator[str]:
        """Also every part of the reward, and that nothing but PPO's own limit clips."""
        yield from super().lacks(context)
        prompts = partial(rows_of, context, self.reads)
        yield from reward_lacking(context, REWARD, context.config[self.name][REWARD], prompts)
        yield from rollouts_lacking(context, context.config[self.name])
        yield from validation_lacking(context, self.name)

    def run(self, context: Context, folder: Path) -> dict[str, Any]:
        """Train and write ``model/``, ``model_ema/``, ``samples.jsonl``, and ``model_best/`` where it is kept."""
        options = context.config[self.name]
        policy, reward = context.causal_lm(options[INIT]), reward_of(context, options[REWARD])
        reference = None if options[REFERENCE] == INIT else context.causal_lm(options[REFERENCE])
        critic = critic_start(context, options[VALUE], reward, policy)
        module: PPOModule = context.build(
            options["module"],
            **ppo_models(policy, reward, reference, critic, **options["lora"]),
            tokenizer=context.tokenizer,
            sampler=make_sampler(**context.config["generation"]),
            max_new_tokens=context.tokenization.max_response_tokens,
            seed=context.seed,
        )
        export = partial(export_trained, policy, policy, context.export_tokenizer, folder / "base", options["export"])
        temperature, length = module.hparams.temperature, module.hparams.max_new_tokens
        policy.generation_config = sampling_as_trained(context.tokenizer, temperature, length)
        validation = PromptValidation.of(context, self.name, folder, export)
        metrics = self.fit(
            context, folder, module, [SampleTable(folder / "samples.jsonl", context.tokenizer), validation]
        )
        report_cut(context, self.name, reward)
        export(folder / "model")
        if module.ema is not None:
            with module.ema.applied(policy):
                export(folder / "model_ema")
        return metrics | validation.finish()

    def records(self, context: Context, split: str) -> list[Any]:
        """Training prompts; nothing is validated."""
        return super().records(context, split) if split == "train" else []

    def memory(self, context: Context, config: Mapping[str, Any]) -> StagePlan:
        """Rollouts of the longest prompts and responses."""
        return ppo_plan(context, config, self.name)

    def levers(self, config: Mapping[str, Any]) -> list[Lever]:
        """Those of any training, and what PPO can do without."""
        return ppo_levers(config, self.name)
