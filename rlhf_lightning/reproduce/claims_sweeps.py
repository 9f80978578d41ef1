"""Claims 7, 8 and 12: what PPO depends on, at the smallest size."""

from rlhf_lightning.evaluation.intervals import Interval
from rlhf_lightning.reproduce import plan
from rlhf_lightning.reproduce.claims_models import label, task_mean
from rlhf_lightning.reproduce.finding import Check, Finding, written
from rlhf_lightning.reproduce.measure import MissingError, Results, Source, combined, difference, won

SMALL_COST, SMALL_TAX, MOST_OF_THE_TAX = 0.03, 0.02, 0.8


def win_rate(results: Results, kind: str, policy: str) -> Source:
    """The win rate of a small policy against the small SFT model of the same seed, by the true utility."""
    return won(results.of(kind, policy, "scores"), results.of(plan.SMALL, "sft", "scores"))


def tax_repairs(finding: Finding, results: Results) -> None:
    """What repairs the loss on public tasks: pretraining gradients, or a KL penalty to the base model."""
    base, ppo = task_mean(results, plan.SMALL, "base"), task_mean(results, plan.SMALL, "ppo")
    finding.row("few-shot accuracy", label("base"), base, percent=True)
    finding.below("PPO loses on the tasks against GPT", ppo, base)
    ptx, kl = "ptx coefficient", "KL coefficient to the base model"
    sweeps = {ptx: {0.0: (plan.SMALL, "ppo"), **plan.PTX_COEF.arms}, kl: plan.BASE_KL.arms}
    repaired: dict[str, list[float]] = {ptx: [], kl: []}
    for name, arms in sweeps.items():
        for coef, arm in arms.items():
            at = f"{coef:g}"
            finding.row("few-shot accuracy", name, task_mean(results, *arm), at, percent=True, main=True)
            finding.row("win rate against SFT", name, win_rate(results, *arm), at, percent=True, main=True)
            finding.row("score by the reward model", name, results.of(*arm, "rewards"), at)
            try:
                if coef and _repairs(results, *arm) and (name == kl or _cheap(results, *arm)):
                    repaired[name].append(coef)
            except MissingError as reason:
                finding.missing.append(str(reason))
    if not finding.missing:
        coefs = {name: ", ".join(f"{coef:g}" for coef in repaired[name]) or "none" for name in sweeps}
        text = "some ptx coefficient repairs the loss at a win rate at most 3 points below PPO's"
        finding.checks.append(Check(text, coefs[ptx], bool(repaired[ptx])))
        text = "no KL coefficient to the base model repairs it without ptx, at whatever cost"
        finding.checks.append(Check(text, coefs[kl], not repaired[kl]))
    coef, arm = max(plan.BASE_KL.arms.items())
    text = f"KL coefficient {coef:g} to the base model costs reward"
    finding.above(text, results.of(plan.SMALL, "ppo", "rewards"), results.of(*arm, "rewards"), percent=False)
    text = f"and more than {100 * SMALL_COST:.0f} points of the win rate"
    finding.above(text, win_rate(results, plan.SMALL, "ppo"), win_rate(results, *arm), least=SMALL_COST)


def _repairs(results: Results, kind: str, policy: str) -> bool:
    tasks, base, ppo = (task_mean(results, *arm) for arm in ((kind, policy), (plan.SMALL, "base"), (plan.SMALL, "ppo")))
    tax = results.pooled(difference(base, tasks))["value"]
    most = combined(lambda a, b, c: a - MOST_OF_THE_TAX * b - (1 - MOST_OF_THE_TAX) * c, tasks, base, ppo)
    return results.pooled(most)["value"] >= 0 or tax <= SMALL_TAX


def _cheap(results: Results, kind: str, policy: str) -> bool:
    cost = difference(win_rate(results, plan.SMALL, "ppo"), win_rate(results, kind, policy))
    return results.pooled(cost)["value"] <= SMALL_COST


