"""The report of a run: ``results.json`` for programs and one page for people, which needs nothing from outside."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from rlhf_lightning.evaluation.candidates import candidate_plots, candidate_rows
from rlhf_lightning.evaluation.collected import collected_section
from rlhf_lightning.evaluation.frontier import frontier_section
from rlhf_lightning.evaluation.intervals import Interval
from rlhf_lightning.evaluation.plots import MOST_POINTS, Curve, Legend, curve_plot, number, score_chart, win_rate_chart
from rlhf_lightning.evaluation.preference_parts import preference_section
from rlhf_lightning.evaluation.report_parts import Section
from rlhf_lightning.evaluation.round_parts import Round, newest, round_section, rounds_in
from rlhf_lightning.evaluation.step_files import StepFiles
from rlhf_lightning.evaluation.suite_parts import suite_section
from rlhf_lightning.evaluation.tables import (
    BY_JUDGES,
    COLUMNS,
    EVALUATE,
    JUDGE,
    MEASURES,
    REWARD,
    TRAINED,
    accuracy_rows,
    judge_of,
    judge_sentence,
    measure_table,
    measured,
    policy_table,
    split_tables,
)
from rlhf_lightning.runs.files import replacing, write_json
from rlhf_lightning.runs.rounds import run_name
from rlhf_lightning.runs.trash import trash_sentence

FEW_PROMPTS = 100
"""Below this the percentile bootstrap is too narrow to be believed without a warning."""


class ReportedStage(NamedTuple):
    """A finished step, as the report shows it."""

    name: str
    folder: Path
    curves: Sequence[Curve] = ()
    """What is drawn from its metrics.csv."""
    unit: str = "batch"
    """What a row of its metrics.csv stands for."""
    measured_on_rankings: bool = False
    """Whether its metrics have a table of accuracies for each split."""


def write_report(run_folder: Path, stages: Sequence[ReportedStage], legend: Legend) -> Path:
    """Write ``report/results.json`` and ``report/index.html``; returns the path of the page.

    The same artifacts give the same bytes. What a step did not record is left out; a sentence stands for a file that
    cannot be read.

    Args:
        run_folder: The run's folder; the report goes below it.
        stages: The finished steps, in the order of the recipe.
        legend: Names and colours of steps and policies.
    """
    files = {stage.name: StepFiles(stage.folder) for stage in stages}
    records = {name: own.record for name, own in files.items()}
    folders = {stage.name: stage.folder for stage in stages}
    target = run_folder / "report"
    target.mkdir(parents=True, exist_ok=True)
    rounds, evaluation = rounds_in(run_folder, records), records.get(EVALUATE, {})
    results = _results(records, rounds)
    judge = results[JUDGE]
    write_json(target / "results.json", results)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    as_json = partial(json.dumps, indent=2, ensure_ascii=False)
    environment.filters.update(label=legend.label, colour=legend.colour, number=number, setting=_setting)
    environment.filters.update(lookup=_lookup, as_json=as_json)
    reference = _config(evaluation, EVALUATE).get("reference", "the reference")
    page = environment.get_template("report.html").render(
        run=run_name(run_folder),
        results=results,
        sentences=_sentences(results, rounds, legend),
        few=isinstance(results["prompts"], int) and results["prompts"] < FEW_PROMPTS,
        judge=judge_sentence(judge) if judge else "",
        independent=not (judge and judge[TRAINED]),
        policies=policy_table(results),
        measures=[table for key in MEASURES if key != BY_JUDGES and (table := measure_table(results, key))],
        reference=reference,
        charts=_charts(results, reference, legend),
        sections=[*filter(None, [round_section(rounds, legend)]), *_sections(files, legend)],
        samples=files[EVALUATE].samples if EVALUATE in files else None,
        stages=[_stage(stage, files[stage.name], legend) for stage in stages],
        accuracy={stage.name: accuracy_rows(records[stage.name]) for stage in stages if stage.measured_on_rankings},
        time=_time(run_folder, folders, records),
        trash=trash_sentence(run_folder, folders),
    )
    with replacing(target / "index.html", errors="replace") as file:
        file.write(page)
    return target / "index.html"


def _results(records: dict[str, Any], rounds: Mapping[int, Any]) -> dict[str, Any]:
    """What the page is about, as `results.json` has it."""
    evaluation = records.get(EVALUATE, {})
    last: dict[str, Any] = evaluation or next(reversed(records.values()), {})
    judge = evaluation and judge_of(
        evaluation["metrics"], _config(evaluation, EVALUATE), evaluation["identity"].get("parents", {})
    )
    results: dict[str, Any] = {
        "policies": evaluation.get("metrics", {}).get("policies", {}),
        REWARD: split_tables(records.get(REWARD, {})),
        "seconds": {stage: record["seconds"] for stage, record in records.items() if "seconds" in record},
        "baseline": evaluation.get("metrics", {}).get("baseline"),
        "prompts": evaluation.get("metrics", {}).get("prompts"),
        JUDGE: judge,
        "seed": last.get("seed"),
        "versions": last.get("versions", {}),
        "git_commit": last.get("git_commit"),
    }
    if rounds:
        results["rounds"] = {str(number): each.evaluation for number, each in rounds.items()}
    return results


def headline(results: Mapping[str, Any], legend: Legend) -> list[str]:
    """The outcome in sentences, the last policy first; a claim is made only where its interval allows it.

    Args:
        results: The content of results.json.
        legend: Names of the policies.
    """
    policies, baseline = results["policies"], results["baseline"]
    rates = {name: rate for name, own in policies.items() if (rate := measured(own, "win_rate")) and name != baseline}
    if not rates:
        return ["This run has no evaluation against a baseline; below is what its stages left behind."]
    against = legend.label(baseline)
    trained = (results.get(JUDGE) or {}).get(TRAINED)
    judge = "what trained or chose the policies" if trained else "the judge"
    return [_sentence(legend.label(name), rates[name], against, results["prompts"], judge) for name in reversed(rates)]


def _sentences(results: Mapping[str, Any], rounds: Mapping[int, Round], legend: Legend) -> list[str]:
    """Those of the run; of several rounds what came of the last one's newest policy, before those of the first."""
    found = headline(results, legend)
    if not rounds:
        return found
    last, name = rounds[max(rounds)].evaluation, newest(rounds[max(rounds)])
    chosen = {name: last["policies"][name]} if name else {}
    of_last = headline({**last, "policies": chosen}, legend) if chosen else []
    return [f"Round {number}: {text}" for number, texts in ((max(rounds), of_last), (1, found)) for text in texts]


