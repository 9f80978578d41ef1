"""Prompts and answers as the chat template writes them."""

import pytest
from chat_models import ALPACA, CHATML, EVERY, byte_tokenizer, chatml, gemma, llama2, llama3, qwen3, sentence_tokenizer

from rlhf_lightning.data.records import Demonstration, Prompt
from rlhf_lightning.data.tokenize import Tokenization
from rlhf_lightning.tokenization.chat import ConversationError
from rlhf_lightning.tokenization.dialogue import DialogueEncoder
from rlhf_lightning.tokenization.endings import end_token_ids

USER = {"role": "user", "content": "ab c"}
TURNS = [USER, {"role": "assistant", "content": "b a"}, {"role": "user", "content": "c"}]


def answer(encoder, prompt, response):
    read = encoder.read([prompt])
    return encoder.answers(read, [response])[0]


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("prompt", ["ab c", [USER], TURNS], ids=["string", "message", "turns"])
def test_prompt_and_answer_are_what_transformers_makes_of_the_conversation(name, prompt):
    tokenizer = EVERY[name]()
    encoder = DialogueEncoder(tokenizer)
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    whole = [*messages, {"role": "assistant", "content": "a b"}]
    (read,) = encoder.read([prompt])
    assert read.ids == tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    both = [*read.ids, *answer(encoder, prompt, "a b")]
    expected = tokenizer.apply_chat_template(whole, return_dict=False)
    # Behind the turn's end a template may begin a line, which no answer writes.
    assert both == expected[: len(both)]
    assert tokenizer.decode(expected[len(both) :]).strip() == ""


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (chatml, "a b<|im_end|>"),
        (llama3, "a b<|eot_id|>"),
        (gemma, "a b<end_of_turn>"),
        (llama2, "a b </s>"),  # with the space that the template writes
        (qwen3, "<think>\n\n</think>\n\na b<|im_end|>"),
        (lambda: byte_tokenizer([], ALPACA), "a b<|endoftext|>"),  # a template that ends turns by text
        (lambda: byte_tokenizer([]), "a b<|endoftext|>"),
    ],
)
def test_an_answer_ends_as_its_template_ends_it(model, text):
    tokenizer = model()
    assert tokenizer.decode(answer(DialogueEncoder(tokenizer), "ab", "a b")) == text


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("wrote", ["{}", " {}", "{}\n", "{}{}", "{}\n{} "])
def test_an_answer_that_writes_its_end_has_one(name, wrote):
    tokenizer = EVERY[name]()
    encoder = DialogueEncoder(tokenizer)
    for end in tokenizer.convert_ids_to_tokens(list(end_token_ids(tokenizer))):
        assert answer(encoder, "ab", "a b" + wrote.replace("{}", end)) == answer(encoder, "ab", "a b")
    # In the middle it is text.
    inside = answer(encoder, "ab", f"a {tokenizer.eos_token} b")
    assert tokenizer.eos_token_id not in inside[:-1]
    assert inside[-1] == answer(encoder, "ab", "a b")[-1]


@pytest.mark.parametrize("model", [llama3, gemma, llama2])
@pytest.mark.parametrize("prompt", ["ab", "<s>ab", [USER], TURNS])
def test_one_bos(model, prompt):
    tokenizer = model()
    (read,) = DialogueEncoder(tokenizer).read([prompt])
    # Llama 2 writes one before each question.
    questions = sum(message["role"] == "user" for message in prompt) if model is llama2 and prompt is TURNS else 1
    assert read.ids[0] == tokenizer.bos_token_id
    assert read.ids.count(tokenizer.bos_token_id) == questions