def best_kl(finding: Finding, results: Results) -> None:
    """Mean Likert score of PPO-ptx over the KL coefficient; and what the penalty is for."""
    _overoptimisation(finding, results)
    likert = {coef: results.of(*arm, "metadata", "likert") for coef, arm in plan.PTX_KL.arms.items()}
    means: dict[float, Interval] = {}
    for coef, source in likert.items():
        mean = finding.row("mean Likert score", label("ppo_ptx"), source, f"{coef:g}", main=True)
        rate = win_rate(results, *plan.PTX_KL.arms[coef])
        finding.row("win rate against SFT", label("ppo_ptx"), rate, f"{coef:g}", percent=True)
        if mean:
            means[coef] = mean
    if len(means) < len(likert):
        return
    best = max(means, key=lambda coef: means[coef]["value"])
    ends = (min(likert), max(likert))
    text = "the best KL coefficient lies inside the range"
    finding.checks.append(Check(text, f"{best:g} with {written(means[best])}", best not in ends))
    for end in ends:
        finding.below(f"KL coefficient {end:g} is worse than {best:g}", likert[end], likert[best], percent=False)


def _overoptimisation(finding: Finding, results: Results) -> None:
    """A weak reward model's own score, and the truth, the longer PPO follows it."""
    weak = f"reward model of {plan.WEAK_RANKINGS} rankings, over iterations: "
    for coef in plan.WEAK_KL_COEFS:
        arms = {0: (plan.weak_kind(coef, plan.WEAK_ITERATIONS[0]), "sft")}
        arms |= {count: (plan.weak_kind(coef, count), "ppo") for count in plan.WEAK_ITERATIONS}
        for count, arm in arms.items():
            for measure, key in (("its score", "rewards"), ("true utility", "scores")):
                finding.row(weak + measure, f"KL coefficient {coef:g}", results.of(*arm, key), f"{count}")


def settings(finding: Finding, results: Results) -> None:
    """What the policy starts from, how much text it sees, batch and minibatches."""

    def rate(name: str, arm: tuple[str, str], at: float, main: bool = False) -> Interval | None:
        measure = f"win rate against SFT by {name}"
        return finding.row(measure, label("ppo_ptx"), win_rate(results, *arm), f"{at:g}", percent=True, main=main)

    starts = [rate("share of text in the start", arm, share, main=True) for share, arm in plan.INIT_SHARE.arms.items()]
    rates = [interval["value"] for interval in starts if interval]
    if len(rates) == len(starts):
        spread = max(rates) - min(rates)
        text = "win rates of the starts lie within 3 points"
        finding.checks.append(Check(text, f"{100 * spread:.1f} points", spread < SMALL_COST))
    measure = "pretraining loss by text rows"
    base = results.figure(plan.SMALL, "evaluate", "policies", "base", "pretrain_loss")
    finding.row(measure, label("base"), base, main=True)
    losses = {}
    for rows, (kind, policy) in plan.TEXT_ROWS.arms.items():
        losses[rows] = results.figure(kind, "evaluate", "policies", policy, "pretrain_loss")
        finding.row(measure, label(policy), losses[rows], f"{rows:g}", main=True)
        rate("text rows per iteration", (kind, policy), rows)
    fewest = min(losses)
    text = f"{fewest:g} text rows per iteration let the pretraining loss rise above that of {plan.DEFAULT_TEXT_ROWS}"
    finding.above(text, losses[fewest], losses[plan.DEFAULT_TEXT_ROWS], percent=False)
    for rows in (rows for rows in losses if rows >= plan.DEFAULT_TEXT_ROWS):
        text = f"{rows:g} text rows hold the pretraining loss within {SMALL_TAX} of GPT's"
        rise = difference(losses[rows], base)
        finding.check(text, rise, lambda interval: interval["value"] <= SMALL_TAX, percent=False)
    for name, sweep in (("batch size", plan.BATCH), ("minibatches", plan.MINIBATCHES)):
        for value, arm in sweep.arms.items():
            rate(name, arm, value)
