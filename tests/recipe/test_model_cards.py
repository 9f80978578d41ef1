"""Model cards: metadata pass the hub's own classes, code runs as it is written, figures are those of the steps."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_models import EVERY, byte_tokenizer
from huggingface_hub import ModelCard, ModelCardData
from hydra import compose, initialize_config_dir
from transformers import AutoModelForSequenceClassification

from rlhf_lightning.cli import CONFIG_DIR, run
from rlhf_lightning.data.records import Comparison
from rlhf_lightning.data.tokenize import Tokenization
from rlhf_lightning.models.export import export_scalar_model
from rlhf_lightning.models.scalar_head import HEAD_FILE, ScalarHeadModel
from rlhf_lightning.recipe.model_cards import model_folders, usage
from rlhf_lightning.runs.folders import read_stage
from rlhf_lightning.runs.identity import model_fingerprint
from rlhf_lightning.runs.model_card import card_page, is_ours

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*many workers.*", "ignore:.*in eval mode.*", "ignore:.*LeafSpec.*", "ignore:.*logging interval.*"
)
TINY = ["debug=fast", "data.source.prompts=40", "data.source.demonstrations=40", "data.source.validation=16"]
STEPS = "stages=[sft,collect,reward,ppo,evaluate]"
OPTIONS = [STEPS, "run=tiny", "sft.keep_epochs=true", "sft.fit.epochs=1", "ppo.data.batch_size=8", "ppo.init=sft"]
MODELS = ["sft/model", "sft/epochs/1", "reward/model", "ppo/model", "ppo/model_ema"]


def rlhf(folder: Path, *overrides: str) -> None:
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        run(compose("config", [f"paths.runs={folder}", *TINY, "experiment=demo", *OPTIONS, *overrides]))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("private")
    rlhf(folder)
    return folder / "tiny"


def code_of(folder: Path) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    return str(code)


def executed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that the card's code leaves, run as it is written in the folder."""
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {"__name__": "reader"}
    exec(code_of(folder), names)
    return names


@pytest.mark.parametrize("model", MODELS)
def test_the_metadata_round_trip_through_the_hubs_classes(finished: Path, model: str) -> None:
    text = (finished / model / "README.md").read_text(encoding="utf-8")
    card = ModelCard.load(finished / model / "README.md")
    assert ModelCardData(**card.data.to_dict()).to_dict() == card.data.to_dict()
    assert str(card) == text
    assert card.data.library_name == "transformers"
    assert {"rlhf", "instructgpt"} <= set(card.data.tags)
    # The shipped base is no hub id, and its folder names no licence.
    assert card.data.base_model is None
    assert card.data.license is None
    assert is_ours(text)


def test_the_figures_are_those_of_the_steps(finished: Path) -> None:
    policies = read_stage(finished / "evaluate")["metrics"]["policies"]
    shown = {result.metric_type: result.metric_value for result in results(finished / "ppo/model_ema")}
    assert shown["win_rate"] == policies["ppo"]["win_rate"]["value"]
    assert shown["kl"] == policies["ppo"]["kl"]
    # Other weights were asked; and a win rate against itself says nothing.
    assert results(finished / "ppo/model") == []
    assert "win_rate" not in {result.metric_type for result in results(finished / "sft/model")}
    accuracy = read_stage(finished / "reward")["metrics"]["validation"]["all"]["accuracy"]
    (result,) = results(finished / "reward/model")
    assert (result.metric_type, result.metric_value) == ("accuracy", accuracy["value"])
    page = (finished / "reward/model/README.md").read_text(encoding="utf-8")
    assert f"{100 * accuracy['low']:.1f} .. {100 * accuracy['high']:.1f}" in page


def results(folder: Path) -> list[Any]:
    return ModelCard.load(folder / "README.md").data.eval_results or []


def test_it_says_from_what_and_on_what(finished: Path) -> None:
    page = (finished / "ppo/model/README.md").read_text(encoding="utf-8")
    for parent in ("sft", "reward"):
        assert f"`step {parent}` | `{model_fingerprint(str(finished / parent / 'model'))}`" in page
    assert "| prompts | rlhf\\_lightning.sandbox.data.SandboxData | 40 |" in page
    assert "`ppo.module.kl_coef` | `0.05`" in page
    assert read_stage(finished / "ppo")["date"] in page
    assert str(finished.parent) not in "".join(file.read_text() for file in finished.rglob("README.md"))


