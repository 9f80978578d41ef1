"""What ends a response: found, chosen, kept, and the same for everyone."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

from rlhf_lightning.algorithms.batch import PromptBatch
from rlhf_lightning.generation.sample import SamplingOptions, response_texts, sample_responses
from rlhf_lightning.models.export import export_causal_lm, export_scalar_model
from rlhf_lightning.models.loading import fit_to_tokenizer, load_causal_lm
from rlhf_lightning.models.scalar_head import ScalarHeadModel
from rlhf_lightning.tokenization.endings import end_token_ids, keep_endings, listed_end_ids, stop_strings, turn_end
from rlhf_lightning.tokenization.loading import load_tokenizer

EOS, TURN, TOOL = 1, 4, 5


@pytest.mark.parametrize(
    ("listed", "found"),
    [
        ((1, 4), (TURN, EOS)),  # Gemma
        ((4, 5, 1), (TURN, EOS, TOOL)),  # Llama 3, Phi 3: a third end that neither template nor tokenizer names
        (1, (TURN, EOS)),  # one that was saved before it was tuned: the template knows better
        (None, (TURN, EOS)),
        ((1, 400), (TURN, EOS)),  # no token of the vocabulary; the check names it
        ((1, 9), (TURN, EOS)),  # a word, as where a configuration was left at its default; likewise
    ],
)
def test_the_ends_are_those_of_template_tokenizer_and_generation_config(make_chat_folder, listed, found):
    tokenizer = load_tokenizer(str(make_chat_folder(ends=listed)))
    assert end_token_ids(tokenizer) == found
    assert turn_end(tokenizer) == "<end_of_turn>"


def test_without_a_generation_config_the_models_config_counts(make_chat_folder):
    folder = make_chat_folder(template=None)
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": [1, 5]}))
    assert end_token_ids(load_tokenizer(str(folder))) == (EOS, TOOL)


@pytest.mark.parametrize(
    ("template", "end"),
    [
        ("{% for m in messages %}{{ m.role }}: {{ m.content | trim }} <eos>{% endfor %}", "<eos>"),
        ("{% for m in messages %}### {{ m.role }}\n{{ m.content }}\n\n{% endfor %}", None),
        ("{% for m in messages %}{{ m.content }}\n### Human: <end_of_turn>{% endfor %}", None),
        ("{{ raise_exception('nobody may speak') }}", None),
        (None, None),
    ],
)
def test_the_end_of_a_turn_is_what_the_template_writes_behind_an_answer(make_chat_folder, template, end):
    tokenizer = load_tokenizer(str(make_chat_folder(template=template, ends=1)))
    assert turn_end(tokenizer) == end
    assert end_token_ids(tokenizer) == (EOS,)


def test_a_tokenizer_from_elsewhere_knows_its_turn_too(make_chat_folder):
    assert end_token_ids(AutoTokenizer.from_pretrained(make_chat_folder(ends=1))) == (TURN, EOS)


def test_chosen_ends_count_alone_and_are_kept(make_chat_folder, tmp_path):
    folder = str(make_chat_folder())
    assert end_token_ids(load_tokenizer(folder, eos="<tool>")) == (TOOL,)
    tokenizer = load_tokenizer(folder, eos=["<tool>", "<end_of_turn>"], stop=["Human: next"])
    assert end_token_ids(tokenizer) == (TURN, TOOL)
    model = fit_to_tokenizer(load_causal_lm(folder), tokenizer)
    head = ScalarHeadModel.from_causal_lm(model)
    export_causal_lm(model, tokenizer, tmp_path / "policy")
    export_scalar_model(head, model.config, tokenizer, tmp_path / "reward")
    for exported in ("policy", "reward"):
        again = load_tokenizer(str(tmp_path / exported))
        assert end_token_ids(again) == (TURN, TOOL)
        assert stop_strings(again) == ("Human: next",)
    assert GenerationConfig.from_pretrained(tmp_path / "policy").eos_token_id == [TURN, TOOL]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "policy").config.eos_token_id == [TURN, TOOL]


def test_saved_ends_give_way_to_new_ones(make_chat_folder, tmp_path):
    tokenizer = load_tokenizer(str(make_chat_folder(ends=(1, 4, 5))), eos="<tool>")
    tokenizer.save_pretrained(tmp_path / "saved")
    saved = str(tmp_path / "saved")
    assert end_token_ids(load_tokenizer(saved)) == (TOOL,)
    assert end_token_ids(load_tokenizer(saved, eos=["<end_of_turn>", "<eos>"])) == (TURN, EOS)  # as without any choice
    other = tmp_path / "other.jinja"
    other.write_text("{% for m in messages %}{{ m.content }} <eos>{% endfor %}")
    assert end_token_ids(load_tokenizer(saved, chat_template=str(other))) == (EOS,)


def test_what_is_no_token_is_refused(make_chat_folder):
    folder = str(make_chat_folder())
    with pytest.raises(ValueError, match=r"model\.eos names '<stop>', which is no token of .*model\.stop"):
        load_tokenizer(folder, eos=["<eos>", "<stop>"])
    with pytest.raises(ValueError, match=r"model\.stop has an empty text"):
        load_tokenizer(folder, stop="")


def test_padding_is_none_of_the_ends(make_chat_folder):
    # Qwen pads with <|endoftext|>, which its generation config lists.
    tokenizer = load_tokenizer(str(make_chat_folder(ends=(0, 1, 4))))
    assert end_token_ids(tokenizer) == (TURN, EOS, 0)
    assert tokenizer.pad_token == "<|pad|>"
    assert tokenizer.pad_token_id not in end_token_ids(tokenizer)


def greedy(model, tokenizer, count=16):
    index = torch.arange(count)
    ids = torch.randint(6, 18, (count, 3), generator=torch.Generator().manual_seed(1))
    prompts = PromptBatch(ids, torch.ones_like(ids, dtype=torch.bool), index, [""] * count)
    return prompts, sample_responses(model, prompts, SamplingOptions.from_tokenizer(tokenizer, 12, temperature=0))


def test_responses_end_where_generate_ends(make_chat_folder):
    folder = str(make_chat_folder(ends=(1, 4, 5)))
    model, tokenizer = load_causal_lm(folder).eval(), load_tokenizer(folder)
    likely = torch.zeros(18).index_fill(0, torch.tensor([EOS, TURN, TOOL]), 2.0)
    model.lm_head.register_forward_hook(lambda module, inputs, output: output + likely)
    prompts, rollout = greedy(model, tokenizer)
    # The library's own loop, with the library's own reading of the folder.
    ids, mask = prompts.prompt_ids, prompts.prompt_mask.long()
    theirs = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=12, do_sample=False)[:, 3:]
    ends = set()
    for row in range(16):
        tokens = rollout.response_ids[row][rollout.response_mask[row]].tolist()
        assert theirs[row, : len(tokens)].tolist() == tokens
        assert bool(rollout.ended[row]) == (tokens[-1] in (EOS, TURN, TOOL))
        ends |= {tokens[-1]} if rollout.ended[row] else set()
    assert len(ends) > 1, ends
    assert not any("<" in text for text in response_texts(tokenizer, rollout))


@pytest.fixture
def byte_tokenizer():
    """Byte-level pieces of one to a few characters: the parts of a stop string come in many ways."""
    pieces = BpeTrainer(vocab_size=290, special_tokens=["<pad>", "<eos>"], initial_alphabet=ByteLevel.alphabet())
    model = Tokenizer(BPE())
    model.pre_tokenizer, model.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    model.train_from_iterator(["aab abba b: ab :aa b:a ba: a: ab:"] * 8, pieces)
    return PreTrainedTokenizerFast(tokenizer_object=model, pad_token="<pad>", eos_token="<eos>")


def test_stop_strings_end_a_response_wherever_tokens_part(byte_tokenizer, make_tiny_lm):
    likely = torch.full((len(byte_tokenizer),), -9.0)
    letters = [number for token, number in byte_tokenizer.get_vocab().items() if set(token) <= set("ab:\u0120")]
    likely[letters] = 0.0
    model = make_tiny_lm("llama", vocab_size=len(byte_tokenizer))
    model.lm_head.register_forward_hook(lambda module, inputs, output: output + likely)
    ids = torch.tensor(letters[:8]).repeat(8).unsqueeze(1)
    prompts = PromptBatch(ids, torch.ones_like(ids, dtype=torch.bool), torch.arange(64), [""] * 64)
    free = sample_responses(model, prompts, SamplingOptions.from_tokenizer(byte_tokenizer, 12))
    keep_endings(byte_tokenizer, strings=["b: ", "aa"])
    stopped = sample_responses(model, prompts, SamplingOptions.from_tokenizer(byte_tokenizer, 12))
    cut = 0
    for row in range(64):
        tokens = free.response_ids[row][free.response_mask[row]].tolist()
        # One token more at a time, until the text has a stop.
        texts = [byte_tokenizer.decode(tokens[:n]) for n in range(1, len(tokens) + 1)]
        stops = [number for number, text in enumerate(texts, 1) if "b: " in text or "aa" in text]
        expected = tokens[: stops[0]] if stops else tokens
        assert stopped.response_ids[row][stopped.response_mask[row]].tolist() == expected
        assert bool(stopped.ended[row]) == (bool(stops) or expected[-1] == EOS)
        cut += bool(stops)
    assert 0 < cut < 64
    assert not any("b: " in text or "aa" in text for text in response_texts(byte_tokenizer, stopped))


def test_a_tokenizer_whose_pieces_cannot_be_put_together_has_no_stop_strings(make_chat_folder):
    tokenizer = load_tokenizer(str(make_chat_folder()), stop=["is the"])
    with pytest.raises(ValueError, match=r"model\.stop \('is the'\) cannot be found"):
        SamplingOptions.from_tokenizer(tokenizer, 12)


@pytest.mark.parametrize("name", ["sandbox", "sandbox/small"])
def test_the_ends_of_a_shipped_model_are_asked_of_no_hub(name, monkeypatch):
    asked = []
    original = GenerationConfig.from_pretrained
    monkeypatch.setattr(GenerationConfig, "from_pretrained", lambda path: asked.append(path) or original(path))
    (end,) = listed_end_ids(name)
    assert end == load_tokenizer(name).eos_token_id
    assert all(Path(path).is_dir() for path in asked)


def test_a_tokenizer_that_no_hub_gives_is_named():
    with pytest.raises(
        OSError, match=r"there is no folder 'someone/something' here, and the hub does not give its tok"
    ):
        load_tokenizer("someone/something")
