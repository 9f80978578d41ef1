"""What is written down appears when it is complete, and what is torn is named."""

import os
from pathlib import Path

import pytest

from rlhf_lightning.models.export import complete_folder
from rlhf_lightning.runs.files import write_json
from rlhf_lightning.runs.folders import PipelineError, Runs, begin_stage, complete_stage, read_stage


@pytest.mark.parametrize("content", [b"", b'{"status": "comp', b"\xff\x00", b"[]"])
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