def _sentence(policy: str, rate: Interval, baseline: str, prompts: int, judge: str) -> str:
    percent = f"{100 * rate['value']:.1f} % ({100 * rate['low']:.1f} .. {100 * rate['high']:.1f})"
    if rate["low"] > 0.5:
        return f"{policy} wins {percent} of {prompts} held-out prompts against {baseline}, by {judge}."
    if rate["high"] < 0.5:
        return f"{policy} loses to {baseline}: it wins only {percent} of {prompts} held-out prompts, by {judge}."
    return (
        f"No difference is shown between {policy} and {baseline}: {policy} wins {percent} of {prompts} held-out "
        f"prompts, by {judge}, and the interval contains 50 %."
    )


def _charts(results: Mapping[str, Any], reference: str, legend: Legend) -> list[dict[str, Any]]:
    policies, baseline = results["policies"], results["baseline"]
    measures = {key: {n: m for n, own in policies.items() if (m := measured(own, key))} for key, *_ in COLUMNS}
    rates = {name: rate for name, rate in measures["win_rate"].items() if name != baseline}
    scores = {name: score for name, score in measures["score"].items() if name in measures["kl"]}
    charts = []
    if rates:
        caption = "Win rate by the judge; lines are 95 % intervals over prompts, dashed is 50 %."
        charts.append({"svg": win_rate_chart(rates, baseline, legend), "caption": caption})
    if scores:
        caption = "What the judge gives for the distance from the reference; lines are 95 % intervals over prompts."
        charts.append({"svg": score_chart(scores, measures["kl"], reference, legend), "caption": caption})
    return charts


