"""What is written down appears when it is complete, and what is torn is named."""

import errno
import os
import re
from pathlib import Path

import pytest

from rlhf_lightning.models.export import complete_folder
from rlhf_lightning.runs.files import write_json
from rlhf_lightning.runs.folders import PipelineError, Runs, begin_stage, complete_stage, read_stage, unless_begun
from rlhf_lightning.runs.lock import being_made
from rlhf_lightning.runs.trash import trash_sentence


@pytest.mark.parametrize("content", [
        *(b"", b'{"status": "comp', b"\xff\x00", b"[]", b'{"status": "complete"}'),
        *(b'{"identity": {"config": "x"}}', b'{"identity": {}, "files": 5}'),
    ])  # fmt: skip
def test_a_torn_stage_file_is_a_sentence(tmp_path, content):
    folder = tmp_path / "demo" / "sft"
    begin_stage(folder, {"seed": 1}, overwrite=False)
    complete_stage(folder, {}, 1.0, 1)
    (folder / "stage.json").write_bytes(content)
    sentence = rf"stage\.json is torn \({len(content)} bytes\).*overwrite=true"
    with pytest.raises(PipelineError, match=sentence):
        begin_stage(folder, {"seed": 1}, overwrite=False)
    with pytest.raises(PipelineError, match=sentence):
        Runs(tmp_path, "demo").find("sft")
    assert begin_stage(folder, {"seed": 1}, overwrite=True) == "fresh"
    assert read_stage(folder)["status"] == "half-done"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_a_pipe_as_a_stage_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "stage.json")
    with pytest.raises(PipelineError, match="is no regular file"):
        read_stage(tmp_path)


@pytest.mark.parametrize("name", [".trash", ".locks"])
def test_a_file_in_the_place_of_ours_is_a_sentence(tmp_path, name):
    folder = tmp_path / "demo" / "sft"
    begin_stage(folder, {"seed": 1}, overwrite=False)
    complete_stage(folder, {}, 1.0, 1)
    (folder.parent / name).write_text("mine")
    with pytest.raises(PipelineError, match=rf"sft cannot be written: .*{name}.*another run="), being_made(folder):
        begin_stage(folder, {"seed": 2}, overwrite=True)
    assert read_stage(folder)["status"] == "complete"


@pytest.fixture
def events(monkeypatch):
    """What was synced and renamed, in order."""
    found = []
    fsync, replace = os.fsync, Path.replace

    def note_sync(handle):
        found.append(("sync", Path(os.readlink(f"/proc/self/fd/{handle}")).name))
        fsync(handle)

    def note_replace(path, target):
        found.append(("rename", path.name))
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "replace", note_replace)
    return found


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc")
def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, events):
    write_json(tmp_path / "stage.json", {})
    assert events == [
        ("sync", "stage.json.unfinished"),
        ("rename", "stage.json.unfinished"),
        ("sync", tmp_path.name),
    ]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc")
def test_so_is_all_of_a_model(tmp_path, events):
    with complete_folder(tmp_path / "model") as folder:
        (folder / "parts").mkdir()
        for name in ("config.json", "parts/model.safetensors"):
            (folder / name).write_text("{}")
    assert {name for _, name in events[:4]} == {"model.unfinished", "config.json", "parts", "model.safetensors"}
    assert events[4:] == [("rename", "model.unfinished"), ("sync", tmp_path.name)]


def finished(folder, identity=None, **files):
    """A complete step with some files."""
    begin_stage(folder, identity or {"seed": 1}, overwrite=False)
    for name, content in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
    complete_stage(folder, {}, 1.0, 1)
    return folder


