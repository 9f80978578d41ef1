"""Two processes do what one does: weights, metrics, checkpoints that the other number of processes goes on from."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rlhf_lightning.cli import check_processes
from rlhf_lightning.runs.files import read_metrics
from rlhf_lightning.runs.folders import PipelineError, read_stage
from rlhf_lightning.training.checkpoint import check_shardable

WORKER, SHARDED = (Path(__file__).with_name(f"{name}_worker.py") for name in ("training", "sharded"))
STAGES = ("sft", "reward", "ppo")


AGENT = [
    "-m",
    "torch.distributed.run",
    "--nnodes=2",
    "--nproc-per-node=1",
    "--rdzv-backend=c10d",
    "--local-addr=127.0.0.1",
]
"""What each of two machines starts."""
QUIET = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def port() -> int:
    """One that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def side_by_side(
    folder: Path, commands: Sequence[Sequence[str]], variables: Sequence[Mapping[str, str]] = ({}, {})
) -> list[tuple[int, str]]:
    """Run Python with each of some arguments, and its variables; exit codes and what was printed."""
    started = []
    logs = [folder / f"process-{number}.log" for number in range(len(commands))]
    for command, own, log in zip(commands, variables, logs, strict=False):
        environment = os.environ | QUIET | own
        with log.open("w") as output:
            started.append(subprocess.Popen([sys.executable, *command], env=environment, stdout=output, stderr=output))
    try:
        return [(process.wait(timeout=300), log.read_text()) for process, log in zip(started, logs, strict=True)]
    finally:
        for process in started:
            process.kill()


def as_torchrun(folder: Path, command: Sequence[str]) -> list[tuple[int, str]]:
    """Run Python in two processes, with the variables that torchrun sets; exit codes and what was printed."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port()), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    shared["TORCHELASTIC_RUN_ID"] = "test"
    return side_by_side(folder, 2 * [command], [shared | {"RANK": rank, "LOCAL_RANK": rank} for rank in "01"])


def run(folder: Path, kind: str, epochs: int, *options: str) -> list[tuple[int, str]]:
    """Run the worker in one process, by two agents of torchrun, or in two processes for the other kinds."""
    folder.mkdir(parents=True, exist_ok=True)
    worker = [str(WORKER), str(folder), "ddp" if kind == "agents" else kind, str(epochs), *options]
    if kind == "one":
        return side_by_side(folder, [worker])
    if kind == "agents":
        return side_by_side(folder, 2 * [[*AGENT, f"--rdzv-endpoint=127.0.0.1:{port()}", *worker]])
    return as_torchrun(folder, worker)


def train(folder: Path, kind: str, epochs: int, *options: str) -> Path:
    """Run the worker to its end."""
    for code, printed in run(folder, kind, epochs, *options):
        assert code == 0, printed[-6000:]
    return folder


def interrupt(folder: Path, kind: str, stage: str, batch: int) -> Path:
    """Run a stage until the last of its processes, and it alone, is told to end."""
    ended = run(folder, kind, 2, stage, str(batch))
    assert [code for code, _ in ended] == len(ended) * [143], ended
    last = folder / "sft" / "checkpoints" / "last.ckpt"
    assert f"ended by SIGTERM; the same command goes on from {last}" in ended[0][1]
    saved = torch.load(last, weights_only=True)
    assert saved["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["processed"] == batch + 1
    assert len(saved["random_states"]) == len(ended)
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return train(tmp_path_factory.mktemp("one"), "one", 2)


def compare(alone, other, stages=STAGES, least=20):
    """Weights to 1e-5 and every metric but the times to 1e-4."""
    for stage in stages:
        for path in (alone / stage).rglob("model.safetensors"):
            expected, found = load_file(path), load_file(other / path.relative_to(alone))
            assert expected.keys() == found.keys()
            for name, weight in expected.items():
                assert (found[name] - weight).abs().max() < 1e-5, f"{path.relative_to(alone)}, {name}"
        rows = [read_metrics(folder / stage / "metrics.csv") for folder in (alone, other)]
        assert len(rows[0]) == len(rows[1]) >= least, stage
        for expected_row, row in zip(*rows, strict=True):
            wanted = {name: value for name, value in expected_row.items() if not name.startswith("time/")}
            assert wanted == pytest.approx({name: row[name] for name in wanted}, rel=1e-4, abs=1e-4), stage


@pytest.mark.parametrize("kind", ["agents", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_two_processes_train_as_one_does(alone, tmp_path, kind):
    compare(alone, train(tmp_path, kind, 2))
    expected, found = (json.loads((folder / "held_out.json").read_text()) for folder in (alone, tmp_path))
    assert [len(said) for name, said in expected.items() if not name.endswith("test")] == 6 * [5]
    assert flat(found) == pytest.approx(flat(expected), abs=1e-4)


def flat(node, path=""):
    """All leaves, by place."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else None
    if items is None:
        return {path: node}
    return {place: leaf for key, value in items for place, leaf in flat(value, f"{path}/{key}").items()}