def _sections(files: Mapping[str, StepFiles], legend: Legend) -> list[Section]:
    """Those that the finished steps left something for."""
    metrics = {name: own.record.get("metrics", {}) for name, own in files.items()}
    policies = metrics.get(EVALUATE, {}).get("policies", {})
    losses = {name: own["pretrain_loss"] for name, own in policies.items() if own.get("pretrain_loss") is not None}
    found = [
        collected_section(metrics, legend),
        preference_section(metrics.get(EVALUATE, {}), legend),
        frontier_section({name: own.columns for name, own in files.items()}, legend),
        *(
            suite_section(metrics[name], losses, own.toxicities, legend)
            for name, own in files.items()
            if {"policies", "tasks"} <= metrics[name].keys()
        ),
    ]
    return [section for section in found if section is not None]


def _stage(stage: ReportedStage, files: StepFiles, legend: Legend) -> dict[str, Any]:
    """What the page says about one step."""
    columns, record = files.columns, files.record
    config = _config(record, stage.name)
    metrics = record.get("metrics", {})
    plots = []
    for curve in stage.curves:
        svg = curve_plot(stage.name, stage.unit, curve, columns, legend)
        if svg is not None:
            plots.append({"svg": svg, "title": curve.title})
    plots += [{"svg": svg, "title": title} for title, svg in candidate_plots(metrics)]
    left_out = dict(files.dropped)
    for split, part in metrics.items():
        if isinstance(part, Mapping) and isinstance(part.get("dropped"), Mapping):
            left_out |= {f"{split}: {reason}": count for reason, count in part["dropped"].items()}
    return {
        "name": stage.name,
        "seconds": record.get("seconds"),
        "config": config,
        "left_out": left_out,
        "cut": files.cut,
        "damaged": files.damaged,
        "warnings": files.warnings,
        "plots": plots,
        "thinned": max((len(series) for series in columns.values()), default=0) > MOST_POINTS,
        "final": [(name, value) for name, value in metrics.items() if isinstance(value, int | float)],
        "candidates": candidate_rows(metrics),
        "episodes": files.episodes,
    }


def _time(run_folder: Path, stages: Mapping[str, Path], records: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    seconds = {stage: float(record.get("seconds") or 0.0) for stage, record in records.items()}
    total = sum(seconds.values())
    rows = [
        {
            "name": stage,
            "run": stages[stage].parent.name,
            "seconds": seconds[stage],
            "share": 100 * seconds[stage] / total if total else 0.0,
            "flops": (record.get("metrics") or {}).get("time/total_flops"),
            "seed": record.get("seed", "-"),
            "commit": (record.get("git_commit") or "-")[:9],
            "fingerprint": record.get("fingerprint", "-"),
        }
        for stage, record in records.items()
    ]
    versions = {json.dumps(record.get("versions"), sort_keys=True) for record in records.values()}
    upstream = any(folder.parent != run_folder for folder in stages.values())
    return {"rows": rows, "total": total, "same_versions": len(versions) <= 1, "upstream": upstream}


def _config(record: Mapping[str, Any], stage: str) -> Mapping[str, Any]:
    config: Mapping[str, Any] = record.get("identity", {}).get("config", {}).get(stage, {})
    return config


def _lookup(config: Any, path: str) -> Any:
    for key in path.split("."):
        config = config.get(key) if isinstance(config, Mapping) else None
    return config


def _setting(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value))
    return f"{value:g}".replace("e-0", "e-") if isinstance(value, float) else str(value)
