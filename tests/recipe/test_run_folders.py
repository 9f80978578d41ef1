"""Run folders as the command line treats them: one writer, nothing deleted, nothing damaged read."""

import os
import re
import shutil
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from rlhf_lightning.cli import CONFIG_DIR, run
from rlhf_lightning.data.rows.malformed import MalformedRows
from rlhf_lightning.data.rows.readers import SourceRow
from rlhf_lightning.runs.folders import PipelineError, is_complete
from rlhf_lightning.runs.lock import being_made

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*many workers.*", "ignore:.*in eval mode.*", "ignore:.*LeafSpec.*", "ignore:.*logging interval.*"
)
TINY = ["debug=fast", "data.source.prompts=40", "data.source.demonstrations=40", "data.source.validation=16"]


def rlhf(folder: Path, *overrides: str) -> None:
    options = ["sft.fit.epochs=1", "ppo.data.batch_size=8", "run=tiny"]
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        run(compose("config", [f"paths.runs={folder}", *TINY, *options, *overrides]))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    rlhf(folder, "stages=[sft,collect,reward]")
    return folder


@pytest.fixture
def runs(made: Path, tmp_path: Path) -> Path:
    """A copy of the run, moved elsewhere."""
    shutil.copytree(made, tmp_path / "runs")
    return tmp_path / "runs"


@pytest.mark.parametrize("stage", ["sft", "ppo", "check"])
def test_a_step_that_another_process_makes_is_refused(runs: Path, stage: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*") if ".locks" not in path.parts}
    folder = runs / "tiny" / stage
    with being_made(folder), pytest.raises(PipelineError, match=rf"{folder} is being made by process {os.getpid()} on"):
        rlhf(runs, f"stages=[{stage}]", "overwrite=true", "seed=2")
    assert before == {path: path.stat().st_mtime_ns for path in runs.rglob("*") if ".locks" not in path.parts}


def test_a_step_is_locked_for_as_long_as_it_is_made(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def trained(*_: object, **__: object) -> None:
        with pytest.raises(PipelineError, match="is being made by process"), being_made(runs / "tiny" / "ppo", 0.0):
            seen.append("two writers")
        seen.append("locked")
        raise KeyError("stop here")

    monkeypatch.setattr("rlhf_lightning.recipe.stage.fit_stage", trained)
    with pytest.raises(KeyError):
        rlhf(runs, "stages=[ppo]")
    assert seen == ["locked"]
    with being_made(runs / "tiny" / "ppo"):
        assert not (runs / "tiny" / "ppo").exists()


def test_rankings_that_were_lost_are_named_before_anything_is_trained(runs: Path) -> None:
    path = runs / "tiny" / "collect" / "comparisons.train.jsonl"
    rows = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(rows[: len(rows) // 5]))
    for stages in ("reward", "check", "collect"):
        with pytest.raises(PipelineError, match=rf"{path} has \d+ bytes, and had \d+ .* stages=\[collect\] overwrite"):
            rlhf(runs, f"stages=[{stages}]", "run=tiny" if stages == "collect" else "run=new", "upstream=tiny")
    assert not (runs / "new" / "reward").exists()


def test_a_model_that_has_changed_is_refused_by_the_step_that_reads_it(runs: Path) -> None:
    path = runs / "tiny" / "sft" / "model" / "model.safetensors"
    weights = bytearray(path.read_bytes())
    weights[-1] ^= 1
    path.write_bytes(weights)
    with pytest.raises(PipelineError, match=r"sft/model/model.safetensors holds something else .*SHA-256"):
        rlhf(runs, "stages=[collect]", "run=new", "upstream=tiny")
    assert not (runs / "new" / "collect").exists()
    with pytest.raises(PipelineError, match=r"holds something else"):
        rlhf(runs, "stages=[check]", "run=new", "upstream=tiny")


@pytest.mark.parametrize("cause", ["damaged parent", "no model"])
def test_a_step_stays_when_what_replaces_it_is_refused(runs: Path, monkeypatch: pytest.MonkeyPatch, cause: str) -> None:
    def broken(*_: object, **__: object) -> None:
        raise PipelineError("there is no such model")

    reward, weights = runs / "tiny" / "reward", runs / "tiny" / "sft" / "model" / "model.safetensors"
    before = (reward / "stage.json").read_bytes()
    if cause == "no model":
        monkeypatch.setattr("rlhf_lightning.recipe.context.Context.causal_lm", broken)
    else:
        weights.write_bytes(weights.read_bytes()[::-1])
    with pytest.raises(PipelineError, match=r"holds something else|no such model"):
        rlhf(runs, "stages=[reward]", "overwrite=true", "reward.module.optimizer.lr=1e-4")
    assert (reward / "stage.json").read_bytes() == before
    assert (reward / "model").is_dir()
    assert not list((runs / "tiny").glob(".trash/*"))


def test_what_is_replaced_goes_to_the_trash_and_the_report_says_so(runs: Path) -> None:
    old = (runs / "tiny" / "reward" / "stage.json").read_bytes()
    rlhf(
        runs, "stages=[reward,evaluate]", "overwrite=true", "reward.module.optimizer.lr=1e-4", "evaluate.policies=[sft]"
    )
    (trashed,) = (runs / "tiny" / ".trash").iterdir()
    assert trashed.name.startswith("reward.")
    assert (trashed / "stage.json").read_bytes() == old
    page = (runs / "tiny" / "report" / "index.html").read_text(encoding="utf-8")
    assert re.search(r"1 replaced step in \.trash, \d+\.\d MB; delete it when", page)


def test_a_step_refused_before_its_first_batch_leaves_no_folder(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ValueError("a mistake in the reward function")

    monkeypatch.setattr("rlhf_lightning.modules.ppo.PPOModule.rollout", broken)
    with pytest.raises(ValueError, match="a mistake"):
        rlhf(runs, "stages=[ppo]", "logger=tensorboard")
    assert not (runs / "tiny" / "ppo").exists()
    monkeypatch.undo()
    rlhf(runs, "stages=[ppo]", "ppo.module.kl_coef=0.3")
    assert is_complete(runs / "tiny" / "ppo")


def test_a_step_folder_of_unknown_content_is_refused(runs: Path) -> None:
    (runs / "tiny" / "sft" / "stage.json").unlink()
    weights = (runs / "tiny" / "sft" / "model" / "model.safetensors").read_bytes()
    with pytest.raises(PipelineError, match=r"tiny/sft is not empty and has no stage\.json"):
        rlhf(runs, "stages=[sft]")
    assert (runs / "tiny" / "sft" / "model" / "model.safetensors").read_bytes() == weights


def test_two_processes_that_put_rows_aside_do_not_tear_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "demonstrations.train.jsonl"
    with MalformedRows(path) as first:
        first.add(SourceRow("a:1", {}, "empty"))
        monkeypatch.setattr("os.getpid", lambda: 1)
        with MalformedRows(path) as second:
            second.add(SourceRow("a:1", {}, "empty"))
        first.add(SourceRow("a:2", {}, "empty"))
    assert len(list(first.rows())) == 2
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
