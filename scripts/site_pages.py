"""The pages of the documentation site: those of the repository, with a reference made of the sources.

Usage: site_pages.py FOLDER. Writes FOLDER/docs and FOLDER/zensical.toml; scripts/docs makes the site of them. It needs
neither torch nor the package: sources are read, not imported.
"""

import ast
import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE, CONF = REPOSITORY / "rlhf_lightning", REPOSITORY / "conf"
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Pages that do not lie in docs/, and what the site calls them."""
OPTIONS, CODE, FILES = "reference/options", "reference/code", "files"
LINK = re.compile(r"(\]\()([^)\s#]*)(#[^)\s]*)?\)")
FENCE = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)
COMMENT = re.compile(r"(?:^|\s)#\s(.*)$")
TAKERS = {
    "fit": "rlhf_lightning.training.fit.fit_stage",
    "data": "rlhf_lightning.data.datamodule.RLHFDataModule",
    "lora": "rlhf_lightning.models.lora.with_adapters",
    "lengths": "rlhf_lightning.data.datamodule.RLHFDataModule",
}
"""What takes the settings of a node that names no `_target_`."""


@dataclass(frozen=True)
class Setting:
    """A row of the reference.

    Args:
        name: Its path below the group.
        value: Its value, as YAML.
        meaning: What it does; empty where neither a comment nor the docstring of what takes it says so.
    """

    name: str
    value: str
    meaning: str


def site_path(path: str) -> str:
    """Where a path of the repository is found in the site, with its anchor; files that no page shows lie in `files/`."""
    if path in PAGES:
        return PAGES[path]
    top, *rest = PurePosixPath(path).parts
    if top == "docs":
        return "/".join(rest)
    if top == "conf":
        if not rest:
            return f"{OPTIONS}/index.md"
        return f"{OPTIONS}/{rest[0]}.md" + (f"#{PurePosixPath(rest[-1]).stem}" if len(rest) > 1 else "")
    if top == "rlhf_lightning":
        dotted = ".".join((top, *rest)).removesuffix(".py")
        anchor = f"#{dotted}" if path.endswith(".py") else ""
        return f"{CODE}/{rest[0] if rest and '.' not in rest[0] else 'top'}.md{anchor}"
    return f"{FILES}/{path}"


def linked(text: str, source: str) -> str:
    """The text of a page with its links as they are in the site."""
    folder = PurePosixPath(site_path(source)).parent

    def moved(match: re.Match[str]) -> str:
        start, place, anchor = match[1], match[2], match[3] or ""
        if not place or "://" in place:
            return match[0]
        path = os.path.normpath(PurePosixPath(source).parent / place)
        target, _, own = site_path(path).partition("#")
        return f"{start}{os.path.relpath(target, folder)}{f'#{own}' if own else anchor})"

    return "".join(part if part.startswith("```") else LINK.sub(moved, part) for part in FENCE.split(text))


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
    for node in parsed(file).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return node
        if isinstance(node, ast.ImportFrom) and any((each.asname or each.name) == name for each in node.names):
            return defined(f"{node.module}.{name}")
    return None


@cache
def arguments(dotted: str) -> dict[str, str]:
    """What the docstring of a class or function says of each of its arguments."""
    node = defined(dotted)
    section = re.search(r"\n *Args:\n(.*?)(?=\n\n|\Z)", node and ast.get_docstring(node) or "", re.DOTALL)
    found = re.findall(r"^ {4}\*{0,2}(\w+): (.*(?:\n {5,}.*)*)", section[1] if section else "", re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


def comments(text: str) -> dict[int, str]:
    """The comment behind each line, with the lines of comment that follow it."""
    found: dict[int, str] = {}
    last = -1
    for number, line in enumerate(text.splitlines()):
        match = COMMENT.search(line)
        if match and line.lstrip().startswith("#"):
            if last in found and line.startswith("      "):
                found[last] += f" {match[1]}"
            continue
        last = number
        if match:
            found[number] = match[1]
    return found


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
            nested = isinstance(value, yaml.MappingNode) and value.value
            if nested and not (comment and value.flow_style):
                yield from walk(value, place)
                continue
            meaning = comment or arguments(taker).get(key.value, "")
            if not meaning and taker and not taker.startswith("rlhf_lightning"):
                meaning = f"an argument of `{taker}`"
            inherited = re.fullmatch(r"\$\{([\w.]+)\}", str(value.value))
            if not meaning and inherited:
                meaning = f"as `{inherited[1]}`"
            yield Setting(".".join(place), shown(value), meaning)

    root = yaml.compose(text)
    if isinstance(root, yaml.MappingNode):
        yield from walk(root, ())


def shown(node: yaml.Node) -> str:
    """A value on one line."""
    if isinstance(node, yaml.ScalarNode):
        return " ".join(str(node.value).split()) if node.value or node.style is None else '""'
    value = yaml.SafeLoader("").construct_document(node)
    return yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False).strip()


def purpose(file: Path) -> str:
    """The first line of an option, which says what it is for."""
    lines = (line for line in file.read_text(encoding="utf-8").splitlines() if not line.startswith("# @package"))
    return next(lines).removeprefix("# ")


def options(group: Path) -> list[Path]:
    """The options of a group, the default first."""
    return sorted(group.glob("*.yaml"), key=lambda file: (file.stem != "default", file.stem))


def groups() -> list[Path]:
    """The groups that have options."""
    return sorted(path for path in CONF.iterdir() if path.is_dir() and options(path))


def described(files: list[Path]) -> dict[str, Setting]:
    """Every setting of these options by its name: the value of the first one, the first meaning that there is."""
    found: dict[str, Setting] = {}
    for setting in (each for file in files for each in settings(file)):
        first = found.get(setting.name, setting)
        found[setting.name] = Setting(first.name, first.value, first.meaning or setting.meaning)
    return found


def cell(text: str) -> str:
    """Text that may stand in a table."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def rows(prefix: str, found: dict[str, Setting]) -> list[str]:
    """The table of settings."""
    lines = ["| setting | value | what it does |", "|---|---|---|"]
    for setting in found.values():
        value = setting.value if len(setting.value) <= 60 else setting.value[:57] + "..."
        value = f"`{value}`".replace("|", "\\|") if value else ""
        lines.append(f"| `{prefix}{setting.name}` | {value} | {cell(setting.meaning)} |")
    return lines


