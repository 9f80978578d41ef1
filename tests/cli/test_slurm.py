"""Tasks that srun started are the processes of one job."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_lightning.cli.slurm import join_srun
from rlhf_lightning.runs.files import read_metrics
from rlhf_lightning.runs.folders import PipelineError

STEP = {
    "SLURM_JOB_ID": "91234",
    "SLURM_STEP_ID": "1",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_NTASKS": "8",
    "SLURM_NNODES": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}


def joined(**changed: str | None) -> dict[str, str]:
    """What is set beside what Slurm sets; None takes a variable away."""
    slurm = {name: value for name, value in (STEP | changed).items() if value is not None}
    environment = dict(slurm)
    join_srun(environment)
    return {name: value for name, value in environment.items() if name not in slurm}


def test_the_last_of_four_tasks_on_two_machines() -> None:
    assert joined() == {
        "MASTER_ADDR": "gpu07",
        "MASTER_PORT": "16235",
        "WORLD_SIZE": "4",
        "RANK": "3",
        "LOCAL_WORLD_SIZE": "2",
        "LOCAL_RANK": "1",
        "GROUP_WORLD_SIZE": "2",
        "GROUP_RANK": "1",
        "TORCHELASTIC_RUN_ID": "slurm-91234.1",
    }


def test_an_address_of_the_user_stays() -> None:
    assert "MASTER_ADDR" not in joined(MASTER_ADDR="10.0.0.7")


@pytest.mark.parametrize(
    "changed",
    [
        {"SLURM_STEP_ID": None},  # a command in a batch script
        {"SLURM_STEP_NUM_TASKS": "1"},
        {"TORCHELASTIC_RUN_ID": "none", "RANK": "5"},  # torchrun, which srun started once on each machine
    ],
)
def test_nothing_is_set_where_srun_did_not_start_several(changed: dict[str, str | None]) -> None:
    assert joined(**changed) == {}


def test_machines_with_different_numbers_of_tasks_are_refused() -> None:
    with pytest.raises(PipelineError, match=r"srun started 5 tasks on 2 machines.*--ntasks-per-node"):
        joined(SLURM_STEP_NUM_TASKS="5")


@pytest.mark.slow
def test_two_tasks_make_one_job(tmp_path: Path) -> None:
    options = ["stages=[sft]", "debug=fast", "data.source.demonstrations=40", "data.source.validation=16"]
    command = [sys.executable, "-m", "rlhf_lightning", f"paths.runs={tmp_path}", *options]
    quiet = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    step = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_NNODES": "1"}
    tasks = [
        subprocess.Popen(
            [*command, "trainer=ddp", "trainer.accelerator=cpu", "run=two"],
            env=quiet | step | {"SLURM_PROCID": number, "SLURM_LOCALID": number, "SLURM_NODEID": "0"},
        )
        for number in ("0", "1")
    ]
    try:
        assert [task.wait(timeout=120) for task in tasks] == [0, 0]
    finally:
        for task in tasks:
            task.kill()
    subprocess.run([*command, "run=one"], env=quiet, check=True, timeout=120)
    alone, both = (read_metrics(tmp_path / run / "sft" / "metrics.csv") for run in ("one", "two"))
    assert len(alone) == len(both) >= 2
    for expected, found in zip(alone, both, strict=True):
        losses = [name for name in expected if name.endswith("/loss")]
        assert [found[name] for name in losses] == pytest.approx([expected[name] for name in losses], abs=1e-5)
