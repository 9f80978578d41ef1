"""The reference of every option of the configuration, made of the comments in conf/ and of docstrings.

Nothing is imported but PyYAML: the package's sources are read.
"""

import ast
import json
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
CONF = REPOSITORY / "conf"
SETS_OTHERS = {"experiment", "sweep", "hparams_search", "debug"}
"""Groups whose options set what other groups describe."""
COMMENT = re.compile(r"(?:^|\s)#\s(.*)$")
TAKERS = {
    "fit": "rlhf_lightning.training.fit.fit_stage",
    "data": "rlhf_lightning.data.datamodule.RLHFDataModule",
    "lora": "rlhf_lightning.models.lora.with_adapters",
    "lengths": "rlhf_lightning.data.datamodule.RLHFDataModule",
    "sampling": "rlhf_lightning.recipe.collect.collect_comparisons",
}
"""What takes the settings of a node that names no `_target_`."""
WHOLE = {"files", "config", "prompt_sets"}
"""Settings that are one value, whatever is in them."""


class Setting(NamedTuple):
    """A row of the reference: the path below its group, the value, what it does (empty where nothing says so)."""

    name: str
    value: str
    meaning: str


@cache
def parsed(file: Path) -> ast.Module:
    """A source file."""
    return ast.parse(file.read_text(encoding="utf-8"))


def defined(dotted: str) -> ast.ClassDef | ast.FunctionDef | None:
    """The class or function of this package that the name leads to, through what packages pass on."""
    *path, name = dotted.split(".")
    file = REPOSITORY.joinpath(*path)
    file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
    if not path or path[0] != "rlhf_lightning" or not file.exists():
        return None
    for node in ast.walk(parsed(file)):  # also within `if TYPE_CHECKING`
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return node
        if isinstance(node, ast.ImportFrom) and any((each.asname or each.name) == name for each in node.names):
            return defined(f"{node.module}.{name}")
    return None


