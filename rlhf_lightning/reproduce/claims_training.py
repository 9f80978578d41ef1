"""Findings about how reward models and SFT learn, at the smallest size."""

from collections.abc import Mapping

import numpy as np
from scipy import stats

from rlhf_lightning.reproduce.finding import Finding
from rlhf_lightning.reproduce.measure import Results, Source, Values, combined, joined, won
from rlhf_lightning.reproduce.plan import EPOCHS, PAIRS_PER_STEP, PROMPTS_PER_STEP, TEAMS

GAP = (0.0, 0.06)
"""A small decrease: the paper's 2.8 points, with as much to either side, and none of its sign."""
SAME_ACCURACY = 0.02


def rankings_as_one(finding: Finding, results: Results) -> None:
    """All pairs of a prompt as one element, against the same pairs shuffled."""
    whole, shuffled = "whole rankings", "shuffled pairs"
    arms = {whole: "whole", shuffled: "pairs"}
    accuracies = {name: results.accuracy(kind) for name, kind in arms.items()}
    losses = {name: results.figure(kind, "reward", "validation/loss") for name, kind in arms.items()}
    for name in arms:
        finding.row("validation accuracy", name, accuracies[name], percent=True, main=True)
        finding.row("validation loss", name, losses[name], main=True)
    for name, kind in arms.items():
        # Beside the validation accuracy it shows what a model has learned by heart.
        late = results.quarter(kind, "reward", "train/accuracy")
        finding.row("training accuracy, last quarter", name, late, percent=True)
    pairs, prompts = (results.figure("whole", "reward", "validation", "all", key) for key in ("pairs", "prompts"))
    per_step = combined(lambda a, b: PROMPTS_PER_STEP * a / b, pairs, prompts)
    measure = "pairs per step, by the validation rankings"
    finding.row(measure, whole, per_step)
    finding.row(measure, shuffled, Source(lambda _: [float(PAIRS_PER_STEP)]))
    text = "whole rankings are more accurate than shuffled pairs"
    finding.above(text, accuracies[whole], accuracies[shuffled])
    text = "shuffled pairs end with the higher validation loss"
    finding.above(text, losses[shuffled], losses[whole], percent=False)


def held_out_teams(finding: Finding, results: Results) -> None:
    """The rankings of each team, by reward models that have learned from it and by the one that has not."""
    held_out, training = {}, {}
    for team in TEAMS:
        held_out[team] = results.accuracy(team, team)
        others = [results.accuracy(left_out, team) for left_out in TEAMS if left_out != team]
        training[team] = combined(lambda *shares: sum(shares) / len(shares), *others)
    inside, outside = joined(list(training.values())), joined(list(held_out.values()))
    finding.row("accuracy", "training teams", inside, percent=True, main=True)
    finding.row("accuracy", "held-out team", outside, percent=True, main=True)
    for team in TEAMS:
        finding.row("accuracy", "held-out team", held_out[team], team, percent=True)
    finding.above("training teams are predicted better than the held-out one", inside, outside)
    lowest, highest = GAP
    gap = combined(lambda a, b: highest - (a - b), inside, outside)
    finding.more(f"by less than {100 * highest:.0f} points", gap, lowest)


def overfitting(finding: Finding, results: Results) -> None:
    """Validation loss, reward and preference over the epochs of SFT."""
    first, last = EPOCHS[0], EPOCHS[-1]
    loss = {epoch: results.epoch_loss("epochs", "sft", epoch) for epoch in range(first, last + 1)}
    for epoch, source in loss.items():
        finding.row("validation loss", "SFT", source, f"{epoch}", main=epoch in EPOCHS)
    by_epoch = {
        measure: {epoch: results.of("epochs", f"sft/epoch-{epoch}", key) for epoch in EPOCHS}
        for measure, key in (("score by the reward model", "rewards"), ("true utility", "scores"))
    }
    for measure, sources in by_epoch.items():
        for epoch, source in sources.items():
            finding.row(measure, "SFT", source, f"{epoch}", main=epoch in (first, last))
    true = by_epoch["true utility"]
    for epoch in EPOCHS[1:]:
        rate = won(true[epoch], true[first])
        finding.row(f"win rate against epoch {first}", "SFT", rate, f"{epoch}", percent=True)
    for epoch in EPOCHS[1:]:
        text = f"the validation loss is higher after epoch {epoch} than after the first"
        finding.above(text, loss[epoch], loss[first], percent=False)
    for measure, sources in by_epoch.items():
        text = f"{measure}: higher after epoch {last} than after epoch {first}"
        finding.above(text, sources[last], sources[first], percent=False)


