"""What people bring: a model folder with one fault, and the self-check on the command line that names it.

The shipped small model stands for any; `RLHF_CHAT_MODEL=/a/chat/model pytest -m slow` plants the same in another one.
"""

import gc
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file, save_file

from rlhf_lightning.cli import CONFIG_DIR, run
from rlhf_lightning.data.tokenize import Tokenization
from rlhf_lightning.models.loading import load_causal_lm
from rlhf_lightning.runs.folders import PipelineError
from rlhf_lightning.tokenization.endings import end_token_ids, turn_end
from rlhf_lightning.tokenization.loading import load_tokenizer
from rlhf_lightning.tokenization.trained import as_trained

CHAT_MODEL = os.environ.get("RLHF_CHAT_MODEL")
TEMPLATE = "{% for m in messages %}{{ m.content }} <eos> {% endfor %}"
QUESTIONS = ["answer : what eats milk ?", "answer : what eats corn ?", "tell cow", "tell milk and corn"]

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*many workers.*", "ignore:.*in eval mode.*", "ignore:.*LeafSpec.*", "ignore:.*logging interval.*"
)


@pytest.fixture(
    params=[
        "shipped",
        pytest.param(
            "own", marks=[pytest.mark.slow, pytest.mark.skipif(not CHAT_MODEL, reason="RLHF_CHAT_MODEL is not set")]
        ),
    ]
)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A sound folder with a template, to be changed."""
    copy = tmp_path / str(request.param)
    if request.param == "own":
        shutil.copytree(str(CHAT_MODEL), copy)
        return copy
    tokenizer = load_tokenizer("sandbox/small")
    tokenizer.chat_template, tokenizer.bos_token = TEMPLATE, "say"
    load_causal_lm("sandbox/small").save_pretrained(copy)
    tokenizer.save_pretrained(copy)
    return copy


def checked(folder: Path, *overrides: str) -> None:
    """`rlhf stages=[check]` on a model folder; raises what the command would say."""
    gc.collect()  # of large models before
    data = folder.parent / "data"
    data.mkdir(exist_ok=True)
    records = {
        "demonstrations.train": [{"prompt": text, "response": "milk"} for text in QUESTIONS],
        "prompts.train": [{"prompt": text} for text in QUESTIONS * 2],
    }
    for name, rows in records.items():
        (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fixed = [
        "stages=[check]",
        "model=folder",
        f"model.path={folder}",
        "data=jsonl",
        f"data.root={data}",
        "data.source.files.prompts.test=null",
        "data.lengths.max_prompt_tokens=64",
        "data.lengths.max_response_tokens=16",
        "data.lengths.block_size=32",
        f"paths.runs={folder.parent / 'runs'}",
    ]
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        run(compose("config", [*fixed, *overrides]))


def edit(file: Path, change: Callable[[dict], dict]) -> None:
    file.write_text(json.dumps(change(json.loads(file.read_text()))))


def change_weights(folder: Path, change: Callable[[dict], dict]) -> None:
    file = folder / "model.safetensors"
    weights = change(load_file(file))
    save_file({name: weight.contiguous() for name, weight in weights.items()}, file, metadata={"format": "pt"})


def change_template(folder: Path, change: Callable[[str], str]) -> None:
    file = folder / "chat_template.jinja"
    file.write_text(change(file.read_text()))


def weights_have_a_prefix(folder: Path) -> None:
    change_weights(folder, lambda weights: {f"_orig_mod.{name}": weight for name, weight in weights.items()})


def a_layer_is_missing(folder: Path) -> None:
    change_weights(folder, lambda weights: {n: w for n, w in weights.items() if ".1.mlp." not in n})


def a_weight_is_not_a_number(folder: Path) -> None:
    def broken(weights: dict) -> dict:
        name = next(name for name in weights if ".1.mlp." in name)
        weights[name].view(-1)[0] = torch.nan
        return weights

    change_weights(folder, broken)


def words_of_another_model(folder: Path) -> None:
    special = set(load_tokenizer(str(folder)).all_special_tokens)

    def turned(tokenizer: dict) -> dict:
        vocabulary = tokenizer["model"]["vocab"]
        words = [word for word in vocabulary if word not in special]
        numbers = [vocabulary[word] for word in words]
        vocabulary |= dict(zip(words, numbers[len(numbers) // 2 :] + numbers[: len(numbers) // 2], strict=True))
        return tokenizer

    edit(folder / "tokenizer.json", turned)


def too_few_rows(folder: Path) -> None:
    rows = 100

    def cut(weights: dict) -> dict:
        return {name: w[:rows] if "wte" in name or "embed_tok" in name else w for name, w in weights.items()}

    change_weights(folder, cut)
    edit(folder / "config.json", lambda config: {**config, "vocab_size": rows})


def no_tokenizer(folder: Path) -> None:
    for file in folder.glob("*token*"):
        file.unlink()


def an_end_outside_of_the_vocabulary(folder: Path) -> None:
    edit(folder / "generation_config.json", lambda config: {**config, "eos_token_id": [1, 9_999_999]})


def an_end_that_is_a_word(folder: Path) -> None:
    tokenizer = load_tokenizer(str(folder))
    word = next(n for token, n in tokenizer.get_vocab().items() if token not in tokenizer.get_added_vocab() and n > 9)
    edit(folder / "generation_config.json", lambda config: {**config, "eos_token_id": [1, word]})


def bos_twice(folder: Path) -> None:
    bos = load_tokenizer(str(folder)).bos_token
    change_template(folder, lambda template: f"{bos} {bos} {template}")


def a_template_that_refuses(folder: Path) -> None:
    change_template(folder, lambda template: "{{ raise_exception('only tools may speak') }}")


def quantised(folder: Path) -> None:
    edit(folder / "config.json", lambda config: {**config, "quantization_config": {"quant_method": "gptq"}})


def pickles(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def nothing(folder: Path) -> None:
    """The fault is in the settings."""


FAULTS = [
    (weights_have_a_prefix, [], r"lacks .* has besides _orig_mod\."),
    (a_layer_is_missing, [], r"lacks .*\.1\.mlp\."),
    (a_weight_is_not_a_number, [], r"logits that are not finite"),
    (words_of_another_model, [], r"checks failed: .*tokenizer"),
    (too_few_rows, [], r"vocabulary of \d+ tokens, the model rows for 100: it is another model's"),
    (no_tokenizer, [], r"tokenizer"),
    pytest.param(an_end_outside_of_the_vocabulary, [], r"checks failed: .*end tokens", marks=pytest.mark.slow),
    pytest.param(an_end_that_is_a_word, [], r"the model's folder ends at id \d+, the text", marks=pytest.mark.slow),
    pytest.param(bos_twice, [], r"checks failed: .*one BOS", marks=pytest.mark.slow),
    (a_template_that_refuses, [], r"only tools may speak"),
    (quantised, [], r"is quantised, which cannot be trained"),
    (pickles, [], r"no weights in safetensors, and a pickle is not read"),
    pytest.param(
        nothing,
        ["data.format=plain"],
        r"template of \S+ and data.format=plain differ: token \d+ of '.*' is .* by the",
        marks=pytest.mark.slow,
    ),
    (nothing, ["trainer.precision=bf16-true"], r"bf16-true.*bf16-mixed or 32-true"),
    (nothing, ["data.lengths.max_prompt_tokens=100000"], r"reads \d+ tokens, but data.lengths allow 100016"),
]


def test_a_sound_folder_passes(folder: Path) -> None:
    checked(folder)


@pytest.mark.slow
def test_another_template_is_no_fault(folder: Path) -> None:
    if (folder / "chat_template.jinja").exists():
        (folder / "chat_template.jinja").unlink()
    checked(folder, "model.chat_template=plain")


@pytest.mark.slow
def test_a_folder_is_checked_in_the_format_that_it_was_trained_with(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    tokens = Tokenization(load_tokenizer(str(folder)), prompt_template="{prompt}")
    as_trained(tokens.dialogue).save_pretrained(folder)
    checked(folder)
    with pytest.raises(PipelineError, match=r"checks failed: .*prompt format"):
        checked(folder, "data.lengths.prompt_template='say {prompt}'")


@pytest.mark.parametrize(("plant", "overrides", "named"), FAULTS)
def test_the_check_names_what_is_wrong_with_a_folder(
    folder: Path, plant: Callable[[Path], None], overrides: list[str], named: str
) -> None:
    if plant is words_of_another_model and "shipped" in str(folder):
        pytest.skip("sentences of five words tell too little")
    plant(folder)
    with pytest.raises((PipelineError, ValueError, OSError)) as failed:
        checked(folder, *overrides)
    table = folder.parent / "runs" / "default" / "check" / "check.json"
    rows = json.loads(table.read_text()) if table.exists() else []
    said = [str(failed.value), *(row["measured"] for row in rows if row["outcome"] in ("fail", "error"))]
    assert any(re.search(named, sentence) for sentence in said), said


def test_an_end_that_is_left_out_is_named(folder: Path) -> None:
    tokenizer = load_tokenizer(str(folder))
    other = next(token for token in tokenizer.get_vocab() if token not in tokenizer.all_special_tokens)
    assert turn_end(tokenizer) in tokenizer.convert_ids_to_tokens(list(end_token_ids(tokenizer)))
    with pytest.raises(PipelineError, match=r"checks failed: .*end tokens"):
        checked(folder, f"model.eos='{other}'")
