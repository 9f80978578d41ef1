"""What a run goes on with, and what it refuses: data and models are known by what they hold."""

import hashlib
import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file, save_file

from rlhf_lightning.cli import CONFIG_DIR, run
from rlhf_lightning.recipe.provenance import go_on_in
from rlhf_lightning.runs.files import write_json, write_lines
from rlhf_lightning.runs.folders import PipelineError, read_stage
from rlhf_lightning.runs.hub import model_folder
from rlhf_lightning.sandbox.data import SandboxData

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*many workers.*", "ignore:.*in eval mode.*", "ignore:.*LeafSpec.*", "ignore:.*logging interval.*"
)
SMALL = [
    "debug=fast",
    "model=folder",
    "data=jsonl",
    "data.lengths={max_prompt_tokens: 48, max_response_tokens: 8, block_size: 64}",
    "data.format=template",
    "data.lengths.prompt_template='{prompt}'",
    "reward.bias_demonstrations=8",
    "ppo.data.batch_size=8",
    "ppo.fit.checkpoint_every=1",
]
COMPLETE = "complete already, skipped"


def rlhf(place: Path, *overrides: str) -> None:
    """The command in a folder that holds `model`, `data` and `runs`, each of which an override may name elsewhere."""
    named = [f"model.path={place / 'model'}", f"data.root={place / 'data'}", f"paths.runs={place / 'runs'}"]
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        run(compose("config", [*SMALL, *named, *overrides]))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of sft, reward and ppo on data and a model of one's own."""
    place = tmp_path_factory.mktemp("made")
    shutil.copytree(model_folder("sandbox/small"), place / "model")
    world = SandboxData(prompts=24, demonstrations=24, text=4, validation=8)
    rows: dict[str, list[Any]] = {
        f"{kind}.{split}": [asdict(record) for record in world.records(kind, split) or []]
        for kind in ("demonstrations", "prompts")
        for split in ("train", "validation", "test")
    }
    rows["comparisons.train"] = [
        {"prompt": row["prompt"], "completions": ["the seal", f"a basket {number}"], "ranks": [1, 2]}
        for number, row in enumerate(rows["prompts.train"])
    ]
    (place / "data").mkdir()
    for name, own in rows.items():
        write_lines(place / "data" / f"{name}.jsonl", own)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "200")
        rlhf(place, "stages=[sft,reward,ppo]")
    return place


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same somewhere else: no path is what it was."""
    monkeypatch.setenv("COLUMNS", "400")
    return Path(shutil.copytree(made, tmp_path / "elsewhere"))


def test_the_same_elsewhere_is_complete(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "model" / "README.md").write_text("# A card")
    (place / "model").rename(place / "another name")
    rlhf(place, "stages=[sft,reward,ppo]", f"model.path={place / 'another name'}")
    assert capsys.readouterr().out.count(COMPLETE) == 3


def test_nothing_is_read_for_what_is_complete(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    digest = hashlib.file_digest
    monkeypatch.setattr("hashlib.file_digest", lambda file, kind: (read.append(Path(file.name)), digest(file, kind))[1])
    monkeypatch.setattr("rlhf_lightning.data.rows.files.row_book", None)
    rlhf(place, "stages=[sft,reward,ppo]")
    assert read
    assert not [file for file in read if file.is_relative_to(place / "runs")]
    (place / "runs" / "default" / "ppo" / "samples.jsonl").unlink()
    (place / "runs" / "default" / "sft" / "examples.json").write_text("torn")
    rlhf(place, "stages=[sft,reward,ppo]")


def test_so_are_files_with_other_names(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "data" / "comparisons.train.jsonl").rename(place / "data" / "mine.jsonl")
    renamed = ("stages=[sft,reward,ppo]", "data.source.files.comparisons.train=mine.jsonl")
    rlhf(place, *renamed)
    assert capsys.readouterr().out.count(COMPLETE) == 3


def test_a_renamed_run_is_built_on(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "runs" / "default").rename(place / "runs" / "first")
    shutil.move(place / "runs" / "first" / "ppo", place / "runs" / "second" / "ppo")
    rlhf(place, "stages=[ppo]", "run=second", "upstream=first")
    assert capsys.readouterr().out.count(COMPLETE) == 1


def test_a_model_that_a_setting_names_may_move(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(place / "runs" / "default" / "sft" / "model", place / "start")
    shutil.copytree(place / "runs" / "default" / "reward" / "model", place / "judge")
    rlhf(place, "stages=[ppo]", "run=b", f"ppo.init={place / 'start'}", f"ppo.reward={place / 'judge'}")
    for name in ("start", "judge"):
        (place / name).rename(place / f"{name} moved")
    moved = ("stages=[ppo]", "run=b", f"ppo.init={place / 'start moved'}", f"ppo.reward={place / 'judge moved'}")
    rlhf(place, *moved)
    assert capsys.readouterr().out.count(COMPLETE) == 1
    change(place / "judge moved")
    with pytest.raises(PipelineError, match=r"ppo\.reward: 'content:\w+' there, 'content:\w+' now"):
        rlhf(place, *moved)


def change(model: Path) -> None:
    """Replace the weights of a model, with nothing else to tell by."""
    weights = load_file(model / "model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, model / "model.safetensors", {"format": "pt"})


def test_another_row_is_refused_with_its_place(place: Path) -> None:
    file = place / "data" / "comparisons.train.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    file.write_text("".join([*lines[:16], lines[16].replace("the seal", "the sea"), *lines[17:]]), encoding="utf-8")
    with pytest.raises(
        PipelineError, match=r"\n  data\.comparisons\.train: comparisons\.train\.jsonl row 17 differs\n"
    ):
        rlhf(place, "stages=[reward]")
    file.write_text("".join(lines[:20]), encoding="utf-8")
    sentence = "comparisons.train.jsonl has 24 rows there, 20 now; the first other one is row 21"
    with pytest.raises(PipelineError, match=re.escape(sentence)):
        rlhf(place, "stages=[reward]")
    file.unlink()
    rlhf(place, "stages=[sft]")  # which reads none of them


def test_rows_read_another_way_are_refused(place: Path) -> None:
    entry = "data.source.files.prompts.train={path: prompts.train.jsonl, set: {source: mine}}"
    with pytest.raises(
        PipelineError, match=r"data\.source\.files\.prompts\.train\.set: None there, {'source': 'mine'}"
    ):
        rlhf(place, "stages=[ppo]", entry)


def half_done(folder: Path) -> None:
    write_json(folder / "stage.json", {**read_stage(folder), "status": "half-done"})


@pytest.mark.parametrize("kind", ["other weights", "made again"])
def test_a_half_done_ppo_with_another_reward_is_refused(place: Path, kind: str) -> None:
    reward = place / "runs" / "default" / "reward"
    half_done(place / "runs" / "default" / "ppo")
    change(reward / "model")
    record = read_stage(reward)
    # As a reward step that was made again on other hardware: its settings and its data are the same.
    write_json(reward / "stage.json", {name: value for name, value in record.items() if name != "files"})
    with pytest.raises(
        PipelineError, match=r"ppo is half-done with other settings:\n  parents\.reward: '\w+' there, '"
    ):
        rlhf(place, "stages=[ppo]")


def test_going_on_with_other_threads_is_said(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = place / "runs" / "default" / "ppo"
    begun = read_stage(folder)["environment"]
    assert begun.keys() >= {"threads", "device", "processes", "precision", "attention", "torch", "transformers"}
    threads = torch.get_num_threads()
    assert begun["threads"] == threads
    half_done(folder)
    try:
        torch.set_num_threads(threads + 1)
        rlhf(place, "stages=[ppo]")
    finally:
        torch.set_num_threads(threads)
    said = f"goes on with threads {threads + 1} ({threads} before): the result may differ in the last bits"
    assert said in capsys.readouterr().out
    record = read_stage(folder)
    assert (record["status"], record["environment"]) == ("complete", begun)
    assert record["went_on_in"] == [{**begun, "threads": threads + 1}]
    # A complete one is complete, whatever computes now.
    rlhf(place, "stages=[ppo]")
    assert "goes on with" not in capsys.readouterr().out


def test_other_processes_matter_to_what_trains(place: Path) -> None:
    folder = place / "runs" / "default" / "sft"
    begun = read_stage(folder)["environment"]
    assert go_on_in(folder, {**begun, "processes": 2}, trains=False) is None
    assert "went_on_in" not in read_stage(folder)
    assert "with threads 99 (" in str(go_on_in(folder, {**begun, "processes": 2, "threads": 99}, trains=False))
    assert "processes 1 (2 before)" in str(go_on_in(folder, begun))


def test_the_same_environment_says_nothing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    half_done(place / "runs" / "default" / "sft")
    rlhf(place, "stages=[sft]")
    assert "goes on with" not in capsys.readouterr().out
    assert "went_on_in" not in read_stage(place / "runs" / "default" / "sft")


def test_what_is_kept_of_the_rows_is_small(made: Path) -> None:
    record = read_stage(made / "runs" / "default" / "sft")
    assert {name.partition(".")[0] for name in record["records"]["files"]} == {"demonstrations"}
    assert len(json.dumps(record["records"])) < 4000


@pytest.mark.parametrize(
    "content",
    [
        b"",
        pytest.param(b"step,train/loss\r\n0,x\r\n", marks=pytest.mark.slow),
        pytest.param(b"\x00\xff" * 40, marks=pytest.mark.slow),
        b"step,a,b\r\n0,1\r\n1,2,3\r\n",
    ],
)
def test_damaged_metrics_of_a_half_done_step_are_named(place: Path, content: bytes) -> None:
    folder = place / "runs" / "default" / "sft"
    half_done(folder)
    (folder / "metrics.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"sft/metrics\.csv cannot be read \(.*\)\. Put it back .*, or move it away"):
        rlhf(place, "stages=[sft]")
    (folder / "metrics.csv").unlink()
    rlhf(place, "stages=[sft]")
    assert read_stage(folder)["status"] == "complete"


def test_metrics_of_another_training_are_not_gone_on_with(place: Path) -> None:
    folder = place / "runs" / "default" / "sft"
    half_done(folder)
    lines = (folder / "metrics.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "metrics.csv").write_text("".join([lines[0], *lines[2:]]), encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"metrics\.csv does not hold the \d+ rows that the checkpoint .* of another tr"
    ):
        rlhf(place, "stages=[sft]")
    (folder / "metrics.csv").write_text("".join(lines) + "7,0.", encoding="utf-8")
    rlhf(place, "stages=[sft]")


def test_damaged_samples_of_a_half_done_step_are_named(place: Path) -> None:
    folder = place / "runs" / "default" / "ppo"
    half_done(folder)
    samples = folder / "samples.jsonl"
    whole = samples.read_bytes()
    samples.write_bytes(b'{"iteration": 0, "pro\n' + whole)
    with pytest.raises(ValueError, match=r"samples\.jsonl cannot be read \(line 1: .*\)\. Put it back from a copy"):
        rlhf(place, "stages=[ppo]")
    rest = whole.partition(b"\n")[2]
    samples.write_bytes(rest)
    with pytest.raises(ValueError, match=r"samples\.jsonl does not hold the \d+ rows that the checkpoint"):
        rlhf(place, "stages=[ppo]")
    samples.write_bytes(whole + b'{"iteration": 2, "pro')
    rlhf(place, "stages=[ppo]")
    assert samples.read_bytes() == whole
