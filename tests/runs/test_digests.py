"""What a finished step left is what later steps read, or a sentence."""

import hashlib

import pytest

from rlhf_lightning.runs.files import write_json
from rlhf_lightning.runs.folders import PipelineError, Runs, begin_stage, check_files, complete_stage, read_stage

FILES = {"comparisons.train.jsonl": "one\ntwo\n", "model/weights": "1234", "model/README.md": "card"}


def finished(folder):
    """A complete step with these files."""
    begin_stage(folder, {"seed": 1}, overwrite=False)
    (folder / "model").mkdir()
    for name, content in FILES.items():
        (folder / name).write_text(content)
    complete_stage(folder, {}, 1.0, 1)
    return folder


def test_a_finished_step_is_read_as_it_was_left(tmp_path):
    folder = finished(tmp_path / "demo" / "collect")
    runs = Runs(tmp_path, "demo")
    assert read_stage(folder)["files"]["model/weights"] == {"size": 4, "sha256": hashlib.sha256(b"1234").hexdigest()}
    (folder / "model" / "README.md").write_text("edited by hand")
    (folder / "notes.txt").write_text("added")
    (folder / "checkpoints").rmdir()
    check_files(folder, contents=True)
    assert runs.read("collect") == folder
    assert begin_stage(folder, {"seed": 1}, overwrite=True) == "complete"
    moved = folder.parent.rename(tmp_path / "other")
    check_files(moved / "collect", contents=True)
    (moved / "collect" / "comparisons.train.jsonl").write_text("one\n")
    with pytest.raises(PipelineError, match="other/collect/comparisons"):
        Runs(tmp_path, "other").read("collect")


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("comparisons.train.jsonl", "one\n", r"has 4 bytes, and had 8"),
        ("model/weights", None, r"model/weights is missing"),
    ],
)
def test_a_file_that_is_missing_or_shorter_is_named_with_what_to_do(tmp_path, name, content, what):
    folder = finished(tmp_path / "demo" / "collect")
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    for read in (
        lambda: Runs(tmp_path, "demo").read("collect"),
        lambda: check_files(folder, contents=True),
        lambda: begin_stage(folder, {"seed": 1}, overwrite=False),
    ):
        with pytest.raises(PipelineError, match=rf"{what}.*Put the file back, or .* stages=\[collect\] overwrite=true"):
            read()
    assert Runs(tmp_path, "demo").find("collect") == folder, "a report is made all the same"
    assert begin_stage(folder, {"seed": 1}, overwrite=True) == "fresh"


def test_a_file_of_the_same_size_is_known_by_its_digest(tmp_path):
    folder = finished(tmp_path / "demo" / "collect")
    check_files(folder, contents=True)
    (folder / "model" / "weights").write_text("1235")
    assert Runs(tmp_path, "demo").read("collect") == folder, "sizes alone"
    with pytest.raises(PipelineError, match=r"model/weights holds something else than when the step was complete"):
        check_files(folder, contents=True)
    assert begin_stage(folder, {"seed": 1}, overwrite=True) == "fresh"


def test_every_file_is_hashed_once(tmp_path, monkeypatch):
    folder = finished(tmp_path / "demo" / "collect")
    monkeypatch.setattr("hashlib.file_digest", None)
    check_files(folder, contents=True)
    assert Runs(tmp_path, "demo").read("collect") == folder


def test_a_step_that_was_made_before_there_were_digests_is_read(tmp_path):
    folder = finished(tmp_path / "demo" / "collect")
    record = read_stage(folder)
    del record["files"]
    write_json(folder / "stage.json", record)
    (folder / "model" / "weights").unlink()
    check_files(folder, contents=True)
    assert Runs(tmp_path, "demo").read("collect") == folder


@pytest.mark.parametrize(
    "name", ["samples.jsonl", "dropped.jsonl", "warnings.json", "examples.json", "folds/1/model/w"]
)
def test_a_file_that_no_later_step_reads_may_be_damaged(tmp_path, name):
    folder = tmp_path / "demo" / "collect"
    (folder / name).parent.mkdir(parents=True)
    begin_stage(folder, {"seed": 1}, overwrite=False)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("1234")
    complete_stage(folder, {}, 1.0, 1)
    (folder / name).write_text("12")
    check_files(folder, contents=True)
    assert begin_stage(folder, {"seed": 1}, overwrite=True) == "complete"


def test_of_several_models_the_one_that_is_read_is_looked_at(tmp_path):
    folder = tmp_path / "demo" / "sft"
    begin_stage(folder, {"seed": 1}, overwrite=False)
    for name in ("model/w", "epochs/1/w", "adapter/w", "adapter/adapter_config.json", "base/w"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("1234")
    complete_stage(folder, {}, 1.0, 1)
    (folder / "base" / "w").write_text("1235")
    for name in ("model", "epochs/1"):
        check_files(folder, contents=True, of=folder / name)
    with pytest.raises(PipelineError, match=r"base/w holds something else"):
        check_files(folder, contents=True, of=folder / "adapter")
    (folder / "epochs" / "1" / "w").unlink()
    check_files(folder, contents=True, of=folder / "model")
    with pytest.raises(PipelineError, match=r"epochs/1/w is missing"):
        check_files(folder, contents=True, of=folder / "epochs" / "1")
