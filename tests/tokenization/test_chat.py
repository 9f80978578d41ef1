"""Chat templates: which one, on which day, and what they refuse."""

import json
import re
import signal
import threading
import time
from pathlib import Path

import pytest
from chat_models import (
    CHATML,
    DATE_STRING,
    DATED,
    GEMMA,
    byte_tokenizer,
    chatml,
    gemma,
    llama3,
    qwen3,
    sentence_tokenizer,
)

from rlhf_lightning.data.records import Demonstration, Prompt, RecordError
from rlhf_lightning.data.sources import FileData
from rlhf_lightning.data.tokenize import Tokenization
from rlhf_lightning.tokenization.chat import (
    SHIPPED,
    ConversationError,
    TemplateLimitError,
    rendered,
    set_template,
    template_date,
)
from rlhf_lightning.tokenization.endings import end_token_ids
from rlhf_lightning.tokenization.loading import load_tokenizer

USER, SYSTEM = {"role": "user", "content": "ab"}, {"role": "system", "content": "be b"}
TURNS = [USER, {"role": "assistant", "content": "c"}, USER]
VOCABULARY = {
    "chatml": ["<|im_start|>", "<|im_end|>"],
    "gemma": ["<start_of_turn>", "<end_of_turn>"],
    "llama3": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    "plain": [],
}
WRITTEN = {
    "chatml": "<|im_start|>user\nab<|im_end|>\n<|im_start|>assistant\nc<|im_end|>\n<|im_start|>user\nab<|im_end|>\n"
    "<|im_start|>assistant\n",
    "gemma": "<bos><start_of_turn>user\nab<end_of_turn>\n<start_of_turn>model\nc<end_of_turn>\n"
    "<start_of_turn>user\nab<end_of_turn>\n<start_of_turn>model\n",
    "llama3": "<bos><|start_header_id|>user<|end_header_id|>\n\nab<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nc<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nab<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "plain": "<bos>User: ab\n\nAssistant: c<|endoftext|>\n\nUser: ab\n\nAssistant:",
}


def saved(tokenizer, folder):
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("name", VOCABULARY)
def test_a_shipped_template(tmp_path, name):
    folder = saved(byte_tokenizer(VOCABULARY[name], bos="<bos>"), tmp_path)
    tokenizer = load_tokenizer(folder, chat_template=name)
    assert rendered(tokenizer, TURNS, generation_prompt=True) == WRITTEN[name]
    assert tokenizer.decode(end_token_ids(tokenizer)[0]) == (VOCABULARY[name] or ["<|endoftext|>"])[-1]
    example = Tokenization(tokenizer).demonstrations([Demonstration("ab", "c")])[0]
    response = tokenizer.decode(example.input_ids[example.loss_start :])
    assert response == {"plain": " c<|endoftext|>"}.get(name, "c" + (VOCABULARY[name] or [""])[-1])
    # The folder of a trained model has the template that it was trained with, and its ends.
    again = load_tokenizer(saved(tokenizer, tmp_path / "trained"))
    assert again.chat_template == tokenizer.chat_template
    assert end_token_ids(again) == end_token_ids(tokenizer)


def test_there_is_a_test_of_each_shipped_template():
    assert {path.stem for path in SHIPPED.glob("*.jinja")} == {*VOCABULARY}