@pytest.mark.slow
def test_layers_are_gathered_one_by_one_whatever_each_process_reads(tmp_path):
    for code, printed in as_torchrun(tmp_path, [str(SHARDED)]):
        assert code == 0, printed[-6000:]


@pytest.mark.slow
@pytest.mark.parametrize(("before", "then"), [("one", "ddp"), ("ddp", "one")])
def test_after_a_sigterm_another_number_of_processes_goes_on(alone, tmp_path, before, then):
    interrupt(tmp_path, before, "sft", 5)
    compare(alone, train(tmp_path, then, 2, "sft"), ["sft"])


@pytest.mark.slow
def test_every_process_goes_on_with_its_own_random_state(tmp_path):
    whole = train(tmp_path / "whole", "ddp", 2, "dropout")
    states = torch.load(whole / "sft" / "checkpoints" / "last.ckpt", weights_only=True)["random_states"]
    assert not torch.equal(states[0]["torch"], states[1]["torch"])
    broken = train(interrupt(tmp_path / "broken", "ddp", "dropout", 5), "ddp", 2, "dropout")
    expected, found = (load_file(folder / "sft" / "model" / "model.safetensors") for folder in (whole, broken))
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "then", "stages"), [("ddp", "one", STAGES), ("fsdp", "one", STAGES), ("fsdp", "fsdp", ["ppo"])]
)
def test_a_run_of_any_trainer_goes_on(alone, tmp_path, before, then, stages):
    train(tmp_path, before, 1, ",".join(stages))
    compare(alone, train(tmp_path, then, 2, ",".join(stages)), stages)


@pytest.mark.slow
@pytest.mark.parametrize("option", ["ddp", "fsdp"])
def test_the_options_of_the_trainer_run_by_torchrun(tmp_path, option):
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "rlhf_lightning"]
    small = ["model.size=small", "data.source.demonstrations=40", "data.source.validation=8", "sft.fit.epochs=1"]
    sizes = [*small, f"paths.runs={tmp_path}", "run=two", "stages=[sft]"]
    command = [sys.executable, *launcher, f"trainer={option}", "trainer.accelerator=cpu", *sizes]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-4000:]
    assert ended.stdout.count("done in") == 1  # the first process speaks for all
    assert read_stage(tmp_path / "two" / "sft")["status"] == "complete"
    saved = torch.load(tmp_path / "two" / "sft" / "checkpoints" / "last.ckpt", weights_only=True)
    assert len(saved["random_states"]) == 2


def agents(folder: Path, options: Sequence[str], *own: str) -> list[tuple[int, str]]:
    """The command line of two agents, each with an option of its own at most."""
    command = [*AGENT, f"--rdzv-endpoint=127.0.0.1:{port()}", "-m", "rlhf_lightning", "trainer=ddp", *options]
    command += ["trainer.accelerator=cpu", "run=two"]
    return side_by_side(folder, [[*command, *option] for option in ([[each] for each in own] or 2 * [[]])])


@pytest.mark.slow
def test_two_agents_make_the_steps_of_the_command_line_as_one_process_does(tmp_path):
    sizes = ["model.size=small", *(f"data.source.{name}=40" for name in ("demonstrations", "prompts", "text"))]
    sizes += ["data.source.validation=8", "sft.fit.epochs=1", "sft.data.batch_size=4", "collect.prompts.train=24"]
    sizes += ["reward.data.batch_size=2", "ppo.data.batch_size=8", "ppo.data.num_batches=10", f"paths.runs={tmp_path}"]
    sizes += [f"{stage}.fit.log_every=1" for stage in STAGES]
    for module in ("sft.module.", "reward.module.", "ppo.module.", "ppo.module.value_"):
        # Where a gradient is next to nothing, Adam makes as much of its last bit as of any other.
        sizes += [f"{module}optimizer.lr=1e-4", f"+{module}optimizer.eps=1e-5"]
    one = [["-m", "rlhf_lightning", *sizes, "run=one", "stages=[sft,collect,reward,ppo]"]]
    ((code, said),) = side_by_side(tmp_path, one)
    assert code == 0, said
    ended = agents(tmp_path, [*sizes, "upstream=one", "stages=[sft,reward,ppo]"])
    assert [code for code, _ in ended] == [0, 0], ended
    assert sorted(said.count("done in") for _, said in ended) == [0, 3]  # the first process speaks for both
    compare(tmp_path / "one", tmp_path / "two", least=10)


