"""Rounds: the newest policy is ranked, the reward model learns from all rankings, nothing is made twice."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file

from rlhf_lightning.cli import CONFIG_DIR, composed, run
from rlhf_lightning.modules.ppo import PPOModule
from rlhf_lightning.recipe import collect
from rlhf_lightning.recipe.pipeline import RECIPE, Pipeline
from rlhf_lightning.recipe.rounds import newest_policy, repeated, seed_of_round, settings_of_round
from rlhf_lightning.runs.folders import PipelineError, Runs, read_stage
from rlhf_lightning.runs.identity import fingerprint, model_fingerprint, records_fingerprint
from rlhf_lightning.runs.targets import builder
from rlhf_lightning.sandbox.data import SandboxData

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*many workers.*", "ignore:.*in eval mode.*", "ignore:.*LeafSpec.*", "ignore:.*logging interval.*"
)
STAGES = ["sft", "collect", "reward", "ppo_ptx", "evaluate"]
AGAIN = STAGES[1:]
TINY = [
    "debug=fast",
    f"stages=[{','.join(STAGES)}]",
    "run=mine",
    "model.size=small",
    *("data.source.prompts=20", "data.source.demonstrations=40", "data.source.text=20", "data.source.validation=16"),
    *("sft.fit.epochs=1", "ppo.data.batch_size=8", "ppo.fit.checkpoint_every=1", "ppo_ptx.data.text_batch_size=4"),
    *("collect.sampling.max_responses=5", "collect.sampling.rounds=1", "evaluate.policies=[sft,ppo_ptx]"),
    *("evaluate.num_prompts=8", "evaluate.judges=null", "evaluate.metadata=null", "evaluate.prompt_sets=null"),
]


def rlhf(folder: Path, *overrides: str) -> float | None:
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return run(compose("config", [f"paths.runs={folder}", *TINY, *overrides]))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rounds."""
    folder = tmp_path_factory.mktemp("runs")
    rlhf(folder, "rounds=2")
    return folder


@pytest.fixture
def first(finished: Path, tmp_path: Path) -> Path:
    """A copy of the first round."""
    shutil.copytree(finished / "mine", tmp_path / "mine", ignore=shutil.ignore_patterns("round-*"))
    return tmp_path


def rankings(step: Path, split: str = "train") -> list[dict[str, Any]]:
    lines = (step / f"comparisons.{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def same_weights(one: Path, other: Path) -> bool:
    first, second = (load_file(folder / "model.safetensors") for folder in (one, other))
    return all(torch.equal(first[name], second[name]) for name in first)


def parents(step: Path) -> dict[str, str]:
    found: dict[str, str] = read_stage(step)["identity"]["parents"]
    return found


def test_a_later_round_ranks_the_newest_policy_and_learns_from_all_rankings(finished: Path) -> None:
    one, two = finished / "mine", finished / "mine" / "round-2"
    assert sorted(path.parent.name for path in two.glob("*/stage.json")) == sorted(AGAIN)
    newest, sft = (model_fingerprint(str(one / name)) for name in ("ppo_ptx/model_ema", "sft/model"))
    assert parents(one / "collect") == {"sft": sft}
    assert parents(two / "collect") == {"sft": sft, "ppo_ptx": newest}
    assert read_stage(two / "collect")["identity"]["config"]["collect"]["sampling"]["shares"] == [0.8, 0.2]
    # The prompts are the next ones, of the validation split too.
    records = SandboxData(prompts=20, demonstrations=40, text=20, validation=16)
    for split in ("train", "validation"):
        asked = [prompt.prompt for prompt in records.records("prompts", split)[:16]]  # type: ignore[index,union-attr]
        for step, expected in ((one, asked[:8]), (two, asked[8:])):
            found = [row["prompt"] for row in rankings(step / "collect", split)]
            assert found == [prompt for prompt in expected if prompt in found]
            assert len(found) > 4
    counts = [len(rankings(step / "collect")) for step in (one, two)]
    trained = [json.loads((step / "reward" / "examples.json").read_text())["train"] for step in (one, two)]
    assert trained == [counts[0], sum(counts)]
    assert parents(two / "reward")["init"] == parents(one / "reward")["init"] == sft
    collected = [records_fingerprint(step / "collect") for step in (one, two)]
    assert parents(one / "reward")["comparisons"] == collected[0]
    assert parents(two / "reward")["comparisons"] == fingerprint(collected)
    assert parents(two / "ppo_ptx") == {
        "init": sft,
        "reward": model_fingerprint(str(two / "reward" / "model")),
    }
    prompts = [json.loads((step / "evaluate" / "samples.json").read_text())["prompts"] for step in (one, two)]
    assert prompts[0] == prompts[1]


def test_the_report_and_the_cards_tell_the_rounds(finished: Path) -> None:
    results = json.loads((finished / "mine" / "report" / "results.json").read_text(encoding="utf-8"))
    last = read_stage(finished / "mine" / "round-2" / "evaluate")["metrics"]
    assert list(results["rounds"]) == ["1", "2"]
    assert results["rounds"]["2"]["policies"] == last["policies"]
    page = (finished / "mine" / "report" / "index.html").read_text(encoding="utf-8")
    assert '<section id="rounds">' in page
    assert "Round 2: " in page
    assert "Win rate over rounds" in page
    later = (finished / "mine" / "round-2" / "report" / "index.html").read_text(encoding="utf-8")
    assert "<title>mine, round 2" in later
    assert '<section id="rounds">' not in later
    card = (finished / "mine" / "round-2" / "reward" / "model" / "README.md").read_text(encoding="utf-8")
    assert "mine-round-2-reward" in card
    assert "in rounds 1 to 2" in card


@pytest.mark.slow
def test_a_third_round_is_added_and_nothing_is_made_twice(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished / "mine", tmp_path / "mine")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    last = rlhf(tmp_path, "rounds=3", "optimized_metric=evaluate.policies.ppo_ptx.score.value")
    said = capsys.readouterr().out
    assert said.count("complete already, skipped") == len(STAGES) + len(AGAIN)
    assert "round 3: 8 prompts for train from number 17 of 20 on" in said
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())
    third = tmp_path / "mine" / "round-3"
    # The data has 20 prompts: after the last one come the first ones again, with other responses.
    again = {row["prompt"]: row["completions"] for row in rankings(tmp_path / "mine" / "collect")}
    shared = [row for row in rankings(third / "collect") if row["prompt"] in again]
    assert shared
    assert all(row["completions"] != again[row["prompt"]] for row in shared)
    assert read_stage(third / "evaluate")["metrics"]["policies"]["ppo_ptx"]["score"]["value"] == last
    score = "evaluate.policies.ppo_ptx.score.value"
    of_first = rlhf(tmp_path, "rounds=3", f"optimized_metric=rounds.1.{score}")
    assert read_stage(tmp_path / "mine" / "evaluate")["metrics"]["policies"]["ppo_ptx"]["score"]["value"] == of_first
    rlhf(tmp_path, "rounds=3", "optimized_metric=sft.validation/loss")


