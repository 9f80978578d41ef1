"""The documentation site: its links, its reference of every name and option, and that it fetches nothing."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from doc_blocks import REPOSITORY, TEXTS

import rlhf_lightning
from rlhf_lightning.cli import composed

sys.path.insert(0, str(REPOSITORY / "scripts"))
import site_options
import site_pages

PAGES = site_pages.pages()
LINK = re.compile(r"\]\(([^)\s]+)\)")
FETCHES = re.compile(
    r"""<(?:script|img|iframe|source|link(?![^>]*rel="?(?:canonical|next|prev)))\b[^>]*?\s(?:src|srcset|href)=["']?([^"'\s>]+)"""
    r"""|@import\s+(?:url\()?["']?([^"';)]+)|\burl\(\s*["']?(?!data:)([^"')]+)"""
)
"""What a browser fetches by itself when it shows a page or reads a style."""
SETTING = re.compile(r"^(?:\w+@)?[a-z_0-9]+(?:\.\w+)+$")
"""A setting, such as `ppo.module.kl_coef`."""


def fetched(text: str) -> list[str]:
    return ["".join(match) for match in FETCHES.findall(text)]


def zensical() -> str | None:
    """The builder: of this environment, or of the one that scripts/docs made."""
    folders = [Path(sys.executable).parent, REPOSITORY / ".venv-docs" / "bin"]
    return shutil.which("zensical", path=os.pathsep.join(map(str, folders)))


@pytest.mark.parametrize("page", PAGES)
def test_links_stay_in_the_site(page: str) -> None:
    text = "".join(part for part in site_pages.FENCE.split(PAGES[page]) if not part.startswith("```"))
    for link in LINK.findall(text):
        place, _, anchor = link.partition("#")
        if not place or "://" in place:
            continue
        target = os.path.normpath(Path(page).parent / place)
        written = PAGES.get(target)
        source = target.removeprefix("files/") if target.startswith("files/") else f"docs/{target}"
        assert written is not None or (REPOSITORY / source).is_file(), link
        if anchor.startswith("rlhf_lightning."):
            assert f"::: {anchor}\n" in written, link


def test_every_page_is_in_the_navigation() -> None:
    navigation = (REPOSITORY / "zensical.toml").read_text(encoding="utf-8")
    named = set(re.findall(r'"([\w/.*-]+\.md)"', navigation))
    made = {pattern.removesuffix("*.md") for pattern in named if "*" in pattern}
    assert [page for page in PAGES if page not in named and not page.startswith(tuple(made))] == []
    assert {page for page in named if "*" not in page} <= PAGES.keys()


def test_every_public_name_has_a_reference() -> None:
    assert site_pages.public_names() == rlhf_lightning.__all__
    assert len(rlhf_lightning.__all__) >= 20
    for name in rlhf_lightning.__all__:
        assert f"::: rlhf_lightning.{name}\n" in PAGES["reference/python.md"]
        assert getattr(rlhf_lightning, name).__doc__, name


def test_every_option_says_what_it_does() -> None:
    groups = [group for group in site_options.groups() if group.name not in site_options.SETS_OTHERS]
    found = {
        f"{group.name}.{name}": setting.meaning
        for group in groups
        for name, setting in site_options.described(site_options.options(group)).items()
    } | {setting.name: setting.meaning for setting in site_options.top_settings()}
    assert len(found) >= 300
    assert [name for name, meaning in found.items() if not meaning] == []
    assert found["ppo.module.clip_range"] == "Trust region of the policy's ratio, 0.2 in the paper."
    assert found["ppo_ptx.module.kl_coef"] == "As `ppo.module.kl_coef`"
    assert found["select.split"] == "or train; never test"
    assert found["optimizer.lr"] == "An argument of `torch.optim.Adam`"
    for file in site_options.CONF.glob("*/*.yaml"):
        assert f"## {file.stem} {{ #{file.stem} }}" in PAGES[f"reference/options/{file.parent.name}.md"]


def rows(page: str) -> list[list[str]]:
    """The cells of every table of a page."""
    lines = [line for line in TEXTS[page].splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_the_map_of_the_paper_names_files_that_exist() -> None:
    mapped = [row for row in rows("docs/paper.md") if row[0] != "section"]
    sections = {section for row in mapped for section in re.split(r", ", row[0])}
    assert {
        "3.1",
        "3.2",
        "3.3",
        "3.4",
        "3.5",
        "3.6",
        "A.1",
        "B.1",
        "C.1",
        "C.2",
        "C.3",
        "C.4",
        "C.5",
        "D",
        "E.2",
    } <= sections
    for row in mapped:
        files = [(REPOSITORY / "docs" / link.partition("#")[0]).resolve() for link in LINK.findall(row[2])]
        files += [REPOSITORY / path for path in re.findall(r"`(conf/[\w./]+)`", row[2])]
        assert files, row
        assert [file for file in files if not file.exists()] == []


def test_the_settings_beside_those_of_trl_exist() -> None:
    known = composed(["model=folder", "model.path=/m", "data=jsonl", "data.root=/d"])
    named = [span for row in rows("docs/trl.md") for span in re.findall(r"`([^`]+)`", " ".join(row[1:]))]
    settings = [span.partition("=")[0] for span in named]
    settings = [name for name in settings if SETTING.match(name) and name.split(".")[0] in known and "@" not in name]
    assert len(settings) >= 40
    for name in settings:
        node = known
        for key in name.split("."):
            assert key in node, name
            node = node[key]


@pytest.mark.slow
def test_the_site_is_built_and_fetches_nothing_from_elsewhere(tmp_path: Path) -> None:
    builder = zensical()
    if builder is None:
        pytest.skip("zensical is not installed here: scripts/docs makes an environment with it")
    for name in ("rlhf_lightning", "README.md"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    site_pages.write_site(tmp_path / "build")
    command = [builder, "build", "--strict", "--clean", "--config-file", str(tmp_path / "build" / "zensical.toml")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, (result.stdout + result.stderr)[-3000:]
    site = tmp_path / "build" / "site"
    html = sorted(site.rglob("*.html"))
    assert len(html) >= len(PAGES)
    for file in html:
        assert fetched(file.read_text(encoding="utf-8"))
    files = [file for suffix in ("html", "css", "js") for file in site.rglob(f"*.{suffix}")]
    assert [
        (file, place) for file in files for place in fetched(file.read_text(encoding="utf-8")) if "//" in place
    ] == []
    python = (site / "reference" / "python" / "index.html").read_text(encoding="utf-8")
    assert all(f'id="rlhf_lightning.{name}"' in python for name in rlhf_lightning.__all__)


def test_a_foreign_request_is_seen() -> None:
    html = '<link rel="canonical" href="https://a/"><a href="https://b/">b</a><img alt="c" src="https://c/c.png">'
    assert fetched(f'{html}<link href="//d/d.css" rel="stylesheet"><script src="/e.js">') == [
        "https://c/c.png",
        "//d/d.css",
        "/e.js",
    ]
    assert fetched('@import "https://a.css"; src: url(https://b.woff2); src: url(data:font/woff2;base64,//AA)') == [
        "https://a.css",
        "https://b.woff2",
    ]