@pytest.mark.slow
def test_two_agents_without_a_shared_disk_end_within_seconds(tmp_path):
    started = time.monotonic()
    ended = agents(tmp_path, ["stages=[sft]"], f"paths.runs={tmp_path / 'here'}", f"paths.runs={tmp_path / 'there'}")
    assert time.monotonic() - started < 60
    assert [code for code, _ in ended] == [1, 1], ended
    other = rf"rlhf: .*here is another folder for process 1 on {socket.gethostname()} than for the first process"
    assert sum(len(re.findall(other, said.replace("there is", "here is"))) for _, said in ended) == 1, ended
    assert [*(tmp_path / "here").glob("*"), *(tmp_path / "there").glob("*")] == []


@pytest.mark.slow
def test_two_processes_collect_and_evaluate_the_same(tmp_path):
    """To the byte: whole batches are shared out."""
    sizes = ["model.size=small", *(f"data.source.{name}=40" for name in ("demonstrations", "prompts", "text"))]
    steps = ["stages=[sft,collect,evaluate]", "sft.fit.epochs=1", "collect.prompts.train=24", "evaluate.batch_size=8"]
    steps += ["data.source.validation=8", "collect.sampling.batch_size=32", "evaluate.baseline=sft"]
    steps += ["evaluate.policies=[base,sft]", f"paths.runs={tmp_path}"]
    launchers = {"one": [], "two": ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]}
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    for name, launcher in launchers.items():
        own = ["trainer=ddp", "trainer.accelerator=cpu"] if launcher else []
        own += ["upstream=one", "stages=[collect,evaluate]"] if launcher else []
        command = [sys.executable, *launcher, "-m", "rlhf_lightning", *sizes, *steps, *own, f"run={name}"]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-4000:]
        assert ended.stdout.count("done in") == 2 + (not launcher)
    for file in ("collect/comparisons.train.jsonl", "collect/comparisons.validation.jsonl", "evaluate/samples.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


def test_fsdp_refuses_a_checkpoint_that_numbers_the_weights_of_two_optimizers(tmp_path):
    states = [{"state": {0: {"step": torch.tensor(1.0)}}}]
    torch.save({"optimizer_states": states}, tmp_path / "one.ckpt")
    torch.save({"optimizer_states": 2 * states}, tmp_path / "two.ckpt")
    torch.save({"optimizer_states": [*states, {"state": {64: {}}}]}, tmp_path / "own.ckpt")
    check_shardable(tmp_path / "one.ckpt")
    check_shardable(tmp_path / "own.ckpt")
    with pytest.raises(RuntimeError, match=r"two.ckpt was not made with trainer=fsdp.*trainer=ddp"):
        check_shardable(tmp_path / "two.ckpt")


@pytest.mark.parametrize(
    ("trainer", "started", "sweeping", "sentence"),
    [
        ({"devices": 2}, 1, False, "devices=2 needs 2 processes, and 1 runs.*torchrun --nproc-per-node"),
        ({"devices": [0, 1], "num_nodes": 2}, 2, False, "with trainer.num_nodes=2 needs 4 processes, and 2"),
        ({"devices": 1, "num_nodes": 0}, 1, False, "trainer.num_nodes=0 must be at least 1"),
        ({"devices": "auto"}, 1, False, "devices=auto needs a number of processes"),
        ({"devices": 2}, 1, True, "cannot be used in a multirun.*trainer.devices=1"),
        ({"devices": 1}, 2, True, "cannot be used in a multirun"),
    ],
)
def test_several_devices_need_a_process_each(trainer, started, sweeping, sentence, monkeypatch):
    monkeypatch.delenv("SLURM_PROCID", raising=False)
    with pytest.raises(PipelineError, match=sentence):
        check_processes(trainer, started, sweeping)


def test_tasks_of_srun_are_told_of_the_option_for_them(monkeypatch):
    monkeypatch.setenv("SLURM_PROCID", "0")
    with pytest.raises(PipelineError, match=r"devices=1 needs 1 process, and 2 run this.*srun rlhf trainer=slurm"):
        check_processes({"devices": 1}, 2, sweeping=False)


def test_one_process_per_device_is_accepted():
    check_processes({"devices": 2, "num_nodes": 2}, 4, sweeping=False)
    check_processes({"devices": [3]}, 1, sweeping=True)
    check_processes({"devices": "1"}, 1, sweeping=True)
