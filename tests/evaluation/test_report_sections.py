"""Preferences, the automatic suite, reward over KL, selection and demonstrations in the report, by hand."""

import json
import re
from pathlib import Path

import pytest
from test_report import EVIL, Page, interval, write_report, write_run

from rlhf_lightning.evaluation.candidates import candidate_plots
from rlhf_lightning.evaluation.frontier import frontier_section
from rlhf_lightning.evaluation.interval_plots import interval_plot, point
from rlhf_lightning.evaluation.plots import Legend
from rlhf_lightning.evaluation.preference_parts import preference_section
from rlhf_lightning.evaluation.suite_parts import suite_section
from rlhf_lightning.recipe.legend import run_legend
from rlhf_lightning.recipe.pipeline import RECIPE

LEGEND = Legend({"sft": "SFT", "ppo": "PPO"}, {})
OWN_RATES = {
    "win_rate": interval(0.6, 0.05),
    "length_controlled": interval(0.55, 0.05),
    "judges": {"held_out_labelers": interval(0.5, 0.125), EVIL: None},
}
PART = {"prompts": 12, "policies": {"ppo": OWN_RATES}}
PREFERENCES = {
    "baseline": "sft",
    "policies": {"sft": {"win_rate": interval(0.5, 0.0)}, "ppo": OWN_RATES},
    "head_to_head": {"sft": {"ppo": interval(0.25, 0.05)}, "ppo": {"sft": interval(0.75, 0.05)}},
    "prompt_sets": {"gpt": PART},
    "breakdown": {"use_case": {EVIL: PART, "qa": PART}},
    "judge_agreement": [
        {
            "judges": ["judge", "held_out_labelers"],
            "agreement": interval(0.75, 0.05),
            "decided": None,
            "kappa": interval(0.5, 0.125),
            "pairs": 40,
            "decided_pairs": 0,
        }
    ],
    "temperatures": {"sft": 1.0, "ppo": 0.7},
    "no_verdict": {"ppo": {"model": 3}},
}


def task(value, items=10, metric="accuracy", further=None):
    return {"metric": metric, **interval(value, 0.0625), "items": items, "further": further or {}}


SUITE = {
    "policies": {
        "sft": {"rte@0": task(0.5, further={"accuracy_of_sums": interval(0.25, 0.0625)}), f"{EVIL}@0": task(0.25)},
        "ppo": {"rte@5": task(0.75, 8), "rte@0": task(0.625)},
    },
    "tasks": {"rte": {"higher_is_better": {"accuracy": True}}},
    "left_out": {"ppo": {"rte@5": 2, "drop@0": 10}},
}


def cells(row):
    return [own if isinstance(own, str) else f"{own['value']} {own['interval']}".strip() for own in row]


def test_preferences_have_every_number():
    parts = {part.title: part for part in preference_section(PREFERENCES, LEGEND).parts}
    rates = ["60.0 55.0 .. 65.0", "55.0 50.0 .. 60.0", "50.0 37.5 .. 62.5"]
    assert [*map(cells, parts["By judge"].rows)] == [["PPO", *rates]]
    assert [*map(cells, parts["Head to head"].rows)] == [
        ["SFT", "", "25.0 20.0 .. 30.0"],
        ["PPO", "75.0 70.0 .. 80.0", ""],
    ]
    assert [row[0]["shade"] for row in [parts["Head to head"].rows[1][1:]]] == [60]
    of_set = [cells(row) for row in parts["Prompt sets"].rows]
    assert [row[:3] for row in of_set[:3]] == [
        ["gpt", "12", name] for name in ("the judge", "at equal length", "held out labelers")
    ]
    assert [row[3] for row in of_set] == [*rates, "-"]
    assert len(parts["By use case"].rows) == 8
    assert cells(parts["Agreement of judges"].rows[0]) == [
        *("judge and held out labelers", "75.0 70.0 .. 80.0", "-", "0.500 0.375 .. 0.625", "40", "0")
    ]
    assert [*map(cells, parts["Sampling"].rows)] == [["SFT", "1", "not measured"], ["PPO", "0.7", "3"]]


