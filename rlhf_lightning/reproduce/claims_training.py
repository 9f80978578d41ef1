"""Claims 9 to 11: how reward models and SFT learn, at the smallest size."""

from rlhf_lightning.reproduce.finding import Check, Finding
from rlhf_lightning.reproduce.measure import Results, combined, difference, joined, won
from rlhf_lightning.reproduce.plan import EPOCHS, PAIRS_PER_STEP, PROMPTS_PER_STEP, TEAMS

LARGEST_GAP = 0.06
RISES_BEFORE = 4
"""The epoch before which the validation loss of SFT has to be lowest; the paper says after one."""


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
        late = results.late(kind, "reward", "train/accuracy")
        finding.row("training accuracy, last quarter", name, late, percent=True)
    pairs, prompts = (results.figure("whole", "reward", "validation", "all", key) for key in ("pairs", "prompts"))
    per_step = combined(lambda a, b: PROMPTS_PER_STEP * a / b, pairs, prompts)
    measure = "pairs per step, by the validation rankings"
    finding.row(measure, whole, per_step)
    finding.row(measure, shuffled, lambda _: [PAIRS_PER_STEP])
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
    gap = difference(inside, outside)
    finding.check("the gap is at most 6 points", gap, lambda interval: interval["value"] <= LARGEST_GAP)


def overfitting(finding: Finding, results: Results) -> None:
    """Validation loss, reward and preference over the epochs of SFT."""
    first, last = EPOCHS[0], EPOCHS[-1]
    loss = {epoch: results.epoch_loss("epochs", "sft", epoch) for epoch in range(first, last + 1)}
    means = {}
    for epoch, source in loss.items():
        mean = finding.row("validation loss", "SFT", source, f"{epoch}", main=epoch in EPOCHS)
        if mean:
            means[epoch] = mean["value"]
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
    if len(means) == len(loss):
        best = min(means, key=lambda epoch: means[epoch])
        text = f"the validation loss is lowest before epoch {RISES_BEFORE}"
        finding.checks.append(Check(text, f"at epoch {best}", best < RISES_BEFORE))
        text = f"the validation loss is higher after epoch {last} than at its lowest"
        finding.above(text, loss[last], loss[best], percent=False)
        turn = min(EPOCHS, key=lambda epoch: abs(epoch - best))
        for measure, sources in by_epoch.items():
            text = f"{measure}: goes on rising after epoch {turn}, the kept one next to the lowest loss"
            finding.above(text, sources[last], sources[turn], percent=False)
    for measure, sources in by_epoch.items():
        text = f"{measure}: higher after epoch {last} than after epoch {first}"
        finding.above(text, sources[last], sources[first], percent=False)