def reward_rates(finding: Finding, results: Results) -> None:
    """Half more and half less of the reward model's learning rate (C.2)."""
    arms = {"half": "reward-slow", "default": "whole", "one and a half": "reward-fast"}
    accuracy = {name: results.accuracy(kind) for name, kind in arms.items()}
    for name, source in accuracy.items():
        finding.row("validation accuracy by learning rate", name, source, percent=True, main=True)
    for name in ("half", "one and a half"):
        finding.alike(f"{name}: within 2 points of the default", accuracy[name], accuracy["default"], SAME_ACCURACY)


def reward_epochs(finding: Finding, results: Results) -> None:
    """Several epochs of the reward model overfit (C.2)."""
    arms = {"one epoch": "whole", "four epochs": "reward-epochs"}
    losses = {name: results.figure(kind, "reward", "validation/loss") for name, kind in arms.items()}
    for name, kind in arms.items():
        finding.row("validation loss", name, losses[name], main=True)
        finding.row("validation accuracy", name, results.accuracy(kind), percent=True, main=True)
        finding.row(
            "training accuracy, last quarter", name, results.quarter(kind, "reward", "train/accuracy"), percent=True
        )
    text = "four epochs end with the higher validation loss"
    finding.above(text, losses["four epochs"], losses["one epoch"], percent=False)


def reward_starts(finding: Finding, results: Results) -> None:
    """What the reward model starts from hardly matters (C.2)."""
    arms = {"SFT": "whole", "GPT": "reward-base"}
    accuracy = {name: results.accuracy(kind) for name, kind in arms.items()}
    for name, source in accuracy.items():
        finding.row("validation accuracy by start", name, source, percent=True, main=True)
    finding.alike("from GPT: within 2 points of the start from SFT", accuracy["GPT"], accuracy["SFT"], SAME_ACCURACY)


def score_predicts(finding: Finding, results: Results) -> None:
    """The reward model's score tells more of how people prefer the epochs of SFT than their validation loss (C.1)."""
    true = {epoch: results.of("epochs", f"sft/epoch-{epoch}", "scores") for epoch in EPOCHS}
    score = {epoch: results.of("epochs", f"sft/epoch-{epoch}", "rewards") for epoch in EPOCHS}
    loss = {epoch: results.epoch_loss("epochs", "sft", epoch) for epoch in EPOCHS}
    told = {"reward model's score": score, "validation loss": loss}
    # Over the epochs of a seed: how well either orders them as the truth does; a low loss is a good one.
    orders = {name: _order(found, true, -1.0 if name == "validation loss" else 1.0) for name, found in told.items()}
    for name, source in orders.items():
        finding.row("rank correlation with the true utility over epochs", name, source, main=True)
    by_score, by_loss = orders.values()
    finding.above("the reward model's score orders the epochs better", by_score, by_loss, percent=False)


def _order(found: Mapping[int, Source], true: Mapping[int, Source], sign: float) -> Source:
    """Spearman's correlation over the epochs of one seed."""

    def values(seed: int) -> Values:
        means = [
            [float(np.mean([v for v in each[epoch](seed) if v is not None])) for epoch in EPOCHS]
            for each in (found, true)
        ]
        return [sign * float(stats.spearmanr(*means).statistic)]

    return Source(values)
