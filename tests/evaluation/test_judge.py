"""The report and the closing table say who judged, and that a judge which trained the policies is not independent."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rlhf_lightning.evaluation.report import ReportedStage, write_report
from rlhf_lightning.evaluation.tables import closing_table
from rlhf_lightning.recipe.legend import legend_of
from rlhf_lightning.recipe.pipeline import RECIPE

LEGEND = legend_of(RECIPE, "SmolLM2")


def policy(win_rate: float) -> dict[str, Any]:
    rate = {"value": win_rate, "low": win_rate - 0.1, "high": win_rate + 0.1}
    own = {"score": rate, "win_rate": rate, "reward": None, "kl": 1.0, "length": 4.0, "pretrain_loss": None}
    return {**own, "intervals": {}}


METRICS = {"policies": {"base": policy(0.3), "sft": policy(0.5), "ppo": policy(0.8)}, "baseline": "sft", "prompts": 200}


def page(folder: Path, config: dict[str, Any], parents: dict[str, str], judge: dict[str, Any] | None = None) -> str:
    stage = folder / "evaluate"
    stage.mkdir(parents=True)
    metrics = METRICS if judge is None else {**METRICS, "judge": judge}
    identity = {"config": {"evaluate": {"reference": "sft", **config}}, "parents": parents}
    (stage / "stage.json").write_text(json.dumps({"status": "complete", "metrics": metrics, "identity": identity}))
    return write_report(folder, [ReportedStage("evaluate", stage)], LEGEND).read_text(encoding="utf-8")


OTHER = "trained on other rankings"
NOT = "not independent"


@pytest.mark.parametrize(
    ("config", "parents", "judge", "said", "unsaid"),
    [
        ({"judge": None}, {"reward": "r"}, None, "what trained or chose the policies (reward)", OTHER),
        ({"judge": None}, {"reward": "r", "judge": "j"}, None, OTHER, NOT),
        ({"judge": {"_target_": "my.Judge"}}, {"reward": "r"}, None, "The judge: my.Judge.", NOT),
        ({}, {}, {"name": "/models/judge", "trained_policies": False}, "The judge: /models/judge.", NOT),
        ({}, {"judge": "j"}, {"name": "judge", "trained_policies": False}, OTHER, NOT),
        (
            {},
            {},
            {"name": "my:rule", "trained_policies": True},
            "what trained or chose the policies (my:rule); it is not",
            OTHER,
        ),
    ],
)
def test_the_report_says_who_judged(
    tmp_path: Path, config: dict[str, Any], parents: dict[str, str], judge: Any, said: str, unsaid: str
) -> None:
    text = page(tmp_path, config, parents, judge)
    assert said in text
    assert unsaid not in text
    independent = "No policy was trained against the judge." in text
    assert independent == (NOT not in text)
    wins = "PPO wins 80.0 % (70.0 .. 90.0) of 200 held-out prompts against SFT, by "
    assert wins + ("the judge." if independent else "what trained or chose the policies.") in text
    assert "SmolLM2 loses to SFT" in text


@pytest.mark.parametrize(("trained", "said"), [(True, "over-optimisation"), (False, "The judge: my:rule.")])
def test_the_closing_table_says_who_judged(trained: bool, said: str) -> None:
    output = io.StringIO()
    judge = {"name": "my:rule", "trained_policies": trained}
    Console(file=output, width=160).print(closing_table({**METRICS, "judge": judge}, LEGEND))
    text = " ".join(output.getvalue().split())
    assert said in text
    assert ("not independent" in text) == trained
    assert "SmolLM2" in text


def test_warnings_and_cut_responses_stand_in_the_report(tmp_path: Path) -> None:
    stage = tmp_path / "reward"
    stage.mkdir()
    record = {"status": "complete", "metrics": {}, "identity": {"config": {"reward": {}}}}
    (stage / "stage.json").write_text(json.dumps(record))
    (stage / "warnings.json").write_text(json.dumps(["31 % were <cut>"]))
    (stage / "cut.json").write_text(json.dumps({"train": {"too long": {"users": 3, "forum": 2}}}))
    (stage / "dropped.json").write_text(json.dumps({"validation": {"all tied": 4}}))
    text = write_report(tmp_path, [ReportedStage("reward", stage)], LEGEND).read_text(encoding="utf-8")
    assert "Warning: 31 % were &lt;cut&gt;" in text
    assert "<dt>cut: train: too long: users</dt><dd>3</dd>" in text
    assert "<dt>left out: validation: all tied</dt><dd>4</dd>" in text
