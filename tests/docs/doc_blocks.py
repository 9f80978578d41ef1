"""The code blocks of README, CONTRIBUTING and docs, and what the commands in them are."""

import re
import shlex
from collections.abc import Iterator
from importlib.metadata import distributions
from itertools import chain, pairwise
from pathlib import Path
from typing import NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser

from rlhf_lightning.cli import composed

REPOSITORY = Path(__file__).parents[2]
README = REPOSITORY / "README.md"
PAGES = [README, REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
WRONG = "\n## The commands\n"
"""Behind it docs/trust.md has commands that are wrong."""
TEXTS = {page.relative_to(REPOSITORY).as_posix(): page.read_text(encoding="utf-8").split(WRONG)[0] for page in PAGES}
BLOCK = re.compile(r"([^\n]*(?:\n(?!\n)[^\n]*)*)\n\n```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FILE = re.compile(r"`([\w./-]+\.\w+)`")
PLACEHOLDER = re.compile(r"\.\.\.$|<.*>")
LAUNCHERS = {"rlhf": [], "scripts/demo": ["experiment=demo"]}
"""What starts the command line, and the overrides that it brings."""

NOT_OURS = ("hydra/launcher=", "hydra.launcher.", "hydra.sweeper.")
"""How overrides begin that are of Hydra's plugins, and of no option of ours."""

OPTUNA = "hydra-optuna-sweeper"
"""What brings the sweeper of the options hparams_search."""


class Block(NamedTuple):
    """A code block: its language, its text, and the files that the paragraph before it says it is."""

    language: str
    code: str
    files: list[str]


def blocks(page: str) -> list[Block]:
    """Those of a page, in order."""
    return [Block(language, code, FILE.findall(before)) for before, language, code in BLOCK.findall(TEXTS[page])]


def calls(code: str) -> Iterator[list[str]]:
    """The calls of a shell block, each as its words; of a pipe and of `&&` every part."""
    for line in re.sub(r"\\\n", " ", code).splitlines():
        words = shlex.split(line, comments=True)
        start = 0
        for end in [*(n for n, word in enumerate(words) if word in ("&&", "|")), len(words)]:
            if words[start:end]:
                yield words[start:end]
            start = end + 1


def launched(words: list[str]) -> list[str] | None:
    """The arguments that a call gives the recipe; None where it starts something else."""
    text = shlex.join(words)
    for several in (r"^torchrun .*-m rlhf_lightning", r"^srun .*?\brlhf\b"):
        text = re.sub(several, "rlhf", text)
    launcher, *arguments = shlex.split(text)
    return [*LAUNCHERS[launcher], *arguments] if launcher in LAUNCHERS else None


def composed_jobs(arguments: list[str], config_dirs: Path | None = None) -> Iterator[dict[str, object]]:
    """The configurations of a command line: one, or as many as its longest sweep has values.

    Args:
        arguments: What stands behind the command.
        config_dirs: The folder that a `--config-dir` starts from.
    """
    searched = [f"hydra.searchpath=[file://{config_dirs}/{path}]" for path in options(arguments, "--config-dir")]
    without = [text for text in arguments if text not in options(arguments, "--config-dir")]
    overrides = [text for text in without if not text.startswith(("-", *NOT_OURS)) and not PLACEHOLDER.search(text)]
    if OPTUNA not in {each.name for each in distributions()}:
        overrides = [text for text in overrides if not text.startswith("hparams_search=")]
    parsed = OverridesParser.create().parse_overrides([text for text in overrides if text != "job"])  # --cfg job
    values = [list(one.sweep_string_iterator()) if one.is_sweep_override() else [None] for one in parsed]
    for job in range(max(map(len, values), default=0)):
        chosen = [each[job % len(each)] for each in values]
        pairs = zip(parsed, chosen, strict=True)
        given = [one.input_line or "" if value is None else f"{one.get_key_element()}={value}" for one, value in pairs]
        yield composed([*searched, *given])


def options(arguments: list[str], name: str) -> list[str]:
    """The values of an option of the command line."""
    return [value for option, value in pairwise(arguments) if option == name]


def all_commands(page: str) -> list[list[str]]:
    """The arguments of every call of the recipe in the blocks of a page."""
    shell = (calls(block.code) for block in blocks(page) if block.language == "bash")
    return [arguments for words in chain(*shell) if (arguments := launched(words)) is not None]
