"""Step select: candidates are measured rightly, the best is passed on by name, mistakes are sentences."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_lightning.cli import CONFIG_DIR, composed, run
from rlhf_lightning.evaluation.policies import sample_policy
from rlhf_lightning.recipe.pipeline import Pipeline
from rlhf_lightning.recipe.select import candidates
from rlhf_lightning.runs.folders import PipelineError, Runs, read_stage
from rlhf_lightning.runs.identity import model_fingerprint
from rlhf_lightning.runs.targets import builder
from rlhf_lightning.sandbox.data import SandboxData, TrueUtility

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*many workers.*", "ignore:.*in eval mode.*", "ignore:.*LeafSpec.*", "ignore:.*logging interval.*"
)
SIZES = {"prompts": 40, "demonstrations": 40, "text": 20, "validation": 16}
TRUTH = "{_target_: rlhf_lightning.sandbox.data.TrueUtility, mode: final}"
TINY = [
    "debug=fast",
    *(f"data.source.{name}={size}" for name, size in SIZES.items()),
    "sft.fit.epochs=2",
    "sft.keep_epochs=true",
    "sft.keep_every=3",
    "ppo.data.batch_size=8",
    "ppo_ptx.data.batch_size=8",
    f"select.reward={TRUTH}",
    "select.batch_size=5",
]
EPOCHS = ["sft/epoch-1", "sft/epoch-2", "sft/batch-3"]


def rlhf(folder: Path, *overrides: str) -> float | None:
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return run(compose("config", [f"paths.runs={folder}", *TINY, *overrides]))


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    prefixes = "select.prefixes=['please say hello . answer : hello . |','the cave is red . |']"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "160")
        rlhf(folder, "stages=[sft,select]", "run=a", prefixes)
    return folder


def test_every_candidate_is_measured_as_if_prompts_came_one_by_one(chosen: Path) -> None:
    """By loops over prompts and demonstrations of the world, and plain forward passes; the noise goes by the prompt."""
    from rlhf_lightning.data.loader import collate_prompts
    from rlhf_lightning.data.tokenize import Tokenization
    from rlhf_lightning.generation.sample import SamplingOptions, response_texts, sample_responses

    found = read_stage(chosen / "a" / "select")["metrics"]
    assert [row["name"] for row in found["candidates"]] == EPOCHS
    world, judge = SandboxData(**SIZES), TrueUtility("final")
    prompts, shown = world.records("prompts", "validation"), world.records("demonstrations", "validation")
    assert prompts is not None
    assert shown is not None
    scores: dict[str, list[float]] = {}
    for row, name in zip(found["candidates"], ("1", "2", "batch-3"), strict=True):
        place = chosen / "a" / "sft" / "epochs" / name
        model, tokenizer = AutoModelForCausalLM.from_pretrained(place), AutoTokenizer.from_pretrained(place)
        tokens = Tokenization(tokenizer, 48, 26, "{prompt}")
        options, scores[row["name"]] = SamplingOptions.from_tokenizer(tokenizer, 26, 1.0), []
        for example in tokens.prompts(prompts):
            batch = collate_prompts([example], tokenizer.pad_token_id)
            (text,) = response_texts(tokenizer, sample_responses(model.eval(), batch, options, (1,)))
            scores[row["name"]] += judge([example.text], [text])
        assert row["score"]["value"] == pytest.approx(sum(scores[row["name"]]) / len(prompts), abs=1e-6)
        total, count = 0.0, 0
        for record in shown:
            prompt, response = tokenizer(record.prompt)["input_ids"], tokens.response_ids(record.response)  # type: ignore[union-attr]
            with torch.no_grad():
                logs = model(torch.tensor([[*prompt, *response]])).logits[0].log_softmax(-1)
            total -= sum(float(logs[len(prompt) - 1 + n, token]) for n, token in enumerate(response))
            count += len(response)
        loss = row["validation_loss"]
        assert loss["value"] == pytest.approx(total / count, abs=1e-4)
        assert loss["low"] < loss["value"] < loss["high"]
    best = max(scores, key=lambda name: sum(scores[name]))
    assert found["best"] == best
    for row in found["candidates"]:
        behind = sum(scores[best]) - sum(scores[row["name"]])
        assert row["behind"]["value"] == pytest.approx(behind / len(prompts), abs=1e-6)


def test_the_best_is_passed_on_as_a_folder_of_its_own(chosen: Path) -> None:
    best = read_stage(chosen / "a" / "select")["metrics"]["best"].removeprefix("sft/").removeprefix("epoch-")
    source, copied = chosen / "a" / "sft" / "epochs" / best, chosen / "a" / "select" / "model"
    assert model_fingerprint(str(copied)) == model_fingerprint(str(source))
    assert {path.name for path in copied.iterdir()} == {path.name for path in source.iterdir()} >= {"README.md"}
    assert (copied / "README.md").read_bytes() == (source / "README.md").read_bytes()
    assert not any(path.is_symlink() for path in copied.iterdir())
    assert not (copied / "config.json").samefile(source / "config.json")  # which people may edit
    shutil.copytree(copied, chosen / "moved")
    AutoModelForCausalLM.from_pretrained(chosen / "moved")


def test_a_folder_on_another_disk_is_copied(chosen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise OSError("another disk")

    monkeypatch.setattr(os, "link", refused)
    candidate = f"select.candidates=[{chosen}/a/sft/epochs/2]"
    rlhf(chosen, "stages=[select]", "run=copied", candidate)
    copied = chosen / "copied" / "select" / "model"
    assert model_fingerprint(str(copied)) == model_fingerprint(str(chosen / "a" / "sft" / "epochs" / "2"))
    assert not (copied / "model.safetensors").samefile(chosen / "a" / "sft" / "epochs" / "2" / "model.safetensors")


def test_a_folder_of_the_user_stays_his(chosen: Path, tmp_path: Path) -> None:
    """Nothing in `select/model` changes with it, and what is no part of the model stays behind."""
    shutil.copytree(chosen / "a" / "sft" / "model", tmp_path / "mine")
    (tmp_path / "mine" / "optimizer.pt").write_bytes(b"state")
    rlhf(chosen, "stages=[select]", "run=mine", f"select.candidates=[{tmp_path}/mine]", "select.num_prompts=4")
    copied = chosen / "mine" / "select" / "model"
    assert model_fingerprint(str(copied)) == model_fingerprint(str(tmp_path / "mine"))
    assert not (copied / "model.safetensors").samefile(tmp_path / "mine" / "model.safetensors")
    assert not (copied / "optimizer.pt").exists()


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.*")
def test_an_adapter_is_passed_on_as_a_model(chosen: Path, tmp_path: Path) -> None:
    """It need not lie beside the model that it belongs to."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    start = str(chosen / "a" / "sft" / "model")
    config = peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, fan_in_fan_out=True)
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(start), config).save_pretrained(str(tmp_path / "mine"))
    AutoTokenizer.from_pretrained(start).save_pretrained(tmp_path / "mine")
    rlhf(chosen, "stages=[select]", "run=adapter", f"select.candidates=[{tmp_path}/mine]", "select.num_prompts=4")
    passed = AutoModelForCausalLM.from_pretrained(chosen / "adapter" / "select" / "model")
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "mine"))
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(passed.eval()(ids).logits, theirs.eval()(ids).logits, atol=1e-5, rtol=1e-5)
    assert not (chosen / "adapter" / "select" / "model" / "adapter_config.json").exists()


