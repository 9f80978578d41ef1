import io

import pytest
from rich.console import Console
from rich.progress import Progress
from rich.text import Text

from rlhf_lightning.runs.terminal import HarmlessOutput, harmless

BELL_AND_TITLE = "\x1b]0;owned\x07\x1b[2J\rcat\x9b31m"


def test_what_acts_is_spelled_out_and_the_rest_stays():
    assert harmless(BELL_AND_TITLE) == r"\x1b]0;owned\x07\x1b[2J\rcat\x9b31m"
    assert harmless("a\u202eb\u2067c\u2028d") == r"a\u202eb\u2067c\u2028d"
    kept = "two\nlines\tand ünïcode 猫 🐈 with\u200djoiner"
    assert harmless(kept) == kept


@pytest.mark.parametrize("printed", [BELL_AND_TITLE, Text(BELL_AND_TITLE), f"[bold]{BELL_AND_TITLE}[/]"])
def test_a_console_sends_none_of_it(printed):
    output = io.StringIO()
    console = Console(file=output, force_terminal=False, width=200)
    console.push_render_hook(HarmlessOutput())
    console.print(printed)
    # rich itself drops bell and carriage return
    assert output.getvalue() == "\\x1b]0;owned\\x1b[2Jcat\\x9b31m\n"


def test_styles_and_bars_of_the_console_stay():
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=60, color_system="truecolor")
    console.push_render_hook(HarmlessOutput())
    with Progress(console=console, auto_refresh=False) as bar:
        bar.add_task("x", total=2)
        console.print("[bold]made[/] \x1b[31mred", highlight=False)
        bar.refresh()
    written = output.getvalue()
    assert "\x1b[1mmade\x1b[0m \\x1b[31mred" in written
    assert "\x1b[?25l" in written  # the bar hides the cursor
