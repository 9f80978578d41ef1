"""`rlhf-chat`: talk to a model in the terminal, or to two side by side."""

import argparse
import copy
import io
import sys
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from rich.columns import Columns
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.text import Text
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer
from transformers.utils import logging as transformers_logging

from rlhf_lightning.models.loading import fit_to_tokenizer, load_causal_lm, model_config
from rlhf_lightning.models.scalar_head import HEAD_FILE
from rlhf_lightning.runs.exported import exported_model, stage_of
from rlhf_lightning.runs.hub import model_source
from rlhf_lightning.tokenization.dialogue import DialogueEncoder
from rlhf_lightning.tokenization.endings import end_token_ids, stop_strings
from rlhf_lightning.tokenization.loading import load_tokenizer

HELP = "/reset forgets the conversation, /system TEXT sets the system message, /exit or Ctrl-D ends, Ctrl-C stops"
_LIMIT = 512
"""Tokens of an answer where neither the command line nor the model's folder says."""
_TURNERS = "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u2028\u2029"
"""Characters that change the direction of a line, or break it."""


class Speaker:
    """A model with its conversation.

    Args:
        path: A folder of a model, of an adapter or of a step, a shipped model, or a hub id.
        options: What the command line says: temperature, max_new_tokens, seed, system, device.

    Raises:
        ValueError: When it is a reward model, or has no place for a system message.
    """

    def __init__(self, path: str, options: argparse.Namespace) -> None:
        self.name, self.options = path, options
        source = exported_model(path)
        _check_writes(source, path)
        self.tokenizer = load_tokenizer(source)
        dtype = "float32" if options.device == "cpu" else "bfloat16"
        model = fit_to_tokenizer(load_causal_lm(source, dtype=dtype), self.tokenizer)
        self.model: Any = torch.nn.Module.to(model, options.device).eval()
        data = _at(stage_of(source), "identity", "config", "data")
        self.encoder = DialogueEncoder(self.tokenizer, data.get("prompt_template"))
        own = self.model.generation_config
        self.limit = options.max_new_tokens or own.max_new_tokens or data.get("max_response_tokens") or _LIMIT
        self.context: int | None = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        self.messages: list[dict[str, str]] = []
        self.system: str | None = None
        if options.system is not None:
            self.reset(options.system)

    @property
    def has_turns(self) -> bool:
        """Whether its format holds a conversation; otherwise each message stands alone."""
        return self.encoder.uses_chat

    def reset(self, system: str | None = None) -> None:
        """Forget the conversation; with a text, begin the next one with that system message."""
        if system is not None:
            if not self.has_turns:
                raise ValueError(
                    f"{self.name} was not trained on conversations, so it has no place for a system message."
                )
            self.encoder.prompt_text([{"role": "system", "content": system}, {"role": "user", "content": "Hello"}])
            self.system = system
        self.messages = [] if self.system is None else [{"role": "system", "content": self.system}]

    def answer(self, message: str, show: Callable[[str], None]) -> str | None:
        """Answer a message, and remember both.

        Args:
            message: What the user says.
            show: Gets the text of the answer so far, each time that it grows.

        Returns:
            What is to be said about the answer: that it was cut or stopped; None where it ended by itself.

        Raises:
            ValueError: When the conversation does not fit into the model's context, or its template refuses it.
        """
        if self.has_turns:
            asked = [*self.messages, {"role": "user", "content": message}]
            ids = self.encoder.read([asked])[0].ids
        else:
            asked, ids = [], self.encoder.read([message])[0].ids
        room = self.limit if self.context is None else self.context - len(ids)
        if room < 1:
            raise ValueError(
                f"the conversation has {len(ids)} tokens now, and {self.name} reads {self.context}: say it shorter, or "
                "/reset."
            )
        limit = min(self.limit, room)
        stream = _Stream(self.tokenizer, show)
        stopped = False
        try:
            self._generate(ids, limit, stream)
        except KeyboardInterrupt:
            stopped = True
        if self.has_turns:
            self.messages = [*asked, {"role": "assistant", "content": stream.text}]
        if stopped:
            return "stopped"
        if stream.ended:
            return None
        why = "--max-new-tokens gives more" if limit == self.limit else "the model's context is full: /reset"
        return f"cut at {limit} tokens, before its end; {why}"

    def _generate(self, ids: Sequence[int], limit: int, stream: "_Stream") -> None:
        config = copy.deepcopy(self.model.generation_config)
        temperature = self.options.temperature
        if temperature is not None:
            config.do_sample, config.temperature = temperature > 0, temperature or None
        if not config.do_sample:  # these would only be warned of
            config.temperature = config.top_p = config.top_k = None
        config.max_new_tokens, config.max_length = limit, None
        config.eos_token_id, config.pad_token_id = list(end_token_ids(self.tokenizer)), self.tokenizer.pad_token_id
        stops = list(stop_strings(self.tokenizer))
        extra = {"stop_strings": stops, "tokenizer": self.tokenizer} if stops else {}
        torch.manual_seed(self.options.seed + len(self.messages))
        row = torch.tensor([list(ids)], device=self.model.device)
        inputs = {"input_ids": row, "attention_mask": torch.ones_like(row)}
        self.model.generate(**inputs, generation_config=config, streamer=stream, **extra)


