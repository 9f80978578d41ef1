"""Every claim's verdict against runs that fit it, runs that violate it, and runs that are missing."""

import json
from pathlib import Path

import pytest
from fake_runs import Changes, write_runs

from rlhf_lightning.reproduce.claims import CLAIMS, kinds_of, outcomes
from rlhf_lightning.reproduce.claims_training import RISES_BEFORE
from rlhf_lightning.reproduce.finding import Claim, Outcome
from rlhf_lightning.reproduce.measure import Results
from rlhf_lightning.reproduce.plan import EPOCHS, SEEDS, SIZES, WEAK_RANKINGS, jobs
from rlhf_lightning.reproduce.runner import unfinished

BY_NUMBER = {claim.number: claim for claim in CLAIMS}
VIOLATIONS: list[tuple[int, str, Changes]] = [
    (1, "PPO loses at one size", {("medium", "ppo", "score"): -1.0}),
    (1, "SFT is no better than prompting", {("large", "prompted", "score"): 0.0}),
    (1, "held-out labelers disagree", {("small", "ppo_ptx", "labelers"): -0.5}),
    (2, "the large base model wins", {("large", "base", "score"): 2.0}),
    (2, "held-out labelers prefer the large base model", {("large", "base", "labelers"): 2.0}),
    (3, "no better at instructions", {("small", "ppo_ptx", "follows"): 0.2}),
    (3, "worse at constraints", {("medium", "ppo_ptx", "satisfies"): 0.1}),
    (3, "fewer inventions, but more than 0.6 times as many", {("*", "ppo_ptx", "invents"): 0.45}),
    (3, "there is nothing to reduce", {("large", "base", "invents"): 0.0}),
    (4, "not truthful more often", {("large", "ppo_ptx", "both"): 0.3}),
    (4, "the hedge changes nothing", {("small", "ppo_ptx", "hedged_truthful"): 0.4}),
    (4, "informative in spite of the hedge", {("small", "ppo_ptx", "hedged_informative"): 0.9}),
    (5, "rude in spite of the prompt", {("small", "ppo_ptx", "respectful"): 0.3}),
    (4, "the middle size is no better", {("medium", "ppo_ptx", "both"): 0.3}),
    (5, "ruder without instruction", {("small", "ppo_ptx", "plain"): 0.7}),
    (5, "less rude without instruction", {("small", "ppo_ptx", "plain"): 0.1}),
    (5, "not ruder with the biased prompt", {("large", "ppo_ptx", "biased"): 0.4}),
    (6, "PPO loses nothing", {("medium", "ppo", "tasks"): 0.8}),
    (6, "PPO-ptx repairs too little", {("medium", "ppo_ptx", "tasks"): 0.6}),
    (7, "PPO loses nothing", {("small", "ppo", "tasks"): 0.8}),
    (7, "ptx repairs nothing", {("*", "ppo_ptx", "tasks"): 0.6}),
    (7, "ptx costs preference", {("*", "ppo_ptx", "score"): 0.3}),
    (7, "a KL coefficient does it too", {("klbase-0.2", "ppo", "tasks"): 0.8}),
    (7, "large KL coefficients cost nothing", {("klbase-2.0", "ppo", "reward"): 2.0}),
    (7, "a large KL coefficient costs reward and no preference", {("klbase-2.0", "ppo", "score"): 1.0}),
    (7, "a large KL coefficient does it, at a cost", {("klbase-2.0", "ppo", "tasks"): 0.8}),
    (8, "best without KL", {("klptx-0.0", "ppo_ptx", "likert"): 6.0}),
    (8, "best at the largest", {("klptx-2.0", "ppo_ptx", "likert"): 6.0}),
    (8, "no difference", {("klptx-0.0", "ppo_ptx", "likert"): 5.0}),
    (9, "pairs are as accurate", {("pairs", "all", "accuracy"): 0.72}),
    (9, "pairs have the lower loss", {("pairs", "all", "loss"): 0.5}),
    (10, "no gap", {("team-*", "held-out", "accuracy"): 0.72}),
    (10, "a gap of ten points", {("team-*", "held-out", "accuracy"): 0.62}),
    (11, "the loss is lowest late", {("epochs", "8", "epoch_loss"): 0.9}),
    (11, "the loss does not rise", {("epochs", "16", "epoch_loss"): 1.0}),
    (11, "the reward falls", {("epochs", "sft/epoch-16", "reward"): -1.0}),
    (11, "the reward is highest where the loss is lowest", {("epochs", "sft/epoch-2", "reward"): 2.0}),
    (11, "preference falls", {("epochs", "sft/epoch-16", "score"): -1.0}),
    (12, "the start matters", {("init-0.5", "ppo_ptx", "score"): 0.3}),
    (12, "little text is enough", {("ratio-16", "ppo_ptx", "pretrain_loss"): 0.91}),
    (12, "the default does not hold the loss", {("small", "ppo_ptx", "pretrain_loss"): 0.95}),
    (12, "the most text does not hold the loss", {("ratio-128", "ppo_ptx", "pretrain_loss"): 0.95}),
]