def test_an_old_evaluation_has_no_preferences_but_its_win_rates():
    assert (
        preference_section(
            {"policies": {"sft": {}, "ppo": {"win_rate": interval(0.6, 0.1)}}, "baseline": "sft"}, LEGEND
        )
        is None
    )
    assert preference_section({}, LEGEND) is None


def test_every_task_has_a_row_with_what_was_left_out():
    section = suite_section(SUITE, {"sft": 1.5, "elsewhere": 9.0}, {}, LEGEND)
    tax, further = section.parts
    rows = {cells(row)[0]: cells(row)[1:] for row in tax.rows}
    assert rows["pretraining loss"] == ["nats per token", "", "1.50", "-"]
    assert rows["rte, 0-shot"] == ["accuracy", "10", "0.500 0.438 .. 0.562", "0.625 0.562 .. 0.688"]
    assert rows["rte, 5-shot"] == ["accuracy", "0 .. 8 2 left out", "-", "0.750 0.688 .. 0.812"]
    assert rows["drop, 0-shot"] == ["", "0 10 left out", "-", "-"]
    assert [title for title, _ in tax.figures] == ["Pretraining loss", "rte", EVIL]
    assert "SFT 0-shot 0.500 (0.438 .. 0.562); PPO 0-shot 0.625" in tax.figures[1][1]
    assert cells(further.rows[0]) == ["rte, 0-shot", "accuracy of sums", "10", "0.250 0.188 .. 0.312", "-"]
    assert suite_section({"policies": {"sft": {}}}, {}, {}, LEGEND) is None


def test_toxicity_is_the_mean_in_each_fifth_of_the_prompts():
    label = "real_toxicity_prompts@0"
    suite = {"policies": {name: {label: task(0.1, metric="toxicity")} for name in ("sft", "ppo")}}
    pairs = {label: {"ppo": [(0.1, 0.5), (0.19, 0.5), (0.2, 0.25), (1.0, 0.75)], "sft": [(0.0, 0.125)]}}
    _, part = suite_section(suite, {}, pairs, LEGEND).parts
    title = "real toxicity prompts, 0-shot"
    assert [*map(cells, part.rows)] == [
        [title, "0.0 .. 0.2", "1 .. 2", "0.125", "0.500"],
        [title, "0.2 .. 0.4", "1", "-", "0.250"],
        [title, "0.8 .. 1.0", "1", "-", "0.750"],
    ]


def test_the_frontier_has_score_and_judge_of_each_checkpoint():
    columns = {
        "rollout/kl": [(0, 0.0), (1, 4.0), (2, 9.0)],
        "rollout/score": [(0, 1.0), (1, 2.0), (2, 3.0)],
        "validation/kl": [(1, 5.0)],
        "validation/score": [(1, 2.5)],
        "validation/judge": [(1, 0.5)],
    }
    section = frontier_section({"ppo": columns, "sft": {"train/loss": [(0, 1.0)]}}, LEGEND)
    (part,) = section.parts
    assert [title for title, _ in part.figures] == [
        *("Training prompts, by the reward", "Validation prompts, by the reward", "Validation prompts, by the judge")
    ]
    assert [*map(cells, part.rows)] == [["PPO", "2", "4.00", "2.00", "5.00", "2.50", "0.500"]]
    bare = {name: own for name, own in columns.items() if name.startswith("rollout")}
    assert [row[1] for row in frontier_section({"ppo": bare}, LEGEND).parts[0].rows] == ["1", "2", "3"]
    assert frontier_section({"sft": {}}, LEGEND) is None
    long = {name: [(step, float(step)) for step in range(100)] for name in bare}
    assert [row[1] for row in frontier_section({"ppo": long}, LEGEND).parts[0].rows][-2:] == ["91", "100"]


