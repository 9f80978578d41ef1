"""Steps that a signal, a full disk or a measure that is no number ends: one sentence, and what was done is kept."""

import errno
import importlib
import math
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from rlhf_lightning.cli import CONFIG_DIR, run
from rlhf_lightning.runs.files import full_disk
from rlhf_lightning.runs.folders import PipelineError, read_stage
from rlhf_lightning.training.metrics_file import refuse_non_finite
from rlhf_lightning.training.progress import progress_bar

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*many workers.*", "ignore:.*in eval mode.*", "ignore:.*LeafSpec.*", "ignore:.*logging interval.*"
)
SMALL = [
    "debug=fast",
    "model.size=small",
    "run=one",
    *(f"data.source.{name}=24" for name in ("prompts", "demonstrations", "text", "validation")),
    *("sft.fit.epochs=1", "sft.fit.checkpoint_every=1", "sft.fit.log_every=1", "sft.data.batch_size=8"),
    *("collect.policies=[base]", "collect.prompts={train: 8, validation: 2}", "collect.labelers.count=2"),
    "collect.sampling={batch_size: 4, min_responses: 2, max_responses: 3}",
    *("evaluate.policies=[base]", "evaluate.baseline=base", "evaluate.reference=base"),
]
ARTIFACTS = {
    "sft": "model/model.safetensors",
    "collect": "comparisons.train.jsonl",
    "evaluate": "samples.json",
    "curate": "demonstrations.train.jsonl",
}


