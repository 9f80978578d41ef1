"""Stage check looks at the PPO that the configuration describes."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from rlhf_lightning.checks import CheckResult, Subject
from rlhf_lightning.cli import composed
from rlhf_lightning.recipe import check as checking
from rlhf_lightning.recipe.pipeline import Pipeline
from rlhf_lightning.runs.folders import PipelineError, Runs
from rlhf_lightning.runs.targets import builder

SMALL = ("model.size=small", "data.source.prompts=40", "data.source.demonstrations=600", "data.source.text=20")


def wired(folder: Path, *overrides: str) -> Subject:
    config = composed([f"paths.runs={folder}", *SMALL, *overrides])
    return checking.subject_of(Pipeline(config, builder([]), Runs(folder, "run")).context)


def test_nothing_is_changed_where_nothing_is_set(tmp_path: Path) -> None:
    subject = wired(tmp_path)
    assert (subject.reference, subject.autocast, subject.lora["rank"], subject.exact) == (None, None, 0, True)
    assert subject.centring is not None
    assert len(subject.centring) == 512


def test_the_reference_is_that_of_ppo(tmp_path: Path) -> None:
    assert wired(tmp_path, "ppo.reference=base").reference is not None
    with pytest.raises((OSError, ValueError), match="nonexistent"):
        wired(tmp_path, "ppo.reference=/nonexistent")


def test_the_adapters_are_those_of_ppo(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    module = wired(tmp_path, "ppo.lora.rank=4").ppo()
    assert module.reference is module.policy
    assert any("lora" in name for name, _ in module.policy.named_parameters())


@pytest.mark.parametrize(
    ("precision", "autocast", "weights"),
    [("bf16-mixed", torch.bfloat16, torch.float32), ("64-true", None, torch.float64)],
)
def test_the_precision_is_that_of_the_trainer(precision: str, autocast: Any, weights: Any, tmp_path: Path) -> None:
    subject = wired(tmp_path, f"trainer.precision={precision}")
    assert (subject.autocast, subject.policy.dtype, subject.exact) == (autocast, weights, autocast is None)


@pytest.mark.parametrize("outcome", ["fail", "error"])
def test_a_failure_and_an_error_end_the_run(outcome: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = [
        CheckResult("good", "pass", "fine", "means", "do", 0.1),
        CheckResult("bad", outcome, "what [was] seen", "means", "do this", 0.1),
        CheckResult("none", "skipped", "nothing there", "means", "do", 0.1),
    ]
    monkeypatch.setattr(checking, "subject_of", lambda *_: None)
    monkeypatch.setattr(checking, "check", lambda *_: results)
    console = Console(file=io.StringIO(), width=120, record=True)
    named = "bad" if outcome == "fail" else r"bad \(broke off\)"
    pipeline = Pipeline(composed([*SMALL]), builder([]), Runs(tmp_path, "run"), console)
    with pytest.raises(PipelineError, match=rf"1 of 3 checks failed: {named}\. See .*check\.json"):
        pipeline.step("check").run(pipeline.context, tmp_path)
    assert [row["outcome"] for row in json.loads((tmp_path / "check.json").read_text())] == ["pass", outcome, "skipped"]
    shown = console.export_text()
    assert "To do: do this" in shown
    assert "what [was] seen" in shown
