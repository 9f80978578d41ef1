"""Each form of `ppo.reward` and `evaluate.judge` runs from the command line and says what a direct call says."""

import json
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from classifiers import bert, llama, written
from command import rlhf as console_script
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file
from test_http_reward import Server

from rlhf_lightning import PPOModule, ScalarHeadModel, load_causal_lm, load_tokenizer
from rlhf_lightning.cli import CONFIG_DIR, run
from rlhf_lightning.generation.rewards import FORWARD_TOKENS, response_scores
from rlhf_lightning.generation.sample import response_texts, response_values
from rlhf_lightning.models.export import export_scalar_model
from rlhf_lightning.recipe.rewards import reward_label
from rlhf_lightning.runs.folders import PipelineError, read_stage
from rlhf_lightning.runs.targets import named_function

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*many workers.*", "ignore:.*in eval mode.*", "ignore:.*LeafSpec.*", "ignore:.*logging interval.*"
)
QUESTIONS = ["the ball is red", "the seal is in the cave", "please name the hammer", "hello", "the rope"] * 3
TINY = [
    *("debug=fast", "data=jsonl", "model=sandbox", "evaluate=default", "ppo.init=base", "sft.fit.epochs=1"),
    *("ppo.data.batch_size=8", "ppo.fit.checkpoint_every=1", "data.source.files.demonstrations.train=null"),
    *("data.lengths.max_prompt_tokens=32", "data.lengths.max_response_tokens=8", "data.lengths.block_size=64"),
]
RULES = '''
from os import system

def score(responses, answer):
    """Half a point, and the length of what was asked for."""
    return [0.5 + len(text) / len(asked) for text, asked in zip(responses, answer, strict=True)]

def one(responses):
    return [1.0]

def lost(responses, solution):
    return [1.0] * len(responses)

def nobody():
    return []
'''


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with prompts, whose labels have an answer, and a file of rules."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setitem(sys.modules, "rules", None)
    del sys.modules["rules"]
    (tmp_path / "rules.py").write_text(RULES, encoding="utf-8")
    rows = [
        {"prompt": prompt, "labels": {"answer": f"{prompt} {number}"}, "source": "web"}
        for number, prompt in enumerate(QUESTIONS)
    ]
    (tmp_path / "data").mkdir()
    for split in ("train", "validation", "test"):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "data" / f"prompts.{split}.jsonl").write_text(text, encoding="utf-8")
    return tmp_path


def rlhf(place: Path, *overrides: str) -> float | None:
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return run(compose("config", [f"paths.runs={place}/runs", *TINY, f"data.root={place}/data", *overrides]))


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, list[str], list[float]]]:
    """Prompts, responses and scores of every rollout that PPO scores."""
    seen: list[tuple[Any, list[str], list[float]]] = []

    def watched(self: PPOModule, rollout: Any) -> Any:
        experience = original(self, rollout)
        seen.append((rollout.prompts.texts, response_texts(self.tokenizer, rollout), experience.scores.tolist()))
        again = response_scores(self.reward, rollout, self.tokenizer, FORWARD_TOKENS)
        assert again.tolist() == pytest.approx(seen[-1][2], abs=1e-6)
        return experience

    original = PPOModule.score
    monkeypatch.setattr(PPOModule, "score", watched)
    return seen


def by_classifier(model: Any, tokenizer: Any, prompt: str, response: str) -> float:
    """Transformers alone, one conversation, no padding."""
    turns = [{"role": "user", "content": str(prompt)}, {"role": "assistant", "content": response}]
    ids = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
    with torch.no_grad():
        return float(model(input_ids=torch.tensor([ids])).logits)


@pytest.fixture
def classifier(place: Path) -> tuple[Any, Any]:
    model, tokenizer = written(place / "classifier", llama)
    return model, tokenizer


