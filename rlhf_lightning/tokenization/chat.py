"""Chat templates: conversations as text, as the model was trained to read and to answer them."""

import re
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date as Date
from pathlib import Path
from types import FrameType
from typing import Any, TypeAlias

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

Messages: TypeAlias = Sequence[Mapping[str, str]]
"""A conversation: ``{"role": ..., "content": ...}`` each."""

DEFAULT_DATE = "2024-07-26"
"""Stands for today in templates that write the date, so that a model reads the same text on every day."""

MAX_SECONDS = 3.0
"""How long a chat template may write one conversation, in seconds of the processor; one takes a few thousandths."""
MAX_ADDED, MAX_TIMES = 1_000_000, 10
"""How many characters it may write of its own, and how often what it is given."""

SHIPPED = Path(__file__).parent / "templates"
_DATE = "template_date"
"""A field of `tokenizer_config.json`."""
_FORMATS = [f"%{code}" for code in ("-d", "-m", *"dmbBaAyYjHIMSpxXcF")]
_TOKEN = re.compile(r"<\|[^|<>\s'\"]+\|>|</?[a-z]+_[a-z_]+>")
"""How templates spell tokens."""
_FAULTS = (TemplateError, TypeError, ValueError, LookupError, AttributeError)


class ConversationError(ValueError):
    """A chat template cannot write the conversation; the message names role, reason and remedy."""


class TemplateLimitError(ValueError):
    """A chat template takes too long, or writes too much: it is not for use, whatever the conversation."""


def rendered(tokenizer: PreTrainedTokenizerBase, messages: Messages, *, generation_prompt: bool) -> str:
    """The conversation as its tokenizer's chat template writes it, on the tokenizer's date.

    Args:
        tokenizer: A tokenizer with a chat template.
        messages: The conversation.
        generation_prompt: Whether what opens the assistant's answer stands at the end.

    Raises:
        ConversationError: When there is no template, it refuses the messages, or it leaves one out.
        TemplateLimitError: When it is still at work after `MAX_SECONDS`, or writes much more than it was given.
    """
    if not tokenizer.chat_template:
        raise ConversationError(
            "a prompt is a conversation, but the tokenizer has no chat template. Set model.chat_template=<file or "
            "name> (tokenizer.chat_template), or give prompts as strings."
        )
    try:
        text = _text(tokenizer, messages, generation_prompt)
    except TemplateLimitError:
        raise
    except _FAULTS as error:
        raise _refusal(tokenizer, messages, f"refuses {{}} ({error or type(error).__name__})") from error
    for message in messages:
        # Of an assistant's turn, templates may leave out what it thought.
        if message["role"] != "assistant" and message["content"].strip() not in text:
            raise _refusal(tokenizer, [message], "leaves out what {} says")
    return text


