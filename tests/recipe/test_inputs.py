"""The records that steps will read, and the people who rank and judge, are looked for before the first step."""

import json
from pathlib import Path
from typing import Any

from test_look_ahead import data, fine, said

from rlhf_lightning.recipe import inputs

_BASES = ("evaluate.policies=[base]", "evaluate.baseline=base", "evaluate.reference=base")


def test_data_of_ones_own_needs_somebody_who_can_read_it(tmp_path: Path) -> None:
    """The labelers and judges of the sealed world know its own prompts alone."""
    own = data(tmp_path / "data", "demonstrations.train", "prompts.train", "prompts.test", "text.train")
    sandbox = ("collect=sandbox", "evaluate=sandbox", "evaluate.prompt_sets=null")
    collect, evaluate = said(tmp_path / "runs", *own, *sandbox)
    assert collect.startswith(
        "collect: labelers of the sealed world cannot read the prompts of the data option: no use"
    )
    assert evaluate.startswith("evaluate: judge, judge training_labelers, judge held_out_labelers, metadata of the ")
    ranked = data(tmp_path / "data", "comparisons.train")
    fine(tmp_path / "runs", *ranked)


def test_files_without_a_record_are_found(tmp_path: Path) -> None:
    own = data(tmp_path / "data", "demonstrations.train", "comparisons.train", "prompts.train")
    (tmp_path / "data" / "prompts.train.jsonl").write_text("", encoding="utf-8")
    (tmp_path / "data" / "comparisons.train.jsonl").write_text('{"question": "hi"}\n', encoding="utf-8")
    rankings, prompts = said(tmp_path / "runs", *own, "stages=[sft,reward,ppo]")
    assert rankings.startswith("reward: ")
    assert "comparisons.train.jsonl, line 1" in rankings
    assert prompts.startswith(f"ppo: {tmp_path / 'data' / 'prompts.train.jsonl'} holds no prompt")


def test_a_step_for_which_records_lack_is_named(tmp_path: Path) -> None:
    own = data(tmp_path / "data", "comparisons.train", "prompts.train", "prompts.test", "text.train")
    judge, centred = said(tmp_path / "runs", *own, "stages=[judge,reward,evaluate]", "reward.init=base", *_BASES)
    assert judge.startswith("judge: the data option has no judge_comparisons for the split train")
    assert centred.startswith("judge, reward: the data option has no demonstrations for the split train")
    uncentred = ("reward.bias_demonstrations=0", "stages=[reward,evaluate]", "reward.init=base", *_BASES)
    fine(tmp_path / "runs", *own, *uncentred)
    (validation,) = said(tmp_path / "runs", *own, *uncentred, "reward.folds=labeler")
    assert validation.startswith("reward: the data option has no comparisons for the split validation")
    (nobody,) = said(tmp_path / "runs", *own, "stages=[evaluate]", *_BASES)
    assert nobody.startswith("evaluate: nobody judges: evaluate.judge is null, and no step made a reward model.")


def test_what_curate_will_split_and_expand_is_there(tmp_path: Path) -> None:
    own = data(tmp_path / "data", "prompts.train", "comparisons.train", "text.train")
    stages = ["stages=[curate,sft,reward,evaluate]", "evaluate.policies=[sft]"]
    (demonstrations,) = said(tmp_path / "runs", *own, *stages)
    assert demonstrations.startswith("sft, reward: the data option has no demonstrations")
    shots = tmp_path / "shots.json"
    shots.write_text("{}", encoding="utf-8")
    fine(tmp_path / "runs", *own, *stages, f"curate.few_shot=[{shots}]")
    (missing,) = said(tmp_path / "runs", *own, *stages, "curate.few_shot=[nowhere.json]")
    assert missing == "curate: nowhere.json does not exist. Mend the path in curate.few_shot, or take it out."


def test_a_function_reads_rows_until_it_has_its_fields(tmp_path: Path, monkeypatch: Any) -> None:
    own = data(tmp_path / "data", "prompts.train")
    rows = [{"prompt": "a"}, {"prompt": "b", "fields": {"answer": "c"}}, {"prompt": "d"}]
    (tmp_path / "data" / "prompts.train.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "rules_ahead.py").write_text(
        "def score(responses, answer):\n    return []\n\ndef lost(responses, nothing):\n    return []\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    seen: list[Any] = []
    placed = inputs.placed_records
    monkeypatch.setattr(
        inputs, "placed_records", lambda *args: (seen.append(found) or found for found in placed(*args))
    )
    fine(tmp_path / "runs", *own, "stages=[ppo]", "ppo.init=base", "ppo.reward=rules_ahead:score")
    assert len(seen) == 3  # the first row, then two
    (lost,) = said(tmp_path / "runs", *own, "stages=[ppo]", "ppo.init=base", "ppo.reward=rules_ahead:lost")
    assert lost.startswith("ppo: the reward rules_ahead:lost asks for nothing, which no record has.")
