"""Any sequence classifier as a reward: what it reads and says is what transformers reads and says, called directly."""

import copy
import math

import pytest
import torch
from classifiers import bert, bert_tokenizer, gpt2, llama, written
from transformers import RobertaConfig, RobertaForSequenceClassification

from rlhf_lightning import TextReward
from rlhf_lightning.algorithms.batch import PromptString
from rlhf_lightning.models.export import export_scalar_model
from rlhf_lightning.models.scalar_head import ScalarHeadModel
from rlhf_lightning.tokenization.dialogue import DialogueEncoder

SYSTEM = {"role": "system", "content": "be ab"}
TALK = [
    SYSTEM,
    {"role": "user", "content": "a b"},
    {"role": "assistant", "content": "ab ab"},
    {"role": "user", "content": "and c?"},
]
QUESTIONS = ["ab", "what is a ab a? 7", "x y z"]
ANSWERS = ["a", "it is a long answer, is it not? ab ab ab", "no."]


def conversation(messages):
    return PromptString("what the policy's template made of it <|im_end|>", messages, {})


def logits(model, ids):
    """One row, alone, without padding."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0]


def templated(model, tokenizer, messages, answer):
    ids = tokenizer.apply_chat_template(
        [*messages, {"role": "assistant", "content": answer}], tokenize=True, return_dict=False
    )
    return float(logits(model, ids)[0])


@pytest.mark.parametrize("made", [gpt2, llama])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_decoder_reads_its_own_template(tmp_path, made, batch_size):
    model, tokenizer = written(tmp_path, made)
    reward = TextReward(str(tmp_path), batch_size=batch_size)
    prompts = [*QUESTIONS, conversation(TALK)]
    talks = [*([{"role": "user", "content": question}] for question in QUESTIONS), TALK]
    answers = [*ANSWERS, "d"]
    expected = [templated(model, tokenizer, talk, answer) for talk, answer in zip(talks, answers, strict=True)]
    assert reward(prompts, answers) == pytest.approx(expected, abs=1e-6)
    assert len(set(expected)) == 4
    # The whole template, the line break behind a turn included.
    row = reward.row(TALK, "d")["input_ids"]
    assert row == tokenizer.apply_chat_template(
        [*TALK, {"role": "assistant", "content": "d"}], tokenize=True, return_dict=False
    )


def test_an_encoder_reads_a_pair(tmp_path):
    model, tokenizer = written(tmp_path, bert)
    reward = TextReward(str(tmp_path), batch_size=2)
    expected = []
    for question, answer in zip(QUESTIONS, ANSWERS, strict=True):
        with torch.no_grad():
            expected.append(float(model(**tokenizer(question, answer, return_tensors="pt")).logits))
    assert reward(QUESTIONS, ANSWERS) == pytest.approx(expected, abs=1e-6)
    assert len(set(expected)) == 3
    with pytest.raises(ValueError, match=r"conversation of 4 messages, and the classifier .* has no chat template"):
        reward([conversation(TALK)], ["d"])


def test_a_decoder_without_a_template_reads_a_blank_line_and_eos(tmp_path):
    model, tokenizer = written(tmp_path, lambda: gpt2(template=False))
    # Neither a pad token nor its id: the last real token is known by the mask.
    tokenizer.pad_token = model.config.pad_token_id = None
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    reward = TextReward(str(tmp_path))
    texts = [f"{question}\n\n{answer}<|endoftext|>" for question, answer in zip(QUESTIONS, ANSWERS, strict=True)]
    expected = [float(logits(model, tokenizer(text)["input_ids"])[0]) for text in texts]
    assert reward(QUESTIONS, ANSWERS) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("made", [llama, bert, lambda: gpt2(template=False)], ids=["llama", "bert", "gpt2"])
def test_special_tokens_that_people_spell_are_text(tmp_path, made):
    _, tokenizer = written(tmp_path, made)
    reward = TextReward(str(tmp_path))
    for token in tokenizer.all_special_tokens:
        usual, spelled = (reward.row([{"role": "user", "content": "a"}], text)["input_ids"] for text in ("a", token))
        number = tokenizer.convert_tokens_to_ids(token)
        assert spelled.count(number) == usual.count(number), token
        assert len(spelled) > len(usual)


def test_responses_alone_and_templates(tmp_path):
    (tmp_path / "bert").mkdir()
    model, tokenizer = written(tmp_path / "bert", bert)
    alone = TextReward(str(tmp_path / "bert"), template="{response}")
    with torch.no_grad():
        expected = float(model(**tokenizer("no {prompt}", return_tensors="pt")).logits)
    assert alone(["a"], ["no {prompt}"]) == pytest.approx([expected], abs=1e-6)
    assert alone([conversation(TALK)], ["no {prompt}"]) == pytest.approx([expected], abs=1e-6)
    framed = TextReward(str(tmp_path / "bert"), template="q: {prompt} a: {response}")
    with torch.no_grad():
        expected = float(model(**tokenizer("q: {response} a: {prompt}", return_tensors="pt")).logits)
    assert framed(["{response}"], ["{prompt}"]) == pytest.approx([expected], abs=1e-6)
    model, tokenizer = written(tmp_path / "gpt2", gpt2)
    framed = TextReward(str(tmp_path / "gpt2"), template="{prompt}: {response}<|endoftext|>")
    expected = float(logits(model, tokenizer("a: b<|endoftext|>")["input_ids"])[0])
    assert framed(["a"], ["b"]) == pytest.approx([expected], abs=1e-6)
    with pytest.raises(ValueError, match=r"^template must contain {response}"):
        TextReward(str(tmp_path / "bert"), template="{prompt}")
    with pytest.raises(ValueError, match=r"^dtype must be one of float32, "):
        TextReward(str(tmp_path / "bert"), dtype="half-ish")


@pytest.mark.parametrize("made", [gpt2, bert])
def test_labels_are_named_and_their_log_odds_are_the_score(tmp_path, made):
    names = {"id2label": {0: "BAD", 1: "GOOD", 2: "SO SO"}, "label2id": {"BAD": 0, "GOOD": 1, "SO SO": 2}}
    model, tokenizer = written(tmp_path, lambda: made(num_labels=3, **names))
    with pytest.raises(ValueError, match=r"has 3 labels \(0: BAD, 1: GOOD, 2: SO SO\).*label"):
        TextReward(str(tmp_path))
    with pytest.raises(ValueError, match=r"has no label 'good'; it has 0: BAD"):
        TextReward(str(tmp_path), label="good")
    scores = TextReward(str(tmp_path), label="GOOD")(["a"], ["b"])
    assert scores == TextReward(str(tmp_path), label=1)(["a"], ["b"])
    if made is bert:
        with torch.no_grad():
            said = model(**tokenizer("a", "b", return_tensors="pt")).logits[0]
    else:
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        said = logits(model, tokenizer.apply_chat_template(turns, return_dict=False))
    share = float(said.double().softmax(0)[1])
    assert scores == pytest.approx([math.log(share / (1 - share))], abs=1e-5)


@pytest.mark.parametrize("made", [llama, bert])
def test_scores_have_32_bits_whatever_the_weights_have(tmp_path, made):
    written(tmp_path, made, dtype=torch.bfloat16)
    prompts, answers = ["ab"] * 60, [f"a {number} b" for number in range(60)]
    exact = TextReward(str(tmp_path))
    assert {parameter.dtype for parameter in exact.parameters()} == {torch.float32}
    count = len(set(exact(prompts, answers)))
    assert count == 60
    small = TextReward(str(tmp_path), dtype="bfloat16")
    assert torch.bfloat16 in {parameter.dtype for parameter in small.parameters()}
    assert len(set(small(prompts, answers))) == count
    # Under a trainer's precision too, and where it makes all weights small.
    with torch.autocast("cpu", torch.bfloat16):
        assert exact(prompts[:4], answers[:4]) == exact(prompts, answers)[:4]
    assert len(set(copy.deepcopy(exact).to(torch.bfloat16)(prompts, answers))) == count


@pytest.mark.parametrize("template", [True, False])
def test_a_reward_model_of_ours_reads_what_it_was_trained_on(tmp_path, make_tiny_lm, template):
    _, tokenizer = gpt2(template=template)
    tokenizer.pad_token = "<|pad|>"
    lm = make_tiny_lm("gpt2", vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    model = ScalarHeadModel.from_causal_lm(lm)
    model.bias.fill_(0.75)
    export_scalar_model(model, lm.config, tokenizer, tmp_path / "model")
    reward, dialogue = TextReward(str(tmp_path / "model")), DialogueEncoder(tokenizer)
    expected = []
    for question, answer in zip(QUESTIONS, ANSWERS, strict=True):
        read = dialogue.read([question])
        ids = [*read[0].ids, *dialogue.answers(read, [answer])[0]]
        with torch.no_grad():
            expected.append(float(model(torch.tensor([ids]))[0, -1]))
        assert ids[-1] in dialogue.text.ends  # and no line break behind it
    assert reward(QUESTIONS, ANSWERS) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("made", [gpt2, bert])
def test_rows_over_the_context_are_cut_from_the_left_and_counted(tmp_path, made):
    model, tokenizer = written(tmp_path, made)
    reward = TextReward(str(tmp_path))
    long, answer = "a b c " * 60, "x y z"
    with pytest.warns(UserWarning, match="over the 128 tokens"):
        scores = reward([long, "b", long], [answer] * 3)
    assert reward.cut == 2
    assert scores[0] == pytest.approx(scores[2], abs=1e-5)
    if made is gpt2:
        turns = [{"role": "user", "content": long}, {"role": "assistant", "content": answer}]
        ids = tokenizer.apply_chat_template(turns, return_dict=False)[-128:]
        assert scores[0] == pytest.approx(float(logits(model, ids)[0]), abs=1e-6)
    else:
        row = reward.row([{"role": "user", "content": long}], answer)["input_ids"]
        assert len(row) == 128
        assert tokenizer.decode(row).replace(" ", "").endswith("abc[SEP]xyz[SEP]")


def test_positions_that_begin_behind_the_pad_token_are_fewer(tmp_path):
    """RoBERTa has rows for its pad token and those before it in its table of positions."""
    tokenizer = bert_tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = RobertaConfig(vocab_size=len(tokenizer), num_labels=1, max_position_embeddings=34, pad_token_id=1, **sizes)
    RobertaForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    reward = TextReward(str(tmp_path))
    assert reward.context == 32
    with pytest.warns(UserWarning, match="over the 32 tokens"):
        (score,) = reward(["a" * 20], ["b" * 40])
    assert score == score


def test_it_moves_and_is_frozen_as_a_module(tmp_path):
    written(tmp_path, gpt2)
    reward = TextReward(str(tmp_path)).to("cpu")
    assert not any(parameter.requires_grad for parameter in reward.parameters())
    assert not reward.training
    assert reward([], []) == []
    with pytest.raises(ValueError, match="shorter"):
        reward(["a", "b"], ["c"])
