"""Findings about what PPO depends on, at the smallest size: coefficients, start, learning rate, length, text."""

from collections.abc import Mapping

from rlhf_lightning.reproduce import plan
from rlhf_lightning.reproduce.claims_models import TASKS, label
from rlhf_lightning.reproduce.finding import Finding
from rlhf_lightning.reproduce.measure import Results, Source, combined, difference, won

LITTLE, SAME_LIKERT = 0.03, 0.25
"""What costs little in a win rate, and Likert scores that are alike: a quarter of a step on the scale of seven."""
BEST_KL = (0.01, 0.02)
SENSITIVE = 0.1
TWICE = (1.5, 2.5)
"""What "twice the time" may be."""
Arm = tuple[str, str]
SMALL_PPO, SMALL_PTX = (plan.SMALL, "ppo"), (plan.SMALL, "ppo_ptx")


def win_rate(results: Results, kind: str, policy: str) -> Source:
    """The win rate of a small policy against the small SFT model of the same seed, by the true utility."""
    return won(results.of(kind, policy, "scores"), results.of(plan.SMALL, "sft", "scores"))


def likert(results: Results, kind: str, policy: str) -> Source:
    """The Likert score of each response."""
    return results.of(kind, policy, "metadata", "likert")


def ptx_repairs(finding: Finding, results: Results) -> None:
    """Some coefficient of the pretraining gradients repairs the tasks at little cost (figure 33)."""
    name = "ptx coefficient"
    arms = {0.0: SMALL_PPO, **plan.PTX_COEF.arms}
    _curves(finding, results, name, arms)
    ppo = win_rate(results, *SMALL_PPO)
    numbers = {}
    for coef, arm in arms.items():
        tasks = [difference(_task(results, arm, task), _task(results, (plan.SMALL, "base"), task)) for task in TASKS]
        cost = difference(win_rate(results, *arm), ppo)
        if coef:
            numbers[f"{coef:g}"] = [_plus(each, LITTLE) for each in (*tasks, cost)]
    text = "some ptx coefficient is no more than 3 points below GPT on any task, and below PPO in win rate"
    finding.some(text, numbers)
    for coef, arm in plan.PTX_COEF.arms.items():
        if arm != SMALL_PTX:
            text = f"the Likert score at {coef:g} is that of the default, within {SAME_LIKERT:g}"
            finding.alike(text, likert(results, *arm), likert(results, *SMALL_PTX), SAME_LIKERT, percent=False)


def kl_repairs_not(finding: Finding, results: Results) -> None:
    """No KL coefficient to the base model does without text (figure 34), and a large one costs reward."""
    _no_repair(finding, results, "KL coefficient to the base model", plan.BASE_KL.arms)


def start_as_reference(finding: Finding, results: Results) -> None:
    """The same with PPO's start as the reference (4.2)."""
    _no_repair(finding, results, "KL coefficient to the start", plan.INIT_KL.arms)


def _no_repair(finding: Finding, results: Results, name: str, arms: Mapping[float, Arm]) -> None:
    _curves(finding, results, name, arms)
    for coef, arm in arms.items():
        losses = {
            task: [difference(_task(results, (plan.SMALL, "base"), task), _task(results, arm, task))] for task in TASKS
        }
        finding.some(f"{name} {coef:g} leaves some task below GPT", losses)
    coef, arm = max(arms.items())
    reward = results.of(plan.SMALL, "ppo", "rewards")
    finding.above(f"{name} {coef:g} costs reward", reward, results.of(*arm, "rewards"), percent=False)


def best_kl(finding: Finding, results: Results) -> None:
    """The Likert score of PPO-ptx over the KL coefficient (figure 36); and what the penalty is for."""
    _overoptimisation(finding, results)
    scores = {coef: likert(results, *arm) for coef, arm in plan.PTX_KL.arms.items()}
    for coef, source in scores.items():
        finding.row("mean Likert score", label("ppo_ptx"), source, f"{coef:g}", main=True)
        rate = win_rate(results, *plan.PTX_KL.arms[coef])
        finding.row("win rate against SFT", label("ppo_ptx"), rate, f"{coef:g}", percent=True)
    # The mean of both, not the better one: choosing it by what is tested would favour it.
    best = combined(lambda *values: sum(values) / len(values), *(scores[coef] for coef in BEST_KL))
    for coef, source in scores.items():
        if coef in (min(scores), max(scores)):
            finding.below(f"KL coefficient {coef:g} is worse than .01 and .02", source, best, percent=False)
        elif coef not in BEST_KL:
            text = f"KL coefficient {coef:g} is not better by {SENSITIVE:g}"
            finding.more(text, _plus(difference(best, source), SENSITIVE), percent=False)


def _overoptimisation(finding: Finding, results: Results) -> None:
    """A weak reward model's own score, and the truth, the longer PPO follows it."""
    weak = f"reward model of {plan.WEAK_RANKINGS} rankings, over iterations: "
    for coef in plan.WEAK_KL_COEFS:
        arms = {0: (plan.weak_kind(coef, plan.WEAK_ITERATIONS[0]), "sft")}
        arms |= {count: (plan.weak_kind(coef, count), "ppo") for count in plan.WEAK_ITERATIONS}
        for count, arm in arms.items():
            for measure, key in (("its score", "rewards"), ("true utility", "scores")):
                finding.row(weak + measure, f"KL coefficient {coef:g}", results.of(*arm, key), f"{count}")


