"""`rlhf-push`: what goes up is shown and asked for; what should not is refused; nothing else uploads."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlhf_lightning import push
from rlhf_lightning.runs.model_card import signed

CARD = signed("---\ntags:\n- rlhf\n---\n# A model\n")


@pytest.fixture
def step(tmp_path: Path) -> Path:
    folder = tmp_path / "run" / "sft"
    files = {"config.json": "{}", "model.safetensors": "weights", "README.md": CARD, "chat_template.jinja": "x"}
    (folder / "model").mkdir(parents=True)
    for name, text in files.items():
        (folder / "model" / name).write_text(text)
    (folder / "stage.json").write_text(json.dumps({"status": "complete", "identity": {}}))
    (folder / "checkpoints").mkdir()
    return folder


class FakeHub:
    """Writes down what it is asked for."""

    def __init__(self, private: bool = True) -> None:
        self.private, self.calls = private, list[tuple[str, dict[str, Any]]]()

    def create_repo(self, repo_id: str, **options: Any) -> Any:
        self.calls.append(("create_repo", {"repo_id": repo_id, **options}))
        return SimpleNamespace(repo_id=repo_id)

    def repo_info(self, repo_id: str, **_: Any) -> Any:
        return SimpleNamespace(private=self.private)

    def create_branch(self, repo_id: str, **options: Any) -> None:
        self.calls.append(("create_branch", {"repo_id": repo_id, **options}))

    def upload_folder(self, **options: Any) -> Any:
        self.calls.append(("upload_folder", options))
        return SimpleNamespace(commit_url="https://hub/commit")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub()
    monkeypatch.setattr(push, "HfApi", lambda: fake)
    return fake


def test_it_shows_asks_and_uploads_to_a_private_repository(
    step: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("builtins.input", lambda _: "y")
    push.main([str(step), "me/policy", "--revision", "v1"])
    shown = capsys.readouterr().out
    assert "private repository me/policy, branch v1" in shown
    assert "model.safetensors  7 bytes" in shown
    assert hub.calls[0] == (
        "create_repo",
        {"repo_id": "me/policy", "private": True, "exist_ok": True, "repo_type": "model"},
    )
    assert hub.calls[1] == ("create_branch", {"repo_id": "me/policy", "branch": "v1", "exist_ok": True})
    name, options = hub.calls[2]
    assert name == "upload_folder"
    assert options["folder_path"] == step / "model"
    assert options["allow_patterns"] == ["README.md", "chat_template.jinja", "config.json", "model.safetensors"]
    assert options["revision"] == "v1"


@pytest.mark.parametrize("answer", ["n", "", EOFError()])
def test_without_a_yes_nothing_is_uploaded(
    answer: Any, step: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reply(_: str) -> str:
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    monkeypatch.setattr("builtins.input", reply)
    with pytest.raises(SystemExit) as ended:
        push.main([str(step), "me/policy"])
    assert ended.value.code == 1
    assert hub.calls == []


def test_public_only_when_told(step: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    push.main([str(step), "me/policy", "--public", "--yes"])
    assert hub.calls[0][1]["private"] is False
    hub.private, hub.calls = False, []
    with pytest.raises(SystemExit):
        push.main([str(step), "me/policy", "--yes"])
    assert "is public. Say --public" in capsys.readouterr().err
    assert [name for name, _ in hub.calls] == ["create_repo"]


def link(folder: Path) -> None:
    (folder / "notes.txt").symlink_to("/etc/hostname")


INDEX = json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}})
ADAPTER = json.dumps({"base_model_name_or_path": "/home/ann/base"})
FAULTS = {
    "no whole model: it needs a config": lambda folder: (folder / "model.safetensors").unlink(),
    "it lacks model-00001-of": lambda folder: (folder / "model.safetensors.index.json").write_text(INDEX),
    "no part of an exported model: optimizer.pt": lambda folder: (folder / "optimizer.pt").write_text(""),
    "no part of an exported model: last.ckpt": lambda folder: (folder / "last.ckpt").write_text(""),
    "no part of an exported model: .env": lambda folder: (folder / ".env").write_text("A=1"),
    "no part of an exported model: notes.txt": link,
    "has no model card": lambda folder: (folder / "README.md").write_text("# A model without metadata"),
    "looks like a key": lambda folder: (folder / "notes.md").write_text("hf_" + "a" * 30),
    "belongs to /home/ann/base": lambda folder: (folder / "adapter_config.json").write_text(ADAPTER),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_should_not_be_published_is_refused(
    fault: str, step: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    FAULTS[fault](step / "model")
    with pytest.raises(SystemExit):
        push.main([str(step), "me/policy", "--yes"])
    assert fault in capsys.readouterr().err
    assert hub.calls == []


@pytest.mark.parametrize(
    ("name", "repo", "sentence"),
    [
        ("sft", "no such id/at all/here", "no name of a repository"),
        ("ppo", "me/policy", "there is no file or folder"),
        (".", "me/policy", "name one of its steps: sft"),
    ],
)
def test_a_mistaken_name_is_a_sentence(
    name: str, repo: str, sentence: str, step: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        push.main([str(step.parent / name), repo, "--yes"])
    assert sentence in capsys.readouterr().err
    assert hub.calls == []


def test_a_step_that_is_not_complete_is_refused(step: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (step / "stage.json").write_text(json.dumps({"status": "half-done", "identity": {}}))
    with pytest.raises(SystemExit):
        push.main([str(step), "me/policy", "--yes"])
    assert "not complete" in capsys.readouterr().err


def test_nothing_else_uploads() -> None:
    package = Path(push.__file__).parent
    calls = ("upload_folder", "upload_file", "push_to_hub", "create_repo", "create_commit")
    users = {file.name for file in package.rglob("*.py") if any(call in file.read_text() for call in calls)}
    assert users == {"push.py"}
