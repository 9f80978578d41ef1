"""What a model, a setting and a file are by content, and how a message says where two differ."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from rlhf_lightning.runs import identity
from rlhf_lightning.runs.folders import PipelineError, begin_stage, other_settings
from rlhf_lightning.runs.identity import by_content, git_commit, model_fingerprint
from rlhf_lightning.runs.row_books import first_other_row, row_book


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "gpt2", "_name_or_path": "/home/ann/gpt2", "n_layer": 2}')
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "vocab.txt").write_text("a\nb\n")
    (folder / "modeling_own.py").write_text("x = 1")
    return folder


def test_a_model_is_what_it_holds(model, tmp_path):
    before = model_fingerprint(str(model))
    (model / "checkpoint-500").mkdir()
    (model / "checkpoint-500" / "model.safetensors").write_bytes(b"older")
    for name in ("README.md", "optimizer.pt", "training_args.bin", ".gitattributes", "trainer_state.json", "out.log"):
        (model / name).write_text("x")
    (model / "modeling_own.py").write_text("x = 2")
    # Where it was, and the order of keys.
    (model / "config.json").write_text('{"n_layer": 2, "model_type": "gpt2", "_name_or_path": "elsewhere"}')
    assert model_fingerprint(str(model)) == before
    assert model_fingerprint(str(shutil.copytree(model, tmp_path / "other name"))) == before


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", "weightz"),
        ("config.json", '{"model_type": "gpt2", "n_layer": 3}'),
        ("vocab.txt", "b\na\n"),
        ("generation_config.json", "{}"),
        ("chat_template.jinja", "{{ x }}"),
    ],
)
def test_a_model_with_something_else_is_another(model, name, content):
    before = model_fingerprint(str(model))
    (model / name).write_text(content)
    assert model_fingerprint(str(model)) != before


def test_code_counts_where_it_runs(model):
    before = model_fingerprint(str(model), code=True)
    (model / "modeling_own.py").write_text("x = 2")
    assert model_fingerprint(str(model), code=True) != before


def test_a_file_of_the_same_size_and_time_is_read_again_when_it_was_replaced(tmp_path):
    import os

    file, other = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    file.write_text("one")
    before = identity.file_digest(file)
    state = file.stat()
    other.write_text("two")
    os.utime(other, ns=(state.st_atime_ns, state.st_mtime_ns))
    other.replace(file)
    assert identity.file_digest(file) != before


def test_a_hub_id_has_its_commit_where_it_is_known(monkeypatch, tmp_path):
    found = tmp_path / "snapshots" / "607a30d" / "config.json"
    monkeypatch.setattr(identity, "try_to_load_from_cache", lambda name, file: str(found))
    assert model_fingerprint("some/model") == "some/model@607a30d"
    monkeypatch.setattr(identity, "try_to_load_from_cache", lambda name, file: None)
    assert model_fingerprint("some/model") == "some/model"
    # What was not known the first time is no other model; another commit is.
    for now, same in (("some/model@607a30d", True), ("some/model@1234567", False), ("some/other", False)):
        folder = tmp_path / now.replace("/", "_")
        start = "some/model" if same else "some/model@607a30d"
        begin_stage(folder, {"parents": {"init": start}}, overwrite=False)
        (folder / "metrics.csv").write_text("step\r\n")
        if same:
            assert begin_stage(folder, {"parents": {"init": now}}, overwrite=False) == "half-done"
        else:
            with pytest.raises(PipelineError, match=rf"parents\.init: 'some/model@607a30d' there, '{now}' now"):
                begin_stage(folder, {"parents": {"init": now}}, overwrite=False)


def test_settings_that_name_something_are_what_it_holds(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "labels.json").write_text("{}")
    for name in ("source", "sft", "out"):
        (tmp_path / name).mkdir()
    (tmp_path / "auto").write_text("a bare word is an option")
    settings = {
        "init": str(model),
        "relative": "model",
        "file": "labels.json",
        "options": ["source", "sft", "auto", "/", ".", "a\nb", "x" * 5000, "out/", 3, None, "torch.optim.AdamW"],
        "policies": ["sft/epoch-1"],
        "callbacks": [{"file": "labels.json"}],
    }
    held = by_content(settings, ("sft",))
    assert held["init"] == held["relative"] == f"content:{model_fingerprint(str(model))}"
    assert held["file"].startswith("content:")
    assert held["options"] == settings["options"]
    assert {held[name] == settings[name] for name in ("policies", "callbacks")} == {True}
    moved = shutil.move(model, tmp_path / "moved")
    assert by_content({"init": str(moved)}) == {"init": held["init"]}


def test_the_models_that_ship_are_what_they_hold(tmp_path):
    shipped = Path(identity.__file__).parents[1] / "sandbox" / "base" / "small"
    copy = shutil.copytree(shipped, tmp_path / "mine")
    judge = {"_target_": "rlhf_lightning.a.B", "url": "http://x", "model": "m", "both_orders": True}
    assert by_content({"_target_": "a.B", "url": "http://x", "timeout": 9})["timeout"] == 9
    assert by_content([{**judge, "timeout": 9, "retries": 0, "api_key_env": "KEY"}]) == by_content([judge])
    assert by_content({"timeout": 9}) == {"timeout": 9}
    assert by_content({"path": "sandbox/small"}) == by_content({"path": str(copy)})


def book(*rows):
    return row_book(f"{row}\n".encode() for row in rows)


@pytest.mark.parametrize("count", [20, 1000, 1024, 5000, 100_000])
@pytest.mark.parametrize("place", [0, 16, 999, 70_001])
def test_the_row_that_differs_is_named(count, place):
    if place >= count:
        return
    rows = list(range(count))
    old, new = book(*rows), book(*rows[:place], "another", *rows[place + 1 :])
    first, last = first_other_row(old, new)
    assert first <= place + 1 <= last
    assert last - first + 1 <= -(-count // 512)
    if count <= 1024:
        assert first == last == place + 1
    assert first_other_row(old, book(*rows)) is None
    assert len(json.dumps(old)) < 3000


@pytest.mark.parametrize(("before", "now"), [(980, 1000), (1000, 1030), (1030, 5000), (10, 0)])
def test_so_it_is_where_rows_were_added(before, now):
    old, new = book(*range(before)), book(*range(now))
    first, last = first_other_row(old, new)
    assert first <= min(before, now) + 1 <= last
    assert first_other_row(new, old) == (first, last)


def test_rows_that_changed_places_are_others():
    assert first_other_row(book(1, 2, 3, 4), book(1, 3, 2, 4)) == (2, 2)


def stage(tmp_path, identity_, about):
    folder = tmp_path / "sft"
    begin_stage(folder, identity_, overwrite=False, about=lambda: about)
    (folder / "metrics.csv").write_text("step\r\n")
    return folder


def test_many_differences_are_counted(tmp_path):
    settings = {"config": {f"setting{number}": 0 for number in range(20)}}
    folder = stage(tmp_path, settings, {})
    others = {"config": {f"setting{number}": 1 for number in range(20)}}
    with pytest.raises(PipelineError, match=r"\n  setting0: 0 there, 1 now(.|\n)*\n  and 8 more\n"):
        begin_stage(folder, others, overwrite=False)


def test_lengths_have_the_name_that_overrides_them(tmp_path):
    folder = stage(tmp_path, {"config": {"data": {"max_prompt_tokens": 8}}}, {})
    with pytest.raises(PipelineError, match=r"\n  data\.lengths\.max_prompt_tokens: 8 there, 9 now"):
        begin_stage(folder, {"config": {"data": {"max_prompt_tokens": 9}}}, overwrite=False)


def test_what_an_earlier_version_made_is_a_sentence(tmp_path):
    folder = stage(tmp_path, {"config": {"model": {"path": "/old"}}, "data": "x"}, {})
    now = {"config": {"model": {"path": "content:abc"}}, "data": "y"}
    with pytest.raises(PipelineError, match=r"an earlier version of rlhf_lightning made it, .* \(2 differences\)"):
        begin_stage(folder, now, overwrite=False, about=lambda: {"environment": {"threads": 1}})


def test_settings_are_compared_as_json_keeps_them(tmp_path):
    folder = stage(tmp_path, {"config": {"model": {"id2label": {0: "x"}}}}, {})
    assert other_settings(folder, "model", {"id2label": {0: "x"}}) == ""
    assert "an earlier version of rlhf_lightning made it" in other_settings(folder, "model", {"id2label": {0: "y"}})
    folder = stage(tmp_path / "now", {"config": {"model": {"id2label": {0: "x"}}}}, {"environment": {}})
    assert other_settings(folder, "model", {"id2label": {0: "y"}}) == "model.id2label.0: 'x' there, 'y' now"


def test_the_commit_is_that_of_the_package(tmp_path, monkeypatch):
    root = Path(identity.__file__).parents[2]
    if not (root / ".git").exists():
        pytest.skip("the package is in no checkout")
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True).stdout
    monkeypatch.chdir(tmp_path)
    make_commit(tmp_path)
    assert git_commit().removesuffix("-dirty") == head.strip()
    # Nor does what a hook of another checkout sets.
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))
    assert git_commit().removesuffix("-dirty") == head.strip()


def make_commit(folder):
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
    subprocess.run([*git, "init", "-q"], cwd=folder, check=True)
    subprocess.run([*git, "add", "."], cwd=folder, check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], cwd=folder, check=True)


def test_an_installed_package_has_none_and_a_changed_one_says_so(tmp_path, monkeypatch):
    package = tmp_path / "project" / "package" / "runs"
    package.mkdir(parents=True)
    file = package / "identity.py"
    file.write_text("x = 1")
    monkeypatch.setattr(identity, "__file__", str(file))
    assert git_commit() is None
    make_commit(tmp_path / "project")
    commit = git_commit()
    assert len(commit) == 40
    file.write_text("x = 2")
    assert git_commit() == f"{commit}-dirty"
    # Installed within somebody's checkout.
    monkeypatch.setattr(identity, "__file__", str(package / "site-packages" / "package" / "runs" / "identity.py"))
    assert git_commit() is None
