"""Whatever happens to a run or to its checkpoint, the run goes on from the newest whole one and ends the same."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from transformers import get_cosine_with_min_lr_schedule_with_warmup

from rlhf_lightning.data.datamodule import RLHFDataModule
from rlhf_lightning.data.records import Demonstration
from rlhf_lightning.models.checkpoint_state import LAYOUT, LAYOUT_KEY
from rlhf_lightning.modules.language_model import LanguageModelModule
from rlhf_lightning.runs.folders import PipelineError
from rlhf_lightning.training.checkpoint import BatchCheckpoint, newest_whole
from rlhf_lightning.training.fit import fit_stage

COSINE = partial(get_cosine_with_min_lr_schedule_with_warmup, num_warmup_steps=0, min_lr_rate=0.1)
DEMONSTRATIONS = [Demonstration(f"w{3 + n} w{4 + n}", f"w{5 + n} w{6 + n}") for n in range(24)]


class At(L.Callback):
    """Does something when a batch starts."""

    def __init__(self, batch: int, action: Any) -> None:
        self.batch, self.action = batch, action

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.fit_loop.epoch_loop.total_batch_idx == self.batch:
            self.action(trainer)


class Stop(Exception):  # noqa: N818
    """The power went out."""


def power_cut(trainer: L.Trainer) -> None:
    raise Stop


@pytest.fixture
def fit(make_tiny_lm: Any, tiny_tokenizer: Any) -> Any:
    def run(folder: Path, *callbacks: L.Callback, said: list[str] | None = None) -> dict[str, torch.Tensor]:
        torch.manual_seed(1)
        module = LanguageModelModule(make_tiny_lm("gpt2"), partial(torch.optim.Adam, lr=1e-3), COSINE)
        data = RLHFDataModule("sft", tiny_tokenizer, DEMONSTRATIONS, batch_size=4, seed=5)
        quiet = {"enable_progress_bar": False, "accelerator": "cpu"}
        say = (said if said is not None else []).append
        counts = {"epochs": 2, "checkpoint_every": 1, "log_every": 1}
        fit_stage(module, data, folder, partial(L.Trainer, **quiet), callbacks, say, **counts)
        return dict(module.state_dict())

    return run


@pytest.fixture
def expected(fit: Any, tmp_path: Path) -> Any:
    return fit(tmp_path / "whole")


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def with_weights(path: Path, **changed: torch.Tensor) -> None:
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["state_dict"] |= {name.replace("__", "."): value for name, value in changed.items()}
    torch.save(checkpoint, path)


def zeroed(content: bytes) -> bytes:
    """A block of the disk in the middle was lost; no reader of tensors sees it."""
    middle = len(content) // 2
    return content[:middle] + bytes(4096) + content[middle + 4096 :]


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        ("cut", "not a zip file"),
        ("emptied", "not a zip file"),
        ("no checkpoint at all", "not a zip file"),
        ("zeroed", "is damaged"),
        ("of another model", "of another model: it lacks nothing and has"),
        ("of another size", r"of another model: its model.transformer.ln_f.weight has shape \(3,\), not \(32,\)"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_skipped(
    fit: Any, expected: Any, tmp_path: Path, damage: str, named: str
) -> None:
    folder = tmp_path / "broken"
    with pytest.raises(Stop):
        fit(folder, At(5, power_cut))
    last = folder / "checkpoints" / "last.ckpt"
    content = last.read_bytes()
    if damage == "of another model":
        with_weights(last, model__other__weight=torch.zeros(2))
    elif damage == "of another size":
        with_weights(last, model__transformer__ln_f__weight=torch.zeros(3))
    else:
        made = {"cut": content[:-100], "emptied": b"", "no checkpoint at all": b"hello", "zeroed": zeroed(content)}
        last.write_bytes(made[damage])
    said: list[str] = []
    assert same(fit(folder, said=said), expected)
    assert len(said) == 1
    assert str(last) in said[0]
    assert re.search(f"is skipped: .*{named}", said[0])


def test_without_a_whole_checkpoint_it_starts_anew(fit: Any, expected: Any, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    with pytest.raises(Stop):
        fit(folder, At(5, power_cut))
    for path in (folder / "checkpoints").iterdir():
        path.write_bytes(b"torn")
    said: list[str] = []
    assert same(fit(folder, said=said), expected)
    assert len(said) == 2


def test_a_full_disk_leaves_the_checkpoint_before(fit: Any, expected: Any, tmp_path: Path) -> None:
    folder = tmp_path / "full"

    def fill(trainer: L.Trainer) -> None:
        def no_space(path: Path, **_: Any) -> None:
            Path(path).write_bytes(b"half of a checkpoint")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        trainer.save_checkpoint = no_space  # type: ignore[method-assign,assignment]

    with pytest.raises(RuntimeError, match=r"after batch 4 .*\(the disk is full\); the one before it, .* is whole"):
        fit(folder, At(3, fill))
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["last.ckpt", "previous.ckpt"]
    said: list[str] = []
    assert same(fit(folder, said=said), expected)
    assert not said


@pytest.mark.parametrize("batch", [3, 5, 11], ids=["in an epoch", "at its end", "at the end"])
def test_sigterm_finishes_the_batch_and_saves_it(fit: Any, expected: Any, tmp_path: Path, batch: int) -> None:
    folder = tmp_path / "ended"
    before = signal.getsignal(signal.SIGTERM)
    said: list[str] = []
    with pytest.raises(SystemExit) as ended:
        fit(folder, At(batch, lambda trainer: os.kill(os.getpid(), signal.SIGTERM)), said=said)
    assert ended.value.code == 143
    assert said == [f"ended by SIGTERM; the same command goes on from {folder / 'checkpoints' / 'last.ckpt'}"]
    assert signal.getsignal(signal.SIGTERM) == before
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["processed"] == batch + 1
    assert same(fit(folder), expected)


@pytest.mark.slow
def test_a_command_that_was_told_to_end_does_not_end_well(tmp_path: Path) -> None:
    """Or ``rlhf ... && next`` would go on with half a stage."""
    small = ("model.size=small", "data.source.demonstrations=800", "data.source.validation=8")
    command = [sys.executable, "-m", "rlhf_lightning", "stages=[sft]", "run=ended", f"paths.runs={tmp_path}", *small]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    last = tmp_path / "ended" / "sft" / "checkpoints" / "last.ckpt"
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as run:
        while not last.exists() and run.poll() is None:
            time.sleep(0.01)
        run.terminate()
        printed, errors = run.communicate(timeout=120)
    assert run.returncode == 143, printed + errors
    assert "ended by SIGTERM; the same command goes on from" in printed
    assert str(last) in printed.replace("\n", "")
    assert "Traceback" not in errors


@pytest.mark.parametrize("layout", [None, 1, LAYOUT + 1])
@pytest.mark.parametrize("name", ["last.ckpt", "previous.ckpt"])
def test_a_checkpoint_of_another_layout_ends_the_run(fit: Any, tmp_path: Path, name: str, layout: int | None) -> None:
    """Skipped, it would be overwritten by a run that begins anew."""
    with pytest.raises(Stop):
        fit(tmp_path, At(5, power_cut))
    folder = tmp_path / "checkpoints"
    if name == "previous.ckpt":
        (folder / "last.ckpt").write_bytes(b"torn")
    checkpoint = torch.load(folder / name, weights_only=True)
    assert checkpoint.pop(LAYOUT_KEY) == LAYOUT
    if layout is not None:
        checkpoint[LAYOUT_KEY] = layout
    torch.save(checkpoint, folder / name)
    before = (folder / name).read_bytes()
    with pytest.raises(
        PipelineError, match=rf"checkpoints/{name}: .* layout of another version .*\. Remove the checkpoints"
    ):
        fit(tmp_path)
    assert (folder / name).read_bytes() == before


def test_nothing_there_is_nothing_to_say(tmp_path: Path, make_tiny_lm: Any) -> None:
    module = LanguageModelModule(make_tiny_lm("gpt2"), torch.optim.SGD)
    assert newest_whole(tmp_path, module, lambda _: pytest.fail("there was nothing")) is None
    with pytest.raises(ValueError, match="at least 1, got 0"):
        BatchCheckpoint(tmp_path, 0)