def rlhf(runs: Path, step: str, *overrides: str) -> None:
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        run(compose("config", [f"paths.runs={runs}", f"stages=[{step}]", *SMALL, *overrides]))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every step, unbroken."""
    runs = tmp_path_factory.mktemp("whole")
    for step in ARTIFACTS:
        rlhf(runs, step)
    return runs


def same_artifact(runs: Path, whole: Path, step: str) -> bool:
    assert read_stage(runs / "one" / step)["status"] == "complete"
    names = (runs / "one" / step / ARTIFACTS[step], whole / "one" / step / ARTIFACTS[step])
    return names[0].read_bytes() == names[1].read_bytes()


def before_call(patch: pytest.MonkeyPatch, name: str, number: int, action: Callable[[], Any]) -> None:
    """Let something happen before the so-manieth call of a function."""
    module, _, attribute = name.rpartition(".")
    home: Any = importlib.import_module(f"rlhf_lightning.{module}") if ":" not in module else None
    if home is None:
        path, _, owner = module.partition(":")
        home = getattr(importlib.import_module(f"rlhf_lightning.{path}"), owner)
    original, calls = getattr(home, attribute), []

    def called(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == number:
            action()
        return original(*arguments, **options)

    patch.setattr(home, attribute, called)


@pytest.mark.parametrize(
    ("step", "function", "call", "name"),
    [
        ("collect", "recipe.ranked_batches.ranking", 5, "SIGTERM"),
        pytest.param("collect", "recipe.collect.write_lines", 1, "SIGHUP", marks=pytest.mark.slow),
        ("evaluate", "recipe.evaluate.sample_policy", 1, "SIGTERM"),
        pytest.param("evaluate", "recipe.run_report.write_report", 1, "SIGHUP", marks=pytest.mark.slow),
        ("curate", "recipe.curate.data_card", 1, "SIGTERM"),
        ("sft", "models.export.put_in_place", 1, "SIGTERM"),
        pytest.param("sft", "training.checkpoint:BatchCheckpoint._save", 1, "SIGHUP", marks=pytest.mark.slow),
        pytest.param("sft", "training.checkpoint:BatchCheckpoint._save", 2, "SIGTERM", marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_every_step_in_order(
    step: str, function: str, call: int, name: str, tmp_path: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    number = getattr(signal, name)
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)]
    with pytest.MonkeyPatch.context() as patch:
        before_call(patch, function, call, lambda: os.kill(os.getpid(), number))
        with pytest.raises(SystemExit) as ended:
            rlhf(tmp_path, step)
    assert ended.value.code == {"SIGTERM": 143, "SIGHUP": 129}[name]
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)] == before
    said = capsys.readouterr().out
    begins = "begins it anew" if function.endswith(("sample_policy", "data_card")) else "goes on from"
    assert len(re.findall(rf"(stopped|ended) by {name}; the same command {begins}", said)) == 1
    folder = tmp_path / "one" / step
    if function.endswith("ranking"):
        assert (folder / "ranked.train.unfinished").read_text().count("\n") == 3  # whose they are, and two batches
    rlhf(tmp_path, step)
    assert same_artifact(tmp_path, whole, step)


@pytest.mark.slow
def test_policies_that_were_measured_are_not_measured_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policies = ["evaluate.policies=[base,prompted,sft]", "evaluate.few_shot_prefix='Q: a A: b '", "upstream=[]"]
    for runs in (tmp_path / "whole", tmp_path / "broken"):
        rlhf(runs, "sft")
    rlhf(tmp_path / "whole", "evaluate", *policies)
    with pytest.MonkeyPatch.context() as patch:
        before_call(patch, "recipe.evaluate.sample_policy", 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(SystemExit):
            rlhf(tmp_path / "broken", "evaluate", *policies)
    assert "stopped by SIGTERM; the same command goes on from here" in capsys.readouterr().out
    kept = tmp_path / "broken" / "one" / "evaluate" / "measured.unfinished"
    assert kept.read_text().count("\n") == 3
    with pytest.MonkeyPatch.context() as patch:
        before_call(patch, "recipe.evaluate.sample_policy", 2, lambda: pytest.fail("a policy was measured again"))
        rlhf(tmp_path / "broken", "evaluate", *policies)
    assert not kept.exists()
    assert same_artifact(tmp_path / "broken", tmp_path / "whole", "evaluate")
    records = [read_stage(runs / "one" / "evaluate") for runs in (tmp_path / "whole", tmp_path / "broken")]
    assert records[0]["metrics"] == records[1]["metrics"]


@pytest.mark.parametrize("step", ["collect", "evaluate", "curate"])
def test_ctrl_c_leaves_what_was_done(step: str, tmp_path: Path, whole: Path) -> None:
    functions = {
        "collect": "ranked_batches.ranking",
        "evaluate": "evaluate.sample_policy",
        "curate": "curate.data_card",
    }
    with pytest.MonkeyPatch.context() as patch:
        before_call(patch, f"recipe.{functions[step]}", 1, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            rlhf(tmp_path, step)
    rlhf(tmp_path, step)
    assert same_artifact(tmp_path, whole, step)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, 24 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path) -> None:
    """Leave no byte."""
    written = ["dd", "if=/dev/zero", f"of={disk / 'filler'}", "bs=4k"]
    assert "No space left" in subprocess.run(written, capture_output=True, text=True, check=False).stderr


@pytest.mark.parametrize(
    ("step", "function", "call", "file"),
    [
        ("sft", "training.checkpoint:BatchCheckpoint._save", 2, "sft/checkpoints"),
        pytest.param("sft", "training.metrics_file:MetricsFile._write_all", 1, "sft", marks=pytest.mark.slow),
        ("sft", "models.export.put_in_place", 1, "sft"),
        pytest.param("sft", "recipe.pipeline.complete_stage", 1, "sft/stage.json", marks=pytest.mark.slow),
        pytest.param("collect", "recipe.ranked_batches.ranking", 1, "collect", marks=pytest.mark.slow),
        ("collect", "recipe.collect.write_lines", 1, "collect/comparisons.train.jsonl"),
        ("evaluate", "evaluation.policies.write_json", 1, "evaluate/samples.json"),
        pytest.param("evaluate", "recipe.run_report.write_report", 1, "report/results.json", marks=pytest.mark.slow),
        ("curate", "recipe.curate.data_card", 1, "curate"),
        pytest.param("curate", "curation.curator:Curator.curate", 1, "curate", marks=pytest.mark.slow),
    ],
)
def test_a_full_disk_is_said_whatever_was_written(
    step: str, function: str, call: int, file: str, disk: Path, whole: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        before_call(patch, function, call, lambda: fill(disk))
        with pytest.raises((PipelineError, OSError), match=r"the disk is full.*give the same command again") as full:
            rlhf(disk, step)
    assert str(disk / "one" / file) in str(full.value)
    (disk / "filler").unlink()
    rlhf(disk, step)
    assert same_artifact(disk, whole, step)


def test_other_errors_are_not_called_a_full_disk() -> None:
    assert full_disk(PermissionError(errno.EACCES, "no")) is None
    assert full_disk(RuntimeError("the first word of os error 28")) is None
    assert full_disk(RuntimeError("I/O error: No space left on device (os error 28)")) == "the disk is full"
    hidden = RuntimeError("unexpected pos 64 vs 0")
    hidden.__context__ = OSError(errno.EDQUOT, "Quota exceeded")
    assert "quota" in str(full_disk(hidden))


def test_a_step_is_not_complete_with_a_measure_that_is_no_number() -> None:
    fine = {"loss": 0.5, "none": None, "name": "nan", "parts": {"a": [1, 2.5]}, "flag": True}
    refuse_non_finite("sft", fine)
    with pytest.raises(PipelineError, match=r"sft ended with loss = nan, parts\.a\.1 = -inf: .*stages=\[sft\]"):
        refuse_non_finite("sft", {**fine, "loss": math.nan, "parts": {"a": [1, -math.inf]}})


def test_the_pipeline_refuses_it_and_leaves_the_step_half_done(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rlhf_lightning.recipe.collect.Collection.run", lambda *_: {"train": {"prompts": math.nan}})
        with pytest.raises(PipelineError, match=r"collect ended with train\.prompts = nan"):
            rlhf(tmp_path, "collect")
    assert read_stage(tmp_path / "one" / "collect")["status"] == "half-done"


@pytest.mark.parametrize("policies", ["[base]", "[base,prompted]"])
def test_the_bar_of_an_evaluation_comes_to_its_end(policies: str, tmp_path: Path) -> None:
    counted: list[float | None] = []

    @contextmanager
    def watched(*arguments: Any, **options: Any) -> Iterator[Any]:
        with progress_bar(*arguments, **options) as (bar, task):
            yield bar, task
            counted.extend((bar.tasks[0].completed, bar.tasks[0].total))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rlhf_lightning.recipe.evaluate.progress_bar", watched)
        examples = "evaluate.few_shot_prefix='Q: a A: b '"
        rlhf(tmp_path, "evaluate", f"evaluate.policies={policies}", examples, "evaluate.num_prompts=3")
    assert counted[0] == counted[1] is not None
