"""A model folder asks in the format that was trained, in plain transformers too."""

import json

import pytest
from chat_models import CHATML, EVERY, byte_tokenizer, chatml, gemma, llama3, qwen3, sentence_tokenizer
from jinja2.exceptions import TemplateError
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, pipeline

from rlhf_lightning.data.records import Demonstration, RecordError
from rlhf_lightning.data.tokenize import Tokenization
from rlhf_lightning.models.export import export_causal_lm
from rlhf_lightning.tokenization.endings import disagreement, end_token_ids
from rlhf_lightning.tokenization.formats import KEPT
from rlhf_lightning.tokenization.loading import load_tokenizer
from rlhf_lightning.tokenization.trained import as_trained

ODD = "{% if x %}'\"\\m{{ y }}\n\r\n\\ {# é #} ### {prompt}\n-%} "
TEMPLATES = [ODD, "{prompt}", "### Q:\n{prompt}\n\n### A:", "{prompt} a {prompt}", " {prompt}"]
MODELS = {
    **EVERY,
    "gpt2": lambda: byte_tokenizer([]),
    "opt": lambda: byte_tokenizer([], bos="<s>", eos="</s>", adds_bos=True),
    "llama": sentence_tokenizer,
    "unigram": lambda: sentence_tokenizer(unigram=True),
}
SYSTEM, TURNS = (
    [{"role": role, "content": "ab"} for role in roles.split()] for roles in ("system user", "user assistant user")
)


def folder_of(tokens, folder):
    as_trained(tokens.dialogue).save_pretrained(folder)
    return str(folder)


def asked(tokenizer, text, **options):
    return tokenizer.apply_chat_template([{"role": "user", "content": text}], return_dict=False, **options)


def formats(name):
    chat = [{"format": "chat"}] if name in EVERY else []
    return [*chat, {"format": "plain"}, *({"prompt_template": template} for template in TEMPLATES)]


@pytest.mark.parametrize("text", ["ab c", " ab", "ab ", "b\n{{ a }}'"])
@pytest.mark.parametrize(("name", "options"), [(name, options) for name in MODELS for options in formats(name)])
def test_plain_transformers_asks_as_the_model_was_trained(name, options, text, tmp_path):
    own = MODELS[name]()
    tokens = Tokenization(own, **options)
    plain = AutoTokenizer.from_pretrained(folder_of(tokens, tmp_path))
    expected = tokens.prompt_ids(text)
    assert asked(plain, text, add_generation_prompt=True) == expected
    assert plain.chat_template is not None
    if own.unk_token is None:
        assert own.decode(expected).count("<s>") <= 1
    # The answer stands behind the question, with its end.
    whole = [{"role": "user", "content": text}, {"role": "assistant", "content": "b a"}]
    end = own.convert_ids_to_tokens(end_token_ids(own)[0])
    written = plain.apply_chat_template(whole, tokenize=False).rstrip()
    assert written.endswith(f"b a {end}" if (name, options) == ("llama2", {"format": "chat"}) else f"b a{end}")


@pytest.mark.parametrize(("name", "options"), [(name, options) for name in MODELS for options in formats(name)])
def test_our_loader_takes_it_off_again(name, options, tmp_path):
    base = tmp_path / "base"
    MODELS[name]().save_pretrained(base)
    own = load_tokenizer(str(base))
    tokens = Tokenization(own, **options)
    again = load_tokenizer(folder_of(tokens, tmp_path / "sft"))
    assert again.chat_template == own.chat_template
    assert disagreement(own, again) is None
    assert end_token_ids(again) == end_token_ids(own)
    # What was trained is what holds where nothing else is said, also after another step.
    for later in (again, load_tokenizer(folder_of(Tokenization(again), tmp_path / "ppo"))):
        assert Tokenization(later).dialogue.format == tokens.dialogue.format
        for prompt in ("ab c", "<s> a"):
            assert Tokenization(later).prompt_ids(prompt) == tokens.prompt_ids(prompt)
    assert own.init_kwargs.get(KEPT) is None
    said = Tokenization(again, prompt_template="{prompt}!").dialogue
    assert said.prompt_text("ab") == "ab!"


@pytest.mark.parametrize(
    ("name", "options"),
    # In bytes, two line ends are one token at the end of a prompt and two before a word.
    [("llama", {"format": "plain"}), *((name, {"prompt_template": "H: {prompt}\nI:"}) for name in MODELS)],
)
def test_an_answer_has_the_tokens_of_training(name, options, tmp_path):
    """A space stands before it for tokenizers that mark the beginning of a word."""
    tokens = Tokenization(MODELS[name](), **options)
    (example,) = tokens.demonstrations([Demonstration("ab c", "b a")])
    plain = AutoTokenizer.from_pretrained(folder_of(tokens, tmp_path))
    whole = [{"role": "user", "content": "ab c"}, {"role": "assistant", "content": "b a"}]
    assert plain.apply_chat_template(whole, return_dict=False) == example.input_ids