def test_a_template_of_a_file(tmp_path):
    folder = saved(byte_tokenizer(VOCABULARY["chatml"]), tmp_path)
    (tmp_path / "own.jinja").write_text(CHATML.replace("<|im_start|>", ""))
    tokenizer = load_tokenizer(folder, chat_template=str(tmp_path / "own.jinja"))
    assert rendered(tokenizer, [USER], generation_prompt=True) == "user\nab<|im_end|>\nassistant\n"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "chatml",
            r"chat_template=chatml writes <\|im_start\|>, <\|im_end\|>, which the vocabulary .* Take a template",
        ),
        ("gemma", r"writes <start_of_turn>, <end_of_turn>, which"),
        ("chatlm", r"chat_template=chatlm is neither a file nor one of chatml, gemma, llama3, plain\. Mend the name"),
    ],
)
def test_a_template_that_the_vocabulary_does_not_have_is_refused(tmp_path, name, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_tokenizer(saved(byte_tokenizer([]), tmp_path), chat_template=name)


@pytest.mark.parametrize("template", [DATED, DATE_STRING])
def test_today_is_always_the_same_day(tmp_path, monkeypatch, template):
    tokenizer = byte_tokenizer(VOCABULARY["chatml"], template)
    month = {DATED: "July", DATE_STRING: "Jul"}[template]
    assert f"Today: 26 {month} 2024<|im_end|>" in rendered(tokenizer, [USER], generation_prompt=True)
    assert template_date(tokenizer) == "2024-07-26"
    loaded = load_tokenizer(saved(tokenizer, tmp_path), date="2025-02-03")
    month = {DATED: "February", DATE_STRING: "Feb"}[template]
    assert f"Today: 03 {month} 2025<|im_end|>" in rendered(loaded, [USER], generation_prompt=True)
    # The day goes with the folder.
    assert template_date(load_tokenizer(saved(loaded, tmp_path / "trained"))) == "2025-02-03"


def test_templates_without_a_date():
    assert template_date(chatml()) is None
    assert template_date(byte_tokenizer([])) is None
    with pytest.raises(ValueError, match=r"model\.date=July is no day; write it as 2024-07-26"):
        set_template(chatml(), date="July")


@pytest.mark.parametrize(
    ("model", "messages", "sentence"),
    [
        (gemma, [SYSTEM, USER], "the chat template refuses the role 'system' (System role not supported). Put its text "
         "into the first message of the user, name another template (model.chat_template), or leave the row out."),
        (gemma, [USER, USER], "the chat template refuses the role 'user' (Conversation roles must alternate). Put "),
        (lambda: byte_tokenizer([], "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}"),
         [SYSTEM, USER], "the chat template leaves out what the role 'system' says. Put its text into the first"),
        (lambda: byte_tokenizer([], "{{ messages[0]['name'].lower() }}"), [USER], "refuses the role 'user' ("),
        (lambda: byte_tokenizer([]), [USER], "the tokenizer has no chat template. Set model.chat_template="),
    ],
)  # fmt: skip
def test_what_a_template_refuses_is_a_sentence(model, messages, sentence):
    with pytest.raises(ConversationError, match=re.escape(sentence)):
        rendered(model(), messages, generation_prompt=True)


def rows(*prompts):
    return "".join(json.dumps({"prompt": prompt, "response": "c"}) + "\n" for prompt in prompts)


@pytest.mark.parametrize(("kind", "make"), [("demonstrations", "demonstrations"), ("prompts", "prompts")])
def test_a_refused_row_says_where_it_is(tmp_path, kind, make):
    (tmp_path / "a.jsonl").write_text(rows([USER], [SYSTEM, USER], "ab"))
    records = FileData(str(tmp_path), {kind: {"train": "a.jsonl"}}).records(kind, "train")
    with pytest.raises(RecordError, match=r"a\.jsonl, line 2: the chat template refuses the role 'system'"):
        getattr(Tokenization(gemma()), make)(records)
    with pytest.raises(RecordError, match="prompt number 1: the chat template refuses"):
        Tokenization(gemma()).prompts([Prompt("ab"), Prompt([SYSTEM, USER])])


def test_refused_rows_go_to_quarantine(tmp_path):
    (tmp_path / "a.jsonl").write_text(rows([USER], [SYSTEM, USER], "ab", [SYSTEM, USER]))
    files = {"demonstrations": {"train": "a.jsonl"}}
    stop = FileData(str(tmp_path), files)
    stop.check = Tokenization(gemma()).check
    with pytest.raises(
        RecordError, match=r"line 2: the chat template refuses .*\n2 malformed rows in all; also\n.*line 4"
    ):
        stop.records("demonstrations", "train")
    aside = FileData(str(tmp_path), files, "quarantine", str(tmp_path / "aside"))
    aside.check = Tokenization(gemma()).check
    records = aside.records("demonstrations", "train")
    assert [record.prompt for record in records] == [[USER], "ab"]
    (place,) = aside.malformed
    lines = [json.loads(line) for line in Path(place).read_text().splitlines()]
    assert [line["place"].rpartition(", ")[2] for line in lines] == ["line 2", "line 4"]
    assert lines[0]["row"] == {"prompt": [SYSTEM, USER], "response": "c"}
    assert "role 'system'" in lines[0]["problem"]
    assert len(Tokenization(gemma()).demonstrations(records)) == 2


def test_conversations_that_cannot_be_trained_on_whole_are_refused_at_the_row():
    template = "{% for m in messages %}[{{ m['role'][0] if loop.last else m['role'] }}]{{ m['content'] }}{% endfor %}"
    tokenizer = byte_tokenizer([], template)
    record = Demonstration(TURNS, "c")
    Tokenization(tokenizer).check(record)
    with pytest.raises(RecordError, match=r"train_on=last"):
        Tokenization(tokenizer, train_on="all").check(record)
    with pytest.raises(RecordError, match=r"demonstration number 0: .*train_on=last"):
        Tokenization(tokenizer, train_on="all").demonstrations([record])


def test_every_template_can_be_told_apart():
    for tokenizer in (chatml(), llama3(), gemma(), qwen3(), byte_tokenizer([], GEMMA), sentence_tokenizer(CHATML)):
        Tokenization(tokenizer).check(Prompt("ab"))


LOOPS = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3
RECURSION = "{% macro again(n) %}{{ again(n + 1) }}{% endmacro %}{{ again(0) }}"


@pytest.mark.parametrize("dated", [False, True])
def test_a_template_without_an_end_is_refused_by_name(dated, tmp_path, monkeypatch):
    monkeypatch.setattr("rlhf_lightning.tokenization.chat.MAX_SECONDS", 0.2)
    tokenizer = byte_tokenizer([])
    tokenizer.name_or_path = "stranger/model"
    tokenizer.chat_template = LOOPS + ("{{ strftime_now('%Y') }}" if dated else "")
    before, begun = signal.getsignal(signal.SIGPROF), time.process_time()
    with pytest.raises(
        TemplateLimitError, match=r"template of stranger/model is not done after 0\.2 s.*model\.chat_templ"
    ):
        rendered(tokenizer, TURNS, generation_prompt=True)
    assert time.process_time() - begun < 2
    assert signal.getsignal(signal.SIGPROF) is before
    assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)


