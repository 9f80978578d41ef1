"""Every code block of README, CONTRIBUTING and docs is run, as far as that needs no model, no data and no network."""

import argparse
import ast
import importlib
import json
import re
import runpy
import sys
import tomllib
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from doc_blocks import PAGES, PLACEHOLDER, REPOSITORY, TEXTS, Block, blocks, calls, composed_jobs, launched

from rlhf_lightning.data.sources import RECORD_TYPES, FileData
from rlhf_lightning.generation.function_reward import call_by_name
from rlhf_lightning.recipe.pipeline import RECIPE
from rlhf_lightning.recipe.settings import setting_faults

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXECUTED_ELSEWHERE = {"README.md", "docs/library.md", "CONTRIBUTING.md"}
"""test_reuse.py and test_docs.py run their scripts in a process of their own, with the data that they need."""
NEEDS_A_RUN = {"docs/tutorials/my-model.md"}
OVERRIDES: set[str] = set()
"""Those that were composed."""
SHELL = {"export", "cd", "echo", "git"}


class ParsedError(Exception):
    """A command has read its arguments."""


def parsed_by(main: Callable[[], Any], arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Start a command, and stop it once it has read its arguments."""

    known = argparse.ArgumentParser.parse_known_args

    def reads_known(parser: argparse.ArgumentParser, *given: Any) -> None:
        known(parser, *given)
        raise ParsedError

    def reads(parser: argparse.ArgumentParser, *given: Any) -> None:
        if others := known(parser, *given)[1]:
            parser.error(f"unrecognized arguments: {others}")
        raise ParsedError

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", reads)
        patch.setattr(argparse.ArgumentParser, "parse_known_args", reads_known)
        patch.setattr(sys, "argv", ["command", *arguments])
        with pytest.raises(ParsedError):
            main()


def run_call(words: list[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Read the arguments of a call that does not start the recipe; says what it is."""
    command, *arguments = words
    arguments = [text for text in arguments if not PLACEHOLDER.search(text)]
    if command == "python":
        command, *arguments = arguments
    if command in SHELL:
        return "shell"
    if command == "pip":
        extras = re.fullmatch(r"rlhf-lightning(?:\[([\w,]+)\])?", arguments[-1])
        assert arguments[0] == "install", words
        assert extras, words
        assert set(filter(None, (extras[1] or "").split(","))) <= PROJECT["optional-dependencies"].keys(), words
        return "install"
    if command.startswith("scripts/"):
        script = REPOSITORY / command
        assert script.exists(), words
        script = script if script.suffix == ".py" else script.with_suffix(".py")
        if script.exists():
            monkeypatch.syspath_prepend(str(script.parent))
            parsed_by(lambda: runpy.run_path(str(script), run_name="__main__"), arguments, monkeypatch)
        return "script"
    assert command in PROJECT["scripts"], f"the test knows no way to run {words}"
    module, _, name = PROJECT["scripts"][command].partition(":")
    parsed_by(getattr(importlib.import_module(module), name), arguments, monkeypatch)
    return "command"


@cache
def checked_jobs(arguments: tuple[str, ...], folder: Path | None) -> int:
    """Compose the configurations of a command and check every setting; says how many there are."""
    number = 0
    for config in composed_jobs(list(arguments), folder):
        assert setting_faults(config, RECIPE, []) == [], arguments
        assert config["stages"], arguments
        number += 1
    OVERRIDES.update(text for text in arguments if "=" in text)
    return number


def run_shell(block: Block, folder: Path, monkeypatch: pytest.MonkeyPatch, count: Counter[str]) -> None:
    """Compose and check what starts the recipe; read the arguments of other commands."""
    for words in calls(block.code):
        arguments = launched(words)
        if arguments is None:
            count[run_call(words, monkeypatch)] += 1
            continue
        count["recipe"] += 1
        count["configurations"] += checked_jobs(tuple(arguments), folder if "--config-dir" in arguments else None)


def run_python(block: Block, execute: bool) -> dict[str, Any]:
    """Execute a block, or what it imports alone; gives its names."""
    names: dict[str, Any] = {"__name__": "block"}
    tree = ast.parse(block.code)
    if not execute:
        tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    exec(compile(tree, "block", "exec"), names)
    return names


def write_files(page: str, folder: Path) -> None:
    """The files that a page tells one to write: its YAML and its JSON lines, where the text before has the name."""
    for block in blocks(page):
        for file in block.files if block.language in ("yaml", "json") else []:
            path = folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.code, encoding="utf-8")
            kind, split, *_ = path.name.split(".")
            if kind in RECORD_TYPES:
                assert FileData(None, {kind: {split: str(path)}}).records(kind, split), file


def run_page(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch, count: Counter[str]) -> None:
    write_files(page, folder)
    monkeypatch.chdir(folder)
    for block in blocks(page):
        count[block.language] += 1
        if block.language == "bash":
            run_shell(block, folder, monkeypatch, count)
        elif block.language == "python":
            here = page not in EXECUTED_ELSEWHERE | NEEDS_A_RUN
            run_python(block, execute=here)
            count["executed"] += here or page in EXECUTED_ELSEWHERE
        elif block.language == "json":
            assert all(json.loads(line) for line in block.code.splitlines())
        elif block.language == "yaml":
            assert yaml.safe_load(block.code)
        else:
            assert block.language == "text", f"{page}: the test knows no way to run a block of {block.language}"
            assert "rlhf " not in block.code


@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*")  # between Lightning 2.6.6 and torch 2.13
def test_every_block_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    count: Counter[str] = Counter()
    for page in TEXTS:
        folder = tmp_path / page.replace("/", "-")
        folder.mkdir()
        try:
            run_page(page, folder, monkeypatch, count)
        except BaseException as error:
            error.add_note(f"a block of {page}")
            raise
    fences = sum(text.count("\n```") for text in TEXTS.values()) // 2
    run = sum(count[language] for language in ("bash", "python", "json", "yaml", "text"))
    assert run == fences, "a block that the pattern does not see: it needs an empty line before"
    with capsys.disabled():
        sys.stdout.write(
            f"\n{run} blocks of {len(PAGES)} pages: {count['bash']} of shell ({count['recipe']} commands of the recipe "
            f"with {len(OVERRIDES)} overrides, {count['configurations']} configurations composed and checked; "
            f"{count['command'] + count['script'] + count['install']} other commands), {count['python']} of Python "
            f"({count['executed']} executed), {count['json'] + count['yaml']} of data\n"
        )
    assert count["recipe"] >= 50
    assert count["executed"] >= 10


def test_the_rewards_of_the_pages_score() -> None:
    short, right = (
        run_python(block, execute=True) for block in blocks("docs/tutorials/my-reward.md") if block.language == "python"
    )
    assert call_by_name(short["short"], ["a", "b"], ["one two", "one two three four five six"]) == [1.0, 0.0]
    assert right["right"](["it is 4", "five"], ["4", "4"]) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("rlhf sft.fit.epoch=3", "sft.fit.epoch"),
        ("rlhf-chat runs/a --temprature 1", "SystemExit"),
        ("scripts/nothing", "AssertionError"),
        ("pip install 'rlhf-lightning[nothing]'", "AssertionError"),
        ("unknown command", "AssertionError"),
    ],
)
def test_a_wrong_block_is_seen(code: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises((Exception, SystemExit)) as caught:
        run_shell(Block("bash", code, []), tmp_path, monkeypatch, Counter())
    assert fault in f"{type(caught.value).__name__}: {caught.value}"
