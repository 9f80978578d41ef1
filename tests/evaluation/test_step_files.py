"""A damaged file of a finished step costs its own part of the report, and is named there."""

import json
import shutil

import pytest
from matplotlib.figure import Figure
from test_report import LEGEND, Page, write_report, write_run

from rlhf_lightning.evaluation.tables import sample_view
from rlhf_lightning.runs.folders import Runs

FILES = (
    *(f"{step}/stage.json" for step in ("sft", "reward", "ppo", "evaluate")),
    *(f"{step}/metrics.csv" for step in ("sft", "reward", "ppo_ptx")),
    *("sft/dropped.json", "sft/cut.json", "sft/warnings.json", "sft/examples.json"),
    *("ppo/samples.jsonl", "evaluate/samples.json"),
)
DRAWN = ("reward/stage.json", "ppo_ptx/metrics.csv", "evaluate/samples.json")
"""Of which half is read, and figures are drawn of that."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "mine"
    write_run(run)
    (run / "sft" / "cut.json").write_text('{"train": {"responses cut": {"team": 3}}}')
    (run / "sft" / "warnings.json").write_text('["mind the gap"]')
    (run / "sft" / "examples.json").write_text('{"train": 3}')
    return run


@pytest.mark.parametrize(
    "damage",
    [
        *("truncated", "garbage", "deleted", "dictionary"),
        *(pytest.param(damage, marks=pytest.mark.slow) for damage in ("empty", "list", "number")),
    ],
)
@pytest.mark.parametrize("name", FILES)
def test_the_report_shows_the_rest(whole, tmp_path, monkeypatch, name, damage):
    if damage != "truncated" or name not in DRAWN:  # drawing takes most of the time
        monkeypatch.setattr(Figure, "savefig", lambda _, file, **options: file.write('<svg viewBox="0 0 1 1"></svg>'))
    run = shutil.copytree(whole, tmp_path / "mine")
    file = run / name
    content = file.read_bytes()
    file.unlink()
    if damage != "deleted":
        broken = {"truncated": content[: len(content) // 2], "garbage": b"\x89\xff\x00\xfe\n" * 50, "empty": b""}
        broken |= {"list": b"[[]]\n", "dictionary": b'{"a": {}}\n', "number": b"7\n"}
        file.write_bytes(broken[damage])
    folders = {folder.name: folder for folder in sorted(run.iterdir())}
    page = Page(write_report(run, folders).read_text(encoding="utf-8"))
    assert all(f'"{step}"' not in page.open for step in folders)
    named = f"{file} cannot be read" in page.text or f"{file} is torn" in page.text
    if damage == "garbage" and not name.endswith("examples.json"):
        assert named
    if damage == "deleted":
        assert not named
    if name != "sft/warnings.json":
        assert "mind the gap" in page.text
    if name not in ("evaluate/samples.json", "evaluate/stage.json"):
        assert "question" in page.text
    assert json.loads((run / "report" / "results.json").read_text()).keys() >= {"policies", "seconds"}


def test_a_damaged_line_is_named(whole, tmp_path):
    run = shutil.copytree(whole, tmp_path / "mine")
    file = run / "sft" / "metrics.csv"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([lines[0], lines[1], "1,x,2\n", *lines[2:]]))
    page = Page(write_report(run, {"sft": run / "sft"}).read_text(encoding="utf-8"))
    assert f"{file} cannot be read (line 3: could not convert string to float: 'x')" in page.text


def test_a_step_with_a_torn_stage_file_is_in_the_report(whole, tmp_path):
    root = tmp_path / "runs"
    shutil.copytree(whole, root / "mine")
    shutil.copytree(whole, root / "first")
    (root / "mine" / "sft" / "stage.json").write_bytes(b'{"status": "comp')
    shutil.rmtree(root / "mine" / "ppo")
    runs = Runs(root, "mine", ("first",))
    assert runs.find("sft", torn=True) == root / "mine" / "sft"
    assert runs.find("ppo", torn=True) == root / "first" / "ppo"
    assert runs.find("curate", torn=True) is None


def test_samples_that_cannot_be_read_are_named(tmp_path):
    samples = tmp_path / "samples.json"
    samples.write_text("{")
    assert f"{samples} cannot be read" in str(sample_view(samples, LEGEND))
    samples.write_text('{"prompts": ["a"], "sft": {}}')
    assert str(sample_view(samples, LEGEND))
