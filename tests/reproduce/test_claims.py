"""Every claim's verdict against runs that fit it, runs that violate it, and runs that are missing."""

import json
from pathlib import Path

import pytest
from fake_runs import Changes, write_runs

from rlhf_lightning.reproduce import claims_models
from rlhf_lightning.reproduce.claim import Claim, Outcome
from rlhf_lightning.reproduce.claims import CLAIMS, outcomes
from rlhf_lightning.reproduce.measure import Results
from rlhf_lightning.reproduce.plan import EPOCHS, SIZES, WEAK_RANKINGS, jobs
from rlhf_lightning.reproduce.runner import unfinished

BY_NAME = {claim.name: claim for claim in CLAIMS}
TRIED = [claim for claim in CLAIMS if not claim.undecidable]
SEEDS = (1, 2, 3)
KINDS = {claim.name: set(claim.kinds) for claim in CLAIMS}
VIOLATIONS: list[tuple[str, str, Changes]] = [
    ("order", "PPO loses at one size", {("medium", "ppo", "training"): -1.0}),
    ("order", "SFT is no better than prompting", {("large", "prompted", "training"): 0.0}),
    ("order", "examples do nothing", {("small", "prompted", "training"): -1.1}),
    ("held-out", "they prefer GPT to a small model", {("small", "ppo_ptx", "labelers"): -1.5}),
    ("held-out", "they prefer examples to PPO", {("medium", "ppo", "labelers"): -0.5}),
    ("for-gpt", "SFT is no better there", {("large", "sft", "training"): -1.1}),
    ("for-gpt", "nor is PPO", {("small", "ppo", "training"): -1.0}),
    ("small-over-large", "the large base model wins", {("large", "base", "training"): 2.0}),
    ("small-over-large", "the large SFT model wins", {("large", "sft", "training"): 2.0}),
    ("ptx-alike", "text costs preference", {("medium", "ppo_ptx", "training"): 0.7}),
    ("ptx-alike", "text gains preference", {("large", "ppo", "training"): 0.7}),
    ("head-to-head", "examples make GPT no better", {("large", "prompted", "training"): -1.1}),
    ("head-to-head", "examples beat PPO-ptx", {("large", "prompted", "training"): 1.5}),
    ("metadata", "no better at instructions", {("*", "ppo_ptx", "follows"): 0.2}),
    ("metadata", "worse at constraints", {("*", "ppo", "satisfies"): 0.1}),
    ("metadata", "as inappropriate", {("*", "ppo", "inappropriate"): 0.6}),
    ("half-inventions", "nearly as many", {("*", "ppo_ptx", "invents"): 0.7}),
    ("half-inventions", "next to none", {("*", "ppo_ptx", "invents"): 0.1}),
    ("half-inventions", "there is nothing to reduce", {("*", "base", "invents"): 0.0}),
    ("sft-inventions", "PPO invents less", {("*", "ppo", "invents"): 0.05}),
    ("truthfulness", "not truthful more often", {("large", "ppo_ptx", "both"): 0.5}),
    ("truthfulness", "PPO is not", {("small", "ppo", "both"): 0.3}),
    ("truthfulness", "the small one is no exception", {("small", "ppo_ptx", "both"): 0.95}),
    ("no-comment", "the hedge changes nothing", {("small", "ppo_ptx", "hedged_truthful"): 0.4}),
    ("no-comment", "GPT gains as much", {("large", "base", "hedged_truthful"): 0.95}),
    ("no-comment", "informative in spite of the hedge", {("small", "ppo_ptx", "hedged_informative"): 0.9}),
    ("rudeness", "rude in spite of the prompt", {("small", "ppo_ptx", "respectful"): 0.6}),
    ("rudeness", "ruder without instruction", {("small", "ppo_ptx", "plain"): 0.8}),
    ("rudeness", "less rude without instruction", {("small", "ppo_ptx", "plain"): 0.3}),
    ("rudeness", "not ruder with the biased prompt", {("large", "ppo_ptx", "biased"): 0.3}),
    ("sft-rudeness", "PPO-ptx is less rude", {("medium", "ppo_ptx", "plain"): 0.05}),
    ("tax", "PPO loses nothing at one size", {("medium", "ppo", "tasks"): 0.9}),
    ("tax-repaired", "PPO-ptx repairs nothing at one size", {("medium", "ppo_ptx", "tasks"): 0.3}),
    ("ptx-coefficient", "ptx repairs nothing", {("*", "ppo_ptx", "tasks"): 0.6}),
    ("ptx-coefficient", "ptx costs preference", {("*", "ppo_ptx", "score"): 0.3}),
    ("ptx-coefficient", "it matters to people", {("ptx-2.0", "ppo_ptx", "likert"): 4.5}),
    ("kl-no-repair", "a KL coefficient does it too", {("klbase-0.2", "ppo", "tasks"): 0.9}),
    ("kl-no-repair", "large KL coefficients cost nothing", {("klbase-2.0", "ppo", "reward"): 2.0}),
    ("kl-start", "a KL coefficient does it", {("klinit-0.2", "ppo", "tasks"): 0.9}),
    ("kl-best", "as good without KL", {("klptx-0.0", "ppo_ptx", "likert"): 5.0}),
    ("kl-best", "best at the largest", {("klptx-2.0", "ppo_ptx", "likert"): 6.0}),
    ("kl-best", "best at ten times the paper's", {("klptx-0.2", "ppo_ptx", "likert"): 5.5}),
    ("start", "the start matters", {("init-0.5", "ppo_ptx", "likert"): 4.0}),
    ("start", "its epochs matter", {("initepochs-1", "ppo_ptx", "likert"): 4.0}),
    ("rates", "PPO does not diverge", {("lr-*", "ppo", "score"): 1.0}),
    ("rates", "nor does it at the next rate", {("lr-1.78", "ppo", "score"): 0.5}),
    ("rates", "text does not help", {("lrptx-3.17", "ppo_ptx", "score"): -2.0}),
    ("episodes", "the tasks hold", {("twice-2.0", "ppo_ptx", "tasks"): 0.9}),
    ("episodes", "twice as many help", {("twice-2.0", "ppo_ptx", "score"): 2.0}),
    ("text", "little text holds the loss", {("ratio-32", "ppo_ptx", "rise"): -0.1}),
    ("text", "much text is no better", {("ratio-256", "ppo_ptx", "likert"): 5.0}),
    ("text", "text costs little time", {("small", "ppo_ptx", "seconds"): 11.0}),
    ("text", "text costs much time", {("small", "ppo_ptx", "seconds"): 40.0}),
    ("whole-rankings", "pairs are as accurate", {("pairs", "all", "accuracy"): 0.72}),
    ("whole-rankings", "pairs have the lower loss", {("pairs", "all", "loss"): 0.5}),
    ("reward-rate", "half the rate is worse", {("reward-slow", "all", "accuracy"): 0.68}),
    ("reward-rate", "a higher rate is better", {("reward-fast", "all", "accuracy"): 0.76}),
    ("reward-epochs", "more epochs help", {("reward-epochs", "all", "loss"): 0.5}),
    ("reward-start", "the start matters", {("reward-base", "all", "accuracy"): 0.66}),
    ("teams", "no gap", {("team-*", "held-out", "accuracy"): 0.72}),
    ("teams", "a gap of ten points", {("team-*", "held-out", "accuracy"): 0.62}),
    ("sft-epochs", "the loss is lower after two", {("epochs", "2", "epoch_loss"): 0.9}),
    ("sft-epochs", "the reward falls", {("epochs", "sft/epoch-16", "reward"): -1.0}),
    ("sft-epochs", "preference falls", {("epochs", "sft/epoch-16", "score"): -1.0}),
    (
        "score-predicts",
        "the score orders them wrongly",
        {
            ("epochs", "sft/epoch-16", "reward"): -9.0,
            ("epochs", "sft/epoch-1", "reward"): 9.0,
            ("epochs", "16", "epoch_loss"): 0.1,
            ("epochs", "8", "epoch_loss"): 0.2,
            ("epochs", "4", "epoch_loss"): 0.3,
        },
    ),
]