def test_pipeline_reads_the_same_tokens(tmp_path, monkeypatch):
    own = llama3()
    lm = GPT2LMHeadModel(GPT2Config(vocab_size=len(own), n_embd=8, n_layer=1, n_head=2, n_positions=64)).eval()
    tokens = Tokenization(own, prompt_template="### {prompt}\n>")
    export_causal_lm(lm, as_trained(tokens.dialogue), tmp_path / "model")
    generator = pipeline("text-generation", str(tmp_path / "model"), device="cpu")
    read = []
    inner = generator.model.generate

    def generate(input_ids, **options):
        read.append(input_ids.tolist())
        return inner(input_ids, **options)

    monkeypatch.setattr(generator.model, "generate", generate)
    generator([{"role": "user", "content": "ab c"}], max_new_tokens=2, do_sample=False)
    assert read == [[tokens.prompt_ids("ab c")]]


@pytest.mark.parametrize("messages", [SYSTEM, TURNS], ids=["system", "turns"])
@pytest.mark.parametrize("options", [{"format": "plain"}, {"prompt_template": "Q: {prompt}"}])
def test_other_conversations_are_refused_or_go_as_in_training(messages, options, tmp_path):
    bare = AutoTokenizer.from_pretrained(folder_of(Tokenization(byte_tokenizer([]), **options), tmp_path / "bare"))
    with pytest.raises(TemplateError, match="trained on one question of a user"):
        bare.apply_chat_template(messages)
    for number, model in enumerate((chatml, llama3, qwen3)):
        tokens = Tokenization(model(), **options)
        plain = AutoTokenizer.from_pretrained(folder_of(tokens, tmp_path / str(number)))
        found = plain.apply_chat_template(messages, return_dict=False, add_generation_prompt=True)
        assert found == tokens.prompt_ids(messages)


def test_conversations_of_one_question_are_that_question():
    message = [{"role": "user", "content": "ab <|im_end|>"}]
    for options in ({"format": "chat"}, {"format": "plain"}, {"prompt_template": "Q: {prompt}"}):
        tokens = Tokenization(chatml(), **options)
        assert tokens.prompt_ids(message) == tokens.prompt_ids(message[0]["content"])
    # Beside strings that a template wrote already, a conversation goes through the model's own.
    tokens = Tokenization(chatml(), prompt_template="{rendered}")
    text = asked(tokens.tokenizer, "ab", tokenize=False, add_generation_prompt=True)
    assert tokens.prompt_ids(text) == tokens.prompt_ids([{"role": "user", "content": "ab"}])


def test_what_a_template_wrote_before_is_written_by_it(tmp_path):
    for number, model in enumerate((chatml, gemma)):
        tokens = Tokenization(model(), prompt_template="{rendered}")
        plain = AutoTokenizer.from_pretrained(folder_of(tokens, tmp_path / str(number)))
        text = asked(model(), "ab", tokenize=False, add_generation_prompt=True)
        assert asked(plain, "ab", add_generation_prompt=True) == tokens.prompt_ids(text)
    tokens = Tokenization(llama3(), prompt_template="{rendered}")
    tokens.tokenizer.chat_template = None
    bare = AutoTokenizer.from_pretrained(
        folder_of(Tokenization(tokens.tokenizer, prompt_template="{rendered}"), tmp_path)
    )
    for text in ("<|begin_of_text|>ab", "ab<|eot_id|>"):
        assert asked(bare, text) == tokens.prompt_ids(text)


def test_a_template_that_somebody_wrote_there_since_holds(tmp_path):
    folder = folder_of(Tokenization(byte_tokenizer(["<|im_start|>", "<|im_end|>"]), format="plain"), tmp_path)
    (tmp_path / "chat_template.jinja").write_text(CHATML)
    again = load_tokenizer(folder)
    assert Tokenization(again).prompt_text("a") == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    assert load_tokenizer(folder, chat_template="chatml").init_kwargs.get(KEPT) is None


def test_the_folder_says_its_format(tmp_path):
    folder_of(Tokenization(chatml(), prompt_template="Q: {prompt}"), tmp_path)
    kept = json.loads((tmp_path / "tokenizer_config.json").read_text())[KEPT]
    assert kept == {"name": "template", "template": "Q: {prompt}", "chat_template": CHATML}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "chat"}, "data.format=chat, but the tokenizer  has no chat template. Set model.chat_template="),
        ({"format": "template"}, "data.format=template needs the template: data.lengths.prompt_template="),
        ({"format": "plain", "prompt_template": "{prompt}"}, "data.format=plain makes no use of prompt_template='{pro"),
        ({"format": "chat", "prompt_template": "{prompt}"}, "data.format=chat makes no use of prompt_template"),
        ({"format": "chatml"}, "format must be one of chat, template, plain or None, got 'chatml'"),
        ({"prompt_template": "Q:"}, r"prompt_template must contain '{prompt}', got 'Q:'"),
    ],
)
def test_formats_that_do_not_go_together(options, message):
    with pytest.raises(ValueError, match=message):
        Tokenization(byte_tokenizer([]), **options)


def test_what_people_write_is_no_place_of_the_template():
    tokens = Tokenization(byte_tokenizer([]), prompt_template="Q: {prompt}")
    assert tokens.prompt_text("what is {rendered} and {prompt}?") == "Q: what is {rendered} and {prompt}?"


def test_a_conversation_without_a_chat_template_is_refused():
    tokens = Tokenization(byte_tokenizer([]))
    with pytest.raises((RecordError, ValueError), match="the tokenizer has no chat template"):
        tokens.prompt_ids(TURNS)