def test_what_other_threads_compute_does_not_count(monkeypatch):
    monkeypatch.setattr("rlhf_lightning.tokenization.chat.MAX_SECONDS", 0.2)
    tokenizer = byte_tokenizer([])
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    write = tokenizer.apply_chat_template
    # Half a second beside threads that compute, and next to nothing of its own.

    def slowly(*arguments, **options):
        time.sleep(0.5)
        return write(*arguments, **options)

    monkeypatch.setattr(tokenizer, "apply_chat_template", slowly)
    over = threading.Event()
    busy = [threading.Thread(target=lambda: [None for _ in iter(over.is_set, True)]) for _ in range(2)]
    for thread in busy:
        thread.start()
    try:
        assert rendered(tokenizer, TURNS, generation_prompt=True) == "abcab"
    finally:
        over.set()
        for thread in busy:
            thread.join()


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'a' * 2000000 }}{{ messages[0].content }}",
        "{% for i in range(20) %}{{ messages[0].content * 60000 }}{% endfor %}",
    ],
)
def test_a_template_that_writes_without_measure_is_refused(template):
    tokenizer = byte_tokenizer([])
    tokenizer.chat_template = template
    with pytest.raises(
        TemplateLimitError, match=r"the tokenizer writes 2,[04]00,00\d characters, where 1,000,0[25]0 are"
    ):
        rendered(tokenizer, [USER], generation_prompt=True)


def test_endless_recursion_is_a_sentence_too():
    tokenizer = byte_tokenizer([])
    tokenizer.chat_template = RECURSION
    with pytest.raises(TemplateLimitError, match="calls itself without an end"):
        rendered(tokenizer, [USER], generation_prompt=True)


def test_long_conversations_and_other_threads_are_written():
    tokenizer = byte_tokenizer([])
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    found = []
    long = [{"role": "user", "content": "ab" * 1_000_000}]
    thread = threading.Thread(target=lambda: found.append(rendered(tokenizer, long, generation_prompt=True)))
    thread.start()
    thread.join()
    assert found == [rendered(tokenizer, long, generation_prompt=True)] == ["ab" * 1_000_000]


def test_such_a_template_is_refused_before_the_first_row():
    """It is the model's fault, not the row's: nothing goes to quarantine."""
    tokenizer = byte_tokenizer([])
    tokenizer.chat_template = "{{ 'a' * 2000000 }}{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(TemplateLimitError, match="writes"):
        Tokenization(tokenizer)