@pytest.mark.filterwarnings("ignore:The prompt .* begins as the chat template does")
def test_one_bos_before_plain_text_and_before_what_a_template_wrote():
    tokenizer = llama3()
    messages = [{"role": "user", "content": "ab"}]
    chat = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert DialogueEncoder(tokenizer, "{rendered}").read([chat])[0].ids == ids
    # transformers itself would write two.
    assert tokenizer(chat)["input_ids"] == [ids[0], *ids]
    # Without its BOS it gets one, and as the text of a person it has no other special token.
    assert DialogueEncoder(tokenizer, "{rendered}").read([chat.removeprefix("<|begin_of_text|>")])[0].ids == ids
    plain = DialogueEncoder(tokenizer, "{prompt}").read([chat])[0].ids
    assert [number for number in plain if number in tokenizer.all_special_ids] == [tokenizer.bos_token_id]


def test_a_string_goes_through_the_template_where_there_is_one():
    chat, plain = DialogueEncoder(chatml()), DialogueEncoder(byte_tokenizer([]))
    assert chat.prompt_text("ab") == "<|im_start|>user\nab<|im_end|>\n<|im_start|>assistant\n"
    assert plain.prompt_text("ab") == "ab\n\n"
    assert DialogueEncoder(chatml(), "Q: {prompt}").prompt_text("ab") == "Q: ab"


def test_answers_elsewhere_than_behind_the_generation_prompt_are_their_own_tokens():
    template = CHATML.replace("'<|im_start|>assistant\n'", "'<|im_start|>assistant\n<think>\n'")
    tokenizer = byte_tokenizer(["<|im_start|>", "<|im_end|>"], template, added=["<think>", "</think>"])
    assert tokenizer.decode(answer(DialogueEncoder(tokenizer), "ab", "c</think>a ")) == "c</think>a <|im_end|>"


@pytest.mark.parametrize("name", EVERY)
def test_earlier_answers_are_found(name):
    tokenizer = EVERY[name]()
    encoder = DialogueEncoder(tokenizer)
    (read,) = encoder.read([[*TURNS, {"role": "assistant", "content": "c </s>b"}, USER]])
    found = [tokenizer.decode(read.ids[start:end]).strip() for start, end in encoder.earlier_answers(read)]
    end = tokenizer.decode(answer(encoder, "ab", "c"))
    turn = end[end.rindex("c") + 1 :]
    assert found == [f"b a{turn}", f"c </s>b{turn}"]


def test_an_answer_goes_on_from_the_tokens_of_its_prompt():
    # By GPT-2's words, two line ends are one token at the end of the prompt and two before a word.
    tokenizer = llama3(words=None)
    encoder = DialogueEncoder(tokenizer)
    number = tokenizer.get_vocab()
    (read,) = encoder.read(["a"])
    assert read.ids[-1] == number["ĊĊ"]
    assert encoder.answers([read], ["b"]) == [[number["b"], number["<|eot_id|>"]]]
    (read,) = encoder.read([TURNS])
    assert [tokenizer.decode(read.ids[start:end]) for start, end in encoder.earlier_answers(read)] == ["b a<|eot_id|>"]


def test_earlier_answers_that_change_are_refused():
    # Only the last answer has its end: the others are written without.
    template = "{% for m in messages %}[{{ m['role'][0] if loop.last else m['role'] }}]{{ m['content'] }}{% endfor %}"
    encoder = DialogueEncoder(byte_tokenizer([], template))
    with pytest.raises(ConversationError, match=r"writes turn 2, of the role 'assistant', otherwise .*train_on=last"):
        encoder.earlier_answers(encoder.read([TURNS])[0])


@pytest.mark.parametrize("name", EVERY)
def test_special_tokens_in_any_message_are_text(name):
    tokenizer = EVERY[name]()
    encoder = DialogueEncoder(tokenizer)
    spelled = "".join(encoder.text.special)
    messages = [{**message, "content": f"a{spelled}b"} for message in TURNS]
    (clean,), (spiked,) = encoder.read([TURNS]), encoder.read([messages])

    def special(ids):
        return [number for number in ids if number in tokenizer.all_special_ids and number != tokenizer.unk_token_id]

    assert special(spiked.ids) == special(clean.ids)
    assert special(answer(encoder, messages, f"a{spelled}b")) == special(answer(encoder, TURNS, "ab"))
    assert encoder.text.readable(spiked.text) == tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )


