"""What README, docs and CONTRIBUTING name exists: links, paths, modules, overrides, steps, options."""

import json
import pkgutil
import re
import shlex
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from doc_blocks import PAGES, PLACEHOLDER, REPOSITORY, TEXTS, all_commands, composed_jobs, launched
from rich.console import Console

from rlhf_lightning.cli import composed
from rlhf_lightning.recipe.pipeline import RECIPE, Pipeline
from rlhf_lightning.runs.folders import Runs, read_stage
from rlhf_lightning.runs.targets import builder

CODE = re.compile(r"^```\w*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
PATH = re.compile(r"(?<![\w/.-])(?:rlhf_lightning|conf|tests|scripts|docs)/[\w./*-]*[\w/*]")
DOTTED = re.compile(r"(?<!\w)rlhf_lightning(?:\.[A-Za-z_]\w*)+")
LOGGED = re.compile(r'"((?:train|validation|rollout|update|time)/\w+)"')
STARTS = ("rlhf ", "scripts/demo ", "torchrun ")
BESIDE = {
    "data.": ["data=jsonl", "data.root=/my/data"],
    "model.": ["model=folder", "model.path=/my/model"],
    "model=folder": ["model.path=/my/model"],
    "experiment=rule": ["model.path=/my/model", "data.root=/my/data", "ppo.reward=rules:mine"],
    "model=scratch": ["model.tokenizer_path=/my/model"],
}
"""What an override needs beside it where the text names it alone, by how it starts."""
pages = pytest.mark.parametrize("page", TEXTS)


def slug(heading: str) -> str:
    """The anchor that GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def headings(text: str) -> set[str]:
    return {slug(line.lstrip("#")) for line in CODE.sub("", text).splitlines() if line.startswith("#")}


def spans(text: str) -> list[str]:
    """Code within the text, joined where it goes over the end of a line."""
    return [" ".join(span.split()) for span in SPAN.findall(CODE.sub("", text))]


def indented(text: str) -> list[str]:
    return [line.strip() for line in CODE.sub("", text).splitlines() if line.startswith("    ")]


def commands(text: str) -> list[list[str]]:
    """The arguments of every command within the text; those in blocks are in tests/docs/test_blocks.py."""
    lines = [shlex.split(line, comments=True) for line in (*indented(text), *spans(text)) if line.startswith(STARTS)]
    return [arguments for words in lines if (arguments := launched(words)) is not None]


def table(text: str, first_column: str) -> list[list[str]]:
    """The rows of the table whose first column has this name, each as its cells."""
    rows = text[text.index(f"| {first_column} |") :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_the_readme_is_short() -> None:
    assert len(TEXTS["README.md"].splitlines()) <= 140


@pages
def test_links_lead_somewhere(page: str) -> None:
    for link in LINK.findall(TEXTS[page]):
        if "://" in link:
            continue
        place, _, anchor = link.partition("#")
        target = (REPOSITORY / page).parent / place if place else REPOSITORY / page
        assert target.exists(), link
        assert not anchor or anchor in headings(target.read_text(encoding="utf-8")), link


def test_every_page_is_reached_from_the_readme() -> None:
    links = set(chain(*map(LINK.findall, TEXTS.values())))
    assert {page.name for page in PAGES[1:]} <= {link.partition("#")[0].split("/")[-1] for link in links}


@pages
def test_paths_exist(page: str) -> None:
    assert [path for path in PATH.findall(LINK.sub("", TEXTS[page])) if not list(REPOSITORY.glob(path))] == []


@pages
def test_modules_exist(page: str) -> None:
    for name in DOTTED.findall(TEXTS[page]):
        pkgutil.resolve_name(name)


@pages
def test_commands_compose(page: str) -> None:
    for arguments in commands(TEXTS[page]):
        for config in composed_jobs(arguments):
            assert config["stages"], arguments


def test_commands_are_found() -> None:
    found = all_commands("README.md")
    assert len(found) >= 6
    assert ["-m", "stages=[ppo]", "upstream=demo", "ppo.module.kl_coef=0.01,0.02,0.05", "seed=1,2,3"] in found
    jobs = list(composed_jobs(["-m", "ppo.module.kl_coef=0.01,0.02", "seed=1,2,3", "..."]))
    assert [job["seed"] for job in jobs] == [1, 2, 3]


def test_single_overrides_compose() -> None:
    """What stands in the text as `key=value`, where the configuration has such a key or group."""
    known = composed([]).keys() | {path.name for path in (REPOSITORY / "conf").iterdir()}
    found = {span for text in TEXTS.values() for span in spans(text) if re.fullmatch(r"[\w.@/]+=\S+", span)}
    ours = {span for span in found if re.split(r"[.@=]", span)[0] in known and not PLACEHOLDER.search(span)}
    assert len(ours) >= 10
    together: list[tuple[list[str], dict[str, str]]] = []
    """What some need beside them, and by setting those that differ: each composition has as many as it may."""
    for override in sorted(ours):
        key, beside = override.partition("=")[0], [*chain(*(BESIDE[it] for it in BESIDE if override.startswith(it)))]
        free = next((each for needs, each in together if needs == beside and key not in each), None)
        if free is None:
            together.append((beside, free := {}))
        free[key] = override
    for beside, each in together:
        assert list(composed_jobs([*beside, *each.values(), "seed=1"])), each


def test_the_table_of_steps_is_the_recipe() -> None:
    names = [SPAN.findall(row[0]) for row in table(TEXTS["README.md"], "step")]
    assert names == [[stage.name] for stage in RECIPE]


def test_the_table_of_groups_is_the_folder_of_configurations() -> None:
    rows = {
        SPAN.findall(row[0])[0]: set(SPAN.findall(row[1])) for row in table(TEXTS["docs/configuration.md"], "group")
    }
    groups = {path for path in (REPOSITORY / "conf").iterdir() if path.is_dir() and path.name != "hydra"}
    options = {group.name: {file.stem for file in group.glob("*.yaml")} for group in groups}
    assert rows == {name: found for name, found in options.items() if found}


def test_the_table_of_log_keys_is_what_the_modules_log() -> None:
    rows = table(TEXTS["docs/metrics.md"], "key")
    documented = set(chain(*(SPAN.findall(row[0]) for row in rows)))
    package = {file: file.read_text(encoding="utf-8") for file in (REPOSITORY / "rlhf_lightning").rglob("*.py")}
    logged = set(chain(*(LOGGED.findall(text) for file, text in package.items() if file.parent.name == "modules")))
    assert len(logged) >= 15
    assert logged - documented == set()
    written = set(chain(*map(LOGGED.findall, package.values())))
    assert {key for key in documented if re.fullmatch(r"\w+/\w+", key)} - written == set()


def test_the_step_of_the_example_runs_and_is_skipped_when_complete(tmp_path: Path) -> None:
    (code,) = [code for code in CODE.findall(TEXTS["CONTRIBUTING.md"]) if "Stage" in code]
    names: dict[str, Any] = {"__name__": "verbosity"}
    exec(code, names)
    (line,) = [span for span in spans(TEXTS["CONTRIBUTING.md"]) if span.startswith("Verbosity(")]
    recipe = (*RECIPE, eval(line, names))
    config = {**composed(["data.source.demonstrations=20"]), "stages": ["verbosity"], "verbosity": {"rows": 8}}
    for _ in range(2):
        pipeline = Pipeline(config, builder([]), Runs(tmp_path, "run"), Console(quiet=True), recipe)
        assert pipeline.run()["verbosity"]["mean"] > 1
    assert len(json.loads((tmp_path / "run" / "verbosity" / "lengths.json").read_text())) == 8
    assert read_stage(tmp_path / "run" / "verbosity")["status"] == "complete"