class _Stream(BaseStreamer):
    """Turns the tokens of an answer into its text while they come.

    Args:
        tokenizer: The tokenizer.
        show: Gets the whole text so far, each time that it grows.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, show: Callable[[str], None]) -> None:
        self.tokenizer, self.show = tokenizer, show
        self.ends, self.stops = set(end_token_ids(tokenizer)), stop_strings(tokenizer)
        self.ids: list[int] | None = None
        self.text, self.ended = "", False

    def put(self, value: Tensor) -> None:
        """Take the prompt, then a token each time."""
        if self.ids is None:
            self.ids = []
            return
        token = int(value.flatten()[-1])
        if token in self.ends:
            self.ended = True
            return
        self.ids.append(token)
        text = str(self.tokenizer.decode(self.ids, skip_special_tokens=True))
        places = [text.find(stop) for stop in self.stops if stop in text]
        if places:
            text, self.ended = text[: min(places)], True
        self.text = text
        if not text.endswith("\ufffd"):  # half a character
            self.show(text[: len(text) - self._begun(text)])

    def end(self) -> None:
        """Show what was held back."""
        self.show(self.text)

    def _begun(self, text: str) -> int:
        """How many characters at the end may become a stop string."""
        return max((size for stop in self.stops for size in range(len(stop)) if text.endswith(stop[:size])), default=0)


def harmless(text: str) -> str:
    r"""Text that a terminal only shows: control characters, of which escape sequences are made, are spelled out.

    Examples:
        >>> harmless("\x1b[2J red\n")
        '\\x1b[2J red\n'
    """
    return "".join(
        ascii(sign)[1:-1] if sign in _TURNERS or (sign not in "\n\t" and unicodedata.category(sign) == "Cc") else sign
        for sign in text
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `rlhf-chat`."""
    options = _options(arguments)
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    interactive = sys.stdin.isatty()
    screen, notes = Console(soft_wrap=True), Console(soft_wrap=True, stderr=not interactive)
    try:
        speakers = [Speaker(path, options) for path in options.folders]
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        Console(stderr=True, soft_wrap=True).print(Text(f"rlhf-chat: {error}"))
        sys.exit(1)
    for speaker in speakers if interactive else []:
        alone = "" if speaker.has_turns else " (no conversations: each message stands alone)"
        notes.print(Text(f"{speaker.name}{alone}", "bold"))
    if interactive:
        notes.print(Text(HELP, "dim"))
    talk(speakers, screen, notes, interactive=interactive)