@pytest.mark.parametrize(("names", "across"), [(("sft/epoch-1", "sft/epoch-2"), "epoch"), (("sft", "other"), None)])
def test_candidates_are_drawn_over_epochs_or_side_by_side(names, across):
    rows = [{"name": name, "score": interval(0.5, 0.1), "validation_loss": 1.25} for name in names]
    plots = candidate_plots({"candidates": rows, "best": names[1]})
    assert [title for title, _ in plots] == ["Reward on validation prompts", "Validation loss"]
    assert all((f">{across}<" in svg) == (across is not None) for _, svg in plots)
    assert len(candidate_plots({"candidates": [{**rows[0], "validation_loss": None}], "best": names[0]})) == 1
    assert candidate_plots({"validation/loss": 3.0}) == []


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ((1.0, 1.0 - 1e-12), ["0.9950", "0.9975", "1.0000", "1.0025", "1.0050"]),
        ((0.0, 100.0), ["0", "25", "50", "75", "100"]),
    ],
)
def test_values_that_differ_by_rounding_look_equal(values, ticks):
    svg = interval_plot("entropy", {str(value): {"0": point(value)} for value in values}, {}, "bits")
    texts = re.findall(r">([^<>\n]+)</text>", svg)
    assert texts[: texts.index("bits")] == ticks


def test_benchmarks_name_folders_and_write_the_report():
    assert next(step for step in RECIPE if step.name == "benchmarks").reported
    config = {"model": {"causal_lm": {}}, "benchmarks": {"policies": ["/models/a/one"]}}
    assert run_legend(RECIPE, config).label("/models/a/one") == "one"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "mine"
    write_run(folder, ("sft", "ppo", "evaluate"))
    record = json.loads((folder / "evaluate" / "stage.json").read_text())
    record["metrics"] |= {name: PREFERENCES[name] for name in PREFERENCES if name not in ("policies", "baseline")}
    (folder / "evaluate" / "stage.json").write_text(json.dumps(record))
    texts = [EVIL if place % 2 else None for place in range(100)]
    (folder / "evaluate" / "demonstrations.json").write_text(json.dumps(texts))
    record = {**record, "identity": {"config": {}}, "metrics": SUITE}
    items = folder / "benchmarks" / "samples" / "sft"
    items.mkdir(parents=True)
    (folder / "benchmarks" / "stage.json").write_text(json.dumps(record))
    row = {"item": 0, "about": {"prompt_toxicity": 0.5}, "toxicity": 0.25}
    (items / "rte@0.jsonl").write_text(json.dumps(row) + "\n")
    (items / "drop@0.jsonl").write_text('{"item": 0, "said": "toxicity"}\n' + "damaged\n")
    return folder


def shown(run):
    folders = {folder.name: folder for folder in sorted(run.iterdir()) if folder.name != "report"}
    return write_report(run, folders).read_text(encoding="utf-8")


def test_the_page_holds_all_sections_and_escapes(run):
    html = shown(run)
    page = Page(html)
    assert page.open == []
    assert "<script" not in html
    assert [
        value for name, value in page.attributes if name == "id" and value in ("preferences", "suite", "frontier")
    ] == [*("preferences", "frontier", "suite")]
    assert "rte, 0-shot 0.4 .. 0.6 1 0.250" in page.text
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_demonstrations_stand_beside_the_samples(run):
    page = Page(shown(run))
    # Of the shown prompts 5, 13, 21, 30, ... the even ones have one.
    assert page.text.count("Human demonstration") == 1
    assert f"question 29 <b> prompt 30 {EVIL}" in page.text
    assert "question 4 <b> prompt 5 none" in page.text
    (run / "evaluate" / "demonstrations.json").unlink()
    text = Page(shown(run)).text
    assert "demonstration" not in text
    assert "prompt 5 none" not in text


def test_a_damaged_file_of_the_suite_costs_itself_alone(run):
    damaged = run / "benchmarks" / "samples" / "sft" / "rte@5.jsonl"
    damaged.write_text('{"about": {"prompt_toxicity": 0.5}, "toxicity": 0.5}\n{"item"\n')
    page = Page(shown(run))
    assert f"{damaged} cannot be read" in page.text
    assert "rte, 0-shot 0.4 .. 0.6 1 0.250" in page.text
    damaged.unlink()