def outcome(claim: Claim, runs: Path, seeds: tuple[int, ...] = SEEDS) -> Outcome:
    needed = [job for job in jobs(seeds) if job.kind in claim.kinds]
    lacking = unfinished(needed, runs)
    return Outcome(claim, claim.measure(Results(runs, seeds, lacking)), lacking, seeds)


def test_every_finding_has_a_rule_that_can_fail_or_a_reason():
    assert len(CLAIMS) >= 24
    assert {name for name, *_ in VIOLATIONS} == {claim.name for claim in TRIED}
    for claim in CLAIMS:
        assert bool(claim.rule) == bool(claim.written) == (not claim.undecidable), claim.name
        assert claim.undecidable or claim.fill, claim.name


def test_rules_say_the_numbers_of_the_code() -> None:
    assert SIZES == ("small", "medium", "large")
    assert f"reward model of {WEAK_RANKINGS} rankings" in BY_NAME["kl-best"].rule
    assert "after 2, 4, 8 and 16 epochs" in BY_NAME["sft-epochs"].rule
    assert EPOCHS == (1, 2, 4, 8, 16)
    assert "{:.2f} to {:.2f}".format(*claims_models.HALF).replace("0.", ".") in BY_NAME["half-inventions"].rule


@pytest.mark.parametrize("claim", TRIED, ids=lambda claim: claim.name)
def test_holds_with_its_own_jobs_alone(claim: Claim, tmp_path: Path) -> None:
    write_runs(tmp_path, kinds=set(claim.kinds), seeds=SEEDS)
    found = outcome(claim, tmp_path)
    assert [check.text for check in found.finding.checks if not check.holds] == []
    assert found.finding.missing == []
    assert found.verdict == "holds"
    assert found.summary
    for row in found.finding.rows:
        assert row.interval["low"] <= row.interval["value"] + 1e-9 <= row.interval["high"] + 2e-9, row