def talk(speakers: Sequence[Speaker], screen: Console, notes: Console, *, interactive: bool) -> None:
    """Read messages and answer them until there are no more.

    Args:
        speakers: The models.
        screen: Where answers go.
        notes: Where everything else goes.
        interactive: Whether somebody types; otherwise each line is a message, and answers are plain text.
    """
    while True:
        try:
            message = input("> " if interactive else "").strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            notes.print()
            continue
        try:
            if message == "/exit":
                return
            if message.startswith("/"):
                notes.print(Text(_command(speakers, message), "dim"))
            elif message and interactive and len(speakers) > 1:
                _side_by_side(speakers, message, screen)
            elif message:
                for speaker in speakers:
                    _one(speaker, message, screen, notes, named=len(speakers) > 1)
        except ValueError as error:
            notes.print(Text(str(error), "red"))


def _command(speakers: Sequence[Speaker], message: str) -> str:
    name, _, text = message.partition(" ")
    if name == "/reset" or (name == "/system" and text.strip()):
        for speaker in speakers:
            speaker.reset(text.strip() if name == "/system" else None)
        return "a new conversation"
    return f"there is no {name}; {HELP}" if name != "/system" else "/system needs a text"


def _one(speaker: Speaker, message: str, screen: Console, notes: Console, *, named: bool) -> None:
    shown = 0

    def show(text: str) -> None:
        nonlocal shown
        text = harmless(text)
        screen.out(text[shown:], end="", highlight=False)
        screen.file.flush()
        shown = len(text)

    if named:
        screen.out(f"{speaker.name}: ", end="", highlight=False)
    try:
        said = speaker.answer(message, show)
    except ValueError as error:
        said = str(error)
    screen.out("", highlight=False)
    if said is not None:
        notes.print(Text(f"({said})", "dim"))


def _side_by_side(speakers: Sequence[Speaker], message: str, screen: Console) -> None:
    texts, ends = ["" for _ in speakers], ["" for _ in speakers]

    def view() -> Columns:
        width = max(20, screen.width // len(speakers) - 1)
        panels = [
            Panel(Text(harmless(text)), title=Text(speaker.name), subtitle=Text(end), width=width)
            for speaker, text, end in zip(speakers, texts, ends, strict=True)
        ]
        return Columns(panels, padding=(0, 1))

    with Live(view(), console=screen, auto_refresh=False, vertical_overflow="visible") as live:
        for place, speaker in enumerate(speakers):

            def show(text: str, place: int = place) -> None:
                texts[place] = text
                live.update(view(), refresh=True)

            try:
                ends[place] = speaker.answer(message, show) or ""
            except ValueError as error:
                ends[place] = str(error)
            live.update(view(), refresh=True)


def _check_writes(source: str, path: str) -> None:
    """Refuse models that score text."""
    folder = Path(model_source(source))
    if (folder / "adapter_config.json").exists():
        return
    architectures = model_config(source).architectures or []
    if (folder / HEAD_FILE).exists() or any("Classification" in name for name in architectures):
        raise ValueError(
            f"{path} is a reward model: it scores text and writes none. Name a policy, such as step sft's."
        )


def _at(node: Any, *names: str) -> dict[str, Any]:
    for name in names:
        node = node.get(name, {}) if isinstance(node, dict) else {}
    return cast(dict[str, Any], node)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "rlhf-chat", description="Talk to a model in the terminal, or to two side by side."
    )
    parser.add_argument(
        "folders",
        nargs="+",
        metavar="FOLDER",
        help="a step of a run (runs/demo/ppo_ptx), a model's or adapter's folder, a hub id, or sandbox; two at most",
    )
    parser.add_argument(
        "--temperature", type=float, help="0 takes the likeliest token (the folder's generation config)"
    )
    parser.add_argument("--max-new-tokens", type=int, help=f"limit of an answer (the folder's, or {_LIMIT})")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling (0)")
    parser.add_argument("--system", help="the system message")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, ...")
    options = parser.parse_args(arguments)
    if len(options.folders) > 2:
        parser.error(f"two models fit side by side, not {len(options.folders)}")
    if options.temperature is not None and not 0 <= options.temperature < float("inf"):
        parser.error(f"--temperature {options.temperature} is no temperature; give 0 or more")
    if options.max_new_tokens is not None and options.max_new_tokens < 1:
        parser.error(f"--max-new-tokens {options.max_new_tokens} leaves no answer; give 1 or more")
    return options