@pytest.mark.parametrize("model", ["sft/model", "sft/epochs/1", "ppo/model", "ppo/model_ema"])
def test_the_code_of_a_policy_runs(finished: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names = executed(finished / model, monkeypatch)
    assert names["output"].shape[1] > names["inputs"]["input_ids"].shape[1]


def test_a_second_run_writes_the_same_and_keeps_what_somebody_wrote(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pages = {path: path.read_text(encoding="utf-8") for path in finished.rglob("README.md")}
    assert {str(path.parent.relative_to(finished)) for path in pages} == set(MODELS)
    edited, gone = finished / "sft/model/README.md", finished / "ppo/model/README.md"
    edited.write_text(pages[edited].replace("# tiny-sft", "# Our own"), encoding="utf-8")
    gone.unlink()
    rlhf(finished.parent)
    assert "README.md was edited, so it stays" in " ".join(capsys.readouterr().out.split())
    assert edited.read_text(encoding="utf-8").count("# Our own") == 1
    edited.write_text(pages[edited], encoding="utf-8")
    assert {path: path.read_text(encoding="utf-8") for path in pages} == pages


def test_a_card_changes_no_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    before = model_fingerprint(str(tmp_path))
    (tmp_path / "README.md").write_text("# Mine")
    assert model_fingerprint(str(tmp_path)) == before


def test_a_card_that_cannot_be_written_loses_no_step(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no space left")

    monkeypatch.setattr("rlhf_lightning.recipe.model_cards.card_page", broken)
    rlhf(finished.parent, "run=broken", "stages=[sft]")
    assert "no model card" in capsys.readouterr().out
    assert read_stage(finished.parent / "broken" / "sft")["status"] == "complete"


def test_it_names_the_licence_of_the_base_and_no_private_path_or_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: Path
) -> None:
    base = tmp_path / "ann" / "my-base"
    base.mkdir(parents=True)
    for file in (finished / "sft/model").iterdir():
        os.link(file, base / file.name)
    (base / "README.md").unlink()
    (base / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    monkeypatch.setenv("MY_TOKEN", "abcdefgh1jkl")
    rlhf(tmp_path, "stages=[sft]", "model=folder", f"model.path={base}", "run=abcdefgh1jkl")
    page = (tmp_path / "abcdefgh1jkl/sft/model/README.md").read_text(encoding="utf-8")
    assert ModelCard(page).data.license == "mit"
    assert "`my-base`" in page
    assert "its own card, is mit" in page
    assert str(tmp_path) not in page
    assert "abcdefgh1jkl" not in page


def usage_page(folder: Path, tokenizer: Any, *, is_policy: bool) -> None:
    facts = usage(folder, tokenizer, {"max_response_tokens": 4, "prompt_template": None}, is_policy=is_policy)
    empty = dict.fromkeys(
        ("parents", "accuracy", "evaluation", "measures", "data", "left_out", "settings", "licence"), ()
    )
    blank = dict.fromkeys(("name", "what", "step", "base", "base_id", "data_fingerprint", "made_with"), "x")
    flags = dict.fromkeys(("averaged", "epoch", "best", "template_date"), None)
    adapter = (folder / "adapter_config.json").exists()
    page = card_page(ModelCardData(), {**empty, **blank, **flags, "is_policy": is_policy, "adapter": adapter, **facts})
    (folder / "README.md").write_text(page, encoding="utf-8")


PLAIN = {"plain": lambda: byte_tokenizer([], bos="<bos>", adds_bos=True)}


@pytest.mark.parametrize("name", [*EVERY, *PLAIN])
@pytest.mark.parametrize("with_class", [True, False])
def test_the_code_of_a_reward_model_gives_the_scores_of_training(
    name: str, with_class: bool, tmp_path: Path, make_tiny_lm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the ids of the training examples and our own head, and by the card's lines of transformers."""
    tokenizer = {**EVERY, **PLAIN}[name]()
    lm = make_tiny_lm("llama", vocab_size=len(tokenizer))
    model = ScalarHeadModel.from_causal_lm(lm)
    model.bias.fill_(0.7)
    folder = tmp_path / "model"
    if not with_class:
        monkeypatch.setattr("rlhf_lightning.models.export._scores_alike", lambda *_: False)
    export_scalar_model(model, lm.config, tokenizer, folder)
    assert (folder / HEAD_FILE).exists() is not with_class
    usage_page(folder, tokenizer, is_policy=False)
    record = Comparison("What is the capital of France?", ["Paris.", "a"], [1, 2])
    (example,) = Tokenization(tokenizer).comparisons([record])
    ids = [*example.prompt_ids, *example.response_ids[0]]
    with torch.no_grad():
        expected = float(model(torch.tensor([ids]))[0, -1])
    assert executed(folder, monkeypatch)["score"] == pytest.approx(expected, abs=1e-5)


def test_the_bias_stands_in_the_config(finished: Path) -> None:
    reward = AutoModelForSequenceClassification.from_pretrained(finished / "reward/model")
    assert "model.config.reward_bias" in code_of(finished / "reward/model")
    assert isinstance(reward.config.reward_bias, float)


def test_folders_of_models_are_found_and_nothing_else(tmp_path: Path) -> None:
    for name in ("model", "adapter", "epochs/2", "base", "model.unfinished"):
        (tmp_path / name).mkdir(parents=True)
        config = "adapter_config.json" if name == "adapter" else "config.json"
        (tmp_path / name / config).write_text(json.dumps({}))
    (tmp_path / "checkpoints").mkdir()
    names = [str(folder.relative_to(tmp_path)) for folder in model_folders(tmp_path)]
    assert names == ["adapter", "epochs/2", "model"]