def test_many_at_once_are_as_one_by_one():
    for model in EVERY.values():
        encoder = DialogueEncoder(model())
        prompts = ["ab", [USER], TURNS, "<|im_end|>a", "a\n\nb"]
        assert encoder.read(prompts) == [encoder.read([prompt])[0] for prompt in prompts]
        read, responses = encoder.read(prompts), ["a", "", "b <|im_end|>", "\n\na", "c"]
        alone = [encoder.answers([prompt], [response])[0] for prompt, response in zip(read, responses, strict=True)]
        assert encoder.answers(read, responses) == alone


def test_text_ids():
    tokenizer = sentence_tokenizer()
    tokenization = Tokenization(tokenizer)
    assert tokenization.text_ids("ab") == tokenizer("ab", add_special_tokens=False)["input_ids"]
    assert tokenization.text_ids("ab", opens=True) == tokenizer("ab")["input_ids"]
    assert tokenizer.eos_token_id not in tokenization.text_ids("</s>", opens=True)


PHI = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"
)
THINKING = CHATML.replace("assistant\n'", "assistant\n<think>\n'")
"""Its prompt opens the thought, as Qwen 3's of 2507 and DeepSeek-R1's do."""


def test_an_answer_ends_at_its_first_end():
    # Behind the end of the turn the template closes the conversation.
    tokenizer = byte_tokenizer(["<|user|>", "<|assistant|>", "<|end|>"], PHI)
    encoder = DialogueEncoder(tokenizer)
    assert tokenizer.decode(answer(encoder, [USER], "ab")) == "ab<|end|>"
    tokens = Tokenization(tokenizer, train_on="all")
    turns = [USER, {"role": "assistant", "content": "a"}, USER]
    (example,) = tokens.demonstrations([Demonstration(turns, "ab")])
    spans = [*example.earlier, (example.loss_start, len(example.input_ids))]
    assert [tokenizer.decode(example.input_ids[start:end]) for start, end in spans] == ["a<|end|>", "ab<|end|>"]


@pytest.mark.parametrize("response", ["<think>\nbecause\n</think>\n\nab", "because\n</think>\n\nab"])
def test_a_thought_that_the_prompt_opened_is_opened_once(response):
    tokenizer = byte_tokenizer(["<|im_start|>", "<|im_end|>"], THINKING, added=["<think>", "</think>"])
    encoder = DialogueEncoder(tokenizer)
    assert encoder.read([[USER]])[0].text.endswith("<think>\n")
    assert tokenizer.decode(answer(encoder, [USER], response)) == "because\n</think>\n\nab<|im_end|>"


@pytest.mark.parametrize("name", EVERY)
def test_prompts_that_a_template_wrote_already_are_named_once(name):
    tokenizer = EVERY[name]()
    chat = tokenizer.apply_chat_template([USER], tokenize=False, add_generation_prompt=True)
    for options in ({}, {"prompt_template": "{prompt}"}):
        tokens = Tokenization(tokenizer, **options)
        with pytest.warns(UserWarning, match=r"begins as the chat template does.*'\{rendered\}'") as said:
            tokens.prompts([Prompt(text) for text in ("ab", chat, chat)])
        assert len(said) == 1
    # None of these warns, which would be an error here.
    Tokenization(tokenizer, prompt_template="{rendered}").prompts([Prompt(chat)])
    Tokenization(tokenizer).prompts([Prompt(f"{tokenizer.eos_token} ab"), Prompt(f"is {chat} a?"), Prompt([USER])])
    tokenizer.chat_template = None
    Tokenization(tokenizer).prompts([Prompt(chat)])


def test_prompts_that_begin_with_the_text_of_a_template_are_named():
    tokenizer = byte_tokenizer([], ALPACA)
    with pytest.warns(UserWarning, match="begins as the chat template does"):
        Tokenization(tokenizer).prompts([Prompt("### user:\nab\n\n### assistant:\n")])