def template_date(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The day that the chat template writes for today, as `YYYY-MM-DD`; None where it writes none."""
    template = tokenizer.get_chat_template() if tokenizer.chat_template else ""
    dated = "strftime_now" in template or "date_string" in template
    return str(tokenizer.init_kwargs.get(_DATE, DEFAULT_DATE)) if dated else None


def set_template(tokenizer: PreTrainedTokenizerBase, template: str | None = None, date: str | None = None) -> None:
    """Give a tokenizer another chat template, or another day for templates that write one.

    Args:
        tokenizer: The tokenizer; both go with it into the folders that it is saved to.
        template: A file, or the name of a shipped template; None keeps its own.
        date: The day, as `YYYY-MM-DD`; None keeps its own, or `DEFAULT_DATE`.

    Raises:
        ValueError: When there is no such template, its tokens are none of the vocabulary, or the date is none.
    """
    if template is not None:
        names = sorted(path.stem for path in SHIPPED.glob("*.jinja"))
        file = SHIPPED / f"{template}.jinja" if template in names else Path(template)
        if not file.is_file():
            raise ValueError(
                f"model.chat_template={template} is neither a file nor one of {', '.join(names)}. Mend the name."
            )
        text = file.read_text(encoding="utf-8")
        unknown = [token for token in dict.fromkeys(_TOKEN.findall(text)) if token not in tokenizer.get_vocab()]
        if unknown:
            raise ValueError(
                f"model.chat_template={template} writes {', '.join(unknown)}, which the vocabulary of "
                f"{tokenizer.name_or_path or 'the tokenizer'} does not have. Take a template of its own tokens, such "
                "as plain, or add them to the tokenizer and its model."
            )
        tokenizer.chat_template = text
    if date is not None:
        try:
            Date.fromisoformat(date)
        except ValueError as error:
            raise ValueError(f"model.date={date} is no day; write it as {DEFAULT_DATE}.") from error
        tokenizer.init_kwargs[_DATE] = date


def _text(tokenizer: PreTrainedTokenizerBase, messages: Messages, generation_prompt: bool) -> str:
    template, day = tokenizer.get_chat_template(), template_date(tokenizer)
    conversation = [dict(message) for message in messages]
    options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": generation_prompt}
    if day is not None:
        today = Date.fromisoformat(day)
        # A macro hides the function of the same name, which asks the clock.
        forms = "".join(f"|replace('{form}','{today.strftime(form)}')" for form in _FORMATS)
        macro = f"{{% macro strftime_now(format) %}}{{{{ format{forms} }}}}{{% endmacro %}}\n"
        options |= {"chat_template": macro + template, "date_string": today.strftime("%d %b %Y")}
    text = rendered_within_limits(tokenizer, conversation, **options)
    whose, remedy = _whose(tokenizer)
    longest = MAX_ADDED + MAX_TIMES * sum(len(message["content"]) for message in messages)
    if len(text) > longest:
        raise TemplateLimitError(f"{whose} writes {len(text):,} characters, where {longest:,} are allowed. {remedy}")
    return text


def rendered_within_limits(tokenizer: PreTrainedTokenizerBase, messages: Messages, **options: Any) -> str:
    """`apply_chat_template` as text, within limits.

    Raises:
        TemplateLimitError: When the template does not end, or takes all memory; it names the folder.
    """
    whose, remedy = _whose(tokenizer)
    try:
        with _limited_time():
            return str(
                tokenizer.apply_chat_template([dict(each) for each in messages], **{"tokenize": False, **options})
            )
    except (_OutOfTimeError, MemoryError, RecursionError) as error:
        limits = {MemoryError: "fills the memory", RecursionError: "calls itself without an end"}
        what = limits.get(type(error), f"is not done after {MAX_SECONDS:g} s")
        raise TemplateLimitError(f"{whose} {what}. {remedy}") from error


def _whose(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    name = tokenizer.name_or_path or "the tokenizer"
    return f"the chat template of {name}", "Name another template (model.chat_template), or mend this one."


class _OutOfTimeError(Exception):
    pass


@contextmanager
def _limited_time() -> Iterator[None]:
    """Raise `_OutOfTimeError` after `MAX_SECONDS` that the main thread computes within the block.

    The sandbox of jinja allows loops in loops, which need not end before the sun does. The clock that sends signals
    counts all threads, so it is set again until this one has had its time. In another thread, which gets no signals,
    and beside a profiler, which has that clock, there is no limit.
    """
    timer = getattr(signal, "ITIMER_PROF", None)
    if timer is None or threading.current_thread() is not threading.main_thread() or signal.getitimer(timer)[0]:
        yield
        return
    end, over = time.thread_time() + MAX_SECONDS, False

    def stop(number: int, frame: FrameType | None) -> None:
        if over:  # one that was on its way must not set the clock again
            return
        if (left := end - time.thread_time()) <= 0:
            raise _OutOfTimeError
        signal.setitimer(timer, max(left, 0.01))

    before = signal.signal(signal.SIGPROF, stop)
    try:
        signal.setitimer(timer, MAX_SECONDS)
        yield
    finally:
        over = True
        signal.setitimer(timer, 0)
        signal.signal(signal.SIGPROF, before)


def _refusal(tokenizer: PreTrainedTokenizerBase, messages: Messages, what: str) -> ConversationError:
    roles = [message["role"] for message in messages]
    who = f"the roles {', '.join(roles)}" if len(set(roles)) > 1 else f"the role {roles[0]!r}"
    others = [message for message in messages if message["role"] != "system"]
    if 0 < len(others) < len(messages):
        try:
            _text(tokenizer, others, True)
            who = "the role 'system'"
        except _FAULTS:
            pass
    remedy = "Put its text into the first message of the user" if "system" in who else "Put the messages in order"
    return ConversationError(
        f"the chat template {what.format(who)}. {remedy}, name another template (model.chat_template), or leave the "
        "row out."
    )
