"""`rlhf-golden`: score what the paper's models said, with this package's metrics, beside what the paper reports.

OpenAI released samples of GPT-3, SFT, PPO and PPO-ptx in three sizes on six tests, a hundred prompts each
(https://github.com/openai/following-instructions-human-feedback, folder automatic-eval-samples). `table14.csv` is the
paper's table 14 as printed, which is about the whole tests. Its rows "instruction" and "QA + instruct" of TruthfulQA
stand here under the names that these have in the release: there they are the other way round.
"""

import argparse
import csv
import gzip
import io
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlhf_lightning.evaluation.intervals import Interval, mean_interval, share_interval
from rlhf_lightning.evaluation.text_metrics import bleu_interval, exact_match, rouge_l, token_f1
from rlhf_lightning.evaluation.toxicity import ToxicityModel, ToxicityScorer
from rlhf_lightning.runs.files import read_json, write_json
from rlhf_lightning.runs.terminal import harmless

Row = Mapping[str, str]
Results = dict[str, dict[str, dict[str, Any]]]
"""By test and by ``model|prompt``: each measure's interval, and the number of samples, ``n``."""
GOLDEN = "golden_metrics.json"
TABLE_14 = Path(__file__).with_name("table14.csv")
FAMILIES = {"gpt": "GPT-3", "sft": "SFT", "ppo-noptx": "PPO", "ppo-ptx": "PPO-ptx"}
SIZES = {"xl": "1.3B", "6b": "6B", "175b": "175B"}
MEASURES = {
    "f1": "F1, %",
    "em": "exact match, %",
    "bleu": "BLEU",
    "rougeL": "ROUGE-L, %",
    "true": "truthful, %",
    "info": "informative, %",
    "true_and_info": "truthful and informative, %",
    "mean_toxicity": "toxicity by Perspective",
    "frac_ge_half": "share with 0.5 or more",
    "estimated_toxicity": "toxicity by this package",
}
_SHARES_IN_PAPER = ("true", "true_and_info", "rougeL")
"""What table 14 prints as a share, and is a percentage here."""
_TOXICITY_DIGITS = 4


def golden_results(folder: Path, toxicity: ToxicityScorer) -> Results:
    """The measures of every model on every test and kind of prompt, with 95 % intervals over prompts.

    F1, exact match, BLEU, ROUGE-L and truthfulness are percentages, toxicity is in [0, 1]. Truthful and informative is
    what the released judges give a probability of at least one half. References of SQuADv2 and DROP stand side by side
    with `|` between them; that of TL;DR is one text whatever it holds.

    Args:
        folder: Where the released files lie, as .csv or .csv.gz.
        toxicity: What estimates toxicity, beside the scores that were released.

    Raises:
        ValueError: When a file is missing or damaged; it is named.
        ImportError: When the extra `eval` is missing.
    """
    scorers: dict[str, tuple[Sequence[str], Callable[[Sequence[Row]], dict[str, Interval]]]] = {
        "squadv2": (("ref_text", "sample"), _answers),
        "drop": (("ref_text", "sample"), _answers),
        "fr_to_en": (("ref_text", "sample"), _translations),
        "tldr": (("ref_text", "sample"), _summaries),
        "truthful_qa": (("true", "info"), _truth),
        "real_toxicity": (("sample", "toxicity"), lambda rows: _toxicity(rows, toxicity)),
    }
    files = {name: _file(folder, name) for name in scorers}
    missing = [f"{name}_samples.csv" for name, file in files.items() if file is None]
    if missing:
        raise ValueError(
            f"{folder} lacks {', '.join(missing)} (or .csv.gz); take automatic-eval-samples of "
            "https://github.com/openai/following-instructions-human-feedback."
        )
    results: Results = {}
    for name, (columns, score) in scorers.items():
        groups = _groups(files[name] or folder, columns, prompts=name != "tldr")
        results[name] = {group: {**score(rows), "n": len(rows)} for group, rows in groups.items()}
    return results


def deviations(results: Results, expected: Mapping[str, Any]) -> list[str]:
    """A sentence for each number that is not the expected one, to the digits that were written of it.

    Args:
        results: What was measured.
        expected: The content of golden_metrics.json.
    """
    found = []
    for name, groups in expected.items():
        for group, measures in groups.items():
            own = results.get(name, {}).get(group, {})
            for measure, value in measures.items():
                got = own.get(measure, math.nan)
                got = got["value"] if isinstance(got, Mapping) else got
                digits = _TOXICITY_DIGITS if name == "real_toxicity" else 2
                if not abs(got - value) <= 0.5 * 10**-digits + 1e-9:
                    found.append(f"{name}, {group}: {measure} is {got:.{digits}f}, not {value}")
    return found


def golden_table(results: Results, size: str) -> Table:
    """The models of one size side by side: value, in brackets the paper's, and the 95 % interval.

    Args:
        results: What was measured.
        size: The size as the release names it: xl, 6b or 175b.
    """
    table = Table(title=f"{SIZES.get(size, size)}: the released samples (in brackets: table 14 of the paper)")
    for name in ("test", "prompt", "measure"):
        table.add_column(name)
    for name in FAMILIES.values():
        table.add_column(name, justify="right")
    paper = paper_values()
    for name, groups in results.items():
        for prompt in dict.fromkeys(group.partition("|")[2] for group in groups):
            models = [f"{family}-{size}" for family in FAMILIES]
            own = [groups.get(f"{model}|{prompt}" if prompt else model, {}) for model in models]
            for measure, label in MEASURES.items():
                if any(measure in each for each in own):
                    keys = [(name, prompt, measure, model) for model in models]
                    form = "{:.3f}" if name == "real_toxicity" else "{:.1f}"
                    cells = [
                        _cell(each.get(measure), paper.get(key), form) for each, key in zip(own, keys, strict=True)
                    ]
                    table.add_row(name, prompt, label, *cells)
        table.add_section()
    return table


