"""`rlhf-chat`: talk to a model in the terminal, or to two side by side."""

import argparse
import io
import sys
from collections.abc import Sequence

import torch
from rich.columns import Columns
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.text import Text
from transformers.utils import logging as transformers_logging

from rlhf_lightning.generation.speaker import LIMIT, Speaker
from rlhf_lightning.runs.terminal import harmless

HELP = "/reset forgets the conversation, /system TEXT sets the system message, /exit or Ctrl-D ends, Ctrl-C stops"


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
        settings = {
            name: getattr(options, name) for name in ("temperature", "max_new_tokens", "seed", "system", "device")
        }
        speakers = [Speaker(path, **settings) for path in options.folders]
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        Console(stderr=True, soft_wrap=True).print(Text(harmless(f"rlhf-chat: {error}")))
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
            notes.print(Text(harmless(str(error)), "red"))


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
        notes.print(Text(harmless(f"({said})"), "dim"))


def _side_by_side(speakers: Sequence[Speaker], message: str, screen: Console) -> None:
    texts, ends = ["" for _ in speakers], ["" for _ in speakers]

    def view() -> Columns:
        width = max(20, screen.width // len(speakers) - 1)
        panels = [
            Panel(Text(harmless(text)), title=Text(speaker.name), subtitle=Text(harmless(end)), width=width)
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
    parser.add_argument("--max-new-tokens", type=int, help=f"limit of an answer (the folder's, or {LIMIT})")
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
