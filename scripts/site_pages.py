"""The pages of the documentation site: those of the repository, with a reference made of the sources.

Usage: site_pages.py FOLDER. Writes FOLDER/docs and FOLDER/zensical.toml; scripts/docs makes the site of them. It needs
neither torch nor the package: sources are read, not imported.
"""

import ast
import os
import re
import shutil
import sys
from pathlib import Path, PurePosixPath

from site_options import REPOSITORY, group_page, groups, options_page, parsed

PACKAGE = REPOSITORY / "rlhf_lightning"
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Pages that do not lie in docs/, and what the site calls them."""
OPTIONS, CODE, FILES = "reference/options", "reference/code", "files"
LINK = re.compile(r"(\]\()([^)\s#]*)(#[^)\s]*)?\)")
SPAN = re.compile(r"`[^`\n]+`")
FENCE = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)


def site_path(path: str) -> str:
    """Where a path of the repository is in the site, with its anchor; files that no page shows lie in `files/`."""
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

    text = text if text.startswith("#") else f"# {PurePosixPath(source).stem.capitalize()}\n\n{text}"
    parts = [part if part.startswith("```") else LINK.sub(moved, part) for part in FENCE.split(text)]
    # Code in a table of GitHub has its bar behind a backslash, which the site would show.
    return SPAN.sub(lambda match: match[0].replace("\\|", "|"), "".join(parts))


def public_names() -> list[str]:
    """What `from rlhf_lightning import ...` gives."""
    values = [node.value for node in parsed(PACKAGE / "__init__.py").body if isinstance(node, ast.Assign)]
    return next(ast.literal_eval(value) for value in values if isinstance(value, ast.List))


def python_page() -> str:
    """The reference of the public names."""
    lines = ["# Public names", "", "`from rlhf_lightning import ...`; [how they are used](../library.md).", ""]
    short = "    options:\n      show_root_full_path: false\n"
    return "\n".join(lines + [f"::: rlhf_lightning.{name}\n{short}" for name in public_names()])


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
    texts = {site_path(source): linked((REPOSITORY / source).read_text(encoding="utf-8"), source) for source in sources}
    texts |= {f"{OPTIONS}/{group.name}.md": group_page(group) for group in groups()}
    return {**texts, **code_pages(), f"{OPTIONS}/index.md": options_page(), "reference/python.md": python_page()}


def write_site(folder: Path) -> None:
    """Write pages, files and the configuration."""
    if folder.resolve() == REPOSITORY:
        raise ValueError(f"{folder} is the repository, whose docs/ would be replaced. Name another folder.")
    shutil.rmtree(folder / "docs", ignore_errors=True)
    texts = pages()
    for path, text in texts.items():
        (folder / "docs" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "docs" / path).write_text(text, encoding="utf-8")
    shutil.copytree(REPOSITORY / "scripts" / "examples", folder / "docs" / FILES / "scripts" / "examples")
    figures = shutil.ignore_patterns("*.md")
    shutil.copytree(REPOSITORY / "docs", folder / "docs", ignore=figures, dirs_exist_ok=True)
    config = (REPOSITORY / "zensical.toml").read_text(encoding="utf-8")
    for pattern in re.findall(r'"([\w/]+/)\*\.md"', config):
        names = sorted(path for path in texts if path.startswith(pattern) and not path.endswith("index.md"))
        config = config.replace(f'"{pattern}*.md"', ", ".join(f'"{name}"' for name in names))
    (folder / "zensical.toml").write_text(config, encoding="utf-8")


if __name__ == "__main__":
    write_site(Path(sys.argv[1]))
