"""`rlhf-chat`: the model's own format, a conversation, cuts that are told, and nothing that moves the terminal."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from rlhf_lightning import chat
from rlhf_lightning.generation.speaker import Speaker

CHAT_WORDS = ["user", "model", "capital", "paris", "the", "what", "?"]

pytestmark = pytest.mark.usefixtures("quiet")


@pytest.fixture
def quiet() -> Any:
    """The command line turns transformers' messages off; other tests want them."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    yield
    logging.set_verbosity(before)
    logging.enable_progress_bar()


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command with lines from a pipe; returns what it wrote."""

    def run(lines: str, *arguments: str) -> Any:
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        chat.main([*arguments, "--device", "cpu"])
        return capsys.readouterr()

    return run


def test_a_line_is_a_message_and_answers_are_plain_text(say: Any) -> None:
    written = say("what is the rope made of ? answer :\n\n/exit\nhello\n", "sandbox/small")
    assert written.out.count("\n") == 1
    assert written.out.strip()
    assert "\x1b" not in written.out


def test_the_answer_is_what_transformers_generates(say: Any) -> None:
    """Against generate without a stream, on ids by the tokenizer itself."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rlhf_lightning.runs.hub import model_folder

    folder = model_folder("sandbox/small")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    inputs = tokenizer("what is the rope made of ? answer :", return_tensors="pt", return_token_type_ids=False)
    output = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    written = say(
        "what is the rope made of ? answer :\n", "sandbox/small", "--max-new-tokens", "12", "--temperature", "0"
    )
    assert written.out.strip() == tokenizer.decode(output, skip_special_tokens=True)
    assert ("cut at 12 tokens" in written.err) == (int(output[-1]) != tokenizer.eos_token_id)


def test_what_the_tokenizer_does_not_know_is_told(say: Any) -> None:
    options = ("sandbox/small", "--max-new-tokens", "2")
    assert "reads 'what is the <unk> made of ?'" in say("what is the parliament made of ?\n", *options).err
    assert "tokens for" not in say("what is the rope made of ?\n", *options).err


def test_the_seed_makes_the_sample(say: Any) -> None:
    options = ("sandbox/small", "--temperature", "1.5", "--max-new-tokens", "20")
    first, again, other = (say("hello .\n", *options, "--seed", seed).out for seed in ("1", "1", "2"))
    assert first == again != other


def speaker(folder: Path, **options: Any) -> Speaker:
    return Speaker(str(folder), max_new_tokens=4, **options)