@pytest.mark.parametrize(
    "setting",
    [
        "classifier",
        "rules:score",
        "[{reward:classifier,weight:2.0},{reward:'rules:score',weight:-0.5}]",
        "{path:classifier,batch_size:3}",
    ],
)
def test_a_reward_from_the_command_line_is_a_direct_call(
    setting: str, place: Path, classifier: Any, scored: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rlhf(place, "stages=[ppo]", f"ppo.reward={setting}")
    assert [len(responses) for _, responses, _ in scored] == [8, 8]
    for prompts, responses, scores in scored:
        for prompt, response, score in zip(prompts, responses, scores, strict=True):
            rule = 0.5 + len(response) / len(prompt.fields["answer"])
            assert prompt.fields["answer"].startswith(f"{prompt} ")
            assert prompt.fields["source"] == "web"
            said = by_classifier(*classifier, prompt, response)
            expected = 2 * said - 0.5 * rule if setting[0] == "[" else rule if setting[0] == "r" else said
            assert score == pytest.approx(expected, abs=1e-6)
    folder = place / "runs" / "default" / "ppo"
    assert read_stage(folder)["metrics"]["rollout/score"] == pytest.approx(sum(scored[-1][2]) / 8, abs=1e-6)


def test_an_address_is_a_reward(place: Path, scored: list[Any]) -> None:
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        rlhf(place, "stages=[ppo]", f"ppo.reward={server.url}")
        rlhf(place, "stages=[ppo]", "run=node", f"ppo.reward={{url:'{server.url}',batch_size:3,timeout:5}}")
        server.shutdown()
    for _, responses, scores in scored:
        assert scores == [float(len(response.split())) for response in responses]
    asked = server.asked[0]
    assert asked["messages"][0] == [{"role": "user", "content": asked["prompts"][0]}]
    assert asked["fields"][0]["answer"].startswith(asked["prompts"][0])


def test_the_console_script_runs_a_function_and_a_sum(place: Path) -> None:
    """Whose `sys.path` has no working directory."""
    for name, setting, code in (
        ("alone", "rules:score", 0),
        ("sum", "[{reward:'rules:score',weight:0.5},'rules:score']", 0),
        ("one", "rules:one", 1),
    ):
        more = ["stages=[ppo]", f"run={name}", f"ppo.reward={setting}", "trainer.limit_train_batches=1"]
        said = console_script([f"paths.runs={place}/runs", *TINY, f"data.root={place}/data", *more], place)
        assert said.code == code, said.text[-2000:]
    assert "the reward rules:one returned 1 scores for 8 responses. Return 8 numbers" in " ".join(said.text.split())
    alone, both = (read_stage(place / "runs" / name / "ppo")["metrics"]["rollout/score"] for name in ("alone", "sum"))
    assert both == pytest.approx(1.5 * alone, abs=1e-6)


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("os:system", r"os:system is no function of the working directory .*allowed_targets"),
        ("subprocess:run", "subprocess:run is no function of the working directory"),
        ("rules:system", r"rules:system cannot be used: .*rules.py defines no function system"),
        ("rules:nothing", r"rules.py defines no function nothing"),
        ("rules:lost", r"rules:lost asks for solution, which no record has. There are .*answer.* source"),
        (
            "rules:nobody",
            r"the reward rules:nobody takes no prompts and responses: def nobody\(prompts, responses\) gets",
        ),
        (
            "rules",
            r"ppo, ppo_ptx: reward=rules: rules\.py is a file with .* reward=rules:<function>\. It has score, one",
        ),
        ("rules.py", r"reward=rules\.py: rules\.py is a file with functions"),
        ("./nowhere/model", "there is no file or folder ./nowhere/model"),
        ("{url:'http://x/',speed:1}", r"ppo\.reward\.speed=1 is no setting"),
        ("{weight:1}", r"ppo\.reward must be a step, a folder .* got \{'weight': 1\}"),
        ("[{reward:'rules:score',wait:1}]", r"ppo\.reward\.0\.wait=1 is no setting"),
        ("[{reward:'rules:score',weight:much}]", r"ppo\.reward\.0\.weight must be a number"),
        ("null", "a reward is a step"),
        ("[]", r"ppo\.reward must be a step"),
    ],
)
def test_what_is_no_reward_is_refused_before_the_first_step(place: Path, setting: str, sentence: str) -> None:
    with pytest.raises(PipelineError, match=sentence):
        rlhf(place, "stages=[ppo,ppo_ptx]", f"ppo.reward={setting}")
    assert not (place / "runs").exists()