def test_the_last_weights_of_a_step_compete(chosen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Beside those that it kept where they are others; alone where it kept none, which is said."""
    shutil.copytree(chosen / "a" / "sft", chosen / "within" / "sft")
    shutil.rmtree(chosen / "within" / "sft" / "epochs" / "2")
    few = ("stages=[select]", "select.num_prompts=4", "select.num_demonstrations=0")
    rlhf(chosen, *few, "run=f", "select.candidates=[within/sft]")
    found = read_stage(chosen / "f" / "select")["metrics"]["candidates"]
    assert [row["name"] for row in found] == ["within/sft/epoch-1", "within/sft/batch-3", "within/sft"]
    assert "only candidate" not in capsys.readouterr().out
    rlhf(chosen, *few, "stages=[sft,select]", "run=g", "sft.keep_epochs=false", "sft.keep_every=null")
    assert [row["name"] for row in read_stage(chosen / "g" / "select")["metrics"]["candidates"]] == ["sft"]
    assert "sft is the only candidate" in capsys.readouterr().out


def test_other_steps_name_it(chosen: Path) -> None:
    """Step collect samples it, evaluate compares with it and reads its prefix; the report shows it."""
    compared = [
        *("evaluate.policies=[prompted,select]", "evaluate.baseline=select", "evaluate.reference=select"),
        *("evaluate.judges=null", "evaluate.probes=null"),
    ]
    more = ("evaluate.few_shot_prefix=select", "collect.policies=[select]")
    rlhf(chosen, "stages=[collect,evaluate]", "run=b", "upstream=a", *compared, *more)
    own = model_fingerprint(str(chosen / "a" / "select" / "model"))
    parents = {step: read_stage(chosen / "b" / step)["identity"]["parents"] for step in ("collect", "evaluate")}
    assert parents["collect"]["select"] == parents["evaluate"]["select"] == own
    samples = json.loads((chosen / "b" / "evaluate" / "samples.json").read_text(encoding="utf-8"))
    found = read_stage(chosen / "a" / "select")["metrics"]
    best = max(found["prefixes"], key=lambda row: row["score"]["value"])["name"]
    prefixes = {"prefix 1": "please say hello . answer : hello . |", "prefix 2": "the cave is red . |"}
    assert found["best_prefix"] == prefixes[best]
    # Told by its text it is the same step, and does the same.
    told = f"evaluate.few_shot_prefix='{found['best_prefix']}'"
    rlhf(chosen, "stages=[evaluate]", "run=c", "upstream=[b,a]", *compared, told)
    others = json.loads((chosen / "c" / "evaluate" / "samples.json").read_text(encoding="utf-8"))
    assert samples["prompted"]["responses"] == others["prompted"]["responses"]
    page = (chosen / "b" / "report" / "index.html").read_text(encoding="utf-8")
    assert f"<b>{found['best']}</b>" in page
    assert "prefix 2" in page


def test_a_kill_goes_on_with_what_was_measured(chosen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def counted(model: Any, *arguments: Any, **options: Any) -> Any:
        asked.append(model)
        if len(asked) == 2:
            raise KeyError("the power went out")
        return sample_policy(model, *arguments, **options)

    monkeypatch.setattr("rlhf_lightning.recipe.select.sample_policy", counted)
    options = ("stages=[select]", "run=killed", "upstream=a")
    with pytest.raises(KeyError, match="power"):
        rlhf(chosen, *options)
    rlhf(chosen, *options)
    assert len(asked) == 2 + 2  # the first of three is not asked again
    killed, whole = (read_stage(chosen / name / "select")["metrics"] for name in ("killed", "a"))
    assert killed["candidates"] == whole["candidates"]
    assert not list((chosen / "killed" / "select").glob("*.unfinished"))


def test_runs_of_a_sweep_compete(chosen: Path) -> None:
    """By `run/step`: all epochs where they were kept, else the model; another content is another step."""
    shutil.copytree(chosen / "a" / "sft", chosen / "sweep" / "sft")
    shutil.rmtree(chosen / "sweep" / "sft" / "epochs")
    options = ("stages=[select]", "run=d", "select.candidates=[a/sft,sweep/sft]", "select.num_demonstrations=0")
    rlhf(chosen, *options)
    found = read_stage(chosen / "d" / "select")["metrics"]["candidates"]
    assert [row["name"] for row in found] == ["a/sft/epoch-1", "a/sft/epoch-2", "a/sft/batch-3", "sweep/sft"]
    assert found[1]["score"] == found[3]["score"]  # the last epoch is the model
    assert found[0]["validation_loss"] is None
    weights = chosen / "sweep" / "sft" / "model" / "model.safetensors"
    shutil.copyfile(chosen / "a" / "sft" / "epochs" / "1" / "model.safetensors", weights)
    with pytest.raises(PipelineError, match=r"parents\.sweep/sft"):
        rlhf(chosen, *options)


@pytest.mark.slow
def test_steps_of_other_runs_are_policies_and_judges(chosen: Path) -> None:
    """By `run/step`, with its variants, they say what their folders say."""
    rlhf(chosen, "stages=[collect,reward]", "run=ranked", "upstream=a")
    place = chosen / "a" / "sft"
    policies = ["a/sft", "a/sft/epoch-1", f"{place}/model", f"{place}/epochs/1"]
    rlhf(
        chosen, "stages=[evaluate]", "run=e", f"evaluate.policies=[{','.join(policies)}]", "evaluate.baseline=a/sft",
        "evaluate.reference=a/sft", "evaluate.judge=ranked/reward",
    )  # fmt: skip
    said = json.loads((chosen / "e" / "evaluate" / "samples.json").read_text())
    assert said[policies[0]] == said[policies[2]] != said[policies[1]] == said[policies[3]]
    found = read_stage(chosen / "e" / "evaluate")
    assert found["identity"]["parents"]["judge"] == model_fingerprint(str(chosen / "ranked" / "reward" / "model"))


def test_the_order_of_epochs_is_that_of_training(tmp_path: Path) -> None:
    for name in ("2", "10", "1", "batch-100", "batch-20", "3.unfinished"):
        (tmp_path / "run" / "sft" / "epochs" / name).mkdir(parents=True)
    (tmp_path / "run" / "sft" / "model").mkdir()
    (tmp_path / "run" / "sft" / "model" / "config.json").write_text("{}")
    place = Pipeline(composed(["data.source.prompts=4"]), builder([]), Runs(tmp_path, "other"), Console(quiet=True))
    found = candidates(place.context, ["run/sft", "base"])
    assert [name.removeprefix("run/sft/") for name in found] == [
        "epoch-1", "epoch-2", "epoch-10", "batch-20", "batch-100", "run/sft", "base",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["select.split=test"], r"select: split=test: what is chosen on test prompts is overrated.*split=validation"),
        (["select.candidates=[]"], "candidates is empty. Name what"),
        (["select.candidates=[sft/epoch-9]"], r"candidates=sft/epoch-9: .*holds epochs 1, 2, batch-3"),
        (["select.candidates=[stf]"], "Did you mean sft"),
        (["select.candidates=[nowhere/sft]"], r"candidates=nowhere/sft"),
        (["select.candidates=[reward]"], "step reward leaves a reward model"),
        (["select.reward=reward"], "model of stage reward is needed"),
        (["select.reward=null"], "a reward is a step"),
        (["select.prefixes=['" + "ball " * 150 + "']"], "allow 224"),
        (["evaluate.few_shot_prefix=select", "stages=[evaluate]", "upstream=d2"], "no prefixes compete in step select"),
        (["stages=[sft,select]", "run=new", "select.candidates=[sft/batch-4]"], "keeps each 3th batch"),
        (["stages=[sft,select]", "run=new", "select.candidates=[sft/epoch-3]"], "there are epoch-1 to epoch-2"),
        (["data.source.validation=0"], "prompts for the split validation"),
    ],
)  # fmt: skip
def test_what_cannot_be_chosen_is_a_sentence(chosen: Path, overrides: list[str], said: str) -> None:
    if "upstream=d2" in overrides and not (chosen / "d2").exists():
        rlhf(chosen, "stages=[select]", "run=d2", "upstream=a", "select.num_prompts=4", "select.candidates=[base]")
    with pytest.raises((PipelineError, ValueError), match=said):
        rlhf(chosen, "stages=[select]", "run=wrong", "upstream=a", *overrides)
    assert not (chosen / "wrong" / "select").exists()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["ppo.keep=best"], r"ppo: keep is set, but nothing is validated\. Set ppo\.validate_every"),
        (["ppo.validation_judge=base"], "validation_judge is set, but nothing is validated"),
        (["ppo.validate_every=2", "ppo.validation_judge=sft"], "step sft leaves a model that writes"),
        (["evaluate.policies=[sft,ppo/best]", "stages=[ppo,evaluate]"], "ppo keeps the last weights"),
        (["ppo.validate_every=2", "data.source.validation=0"], "prompts for the split validation"),
        (["ppo.keep=last"], "ppo.keep must be .*best"),
    ],
)  # fmt: skip
def test_what_ppo_cannot_validate_is_a_sentence(chosen: Path, overrides: list[str], said: str) -> None:
    with pytest.raises(PipelineError, match=said):
        rlhf(chosen, "stages=[ppo]", "run=wrong", "upstream=a", f"ppo.reward={TRUTH}", *overrides)


@pytest.mark.slow
def test_ppo_keeps_its_best_iteration_by_name(chosen: Path) -> None:
    """From `select`: `ppo/best` is a candidate and a folder with a card, and ppo itself is as without validation."""
    more = [f"ppo.reward={TRUTH}", "ppo.init=select", "stages=[ppo]", "upstream=a", "trainer.limit_train_batches=4"]
    rlhf(chosen, *more, "run=plain")
    options = ["ppo.validate_every=2", "ppo.validation_prompts=8", f"ppo.validation_judge={TRUTH}", "ppo.keep=best"]
    rlhf(chosen, *more, *options, "run=best")
    metrics = read_stage(chosen / "best" / "ppo")["metrics"]
    assert metrics["best_iteration"] in (2, 4)
    start = model_fingerprint(str(chosen / "a" / "select" / "model"))
    assert read_stage(chosen / "best" / "ppo")["identity"]["parents"]["init"] == start
    # The reward judges too; the last figures are those of the last validation.
    assert metrics["validation/score"] == metrics["validation/judge"]
    for name in ("model", "model_ema"):
        assert model_fingerprint(str(chosen / "best" / "ppo" / name)) == model_fingerprint(
            str(chosen / "plain" / "ppo" / name)
        )
    card = (chosen / "best" / "ppo" / "model_best" / "README.md").read_text(encoding="utf-8")
    assert f"after iteration {metrics['best_iteration']}, the best one on validation prompts" in card
    rlhf(chosen, *options, f"ppo.reward={TRUTH}", "stages=[select]", "run=e", "upstream=[best,a]",
         "select.candidates=[ppo/best,ppo]")  # fmt: skip
    assert [row["name"] for row in read_stage(chosen / "e" / "select")["metrics"]["candidates"]] == ["ppo/best", "ppo"]