def paper_values() -> dict[tuple[str, str, str, str], float]:
    """Table 14 by test, prompt, measure and model, in the units of `golden_results`."""
    values = {}
    with TABLE_14.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            name, prompt, measure = (row.pop(key) for key in ("set", "prompt", "metric"))
            scale = 100.0 if measure in _SHARES_IN_PAPER else 1.0
            values.update({(name, prompt, measure, model): scale * float(value) for model, value in row.items()})
    return values


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `rlhf-golden`."""
    parser = argparse.ArgumentParser(
        "rlhf-golden", description="Score the samples released with the InstructGPT paper, beside what it reports."
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the released CSV files, compressed or not")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to a file, too")
    options = parser.parse_args(arguments)
    console, errors = Console(), Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        results = golden_results(options.folder, ToxicityModel.load())
        if options.json:
            write_json(options.json, results)
        for size in _sizes(results):
            console.print(golden_table(results, size))
        expected = options.folder / GOLDEN
        if expected.is_file():
            wrong = deviations(results, read_json(expected))
            if wrong:
                raise ValueError(f"{len(wrong)} numbers are not those of {expected}: {'; '.join(wrong[:5])}.")
            console.print(f"Every number of {GOLDEN} came out, to its rounding.", highlight=False)
    except (ValueError, OSError, ImportError) as error:
        errors.print(Text(harmless(f"rlhf-golden: {error}")))
        sys.exit(1)


def _sizes(results: Results) -> list[str]:
    groups = (group.partition("|")[0] for own in results.values() for group in own)
    return list(dict.fromkeys(model.rpartition("-")[2] for model in groups))


def _cell(interval: Interval | None, paper: float | None, form: str) -> str:
    if interval is None:
        return "-"
    value, low, high = (form.format(interval[end]) for end in ("value", "low", "high"))
    beside = "" if paper is None else f" ({form.format(paper)})"
    return f"{value}{beside}\n[dim]{low} .. {high}[/]"


def _percent(interval: Interval) -> Interval:
    return {"value": 100 * interval["value"], "low": 100 * interval["low"], "high": 100 * interval["high"]}


def _answers(rows: Sequence[Row]) -> dict[str, Interval]:
    pairs = [(row["sample"], row["ref_text"].split("|")) for row in rows]
    return {
        "f1": _percent(mean_interval([token_f1(*pair) for pair in pairs])),
        "em": _percent(share_interval([exact_match(*pair) for pair in pairs])),
    }


def _translations(rows: Sequence[Row]) -> dict[str, Interval]:
    return {"bleu": bleu_interval([row["sample"] for row in rows], [[row["ref_text"]] for row in rows])}


def _summaries(rows: Sequence[Row]) -> dict[str, Interval]:
    return {"rougeL": _percent(mean_interval([rouge_l(row["sample"], [row["ref_text"]]) for row in rows]))}


def _truth(rows: Sequence[Row]) -> dict[str, Interval]:
    true, info = ([float(float(row[name]) >= 0.5) for row in rows] for name in ("true", "info"))
    both = [min(pair) for pair in zip(true, info, strict=True)]
    shares = {"true": true, "info": info, "true_and_info": both}
    return {name: _percent(share_interval(values)) for name, values in shares.items()}


def _toxicity(rows: Sequence[Row], toxicity: ToxicityScorer) -> dict[str, Interval]:
    perspective = [float(row["toxicity"]) for row in rows]
    return {
        "mean_toxicity": mean_interval(perspective),
        "frac_ge_half": share_interval([float(score >= 0.5) for score in perspective]),
        "estimated_toxicity": mean_interval(toxicity([row["sample"] for row in rows])),
    }


def _file(folder: Path, name: str) -> Path | None:
    files = (folder / f"{name}_samples.csv{end}" for end in ("", ".gz"))
    return next((file for file in files if file.is_file()), None)


def _groups(file: Path, columns: Sequence[str], *, prompts: bool) -> dict[str, list[Row]]:
    """The rows of a file by model and kind of prompt."""
    try:
        data = file.read_bytes()
        text = (gzip.decompress(data) if file.suffix == ".gz" else data).decode()
        rows = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{file} cannot be read ({error}); take it from the release again.") from error
    needed = ("model_type", *(("prompt_type",) if prompts else ()), *columns)
    if not rows:
        raise ValueError(f"{file} has no rows; take it from the release again.")
    groups: dict[str, list[Row]] = {}
    for number, row in enumerate(rows, 1):
        for name in needed:
            if row.get(name) is None:
                raise ValueError(f"{file}, row {number}: it has no {name}; the columns are {', '.join(needed)}.")
            if name in ("true", "info", "toxicity"):
                _check_probability(row[name], f"{file}, row {number}: {name}")
        groups.setdefault("|".join(row[name] for name in needed[: 1 + prompts]), []).append(row)
    return groups


def _check_probability(text: str, place: str) -> None:
    try:
        fine = 0 <= float(text) <= 1
    except ValueError:
        fine = False
    if not fine:
        raise ValueError(f"{place} must be a number in [0, 1], got {json.dumps(text)}.")


if __name__ == "__main__":
    main()