def test_a_package_that_is_allowed_may_be_named(place: Path) -> None:
    assert named_function("statistics:mean", ["statistics"])([1, 3]) == 2
    assert named_function("rules:score", [])(["abc"], ["abcdef"]) == [1.0]


def test_another_function_is_another_identity(place: Path) -> None:
    rlhf(place, "stages=[ppo]", "ppo.reward=rules:score")
    rlhf(place, "stages=[ppo]", "ppo.reward=rules:score")  # complete already
    (place / "rules.py").write_text(RULES.replace("0.5", "0.25"), encoding="utf-8")
    with pytest.raises(PipelineError, match=r"parents\.reward: '\w+' there, '\w+' now"):
        rlhf(place, "stages=[ppo]", "ppo.reward=rules:score")


def test_another_class_of_ones_own_is_another_identity(place: Path) -> None:
    code = "class Mine:\n    def __call__(self, responses):\n        return [float(len(text)) for text in responses]\n"
    (place / "objects_of_mine.py").write_text(code, encoding="utf-8")
    sys.path.insert(0, str(place))
    setting = ["stages=[ppo]", "ppo.reward={_target_: objects_of_mine.Mine}", "allowed_targets=[objects_of_mine]"]
    rlhf(place, *setting)
    (place / "objects_of_mine.py").write_text(code.replace("float(", "-float("), encoding="utf-8")
    with pytest.raises(PipelineError, match=r"parents\.reward: '\w+' there, '\w+' now"):
        rlhf(place, *setting)


def test_a_reward_that_is_mended_goes_on_where_nothing_was_made(place: Path) -> None:
    with pytest.raises(ValueError, match="returned 1 scores for 8 responses"):
        rlhf(place, "stages=[ppo]", "ppo.reward=rules:one")
    assert not (place / "runs/default/ppo").exists()
    mended = RULES.replace("return [1.0]\n\ndef lost", "return [1.0] * len(responses)\n\ndef lost")
    (place / "rules.py").write_text(mended, encoding="utf-8")
    del sys.modules["rules"]  # another command reads it anew
    rlhf(place, "stages=[ppo]", "ppo.reward=rules:one")
    assert read_stage(place / "runs/default/ppo")["status"] == "complete"
    page = (place / "runs/default/ppo/model/README.md").read_text(encoding="utf-8")
    assert "| reward | `rules:one` |" in page
    assert "reward model" not in page


def test_two_folders_are_compared_without_a_reward_stage(place: Path) -> None:
    rlhf(place, "stages=[ppo]", "run=a", "ppo.reward=rules:score", "ppo.module.ema_decay=null")
    rlhf(place, "stages=[ppo]", "run=b", "ppo.reward=rules:score", "seed=2", "ppo.module.ema_decay=null")
    folders = [f"runs/{name}/ppo/model" for name in "ab"]
    shared = ["stages=[evaluate]", f"evaluate.policies=[{','.join(folders)}]", "+evaluate.judges.words=rules:score"]
    shared += [f"evaluate.baseline={folders[0]}", f"evaluate.reference={folders[0]}"]
    rlhf(place, *shared, "evaluate.judge=rules:score")
    metrics = read_stage(place / "runs" / "default" / "evaluate")["metrics"]
    assert metrics["judge"] == {"name": "rules:score", "trained_policies": True}
    samples = json.loads((place / "runs" / "default" / "evaluate" / "samples.json").read_text(encoding="utf-8"))
    for folder in folders:
        expected = [
            0.5 + len(text) / len(f"{prompt} {number}")
            for number, (prompt, text) in enumerate(zip(QUESTIONS, samples[folder]["responses"], strict=True))
        ]
        assert samples[folder]["scores"] == pytest.approx(expected, abs=1e-6)
        assert samples[folder]["judges"]["words"] == pytest.approx(expected, abs=1e-6)
    written(place / "bert", bert)
    rlhf(place, *shared, "run=other", f"evaluate.judge={place}/bert")
    judge = read_stage(place / "runs" / "other" / "evaluate")["metrics"]["judge"]
    assert judge == {"name": f"{place}/bert", "trained_policies": False}
    with pytest.raises(PipelineError, match="model of stage reward is needed"):
        rlhf(place, *shared, "run=none")