@cache
def arguments(dotted: str) -> dict[str, str]:
    """What the docstring of a class or function says of each of its arguments."""
    node = defined(dotted)
    section = re.search(r"\n *Args:\n(.*?)(?=\n\n|\Z)", (node and ast.get_docstring(node)) or "", re.DOTALL)
    found = re.findall(r"^ {4}\*{0,2}(\w+): (.*(?:\n {5,}.*)*)", section[1] if section else "", re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


def comments(text: str) -> dict[int, str]:
    """The comment behind each line, by the number of the line."""
    lines = enumerate(text.splitlines())
    return {n: match[1] for n, line in lines if (match := COMMENT.search(line)) and not line.lstrip().startswith("#")}


def settings(file: Path) -> Iterator[Setting]:
    """The settings of an option, each with its comment, else the words of what takes it."""
    text = file.read_text(encoding="utf-8")
    said = comments(text)

    def walk(node: yaml.MappingNode, path: tuple[str, ...]) -> Iterator[Setting]:
        targets = [value.value for key, value in node.value if key.value == "_target_"]
        taker = targets[0] if targets else TAKERS.get(path[-1] if path else "", "")
        for key, value in node.value:
            place = (*path, key.value)
            comment = said.get(key.start_mark.line) or (value.value and said.get(value.end_mark.line)) or ""
            if key.value in ("defaults", "_target_", "_partial_", "<<"):
                continue
            nested = isinstance(value, yaml.MappingNode) and value.value and key.value not in WHOLE
            if nested and not (comment and value.flow_style):
                yield from walk(value, place)
                continue
            yield Setting(".".join(place), shown(value), meaning(taker, key.value, comment, value))

    root = yaml.compose(text)
    if isinstance(root, yaml.MappingNode):
        yield from walk(root, ())


def meaning(taker: str, name: str, comment: str, value: yaml.Node) -> str:
    """What a setting does: the words of what takes it, and the comment; a comment that is a number is the paper's."""
    inherited = re.fullmatch(r"\$\{([\w.]+)\}", str(value.value))
    words = arguments(taker).get(name, "")
    if inherited:
        return f"As `{inherited[1]}`"
    if re.match(r"[\d.]+(;|$)", comment):
        comment = "" if "paper" in words else f"the paper: {comment}"
    if not words and not comment and taker and not taker.startswith("rlhf_lightning"):
        return f"An argument of `{taker}`"
    return f"{words} {comment[:1].upper()}{comment[1:]}".strip() if words else comment


def shown(node: yaml.Node) -> str:
    """A value on one line."""
    if isinstance(node, yaml.ScalarNode):
        return " ".join(str(node.value).split()) if node.value or node.style is None else '""'
    return json.dumps(yaml.SafeLoader("").construct_document(node)).replace('"', "")


def purpose(file: Path) -> str:
    """The first line of an option, which says what it is for."""
    lines = (line for line in file.read_text(encoding="utf-8").splitlines() if not line.startswith("# @package"))
    return next(lines).removeprefix("# ")


def options(group: Path) -> list[Path]:
    """The options of a group, those first that others build on."""
    files = sorted(group.glob("*.yaml"), key=lambda file: (file.stem != "default", file.stem))
    bases = [re.findall(r"^defaults: \[(\w+)", file.read_text(encoding="utf-8"), re.MULTILINE) for file in files]
    return sorted(files, key=lambda file: file.stem != "default" and [file.stem] not in bases)


def groups() -> list[Path]:
    """The groups that have options."""
    return sorted(path for path in CONF.iterdir() if path.is_dir() and options(path))


def described(files: list[Path]) -> dict[str, Setting]:
    """Every setting of these options by its name: the value of the first one, the first meaning that there is."""
    found: dict[str, Setting] = {}
    for setting in (each for file in files for each in settings(file)):
        if any(setting.name.startswith(f"{name}.") or name.startswith(f"{setting.name}.") for name in found):
            continue  # a part of a node that has a row, or a node whose parts have rows
        first = found.get(setting.name, setting)
        found[setting.name] = Setting(first.name, first.value, first.meaning or setting.meaning)
    return found


def cell(text: str) -> str:
    """Text that may stand in a table."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def table(prefix: str, found: Iterable[Setting]) -> str:
    """The table of settings."""
    text = "| setting | value | what it does |\n|---|---|---|"
    for name, value, words in found:
        short = value if len(value) <= 40 else f"{value[:37]}..."
        text += f"\n| `{prefix}{name}` | {f'`{short}`' if short else ''} | {cell(words)} |"
    return text


def top_settings() -> list[Setting]:
    """The settings above all groups, without what is Hydra's own."""
    return [setting for setting in settings(CONF / "config.yaml") if not setting.name.startswith("hydra")]


def group_page(group: Path) -> str:
    """The reference of a group: what its settings do, then every option as it is."""
    files, name = options(group), group.name
    text = f"# {name}\n\n`{name}=<option>` chooses one."
    if name not in SETS_OTHERS:
        text += f" Each setting has the value of the first option that has it; `{files[0].stem}` is first.\n\n"
        text += table(f"{name}.", described(files).values())
    for file in files:
        yaml_text = file.read_text(encoding="utf-8").rstrip()
        text += f"\n\n## {file.stem} {{ #{file.stem} }}\n\n`{name}={file.stem}`: {purpose(file)}\n\n"
        text += f"```yaml\n{yaml_text}\n```"
    return f"{text}\n"


def options_page() -> str:
    """The settings at the top, and the groups."""
    text = "# Every option\n\nMade of the comments in `conf/`. [How settings are given](../../configuration.md).\n\n"
    text += f"## At the top\n\n{table('', top_settings())}\n\n## Groups\n"
    for group in groups():
        text += f"\n### [{group.name}]({group.name}.md)\n\n| option | what it is for |\n|---|---|\n"
        for file in options(group):
            text += f"| [`{file.stem}`]({group.name}.md#{file.stem}) | {cell(purpose(file))} |\n"
    return text