@pytest.mark.slow
def test_a_kill_between_and_within_rounds_ends_the_same(
    first: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labelers who are not done yet end the run in the same way."""

    class WaitingError(PipelineError):
        """Not enough is ranked yet."""

    def waiting(*_: Any, **__: Any) -> Any:
        raise WaitingError("3 of 8 are ranked")

    def failing(*_: Any) -> None:
        raise KeyError("the power went out")

    with monkeypatch.context() as patch:
        patch.setattr(collect, "collect_comparisons", waiting)
        with pytest.raises(WaitingError):
            rlhf(first, "rounds=2")
    assert not (first / "mine" / "round-2" / "reward").exists()
    with monkeypatch.context() as patch:
        patch.setattr(PPOModule, "update", failing)
        with pytest.raises(KeyError, match="power"):
            rlhf(first, "rounds=2")
    rlhf(first, "rounds=2")
    for model in ("reward/model", "ppo_ptx/model", "ppo_ptx/model_ema"):
        assert same_weights(*(runs / "mine" / "round-2" / model for runs in (first, finished)))


def test_a_policy_may_start_from_the_last_one_and_is_pulled_to_the_first(first: Path) -> None:
    rlhf(first, "rounds=2", "later_rounds={start: last, share: 0.5}", f"stages=[{','.join(STAGES[:-1])}]")
    one, two = first / "mine", first / "mine" / "round-2"
    assert parents(two / "ppo_ptx") == {
        "init": model_fingerprint(str(one / "ppo_ptx" / "model_ema")),
        "reference": model_fingerprint(str(one / "sft" / "model")),
        "reward": model_fingerprint(str(two / "reward" / "model")),
    }
    assert read_stage(two / "collect")["identity"]["config"]["collect"]["sampling"]["shares"] == [0.5, 0.5]


@pytest.mark.slow
def test_rounds_on_another_run_and_a_policy_that_is_named(first: Path) -> None:
    """The same command again finds its own policy, and reads that of upstream all the same."""
    options = ("run=next", "upstream=mine", "stages=[collect,reward,ppo_ptx]", "collect.policies=[sft,ppo_ptx]")
    for _ in range(2):
        rlhf(first, *options, "rounds=2")
    first_newest, next_newest = (
        model_fingerprint(str(first / run / "ppo_ptx" / "model_ema")) for run in ("mine", "next")
    )
    assert parents(first / "next" / "collect")["ppo_ptx"] == first_newest
    assert parents(first / "next" / "round-2" / "collect")["ppo_ptx"] == next_newest
    # What is not in the first round is that of upstream; rankings are those of this run alone.
    counts = [len(rankings(first / "next" / step)) for step in ("collect", "round-2/collect")]
    examples = json.loads((first / "next" / "round-2" / "reward" / "examples.json").read_text())
    assert examples["train"] == sum(counts)
    # A later run reads all rounds of that one by the name of the last.
    rlhf(first, "run=last", "upstream=[next/round-2,mine]", "stages=[reward]")
    examples = json.loads((first / "last" / "reward" / "examples.json").read_text())
    assert examples["train"] == sum(counts)


def test_every_round_is_looked_at_before_the_first_step(tmp_path: Path) -> None:
    stray = tmp_path / "mine" / "round-2" / "collect" / "notes.txt"
    stray.parent.mkdir(parents=True)
    stray.write_text("mine")
    with pytest.raises(PipelineError, match=r"round-2/collect is not empty and has no stage.json"):
        rlhf(tmp_path, "rounds=2")
    assert not (tmp_path / "mine" / "sft").exists()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["stages=[sft,reward,ppo]"], "rounds=2: without step collect no round has rankings of its own"),
        (["stages=[sft,collect,reward,evaluate]"], "rounds=2: no step of stages trains a policy"),
        (["optimized_metric=rounds.3.evaluate.x"], "rounds.3.evaluate.x is of no round. Name one of 1 to 2"),
        (["reward.data.max_train=9"], "rounds=2: reward.data.max_train=9 takes the first rankings"),
        (["optimized_metric=rounds.2.sft.x"], "sft is none of the steps that run"),
        (["later_rounds.share=1"], "later_rounds.share must"),
        (["later_rounds.start=lst"], "later_rounds.start must"),
        (["rounds=0"], "rounds must be a whole number in .1, 100."),
        (["rounds=1", "collect.policies=[ppo_ptx]"], "ppo_ptx is needed, and does not come before this step"),
    ],
)  # fmt: skip
def test_rounds_that_cannot_be_are_a_sentence(tmp_path: Path, overrides: list[str], said: str) -> None:
    with pytest.raises(PipelineError, match=said):
        rlhf(tmp_path, "rounds=2", *overrides)


def test_data_with_rankings_has_one_round(tmp_path: Path) -> None:
    (tmp_path / "comparisons.train.jsonl").write_text('{"prompt": "a", "completions": ["b", "c"], "ranks": [1, 2]}\n')
    config = composed(["rounds=2", "data=jsonl", f"data.root={tmp_path}", f"paths.runs={tmp_path}"])
    with pytest.raises(PipelineError, match="rounds=2: the data option brings rankings of its own"):
        Pipeline(config, builder([]), Runs(tmp_path, "mine")).run()


def test_the_settings_of_a_round() -> None:
    names = ["sft", "collect", "reward", "judge", "select", "ppo", "ppo_ptx", "evaluate", "benchmarks"]
    stages = [stage for stage in RECIPE if stage.name in names]
    assert [stage.name for stage in repeated(stages)] == [
        *("collect", "reward", "select", "ppo", "ppo_ptx", "evaluate", "benchmarks")
    ]
    assert newest_policy(stages).name == "ppo_ptx"  # type: ignore[union-attr]
    config = composed(["rounds=3", "later_rounds.start=last", "collect.policies=[sft,base]", "ppo_ptx.init=ppo"])
    config["collect"]["sampling"]["shares"] = [3, 1]
    later = settings_of_round(config, stages, 3)
    assert later["collect"]["policies"] == ["sft", "base", "ppo_ptx"]
    assert later["collect"]["sampling"]["shares"] == [0.6, 0.2, 0.2]
    assert later["collect"]["round"] == 3
    assert (later["ppo"]["init"], later["ppo"]["reference"]) == ("ppo_ptx", "sft")
    assert (later["ppo_ptx"]["init"], later["ppo_ptx"]["reference"]) == ("ppo", "init")  # that of the same round
    assert settings_of_round(config, stages, 1) == config
    # No seed of a run is that of a later round: they are below 2**32.
    assert [seed_of_round(5, number) for number in (1, 2, 3)] == [5, 4294967301, 8589934597]


def test_which_run_a_round_reads(tmp_path: Path) -> None:
    def finish(*steps: str) -> None:
        for step in steps:
            (tmp_path / step).mkdir(parents=True)
            (tmp_path / step / "stage.json").write_text('{"identity": {}, "status": "complete"}')

    finish("up/sft", "up/collect", "up/round-2/collect", "a/round-2/collect", "a/round-2/ppo", "a/ppo")
    runs = Runs(tmp_path, "a", ("up/round-2",)).of_round(3)
    assert runs.folder("ppo") == tmp_path / "a" / "round-3" / "ppo"
    assert runs.find("ppo") == tmp_path / "a" / "round-2" / "ppo"
    assert runs.find("sft") == tmp_path / "up" / "sft"
    # Its own first round has no rankings: those of all rounds of upstream come before.
    found = [folder.relative_to(tmp_path).as_posix() for folder in runs.of_rounds("collect")]
    assert found == ["up/collect", "up/round-2/collect", "a/round-2/collect"]
    first = Runs(tmp_path, "a", ("up",)).before("ppo", ["sft", "ppo", "evaluate"])
    assert first.find("ppo") is None
    assert first.find("sft") == tmp_path / "up" / "sft"