@pytest.mark.parametrize(("name", "why", "changes"), VIOLATIONS, ids=[f"{n} {why}" for n, why, _ in VIOLATIONS])
def test_does_not_hold(name: str, why: str, changes: Changes, tmp_path: Path) -> None:
    claim = BY_NAME[name]
    write_runs(tmp_path, changes, set(claim.kinds), SEEDS)
    assert outcome(claim, tmp_path).verdict == "does not hold"


def test_nothing_has_run(tmp_path: Path) -> None:
    for found in outcomes(Results(tmp_path, SEEDS, [job.name for job in jobs()])):
        assert found.verdict == ("undecidable" if found.claim.undecidable else "not run")
        assert found.finding.checks == []


@pytest.mark.parametrize("claim", TRIED, ids=lambda claim: claim.name)
def test_one_job_is_missing(claim: Claim, tmp_path: Path) -> None:
    write_runs(tmp_path, kinds=set(claim.kinds), seeds=SEEDS)
    last = next(job for job in reversed(jobs(SEEDS)) if job.kind in claim.kinds)
    record = json.loads((tmp_path / last.name / last.stages[-1] / "stage.json").read_text())
    (tmp_path / last.name / last.stages[-1] / "stage.json").write_text(json.dumps(record | {"status": "half-done"}))
    found = outcome(claim, tmp_path)
    assert found.unfinished == [last.name]
    assert found.verdict == "not run"
    assert found.finding.rows, "what the other seeds say is shown all the same"


def test_a_measure_that_a_finished_job_lacks_is_named(tmp_path: Path) -> None:
    write_runs(tmp_path, kinds=KINDS["rudeness"])
    path = tmp_path / "small-s2" / "evaluate" / "samples.json"
    samples = json.loads(path.read_text())
    del samples["ppo_ptx"]["probes"]["toxicity_biased"]
    path.write_text(json.dumps(samples))
    found = outcome(BY_NAME["rudeness"], tmp_path)
    assert found.verdict == "not run"
    assert any("small-s2 did not record ppo_ptx/probes/toxicity_biased" in reason for reason in found.finding.missing)


def test_jobs_with_other_prompts_are_not_compared(tmp_path: Path) -> None:
    write_runs(tmp_path, kinds=KINDS["small-over-large"])
    path = tmp_path / "large-s1" / "evaluate" / "samples.json"
    path.write_text(path.read_text().replace('"prompt 3"', '"another"'))
    found = outcome(BY_NAME["small-over-large"], tmp_path)
    assert found.verdict == "not run"
    assert any("other prompts" in reason for reason in found.finding.missing)


def test_one_seed_alone_can_be_measured(tmp_path: Path) -> None:
    write_runs(tmp_path, kinds=KINDS["whole-rankings"], seeds=(7,))
    found = outcome(BY_NAME["whole-rankings"], tmp_path, (7,))
    assert found.finding.rows
    assert found.verdict == "not run", "a claim needs three seeds"


def test_a_reversed_finding_says_so(tmp_path: Path) -> None:
    claim = BY_NAME["sft-inventions"]
    write_runs(tmp_path, {("*", "ppo*", "invents"): 0.02}, set(claim.kinds), SEEDS)
    found = outcome(claim, tmp_path)
    checks = {check.condition: check for check in found.finding.checks}
    against = checks["SFT invents less often than PPO"]
    assert against.reversed
    assert not against.holds
    assert "; reversed" in against.text
    assert not checks["SFT invents less often than GPT"].reversed
