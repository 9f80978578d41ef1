"""docs/real.md and docs/real.png from the folders of the runs that scripts/real made."""

import datetime
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib

from rlhf_lightning.evaluation.estimates import pooled_interval
from rlhf_lightning.evaluation.intervals import Interval, wins
from rlhf_lightning.evaluation.length_control import length_controlled_win_rate
from rlhf_lightning.evaluation.plots import INK, STYLE, figure_of
from rlhf_lightning.evaluation.tables import accuracy_rows, cell, markdown_table
from rlhf_lightning.runs.files import read_json, read_metrics, replacing
from rlhf_lightning.runs.identity import processor

OUTCOME = "\n## What came out"
"""Where the part of the page begins that is written anew; what stands before it stays."""
GRAM = 4
"""Words of a run of words that may come again."""
SHOWN = 6
"""Prompts whose responses are shown."""
CURVES = (
    ("sft", "validation/loss", "SFT: validation loss, nats per token"),
    ("reward", "train/accuracy", "Reward model: accuracy of a batch"),
    ("ppo", "rollout/score", "PPO: score"),
    ("ppo", "rollout/kl", "PPO: KL, nats per response"),
    ("ppo_ptx", "rollout/score", "PPO-ptx: score"),
    ("ppo_ptx", "rollout/kl", "PPO-ptx: KL, nats per response"),
)
Run = Mapping[str, Any]
"""A run's `seed`, `folder`, `results`, `samples`, `stages` and `usage`, as far as there are any."""