def starts(finding: Finding, results: Results) -> None:
    """The share of text and the epochs of PPO's start (figure 37)."""
    default = plan.INIT_SHARE.arms[plan.DEFAULT_SHARE]
    for name, arms in (("share of text", plan.INIT_SHARE.arms), ("epochs", plan.INIT_EPOCHS.arms)):
        for value, arm in arms.items():
            _policy_rows(finding, results, f"by {name} of the start", arm, value)
            if arm != default:
                text = f"{name} {value:g} in the start: a Likert score within {SAME_LIKERT:g} of the default's"
                finding.alike(text, likert(results, *arm), likert(results, *default), SAME_LIKERT, percent=False)


def learning_rates(finding: Finding, results: Results) -> None:
    """PPO's learning rate without text and with it (figure 38)."""
    arms = {"ppo": plan.PPO_RATES.arms, "ppo_ptx": plan.PTX_RATES.arms}
    for of_policy in arms.values():
        for rate, arm in of_policy.items():
            _policy_rows(finding, results, "by multiple of the learning rate", arm, rate)
    # Without text all rates above 8.05e-6 diverged in the paper, which is our default's place in its scan.
    rates = {policy: {rate: win_rate(results, *arm) for rate, arm in found.items()} for policy, found in arms.items()}
    for rate in (rate for rate in plan.PPO_RATES.arms if rate > 1):
        half = _plus(rates["ppo"][rate], -0.5)
        finding.more(f"SFT wins more than half against PPO at {rate:g} times the rate", _minus(half))
    highest = max(plan.PPO_RATES.arms)
    falls = {policy: difference(found[1.0], found[highest]) for policy, found in rates.items()}
    finding.above(
        f"from once to {highest:g} times the rate PPO loses more than PPO-ptx", falls["ppo"], falls["ppo_ptx"]
    )


def twice_the_episodes(finding: Finding, results: Results) -> None:
    """Training longer than the default (figure 35, E.11)."""
    arms = plan.LENGTH.arms
    _curves(finding, results, "multiple of the episodes", arms)
    once, twice = arms[1.0], arms[2.0]
    for task, name in TASKS.items():
        text = f"{name}: lower after twice the episodes"
        finding.below(text, _task(results, twice, task), _task(results, once, task))
    gain = difference(win_rate(results, *twice), win_rate(results, *once))
    finding.more("twice the episodes gain less than 3 points of the win rate", _plus(_minus(gain), LITTLE))


def text_per_episode(finding: Finding, results: Results) -> None:
    """Pretraining rows per episode (E.11): half, once and four times the default, as the paper's 4, 8 and 32."""
    arms = plan.TEXT_ROWS.arms
    for rows, arm in arms.items():
        early, late = (results.quarter(*arm, "update/ptx_loss", last=last) for last in (False, True))
        rise = difference(late, early)
        finding.row("rise of the loss on text while PPO trains", label("ppo_ptx"), rise, f"{rows:g}", main=True)
        _policy_rows(finding, results, "by text rows", arm, rows)
    fewest, most = min(arms), max(arms)
    early, late = (results.quarter(*arms[fewest], "update/ptx_loss", last=last) for last in (False, True))
    finding.above(f"with {fewest:g} rows the loss on text rises while PPO trains", late, early, percent=False)
    scores = {rows: likert(results, *arm) for rows, arm in arms.items()}
    finding.above(
        f"{most:g} rows give a higher Likert score than {plan.DEFAULT_TEXT_ROWS}",
        scores[most],
        scores[plan.DEFAULT_TEXT_ROWS],
        percent=False,
    )
    seconds = {policy: results.seconds(plan.SMALL, policy) for policy in ("ppo", "ppo_ptx")}
    ratio = combined(lambda a, b: a / b, seconds["ppo_ptx"], seconds["ppo"])
    finding.row("time of PPO-ptx as a multiple of PPO's", label("ppo_ptx"), ratio, main=True)
    low, high = TWICE
    finding.more(f"PPO-ptx takes at least {low:g} times as long as PPO", ratio, low, percent=False)
    finding.more(f"and at most {high:g} times", _minus(ratio), -high, percent=False)


def batches(finding: Finding, results: Results) -> None:
    """Batch and minibatches (E.11), of which the paper names the best without saying by how much: no rule."""
    for name, sweep in (("batch size", plan.BATCH), ("minibatches", plan.MINIBATCHES)):
        for value, arm in sweep.arms.items():
            _policy_rows(finding, results, f"by {name}", arm, value)


def _curves(finding: Finding, results: Results, name: str, arms: Mapping[float, Arm]) -> None:
    """Tasks, win rate and reward of every arm."""
    for task, task_name in TASKS.items():
        finding.row(task_name, label("base"), _task(results, (plan.SMALL, "base"), task), percent=True)
    for value, arm in arms.items():
        at = f"{value:g}"
        for task, task_name in TASKS.items():
            finding.row(task_name, name, _task(results, arm, task), at, percent=True, main=True)
        finding.row("win rate against SFT", name, win_rate(results, *arm), at, percent=True, main=True)
        finding.row("score by the reward model", name, results.of(*arm, "rewards"), at)
        finding.row("mean Likert score", name, likert(results, *arm), at)


def _policy_rows(finding: Finding, results: Results, by: str, arm: Arm, value: float) -> None:
    kind, policy = arm
    rate = win_rate(results, kind, policy)
    finding.row(f"win rate against SFT {by}", label(policy), rate, f"{value:g}", percent=True, main=True)
    finding.row(f"mean Likert score {by}", label(policy), likert(results, kind, policy), f"{value:g}")


def _task(results: Results, arm: Arm, task: str) -> Source:
    return results.of(*arm, "probes", task, "accuracy")


def _plus(source: Source, number: float) -> Source:
    return combined(lambda value: value + number, source)


def _minus(source: Source) -> Source:
    return combined(lambda value: -value, source)