def ids_of(speaker: Speaker, message: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What the model reads for a message."""
    seen: list[list[int]] = []
    generate = speaker.model.generate

    def watch(**options: Any) -> Any:
        seen.append(options["input_ids"][0].tolist())
        return generate(**options)

    monkeypatch.setattr(speaker.model, "generate", watch)
    speaker.answer(message, lambda _: None)
    monkeypatch.undo()
    return seen[0]


def test_a_conversation_is_kept_in_the_models_own_format(
    make_chat_folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = speaker(make_chat_folder(words=["system", *CHAT_WORDS]), system="the capital")
    text = one.tokenizer.decode(ids_of(one, "what ?", monkeypatch))
    assert text == "<turn> system the capital <end_of_turn> <turn> user what ? <end_of_turn> <turn> model"
    answer = one.messages[-1]["content"]
    assert [message["role"] for message in one.messages] == ["system", "user", "assistant"]
    again = one.tokenizer.decode(ids_of(one, "<eos> paris", monkeypatch))
    assert again.startswith(f"{text} {answer}".strip())
    assert "<eos>" not in again  # of people, it is text
    one.reset()
    assert [message["role"] for message in one.messages] == ["system"]


def test_a_step_is_asked_in_the_format_that_it_was_trained_on(
    make_chat_folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = tmp_path / "run" / "sft"
    step.mkdir(parents=True)
    make_chat_folder(template=None, ends=1).rename(step / "model")
    config = {"data": {"prompt_template": "Human: {prompt} next", "max_response_tokens": 7}}
    (step / "stage.json").write_text(json.dumps({"status": "complete", "identity": {"config": config}}))
    one = Speaker(str(step))
    assert one.limit == 7
    assert not one.has_turns
    for _ in range(2):  # each message stands alone
        assert one.tokenizer.decode(ids_of(one, "paris", monkeypatch)) == "Human: paris next"
    with pytest.raises(ValueError, match="no place for a system message"):
        one.reset("be brief")


def test_it_says_when_the_conversation_is_too_long(make_chat_folder: Any) -> None:
    one = speaker(make_chat_folder())
    before = list(one.messages)
    with pytest.raises(ValueError, match=r"has 1\d\d tokens now, and .* reads 128: .*/reset"):
        one.answer("paris " * 130, lambda _: None)
    assert one.messages == before
    said = one.answer("paris " * (128 - 5 - 2), lambda _: None)  # 2 tokens are left
    assert said is None or re.search(r"cut at 2 tokens.*context is full", said)


def test_it_ends_at_every_end_token_and_says_when_it_was_cut(make_chat_folder: Any) -> None:
    one = speaker(make_chat_folder())
    for token, said, text in (
        (1, None, ""),
        (4, None, ""),
        (9, "cut at 4 tokens, before its end; --max-new-tokens gives more", "of of of of"),
    ):
        one.reset()
        with torch.no_grad():
            one.model.lm_head.bias = torch.nn.Parameter(torch.zeros(len(one.tokenizer)))
            one.model.lm_head.bias[token] = 1e4
        assert one.answer("what ?", lambda _: None) == said
        assert one.messages[-1]["content"] == text


def test_control_c_stops_an_answer_and_keeps_what_was_said(make_chat_folder: Any) -> None:
    one = speaker(make_chat_folder())

    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    assert one.answer("what ?", interrupt) == "stopped"
    assert [message["role"] for message in one.messages] == ["user", "assistant"]


def test_a_terminal_is_not_moved_by_an_answer(make_chat_folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    evil = "\x1b]0;title\x07\x1b[2J\x9b31m\rover\u202e"
    one = speaker(make_chat_folder())
    monkeypatch.setattr(one, "answer", lambda message, show: show(evil))
    file = io.StringIO()
    screen = Console(file=file, force_terminal=False, width=200)
    lines = iter(["hi", "/exit"])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    chat.talk([one], screen, screen, interactive=False)
    assert file.getvalue() == r"\x1b]0;title\x07\x1b[2J\x9b31m\rover\u202e" + "\n"


@pytest.mark.parametrize("interactive", [True, False])
def test_two_models_answer_with_a_conversation_each(
    make_chat_folder: Any, interactive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = [speaker(make_chat_folder(name="left")), speaker(make_chat_folder(name="right"))]
    lines = iter(["what ?", "/reset", "/nothing", "paris"])

    def reply(_: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", reply)
    file = io.StringIO()
    screen = Console(file=file, width=300)
    chat.talk(pair, screen, screen, interactive=interactive)
    for one in pair:
        assert [message["role"] for message in one.messages] == ["user", "assistant"]
        assert one.messages[0]["content"] == "paris"
        assert one.name in file.getvalue()
    assert "there is no /nothing" in file.getvalue()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere/at/all"], "there is no file or folder"),
        (["."], "holds no model"),
        (["sandbox", "--system", "be brief"], "no place for a system message"),
        (["sandbox/huge"], "sandbox has no model"),
    ],
)
def test_a_mistake_is_one_sentence(
    arguments: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        chat.main([*arguments, "--device", "cpu"])
    assert ended.value.code == 1
    written = capsys.readouterr().err
    assert sentence in written
    assert "Traceback" not in written


def test_a_reward_model_does_not_talk(make_tiny_lm: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    from rlhf_lightning.models.export import export_scalar_model
    from rlhf_lightning.models.scalar_head import ScalarHeadModel

    lm = make_tiny_lm("llama")
    export_scalar_model(ScalarHeadModel.from_causal_lm(lm), lm.config, tiny_tokenizer, tmp_path / "model")
    with pytest.raises(ValueError, match="is a reward model: it scores text and writes none"):
        Speaker(str(tmp_path / "model"))


@pytest.mark.parametrize(
    "options", [["--temperature", "-1"], ["--temperature", "nan"], ["--max-new-tokens", "0"], ["a", "b"]]
)
def test_options_out_of_range_are_refused(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        chat.main(["sandbox", *options])
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err
