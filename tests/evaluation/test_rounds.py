"""Rounds in the report, from figures that are written by hand."""

import json
from pathlib import Path
from typing import Any

from rlhf_lightning.evaluation.plots import Legend
from rlhf_lightning.evaluation.report import ReportedStage, write_report
from rlhf_lightning.evaluation.round_parts import newest, round_section, rounds_in

LEGEND = Legend({"ppo": "PPO", "sft": "SFT"}, {"ppo": "#e0743a"})


def interval(value: float, spread: float = 0.1) -> dict[str, float]:
    return {"value": value, "low": round(value - spread, 6), "high": round(value + spread, 6)}


def finish(folder: Path, metrics: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    record = {"status": "complete", "identity": {"config": {}, "parents": {"sft": "s"}}, "metrics": metrics}
    (folder / "stage.json").write_text(json.dumps(record), encoding="utf-8")


def evaluation(win_rate: float, agreement: float) -> dict[str, Any]:
    sft = {"score": interval(0.5), "win_rate": interval(0.5), "kl": 0.0, "intervals": {}}
    ppo = {"score": interval(0.7), "win_rate": interval(win_rate), "kl": 3.0, "intervals": {"kl": [2.0, 4.0]}}
    counts = {"agreement": interval(0.5), "kappa": interval(0.2), "pairs": 40, "decided_pairs": 30}
    judges = [
        {"judges": ["judge", who], "decided": interval(share), **counts}
        for who, share in (("me", 0.9), ("reward", agreement))
    ]
    return {
        "policies": {"sft": sft, "ppo": ppo, "ppo_ptx": ppo},
        "baseline": "sft",
        "prompts": 300,
        "judge": {"name": "truth", "trained_policies": False},
        "judge_agreement": judges,
    }


def run_of_rounds(folder: Path) -> Path:
    run = folder / "mine"
    for place, rate, accuracy in ((run, 0.6, 0.65), (run / "round-2", 0.75, 0.7), (run / "round-10", 0.8, 0.72)):
        finish(place / "evaluate", evaluation(rate, 0.66))
        finish(place / "reward", {"validation": {"all": {"accuracy": interval(accuracy), "prompts": 9, "pairs": 99}}})
        finish(place / "ppo", {})
    (run / "round-11" / "collect").mkdir(parents=True)  # has just begun
    return run


def records(run: Path) -> dict[str, Any]:
    return {path.parent.name: json.loads(path.read_text()) for path in run.glob("*/stage.json")}


def test_each_round_has_the_policies_that_it_made(tmp_path: Path) -> None:
    run = run_of_rounds(tmp_path)
    rounds = rounds_in(run, records(run))
    assert list(rounds) == [1, 2, 10]
    assert newest(rounds[2]) == "ppo"
    section = round_section(rounds, LEGEND)
    assert section is not None
    policies, reward = section.parts
    # SFT is the same in all rounds, and no round made ppo_ptx.
    assert [row[:2] for row in policies.rows] == [["1", "PPO"], ["2", "PPO"], ["10", "PPO"]]
    assert policies.rows[1][2:] == [
        {"value": "0.700", "interval": "0.600 .. 0.800"},
        {"value": "75.0", "interval": "65.0 .. 85.0"},
        {"value": "3.00", "interval": "2.00 .. 4.00"},
        "300",
    ]
    assert reward.rows[2] == [
        "10",
        {"value": "72.0", "interval": "62.0 .. 82.0"},
        {"value": "66.0", "interval": "56.0 .. 76.0"},
        "9",
        "99",
    ]
    assert [title for title, _ in policies.figures] == ["Score", "Win rate", "KL"]
    assert "PPO last 80.0 (70.0 .. 90.0)" in policies.figures[1][1]
    assert "other model" not in section.note


def test_the_page_begins_with_the_last_round(tmp_path: Path) -> None:
    run = run_of_rounds(tmp_path)
    stages = [ReportedStage(name, run / name) for name in ("reward", "ppo", "evaluate")]
    page = write_report(run, stages, LEGEND).read_text(encoding="utf-8")
    assert (
        "<h1>Round 10: PPO wins 80.0 % (70.0 .. 90.0) of 300 held-out prompts against SFT, by the judge.</h1>" in page
    )


def test_a_run_of_one_round_and_another_baseline(tmp_path: Path) -> None:
    run = run_of_rounds(tmp_path)
    path = run / "round-2" / "evaluate" / "stage.json"
    path.write_text(path.read_text().replace('"sft": "s"', '"sft": "t"'), encoding="utf-8")
    section = round_section(rounds_in(run, records(run)), LEGEND)
    assert section is not None
    assert "The baseline is another model in some rounds" in section.note
    (run / "round-2" / "evaluate" / "stage.json").write_text("{", encoding="utf-8")
    assert list(rounds_in(run, records(run))) == [1, 10]
    assert rounds_in(run / "round-2", {}) == {}
    assert round_section({}, LEGEND) is None
