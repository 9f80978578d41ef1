"""What is shown in a terminal: text of models, of records and of strangers only shows there, and moves nothing."""

import re
from collections.abc import Iterator

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook
from rich.control import Control
from rich.segment import Segment

# Control characters, of which escape sequences are made, and those that change the direction of a line, or break it.
_ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def harmless(text: str) -> str:
    r"""Text that a terminal only shows: characters that would do something are spelled out.

    Examples:
        >>> harmless("\x1b[2J red\n")
        '\\x1b[2J red\n'
    """
    return _ACTING.sub(lambda sign: ascii(sign[0])[1:-1], text)


class HarmlessOutput(RenderHook):
    """Passes whatever a console prints through `harmless`; the console's own control codes stay."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """Wrap what is printed."""
        return [each if isinstance(each, Control) else _Harmless(each) for each in renderables]


class _Harmless:
    def __init__(self, renderable: ConsoleRenderable) -> None:
        self.renderable = renderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for text, style, control in console.render(self.renderable, options):
            yield Segment(text if control else harmless(text), style, control)