def repeated_share(text: str) -> float:
    """Share of the runs of four words that came before in the text.

    Examples:
        >>> repeated_share("a b c d a b c d")  # of five runs the last one
        0.2
    """
    words = text.split()
    grams = [tuple(words[start : start + GRAM]) for start in range(len(words) - GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def compression(texts: Sequence[str]) -> float:
    """Bytes per byte of what zlib makes of the texts; English prose has 2 to 3, endless repetition far more."""
    whole = "\n".join(texts).encode()
    return len(whole) / len(zlib.compress(whole, 9))


def read_run(folder: Path) -> Run:
    """What a run left, as far as it has come."""
    stages = {path.parent.name: read_json(path) for path in sorted(folder.glob("*/stage.json"))}
    stages = {name: record for name, record in stages.items() if record.get("status") == "complete"}
    found: dict[str, Any] = {"folder": folder, "stages": stages, "seed": folder.name.partition("_seed")[2]}
    paths = {"samples": "evaluate/samples.json", "results": "report/results.json", "usage": "usage.json"}
    for name, path in paths.items():
        found[name] = read_json(folder / path) if (folder / path).exists() else {}
    return found


def shown(interval: Interval | None, scale: float = 1.0) -> str:
    """A value with its interval, or a dash."""
    own = cell(interval, scale)
    return f"{own['value']} ({own['interval']})" if own["interval"] else own["value"]


def policy_rows(runs: Sequence[Run], policies: Sequence[str], baseline: str) -> list[list[str]]:
    """What is measured of each policy on prompts that nothing was trained on, over all seeds that have it."""
    columns = [
        [(title, _or_dash(measure, name, scale)) for title, measure, scale in policy_measures(own, baseline)]
        for name in policies
        if (own := [run for run in runs if name in run["samples"]])
    ]
    return [[row[0][0], *(cell for _, cell in row)] for row in zip(*columns, strict=True)]


def policy_measures(runs: Sequence[Run], baseline: str) -> list[tuple[str, Callable[[str], Interval | None], float]]:
    """What is measured of policies over the runs that have them."""

    def each(measure: Callable[[Run, str], Sequence[float]], *, shares: bool = False) -> Callable[[str], Interval]:
        return lambda name: pooled_interval([measure(run, name) for run in runs], shares=shares)

    def won(run: Run, name: str) -> list[float]:
        return wins(run["samples"][name]["scores"], run["samples"][baseline]["scores"])

    def at_equal_length(name: str) -> Interval | None:
        if name == baseline:
            return None
        longer = [
            mine - theirs
            for run in runs
            for mine, theirs in zip(*(run["samples"][each]["lengths"] for each in (name, baseline)), strict=True)
        ]
        places = [place for run in runs for place in range(len(run["samples"]["prompts"]))]
        return length_controlled_win_rate([one for run in runs for one in won(run, name)], longer, places)

    def of(key: str) -> Callable[[Run, str], Sequence[float]]:
        return lambda run, name: run["samples"][name][key]

    def ended(run: Run, name: str) -> list[float]:
        longest = run["stages"]["evaluate"]["identity"]["config"]["data"]["max_response_tokens"]
        return [float(length < longest) for length in run["samples"][name]["lengths"]]

    def losses(name: str) -> Interval | None:
        found = [run["results"]["policies"][name].get("pretrain_loss") for run in runs]
        return None if None in found else pooled_interval([[loss] for loss in found])

    def repeated(run: Run, name: str) -> list[float]:
        return [repeated_share(text) for text in run["samples"][name]["responses"]]

    def compressed(name: str) -> Interval:
        return pooled_interval([[compression(run["samples"][name]["responses"])] for run in runs])

    return [
        (f"win rate against {baseline} by the held-out judge, %", each(won, shares=True), 100),
        ("the same at equal length, %", at_equal_length, 100),
        ("score by the judge", each(of("scores")), 1),
        ("score by the reward model that was trained on", each(of("rewards")), 1),
        (f"KL to {baseline}, nats per response", each(of("kl")), 1),
        ("tokens per response", each(of("lengths")), 1),
        ("responses that end, %", each(ended, shares=True), 100),
        (f"runs of {GRAM} words that come again, %", each(repeated), 100),
        ("compression of all responses", compressed, 1),
        ("loss on pretraining text, nats per token", losses, 1),
    ]


def _or_dash(measure: Callable[[str], Interval | None], name: str, scale: float) -> str:
    try:
        return shown(measure(name), scale)
    except (KeyError, TypeError, ValueError):  # not measured of this policy
        return "-"


def accuracy_table(runs: Sequence[Run]) -> str:
    """Accuracy of the reward models per source, beside that of the longer response."""
    rows = []
    for run in runs:
        for step in ("judge", "reward"):
            for row in accuracy_rows(run["stages"].get(step, {})):
                cells = [f"{own['value']} ({own['interval']})" for own in row["cells"]]
                rows.append([step, run["seed"], row["split"], row["group"], *cells, *map(str, row["counts"])])
    head = ["model", "seed", "split", "source", "accuracy, %", "longer wins, %", "prompts", "pairs"]
    return markdown_table(head, rows)


def usage_table(runs: Sequence[Run]) -> str:
    """Seconds and memory of every step, means over seeds and the most of any."""
    steps = list(dict.fromkeys(step for run in runs for step in run["usage"]))
    rows = []
    for step in steps:
        found = [run["usage"][step] for run in runs if step in run["usage"]]
        memory = max(each["memory"] for each in found) / 2**20
        rows.append([step, f"{fmean(each['seconds'] for each in found):.0f}", f"{memory:.1f}"])
    seconds = [sum(each["seconds"] for each in run["usage"].values()) for run in runs if run["usage"]]
    if seconds:
        rows.append(["**together**", f"{fmean(seconds):.0f}", ""])
    return markdown_table(["step", "seconds", "GiB at most"], rows)


def tax_table(runs: Sequence[Run]) -> str:
    """What every policy gets on the public sets; empty where they were not run."""
    found = [metrics["policies"] for run in runs if (metrics := run["stages"].get("benchmarks", {}).get("metrics"))]
    if not found:
        return ""
    policies = list(dict.fromkeys(name for each in found for name in each))
    rows = []
    for label in dict.fromkeys(label for each in found for own in each.values() for label in own):
        cells = []
        for name in policies:
            values = [own["value"] for each in found if (own := each.get(name, {}).get(label)) and "value" in own]
            cells.append(shown(pooled_interval([[value] for value in values])) if values else "-")
        rows.append([label, *cells])
    return f"#### Public sets\n\n{markdown_table(['set', *policies], rows)}\n\n"


def draw(runs: Sequence[Run], file: Path) -> None:
    """The learning curves, a line per seed."""
    with matplotlib.rc_context(STYLE):
        figure, _ = figure_of(9.0, 5.0)
        figure.clear()
        for place, (step, column, title) in enumerate(CURVES, 1):
            axes = figure.add_subplot(2, 3, place)
            axes.set_title(title, fontsize=8, color=INK)
            for run in runs:
                path = run["folder"] / step / "metrics.csv"
                rows = [row for row in (read_metrics(path) if path.exists() else []) if column in row]
                axes.plot([row["step"] for row in rows], [row[column] for row in rows], label=f"seed {run['seed']}")
            if place == 1 and runs:
                axes.legend(fontsize=7)
        figure.savefig(file, dpi=110)


def plain(text: str) -> str:
    """A text on one line in which nothing is code or a link."""
    return " ".join(text.split()).replace("`", "'").replace("](", "] (")


def samples_text(run: Run, policies: Sequence[str]) -> str:
    """Some prompts with the responses of the first and the last policies, as they are."""
    samples = run["samples"]
    count = len(samples["prompts"])
    parts = []
    for number in range(SHOWN):
        place = (2 * number + 1) * count // (2 * SHOWN)
        parts.append(f"**{plain(samples['prompts'][place])}**\n")
        parts += [f"- {name}: {plain(samples[name]['responses'][place])}" for name in policies if name in samples]
        parts.append("")
    return "\n".join(parts)


def section(kind: str, runs: Sequence[Run]) -> str:
    """The part of the page on one kind of runs, which must have been evaluated."""
    evaluated = [run for run in runs if run["samples"] and "evaluate" in run["stages"]]
    if not evaluated:
        return f"### {kind}\n\nNo run has been evaluated yet.\n"
    policies = list(dict.fromkeys(name for run in evaluated for name in run["samples"] if name != "prompts"))
    baseline = evaluated[0]["results"]["baseline"]
    stage = evaluated[0]["stages"]["evaluate"]
    seeds, prompts = ", ".join(run["seed"] for run in evaluated), len(evaluated[0]["samples"]["prompts"])
    text = (
        f"### {kind}\n\nSeeds {seeds}; {prompts} prompts that nothing was trained on; means with 95 % intervals over "
        f"seeds and prompts; commit {stage['git_commit']}, torch {stage['versions']['torch']}.\n\n"
    )
    text += markdown_table(["", *policies], policy_rows(evaluated, policies, baseline)) + "\n\n"
    if any(step in run["stages"] for run in runs for step in ("judge", "reward")):
        text += f"#### Reward models on rankings\n\n{accuracy_table(runs)}\n\n"
    text += tax_table(runs)
    text += f"#### Seconds and memory\n\n{usage_table(runs)}\n\n"
    return text + f"#### Samples of seed {evaluated[0]['seed']}\n\n{samples_text(evaluated[0], policies)}\n"


def write_page(folder: Path, page: Path) -> Path:
    """Write the page and its picture; returns the page's path.

    Args:
        folder: The folder that has the runs.
        page: The page; the picture lies beside it, with the same name.
    """
    kinds = {"experiment=smollm2": "smollm2", "experiment=rule": "rule"}
    runs = {kind: [read_run(each) for each in sorted(folder.glob(f"{name}_seed*"))] for kind, name in kinds.items()}
    head = page.read_text(encoding="utf-8").split(OUTCOME)[0] if page.exists() else "# A real model on real data\n"
    made = f"Written by `scripts/real --report` on {datetime.date.today()}, on {processor()}."
    picture = page.with_suffix(".png")
    parts = [f"{head.rstrip()}\n{OUTCOME}\n\n{made}\n"]
    if runs["experiment=smollm2"]:
        draw(runs["experiment=smollm2"], picture)
        parts.append(f"![Learning curves of every seed]({picture.name})\n")
    parts += [section(kind, found) for kind, found in runs.items() if found]
    with replacing(page) as file:
        file.write("\n".join(parts))
    return page