@pytest.mark.parametrize("rank", [0, 2])
def test_the_critic_starts_at_zero_or_where_it_is_told(place: Path, rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values: list[torch.Tensor] = []
    original = PPOModule.score

    def watched(self: PPOModule, rollout: Any) -> Any:
        values.append(original(self, rollout).old_values)
        return original(self, rollout)

    monkeypatch.setattr(PPOModule, "score", watched)
    rlhf(place, "stages=[ppo]", "ppo.reward=rules:score", f"ppo.lora.rank={rank}")
    first, second = values
    assert bool((first == 0).all())
    assert bool((second != 0).any())  # it learns


def test_a_run_with_a_function_and_a_hook_resumes_exactly(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hook = "{_target_:rlhf_lightning.generation.score_hooks.RunningNormalization}"
    more = ["stages=[ppo]", "ppo.reward=rules:score", f"ppo.module.score_hook={hook}", "trainer.limit_train_batches=3"]
    rlhf(place, *more, "run=whole", "ppo.module.whiten_scores=true", "ppo.module.score_scale=2")
    update, calls = PPOModule.update, []

    def failing(self: PPOModule, *args: Any) -> None:
        calls.append(int(self.iteration))
        if len(calls) == 3:
            raise KeyError("the power went out")
        update(self, *args)

    more += ["run=broken", "ppo.module.whiten_scores=true", "ppo.module.score_scale=2"]
    with monkeypatch.context() as patch:
        patch.setattr(PPOModule, "update", failing)
        with pytest.raises(KeyError, match="power"):
            rlhf(place, *more)
    rlhf(place, *more)
    own, other = (
        load_file(place / "runs" / run / "ppo" / "model" / "model.safetensors") for run in ("whole", "broken")
    )
    assert all(torch.equal(own[key], other[key]) for key in own)
    rows = (place / "runs" / "whole" / "ppo" / "metrics.csv").read_text(encoding="utf-8")
    assert "rollout/shaped_score" in rows


def test_a_setting_as_people_read_it() -> None:
    assert reward_label("reward") == "reward"
    assert reward_label({"path": "a/b", "label": "good"}) == "a/b"
    both = [{"reward": "reward"}, {"reward": {"_target_": "mine.Judge"}, "weight": 0.5}, "rules:score"]
    assert reward_label(both) == "1 x reward + 0.5 x mine.Judge + 1 x rules:score"


@pytest.mark.parametrize("start", ["critic", "base"])
def test_the_critic_starts_where_it_is_told(place: Path, start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, tokenizer = load_causal_lm("sandbox"), load_tokenizer("sandbox")
    model = ScalarHeadModel.from_causal_lm(lm).eval()
    export_scalar_model(model, lm.config, tokenizer, place / "critic")
    gaps: list[float] = []
    original = PPOModule.score

    def watched(self: PPOModule, rollout: Any) -> Any:
        experience = original(self, rollout)
        if not gaps:
            with torch.no_grad():
                expected = 0.0 if start == "base" else response_values(model, rollout)
            gaps.append(float((experience.old_values - expected).abs().max()))
        return experience

    monkeypatch.setattr(PPOModule, "score", watched)
    rlhf(place, "stages=[ppo]", "ppo.reward=rules:score", f"ppo.value_init={start}")
    assert gaps[0] < 1e-4
    assert set(read_stage(place / "runs" / "default" / "ppo")["identity"]["parents"]) == {
        "init",
        "reward",
        "value_init",
    }