def group_page(group: Path) -> str:
    """The reference of a group: what its settings do, then every option as it is."""
    files = options(group)
    name, whole = group.name, group.name in ("experiment", "sweep", "debug")
    lines = [f"# {name}", "", f"`{name}=<option>`. Where a setting has no word of its own, its option's YAML has.", ""]
    if not whole:  # their options set what other groups describe
        lines += [*rows(f"{name}.", described(files)), ""]
    for file in files:
        text = file.read_text(encoding="utf-8").rstrip()
        lines += [f"## {file.stem} {{ #{file.stem} }}", "", f"`{name}={file.stem}`: {purpose(file)}", "", f"```yaml\n{text}\n```", ""]
    return "\n".join(lines)


def options_page() -> str:
    """The settings at the top, and the groups."""
    lines = ["# Every option", "", "Made of the comments in `conf/`. [How settings are given](../../configuration.md).", ""]
    top = [setting for setting in settings(CONF / "config.yaml") if not setting.name.startswith("hydra")]
    lines += ["## At the top", "", *rows("", {setting.name: setting for setting in top}), "", "## Groups", ""]
    for group in groups():
        lines += [f"### [{group.name}]({group.name}.md)", "", "| option | what it is for |", "|---|---|"]
        lines += [f"| [`{file.stem}`]({group.name}.md#{file.stem}) | {cell(purpose(file))} |" for file in options(group)]
        lines.append("")
    return "\n".join(lines)


def public_names() -> list[str]:
    """What `from rlhf_lightning import ...` gives."""
    values = [node.value for node in parsed(PACKAGE / "__init__.py").body if isinstance(node, ast.Assign)]
    return next(ast.literal_eval(value) for value in values if isinstance(value, ast.List))


def python_page() -> str:
    """The reference of the public names."""
    lines = ["# Public names", "", "`from rlhf_lightning import ...`; [how they are used](../library.md).", ""]
    return "\n".join(lines + [f"::: rlhf_lightning.{name}\n" for name in public_names()])


def code_pages() -> dict[str, str]:
    """A page of each folder of the package, with all its modules."""
    modules: dict[str, list[str]] = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        path = file.relative_to(PACKAGE)
        if path.name != "__init__.py":
            name = ".".join(("rlhf_lightning", *path.with_suffix("").parts))
            modules.setdefault(path.parts[0] if len(path.parts) > 1 else "top", []).append(name)
    return {
        f"{CODE}/{folder}.md": f"# {folder if folder != 'top' else 'rlhf_lightning'}\n\n"
        + "\n".join(f"::: {name}\n" for name in names)
        for folder, names in modules.items()
    }


def pages() -> dict[str, str]:
    """Every page of the site by its path."""
    sources = [*PAGES, *sorted(file.relative_to(REPOSITORY).as_posix() for file in (REPOSITORY / "docs").rglob("*.md"))]
    texts = {
        site_path(source): linked((REPOSITORY / source).read_text(encoding="utf-8"), source) for source in sources
    }
    texts |= {f"{OPTIONS}/{group.name}.md": group_page(group) for group in groups()}
    return {**texts, **code_pages(), f"{OPTIONS}/index.md": options_page(), "reference/python.md": python_page()}


def write_site(folder: Path) -> None:
    """Write pages, files and the configuration."""
    shutil.rmtree(folder / "docs", ignore_errors=True)
    texts = pages()
    for path, text in texts.items():
        (folder / "docs" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "docs" / path).write_text(text, encoding="utf-8")
        for place in (match[2] for match in LINK.finditer(text)):
            up, found, name = place.rpartition(f"{FILES}/")
            if found and not up.strip("./"):
                (folder / "docs" / FILES / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(REPOSITORY / name, folder / "docs" / FILES / name)
    for file in (REPOSITORY / "docs").rglob("*"):
        if file.is_file() and file.suffix != ".md":
            target = folder / "docs" / file.relative_to(REPOSITORY / "docs")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    config = (REPOSITORY / "zensical.toml").read_text(encoding="utf-8")
    for pattern in re.findall(r'"([\w/]+/)\*\.md"', config):
        names = sorted(path for path in texts if path.startswith(pattern) and not path.endswith("index.md"))
        config = config.replace(f'"{pattern}*.md"', ", ".join(f'"{name}"' for name in names))
    (folder / "zensical.toml").write_text(config, encoding="utf-8")


if __name__ == "__main__":
    write_site(Path(sys.argv[1]))
