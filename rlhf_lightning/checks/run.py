"""The list of checks, what each means and what to do, and the table."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from rich.table import Table

from rlhf_lightning.checks import data, folder, gradients, models, ppo, resume, reward, training
from rlhf_lightning.checks.result import CheckFailedError, CheckResult, CheckSkippedError, Outcome
from rlhf_lightning.checks.subject import Subject

CheckFunction: TypeAlias = Callable[[Subject], str]
"""Returns what was measured; raises `CheckFailedError` or `CheckSkippedError`."""


@dataclass(frozen=True)
class Check:
    """A check with its name and, where it fails, what to do."""

    name: str
    function: CheckFunction
    remedy: str

    @property
    def meaning(self) -> str:
        """What a pass means."""
        return (self.function.__doc__ or "").strip().replace("`", "")


_CHANGED = "{} was changed, or is given other numbers than those of the rollout; see {}.py."

CHECKS = tuple(
    Check(*row)
    for row in (
        (
            "weights",
            folder.weights,
            "Save the whole model (save_pretrained), or name the folder that has it.",
        ),
        (
            "tokenizer",
            folder.tokenizer,
            "Use the tokenizer of the model's own folder (model.tokenizer.path), and a model that knows your texts.",
        ),
        ("end tokens", data.end_tokens, "Name every token that ends a response: model.eos."),
        ("special tokens", data.special_tokens, "Encode text with split_special_tokens=True, as Tokenization does."),
        ("one BOS", data.one_bos, "Leave BOS to the template or to the tokenizer, not to both."),
        (
            "prompt format",
            folder.prompt_format,
            "Set data.format and data.lengths.prompt_template to what the folder was trained with, or train it first: "
            "step sft writes the format that it trains into its folder.",
        ),
        ("exported policy", folder.exported_policy, "Set the fields that the message names in the model's folder."),
        ("padding", models.padding, "Mask or positions are ignored; update transformers, or try attention=eager."),
        ("positions", models.positions, "The architecture numbers positions itself; use one that takes position_ids."),
        ("endings", data.endings, "EOS and pad must differ, and no response may have an EOS before its end."),
        (
            "long rows",
            reward.long_rows,
            "Set reward.module.shared_prefix=false, or data.lengths below the window.",
        ),
        ("shared prefix", reward.shared_prefix, "Set reward.module.shared_prefix=false, and report the architecture."),
        ("centred reward", reward.centred, "Run stage reward again; its bias belongs to other records or weights."),
        ("exported reward", reward.exported, "The classifier pools differently; use load_scalar_model."),
        ("rollout", ppo.rollout, "The message says what stopped it; most checks below need a rollout."),
        ("reward interface", reward.interface, "A reward gives one finite number per response, whatever is beside it."),
        ("dropout", models.dropout, "Set the dropout of the model's config to 0, or hand it over in eval mode."),
        ("sampler", models.sampler, "Set generation.engine=loop; if it still fails, the cache gives other logits."),
        ("fresh samples", models.fresh_samples, "Give the sampler PPO's key (seed, iteration); count iterations up."),
        ("first ratio", ppo.first_ratio, "Turn dropout off; on a GPU set torch.use_deterministic_algorithms(True)."),
        ("KL starts at 0", ppo.reference_start, "Set ppo.reference=init, or expect a penalty from the first step on."),
        ("score on the last token", ppo.score_place, _CHANGED.format("kl_penalized_rewards", "algorithms/functional")),
        ("advantages", ppo.advantages, _CHANGED.format("gae", "algorithms/functional")),
        ("whitening", ppo.whitening, _CHANGED.format("whiten", "algorithms/functional")),
        ("policy gradient", gradients.policy_gradient, _CHANGED.format("policy_loss", "algorithms/losses")),
        ("value gradient", gradients.value_gradient, _CHANGED.format("value_loss", "algorithms/losses")),
        ("micro-batches", gradients.micro_batches, "Divide losses by the minibatch's tokens, not by their own."),
        ("ptx gradient", gradients.ptx_gradient, "The pretraining loss must be a mean over the tokens that count."),
        ("master weights", training.master_weights, "Set trainer.precision=bf16-mixed or 32-true; learn in 32 bits."),
        ("moving average", training.averaging, "Keep the average in 32 bits and update it once per optimizer step."),
        ("value starts as reward", ppo.value_start, "Build the critic from the reward model: copy.deepcopy(reward)."),
        ("frozen models", training.frozen, "Give PPO copies: reference and reward must not share what learns."),
        ("resume", resume.resume, "Something random is not keyed, or state is kept outside of state_dict."),
    )
)
"""In the order of the table."""


def check(subject: Subject, progress: Callable[[str], None] = lambda name: None) -> list[CheckResult]:
    """Try everything that silently goes wrong on these models, this data and these settings.

    Args:
        subject: The models, data and settings that are checked.
        progress: Function called with the name of each check before it runs.
    """
    results = []
    for row in CHECKS:
        progress(row.name)
        start = time.perf_counter()
        outcome: Outcome = "pass"
        try:
            with subject.as_trained():
                measured = row.function(subject)
        except CheckSkippedError as skipped:
            outcome, measured = "skipped", str(skipped)
        except CheckFailedError as failed:
            outcome, measured = "fail", str(failed)
        except Exception as error:  # a fault may show in any way; the other checks go on
            outcome, measured = "error", f"{type(error).__name__}: {error}"
        seconds = time.perf_counter() - start
        results.append(CheckResult(row.name, outcome, measured, row.meaning, row.remedy, seconds))
    return results


def check_table(results: Sequence[CheckResult]) -> Table:
    """What was checked, what it means, what was measured, and after a failure what to do."""
    colours = {"pass": "green", "fail": "bold red", "error": "bold red", "skipped": "dim"}
    table = Table(show_lines=True)
    for heading in ("check", "outcome", "what it means", "measured"):
        table.add_column(heading)
    for result in results:
        remedy = f"\n[bold]To do:[/] {result.remedy}" if result.outcome in ("fail", "error") else ""
        outcome = f"[{colours[result.outcome]}]{result.outcome}[/]"
        table.add_row(result.name, outcome, result.meaning, result.measured.replace("[", r"\[") + remedy)
    return table