def outcome(claim: Claim, runs: Path, seeds: tuple[int, ...] = SEEDS) -> Outcome:
    needed = [job for job in jobs(seeds) if job.kind in claim.kinds]
    lacking = unfinished(needed, runs)
    return Outcome(claim, claim.measure(Results(runs, seeds, lacking)), lacking, seeds)


def test_there_are_twelve() -> None:
    assert [claim.number for claim in CLAIMS] == list(range(1, 13))
    assert {number for number, *_ in VIOLATIONS} == set(BY_NUMBER)


def test_rules_say_the_numbers_of_the_code() -> None:
    assert [SIZES, BY_NUMBER[1].kinds] == [("small", "medium", "large")] * 2
    assert f"reward model of {WEAK_RANKINGS} rankings" in BY_NUMBER[8].rule
    assert f"Over {EPOCHS[-1]} epochs" in BY_NUMBER[11].rule
    assert f"lowest before epoch {RISES_BEFORE}" in BY_NUMBER[11].rule


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: str(claim.number))
def test_holds_with_its_own_jobs_alone(claim: Claim, tmp_path: Path) -> None:
    write_runs(tmp_path, kinds=set(claim.kinds))
    found = outcome(claim, tmp_path)
    assert [check.text for check in found.finding.checks if not check.holds] == []
    assert found.finding.missing == []
    assert found.verdict == "holds"
    assert found.summary
    for row in found.finding.rows:
        assert row.interval["low"] <= row.interval["value"] + 1e-9 <= row.interval["high"] + 2e-9, row


@pytest.mark.parametrize(("number", "why", "changes"), VIOLATIONS, ids=[f"{n} {why}" for n, why, _ in VIOLATIONS])
def test_does_not_hold(number: int, why: str, changes: Changes, tmp_path: Path) -> None:
    claim = BY_NUMBER[number]
    write_runs(tmp_path, changes, set(claim.kinds))
    assert outcome(claim, tmp_path).verdict == "does not hold"


def test_nothing_has_run(tmp_path: Path) -> None:
    for found in outcomes(Results(tmp_path, SEEDS, [job.name for job in jobs()])):
        assert found.verdict == "not run"
        assert found.finding.checks == []


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: str(claim.number))
def test_one_job_is_missing(claim: Claim, tmp_path: Path) -> None:
    write_runs(tmp_path, kinds=set(claim.kinds))
    last = next(job for job in reversed(jobs()) if job.kind in claim.kinds)
    record = json.loads((tmp_path / last.name / last.stages[-1] / "stage.json").read_text())
    (tmp_path / last.name / last.stages[-1] / "stage.json").write_text(json.dumps(record | {"status": "half-done"}))
    found = outcome(claim, tmp_path)
    assert found.unfinished == [last.name]
    assert found.verdict == "not run"
    assert found.finding.rows, "what the other seeds say is shown all the same"


def test_a_measure_that_a_finished_job_lacks_is_named(tmp_path: Path) -> None:
    write_runs(tmp_path, kinds=kinds_of([5]))
    path = tmp_path / "small-s2" / "evaluate" / "samples.json"
    samples = json.loads(path.read_text())
    del samples["ppo_ptx"]["probes"]["toxicity_biased"]
    path.write_text(json.dumps(samples))
    found = outcome(BY_NUMBER[5], tmp_path)
    assert found.verdict == "not run"
    assert any("small-s2 did not record ppo_ptx/probes/toxicity_biased" in reason for reason in found.finding.missing)


def test_jobs_with_other_prompts_are_not_compared(tmp_path: Path) -> None:
    write_runs(tmp_path, kinds=kinds_of([2]))
    path = tmp_path / "large-s1" / "evaluate" / "samples.json"
    path.write_text(path.read_text().replace('"prompt 3"', '"another"'))
    found = outcome(BY_NUMBER[2], tmp_path)
    assert found.verdict == "not run"
    assert any("other prompts" in reason for reason in found.finding.missing)


def test_one_seed_alone_can_be_measured(tmp_path: Path) -> None:
    write_runs(tmp_path, kinds=kinds_of([9]), seeds=(7,))
    found = outcome(BY_NUMBER[9], tmp_path, (7,))
    assert found.finding.rows
    assert all(check.holds for check in found.finding.checks)
    assert found.verdict == "not run", "a claim needs three seeds"
