"""The list of checks, what each means and what to do, and the table."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from rich.table import Table

from rlhf_lightning.checks import data, gradients, models, ppo, reward, training
from rlhf_lightning.checks.result import CheckFailedError, CheckResult, CheckSkippedError, Outcome
from rlhf_lightning.checks.subject import Subject

CheckFunction: TypeAlias = Callable[[Subject], str]
"""Returns what was measured; raises :class:`CheckFailedError` or :class:`CheckSkippedError`."""


@dataclass(frozen=True)
class Check:
    """A check with its name and, where it fails, what to do."""

    name: str
    function: CheckFunction
    remedy: str

    @property
    def meaning(self) -> str:
        """What a pass means."""
        return (self.function.__doc__ or "").strip().replace("``", "")


CHECKS = (
    Check(
        "padding",
        models.padding,
        "The model attends to padding or ignores position ids; update transformers, or try attention=eager.",
    ),
    Check(
        "positions", models.positions, "The architecture numbers its positions itself; use one that takes position_ids."
    ),
    Check("endings", data.endings, "Give the tokenizer EOS and pad tokens that differ; remove EOS from the responses."),
    Check(
        "shared prefix",
        reward.shared_prefix,
        "Set reward.module.shared_prefix=false, and report the architecture: it should have fallen back by itself.",
    ),
    Check(
        "centred reward", reward.centred, "Run stage reward again; its bias belongs to other demonstrations or weights."
    ),
    Check(
        "exported reward",
        reward.exported,
        "The architecture's classifier pools differently; use the folder with load_scalar_model.",
    ),
    Check("rollout", ppo.rollout, "The message says what stopped it; most checks below need a rollout."),
    Check("dropout", models.dropout, "Set the dropout of the model's config to 0, or hand it over in eval mode."),
    Check(
        "sampler",
        models.sampler,
        "Set generation.engine=loop; if it still fails, the model's cache gives other logits.",
    ),
    Check(
        "fresh samples",
        models.fresh_samples,
        "Give the sampler the key (seed, iteration) that PPO hands it; count iterations up.",
    ),
    Check("first ratio", ppo.first_ratio, "Turn dropout off; on a GPU set torch.use_deterministic_algorithms(True)."),
    Check("KL starts at 0", ppo.reference_start, "Set ppo.reference=init, or expect a penalty from the first step on."),
    Check(
        "score on the last token",
        ppo.score_place,
        "The reward model, or kl_penalized_rewards, was changed; see scoring.py and functional.py.",
    ),
    Check("advantages", ppo.advantages, "gae was changed, or rewards are not those of the rollout; see functional.py."),
    Check("whitening", ppo.whitening, "whiten must see the whole rollout and its mask; see functional.py."),
    Check(
        "policy gradient",
        gradients.policy_gradient,
        "policy_loss was changed: its sign, its clip or what it is divided by; see losses.py.",
    ),
    Check(
        "value gradient",
        gradients.value_gradient,
        "value_loss was changed: its sign, its clip or what it is divided by; see losses.py.",
    ),
    Check(
        "micro-batches", gradients.micro_batches, "Losses must be divided by the minibatch's tokens, not by their own."
    ),
    Check("ptx gradient", gradients.ptx_gradient, "The pretraining loss must be a mean over the tokens that count."),
    Check("moving average", training.averaging, "Keep the average in 32 bits and update it once per optimizer step."),
    Check("value starts as reward", ppo.value_start, "Build the critic from the reward model: copy.deepcopy(reward)."),
    Check(
        "frozen models",
        training.frozen,
        "Give PPO copies: reference and reward must not share weights with what learns.",
    ),
    Check("resume", training.resume, "Something random is not keyed, or state is kept outside of state_dict."),
)


def check(subject: Subject, progress: Callable[[str], None] = lambda name: None) -> list[CheckResult]:
    """Try everything that silently goes wrong on these models, this data and these settings.

    Args:
        subject: What is checked.
        progress: Called with the name of each check before it runs.
    """
    results = []
    for one in CHECKS:
        progress(one.name)
        start = time.perf_counter()
        outcome: Outcome = "pass"
        try:
            with subject.as_trained():
                measured = one.function(subject)
        except CheckSkippedError as skipped:
            outcome, measured = "skipped", str(skipped)
        except CheckFailedError as failed:
            outcome, measured = "fail", str(failed)
        except Exception as error:  # a fault may show in any way; the other checks go on
            outcome, measured = "error", f"{type(error).__name__}: {error}"
        seconds = time.perf_counter() - start
        results.append(CheckResult(one.name, outcome, measured, one.meaning, one.remedy, seconds))
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
