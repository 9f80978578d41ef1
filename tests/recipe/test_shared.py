"""Sweeps whose jobs share steps: made once, also side by side; what was stopped goes on; the table is the same."""

import os
import signal
import subprocess
import sys
import time
from copy import deepcopy
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import pytest
from command import rlhf, start

from rlhf_lightning.cli import composed
from rlhf_lightning.cli.sweep_report import write_report
from rlhf_lightning.recipe.pipeline import Pipeline
from rlhf_lightning.recipe.shared import content_of
from rlhf_lightning.runs.folders import Runs
from rlhf_lightning.runs.jobs import COMPLETE, jobs_below
from rlhf_lightning.runs.targets import builder

TINY = """# @package _global_
# A run of seconds.
run: tiny
stages: [sft, collect, reward, ppo, evaluate]
model: {size: small}
trainer: {limit_train_batches: 2, limit_val_batches: 1}
data: {source: {prompts: 40, demonstrations: 40, text: 20, validation: 16}}
sft: {fit: {epochs: 1}}
collect: {prompts: {train: 8, validation: 8}}
ppo: {data: {batch_size: 8, num_batches: 2}}
evaluate: {num_prompts: 8, num_texts: 4, policies: [base, sft, ppo]}
"""
SWEEP = ["-m", "--config-dir=conf", "experiment=tiny", "shared=[sft,collect,reward]"]
TWELVE = [*SWEEP, "ppo.module.kl_coef=0,0.1,0.5,2", "seed=1,2,3"]


def prepared(folder: Path) -> Path:
    (folder / "here" / "conf" / "experiment").mkdir(parents=True)
    (folder / "here" / "conf" / "experiment" / "tiny.yaml").write_text(TINY)
    return folder / "here"


@pytest.fixture
def here(tmp_path: Path) -> Path:
    return prepared(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The table of twelve jobs, one after the other."""
    folder = prepared(tmp_path_factory.mktemp("whole"))
    said = rlhf(TWELVE, folder, limit=300)
    assert said.code == 0, said.text
    return table(folder, "runs")


def stages(runs: Path) -> dict[str, int]:
    """When every step came to its end, in nanoseconds."""
    found = {path.parent: path for path in runs.glob("tiny.*/*/stage.json") if '"complete"' in path.read_text()}
    return {folder.relative_to(runs).as_posix(): path.stat().st_mtime_ns for folder, path in found.items()}


def table(here: Path, runs: str) -> bytes:
    write_report(jobs_below(here / runs), here / "report" / runs)
    return (here / "report" / runs / "sweep.csv").read_bytes()


def test_where_a_job_runs_does_not_keep_it_from_sharing(tmp_path: Path) -> None:
    config = composed(["experiment=demo", "shared=[sft,ppo]"])

    def content(*changes: tuple[str, Any]) -> str:
        changed = deepcopy(config)
        for path, value in changes:
            *nodes, name = path.split("/")
            reduce(getitem, nodes, changed)[name] = value
        pipeline = Pipeline(changed, builder([]), Runs(tmp_path, "mine"))
        return content_of(pipeline, [pipeline.step("sft"), pipeline.step("ppo")])

    elsewhere = [("trainer/devices", 2), ("trainer/strategy", "ddp"), ("generation/batch_tokens", 4096), ("logger", [])]
    assert content(*elsewhere, ("collect/prompts/train", 7), ("tags", ["a"])) == content()
    others = [("seed", 2), ("sft/data/batch_size", 8), ("data/source/seed", 1), ("upstream", "other")]
    assert len({content(each) for each in others} | {content()}) == len(others) + 1


@pytest.mark.slow
def test_jobs_share_steps_with_the_same_settings_alone(here: Path) -> None:
    said = rlhf([*SWEEP, "ppo.module.kl_coef=0,1", "sft.data.batch_size=8", "seed=1"], here, limit=120)
    assert said.code == 0, said.text
    made = stages(here / "runs")
    (shared,) = {name.partition("/")[0] for name in made if ".shared-" in name}
    assert {name for name in made if name.startswith(shared)} == {
        f"{shared}/{step}" for step in ("sft", "collect", "reward")
    }
    own = {name.partition("/")[0] for name in made} - {shared}
    assert {name for name in made if not name.startswith(shared)} == {
        f"{job}/{step}" for job in own for step in ("ppo", "evaluate")
    }
    assert len(own) == 2
    again = rlhf([*SWEEP, "ppo.module.kl_coef=0,2", "sft.data.batch_size=8", "seed=1"], here, limit=120)
    assert again.code == 0, again.text
    now = stages(here / "runs")
    assert {name: now[name] for name in made} == made
    assert sorted(name.rpartition("/")[2] for name in now.keys() - made) == ["evaluate", "ppo"]
    what_lacks = rlhf([*SWEEP, "ppo.init=ppo_init", "seed=1,2"], here)
    assert what_lacks.code == 1
    assert "ppo_init" in what_lacks.text
    assert stages(here / "runs") == now  # it is said before the shared steps are made


@pytest.mark.slow
def test_a_sweep_that_was_killed_half_way_runs_only_the_rest(here: Path, whole: bytes) -> None:
    process = start(TWELVE, here, here.parent / "first.said")
    while len(done := [job for job in jobs_below(here / "runs") if job.state == COMPLETE]) < 6:
        assert process.is_alive()
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    before = stages(here / "runs")
    assert 6 <= len(done) < 12
    said = rlhf(TWELVE, here, limit=300)
    assert said.code == 0, said.text
    after = stages(here / "runs")
    assert {name: after[name] for name in before} == before
    assert sum(name.endswith("/evaluate") for name in after) == 12
    assert sum(name.endswith("/reward") for name in after) == 3  # one for each seed
    assert "12 jobs" in said.text
    assert table(here, "runs") == whole


def launched(here: Path, launcher: str, *arguments: str) -> str:
    """What a command says that is no fork of this process, as those are that a launcher starts workers from."""
    command = [sys.executable, "-m", "rlhf_lightning", *arguments, f"hydra/launcher={launcher}"]
    quiet = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        command, cwd=here, env=os.environ | quiet, capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.mark.slow
def test_joblib_gives_the_same_table(here: Path, whole: bytes) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="needs the extra sweep")
    assert "12 jobs" in launched(here, "joblib", *TWELVE, "hydra.launcher.n_jobs=2")
    assert table(here, "runs") == whole
    assert sum(name.endswith("/reward") for name in stages(here / "runs")) == 3


@pytest.mark.slow
def test_submitit_gives_the_same_table(here: Path) -> None:
    """With its executor for one machine, which starts a new process for every job."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs the extra sweep")
    command = [*SWEEP, "ppo.module.kl_coef=0,1"]
    assert rlhf(command, here, limit=120).code == 0
    submitted = launched(here, "submitit_local", *command, "hydra.launcher.timeout_min=5", "paths.runs=submitted")
    assert "2 jobs" in submitted
    assert table(here, "submitted") == table(here, "runs")
    assert sum(name.endswith("/reward") for name in stages(here / "submitted")) == 1