def content_of(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


# --- nothing of the user's is deleted ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["notes.txt", "model/model.safetensors", "config.yaml", "logs/events", ".hidden"])
def test_a_folder_without_stage_file_is_refused_or_moved_to_the_trash(tmp_path, name):
    folder = tmp_path / "demo" / "sft"
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_text("a week of work")
    with pytest.raises(PipelineError, match=r"sft is not empty and has no stage\.json.*overwrite=true"):
        begin_stage(folder, {"seed": 1}, overwrite=False)
    assert content_of(folder) == {name: "a week of work"}
    assert begin_stage(folder, {"seed": 1}, overwrite=True) == "fresh"
    (trashed,) = (tmp_path / "demo" / ".trash").iterdir()
    assert trashed.name.startswith("sft.")
    assert content_of(trashed) == {name: "a week of work"}
    assert content_of(folder).keys() == {"stage.json"}


def test_a_finished_step_that_lost_its_stage_file_is_not_made_again(tmp_path):
    folder = finished(tmp_path / "demo" / "sft", model__weights="w")
    (folder / "stage.json").unlink()
    with pytest.raises(PipelineError, match=r"Put stage\.json back"):
        begin_stage(folder, {"seed": 1}, overwrite=False)


@pytest.mark.parametrize("left", [(), ("stage.json.unfinished",)])
def test_what_a_kill_leaves_before_the_first_stage_file_is_no_obstacle(tmp_path, left):
    folder = tmp_path / "demo" / "sft"
    (folder / "checkpoints").mkdir(parents=True)
    for name in left:
        (folder / name).write_text('{"stat')
    assert begin_stage(folder, {"seed": 1}, overwrite=False) == "fresh"
    assert not (tmp_path / "demo" / ".trash").exists()


def test_the_stage_file_is_the_first_thing_written(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    folder = tmp_path / "demo" / "sft"
    monkeypatch.setattr("rlhf_lightning.runs.folders.write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        begin_stage(folder, {"seed": 1}, overwrite=False)
    assert not list(folder.iterdir())


def test_overwrite_moves_every_time_to_a_place_of_its_own(tmp_path):
    folder = tmp_path / "demo" / "sft"
    for seed in range(4):
        begin_stage(folder, {"seed": seed}, overwrite=True)
        (folder / "model").write_text(str(seed))
        complete_stage(folder, {}, 1.0, 1)
    trashed = (tmp_path / "demo" / ".trash").iterdir()
    assert sorted((part / "model").read_text() for part in trashed) == ["0", "1", "2"]
    assert (folder / "model").read_text() == "3"
    assert Runs(tmp_path, "demo").find("sft") == folder
    sentence = trash_sentence(tmp_path / "demo", ["sft"])
    assert re.fullmatch(r"3 replaced steps in \.trash, \d\.\d kB; delete it when you no longer need them\.", sentence)


def test_without_replaced_steps_there_is_nothing_to_say(tmp_path):
    assert trash_sentence(tmp_path, ["sft"]) is None


def test_half_a_step_with_other_settings_is_dropped_only_before_its_work(tmp_path):
    folder = tmp_path / "demo" / "sft"
    begin_stage(folder, {"seed": 1}, overwrite=False)
    (folder / "config.yaml").write_text("a: 1")
    assert begin_stage(folder, {"seed": 2}, overwrite=False) == "fresh"
    assert not (tmp_path / "demo" / ".trash").exists()
    (folder / "logs").mkdir()
    (folder / "logs" / "mine").write_text("{}")
    assert begin_stage(folder, {"seed": 1}, overwrite=False) == "fresh"
    (moved,) = (tmp_path / "demo" / ".trash").iterdir()
    assert content_of(moved).keys() == {"stage.json", "logs/mine"}
    begin_stage(folder, {"seed": 2}, overwrite=False)
    (folder / "samples.jsonl").write_text("{}")
    with pytest.raises(PipelineError, match=r"half-done with other settings:\n  seed: 2 there, 3 now"):
        begin_stage(folder, {"seed": 3}, overwrite=False)
    assert begin_stage(folder, {"seed": 2}, overwrite=False) == "half-done"
    begin_stage(folder, {"seed": 3}, overwrite=True)
    trashed = [content_of(part).keys() for part in (tmp_path / "demo" / ".trash").iterdir()]
    assert {"stage.json", "samples.jsonl"} in trashed


# --- links ------------------------------------------------------------------------------------------------------------


def test_a_step_on_another_disk_is_replaced_there(tmp_path):
    disk, folder = tmp_path / "disk" / "big", tmp_path / "runs" / "demo" / "sft"
    disk.mkdir(parents=True)
    folder.parent.mkdir(parents=True)
    folder.symlink_to(disk)
    finished(folder, {"seed": 1}, model__weights="old")
    assert (disk / "model" / "weights").exists()
    begin_stage(folder, {"seed": 2}, overwrite=True)
    assert folder.readlink() == disk
    assert content_of(disk).keys() == {"stage.json"}
    (trashed,) = (tmp_path / "disk" / ".trash").iterdir()
    assert (trashed / "model" / "weights").read_text() == "old"
    assert f"1 replaced step in {tmp_path}/disk/.trash, " in trash_sentence(folder.parent, ["sft"])


def test_so_is_one_of_a_run_on_another_disk(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").mkdir()
    run = tmp_path / "runs" / "demo"
    run.symlink_to(tmp_path / "disk")
    finished(run / "sft", model__weights="old")
    begin_stage(run / "sft", {"seed": 2}, overwrite=True)
    (trashed,) = (tmp_path / "disk" / ".trash").iterdir()
    assert (trashed / "model" / "weights").read_text() == "old"
    assert "1 replaced step in .trash, " in trash_sentence(run, ["sft"])


@pytest.mark.parametrize("name", ["demo", "demo/sft"])
def test_a_link_to_nowhere_and_a_file_are_sentences(tmp_path, name):
    place, folder = tmp_path / name, tmp_path / "demo" / "sft"
    place.parent.mkdir(exist_ok=True)
    place.symlink_to(tmp_path / "gone")
    with pytest.raises(PipelineError, match=rf"{place} is a link to {tmp_path}/gone, which does not exist"):
        begin_stage(folder, {"seed": 1}, overwrite=True)
    assert place.is_symlink()
    place.unlink()
    place.write_text("mine")
    with pytest.raises(PipelineError, match=rf"{place} is a file where a folder is needed"):
        begin_stage(folder, {"seed": 1}, overwrite=True)
    assert place.read_text() == "mine"
    assert Runs(tmp_path, "demo").find("sft") is None


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path, monkeypatch, number):
    def denied(*_, **__):
        raise OSError(number, os.strerror(number), "stage.json")

    monkeypatch.setattr("rlhf_lightning.runs.folders.write_json", denied)
    with pytest.raises(PipelineError, match=r"sft cannot be written: .*paths\.runs"):
        begin_stage(tmp_path / "demo" / "sft", {"seed": 1}, overwrite=False)


# --- what never began -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("files", [(), ("config.yaml",), ("dropped.json", "logs/events"), ("warnings.json",)])
def test_a_step_that_fails_before_its_work_leaves_nothing(tmp_path, files):
    def fail():
        for name in files:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text("{}")
        raise KeyError

    folder = tmp_path / "demo" / "sft"
    begin_stage(folder, {"seed": 1}, overwrite=False)
    with pytest.raises(KeyError), unless_begun(folder):
        fail()
    assert not folder.exists()


@pytest.mark.parametrize(
    "name", ["checkpoints/last.ckpt", "ranked.train.unfinished", "samples.jsonl", "logs/mine", "mine/config.yaml"]
)
def test_one_that_has_begun_stays_as_it_is(tmp_path, name):
    folder = tmp_path / "demo" / "sft"
    begin_stage(folder, {"seed": 1}, overwrite=False)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("work")
    before = content_of(folder)
    with pytest.raises(KeyError), unless_begun(folder):
        raise KeyError
    assert content_of(folder) == before


def test_a_link_stays_when_a_step_fails(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "demo").mkdir()
    folder = tmp_path / "demo" / "sft"
    folder.symlink_to(tmp_path / "disk")
    begin_stage(folder, {"seed": 1}, overwrite=False)
    with pytest.raises(KeyError), unless_begun(folder):
        raise KeyError
    assert folder.is_symlink()
    assert list((tmp_path / "disk").iterdir()) == []


def refused(*_):
    raise KeyError


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("seeds", [(2,), (2, 3)])
def test_what_was_replaced_is_in_its_place_again_when_nothing_is_made(tmp_path, elsewhere, seeds, monkeypatch):
    folder = tmp_path / "demo" / "sft"
    if elsewhere:
        for place in (tmp_path / "disk" / "big", folder.parent):
            place.mkdir(parents=True)
        folder.symlink_to(tmp_path / "disk" / "big")
    before = content_of(finished(folder, model__weights="good"))
    with pytest.raises(KeyError):
        begin_stage(folder, {"seed": 2}, overwrite=True, verify=refused)
    assert content_of(folder) == before
    with monkeypatch.context() as patch:
        patch.setattr("rlhf_lightning.runs.folders.write_json", refused)
        with pytest.raises(KeyError):
            begin_stage(folder, {"seed": 2}, overwrite=True)
    assert content_of(folder) == before
    for seed in seeds:  # a kill comes before the second
        assert begin_stage(folder, {"seed": seed}, overwrite=True) == "fresh"
    (folder / "warnings.json").write_text("[]")
    with pytest.raises(KeyError), unless_begun(folder):
        refused()
    assert content_of(folder) == before
    assert folder.is_symlink() == elsewhere
    assert not list(tmp_path.rglob(".trash/*"))
