"""Two processes do what one does: weights, metrics, checkpoints that the other number of processes goes on from."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rlhf_lightning.artifacts import PipelineError, read_metrics
from rlhf_lightning.checkpoints import check_shareable
from rlhf_lightning.cli import check_processes

WORKER = Path(__file__).with_name("training_worker.py")
STAGES = ("sft", "reward", "ppo")


def train(folder: Path, kind: str, epochs: int) -> Path:
    """Run the worker in one process, or in two for the other kinds."""
    launcher = [] if kind == "one" else ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, *launcher, str(WORKER), str(folder), kind, str(epochs)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return train(tmp_path_factory.mktemp("one"), "one", 2)


def compare(alone, other):
    """Weights to 1e-5 and every metric but the times to 1e-4."""
    for stage in STAGES:
        for path in (alone / stage).rglob("model.safetensors"):
            expected, found = load_file(path), load_file(other / path.relative_to(alone))
            assert expected.keys() == found.keys()
            for name, weight in expected.items():
                assert (found[name] - weight).abs().max() < 1e-5, f"{path.relative_to(alone)}, {name}"
        rows = [read_metrics(folder / stage / "metrics.csv") for folder in (alone, other)]
        assert len(rows[0]) == len(rows[1]) >= 20, stage
        for expected_row, row in zip(*rows, strict=True):
            wanted = {name: value for name, value in expected_row.items() if not name.startswith("time/")}
            assert wanted == pytest.approx({name: row[name] for name in wanted}, rel=1e-4, abs=1e-4), stage


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_train_as_one_does(alone, tmp_path, kind):
    compare(alone, train(tmp_path, kind, 2))


@pytest.mark.slow
@pytest.mark.parametrize("before", ["ddp", "fsdp"])
def test_another_number_of_processes_goes_on(alone, tmp_path, before):
    train(tmp_path, before, 1)
    compare(alone, train(tmp_path, "one", 2))


def test_fsdp_refuses_a_checkpoint_that_numbers_the_weights_of_two_optimizers(tmp_path):
    states = [{"state": {0: {"step": torch.tensor(1.0)}}}]
    torch.save({"optimizer_states": states}, tmp_path / "one.ckpt")
    torch.save({"optimizer_states": 2 * states}, tmp_path / "two.ckpt")
    torch.save({"optimizer_states": 2 * [{"state": {"policy.weight": {}}}]}, tmp_path / "named.ckpt")
    check_shareable(tmp_path / "one.ckpt")
    check_shareable(tmp_path / "named.ckpt")
    with pytest.raises(RuntimeError, match=r"two.ckpt was not made with trainer=fsdp.*trainer=ddp"):
        check_shareable(tmp_path / "two.ckpt")


@pytest.mark.parametrize(
    ("trainer", "started", "sweeping", "sentence"),
    [
        ({"devices": 2}, 1, False, "devices=2 needs 2 processes, and 1 runs.*torchrun --nproc-per-node"),
        ({"devices": [0, 1], "num_nodes": 2}, 2, False, "needs 4 processes, and 2"),
        ({"devices": "auto"}, 1, False, "devices=auto needs a number of processes"),
        ({"devices": 2}, 1, True, "cannot be used in a multirun.*trainer.devices=1"),
        ({"devices": 1}, 2, True, "cannot be used in a multirun"),
    ],
)
def test_several_devices_need_a_process_each(trainer, started, sweeping, sentence):
    with pytest.raises(PipelineError, match=sentence):
        check_processes(trainer, started, sweeping)


def test_one_process_per_device_is_accepted():
    check_processes({"devices": 2, "num_nodes": 2}, 4, sweeping=False)
    check_processes({"devices": [3]}, 1, sweeping=True)
