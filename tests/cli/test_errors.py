"""What the command line says when it cannot go on, and with which exit code it ends."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from command import rlhf, start

from rlhf_lightning.cli import composed
from rlhf_lightning.cli.errors import own_traceback, report, sentence
from rlhf_lightning.runs.folders import PipelineError

BUGGY = "def score(responses):\n    return helper(responses)\n\ndef helper(responses):\n    return 1 / 0\n"


def test_a_fault_in_own_code_is_a_traceback_that_begins_there(tmp_path, monkeypatch):
    (tmp_path / "buggy.py").write_text(BUGGY)
    monkeypatch.syspath_prepend(tmp_path)
    import buggy

    with pytest.raises(ZeroDivisionError) as caught:
        buggy.score([])
    lines = own_traceback(caught.value.with_traceback(caught.tb.tb_next)).splitlines()
    assert "buggy.py" in lines[1]
    assert "return helper(responses)" in lines[2]
    assert lines[-1] == "ZeroDivisionError: division by zero"


def test_what_builds_own_code_keeps_the_traceback(tmp_path, monkeypatch):
    (tmp_path / "buggy_too.py").write_text(BUGGY)
    monkeypatch.syspath_prepend(tmp_path)
    import buggy_too

    with pytest.raises(ZeroDivisionError) as caught:
        buggy_too.score([])
    error = PipelineError("it cannot be built")
    error.__cause__ = caught.value.with_traceback(caught.tb.tb_next)
    assert "buggy_too.py" in own_traceback(error)


def test_errors_of_libraries_and_of_the_package_show_no_traceback():
    with pytest.raises(ValueError, match="invalid literal") as caught:
        int("x")
    caught.value.__traceback__ = None
    assert own_traceback(caught.value) is None
    assert (
        sentence(FileNotFoundError(2, "No such file or directory", "x.jsonl")) == "No such file or directory: x.jsonl."
    )
    assert sentence(KeyError("lr")) == "KeyError: 'lr'"
    closed = RuntimeError("[/src/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:1: Connection closed by peer")
    assert sentence(closed).startswith("another process of this run ended, and what it said is the cause")


def test_what_nobody_foresaw_leaves_its_traceback_in_the_run(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    error = KeyError("lr")
    error.add_note("in step sft, runs/x/sft")
    assert report(error, tmp_path) == "KeyError: 'lr'"
    said = capsys.readouterr().err
    assert "in step sft" in said
    assert "error.txt" in said
    assert "Traceback" not in said
    assert "KeyError: 'lr'" in (tmp_path / "error.txt").read_text()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "error.txt").mkdir()
    assert report(error, tmp_path / "full") == "KeyError: 'lr'"
    assert "nobody foresaw this" not in capsys.readouterr().err


def test_errors_cannot_move_the_terminal(capsys):
    report(PipelineError("a row holds \x1b[2J"))
    assert "\x1b[2J" not in capsys.readouterr().err


def test_settings_that_own_settings_refer_to_are_read():
    config = composed(["+my.rate=0.25", "sft.module.optimizer.lr=${my.rate}"])
    assert config["sft"]["module"]["optimizer"]["lr"] == 0.25
    assert "my" not in config
    assert composed(["+my.rate=0.25"])["my"] == {"rate": 0.25}  # which is refused then: nothing reads it


def test_a_run_may_be_called_by_a_number():
    config = composed(["run=1", "upstream=[2,demo]"])
    assert config["run"] == "1"
    assert config["upstream"] == ["2", "demo"]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["stages=[pretrain]", "run=null"], ["run must be text, got null"]),
        (["~sft"], ["~sft takes away what others refer to"]),
        (["sft.data.max_train=5"], ["write +sft.data.max_train=<value>"]),
        (["+ppo.module.discount=1"], ["write ppo.module.discount=<value>, without +"]),
        (["~foo"], ["foo is not there"]),
        (["foo=1", "sft.fit.epoch=2"], ["foo=1 is no setting", "did you mean sft.fit.epochs"]),
        (["sft=null"], ["sft=null: a group needs an option"]),
    ],
)
def test_the_sentence_says_what_to_write(arguments, parts, tmp_path):
    (tmp_path / "here").mkdir()
    said = rlhf(arguments, tmp_path / "here")
    assert said.code == 1
    assert "Traceback" not in said.text
    for part in parts:
        assert part in said.text


@pytest.mark.skipif(sys.platform == "win32", reason="there are no signals of this kind")
def test_ctrl_c_says_where_the_run_goes_on(tmp_path):
    here, written = tmp_path / "here", tmp_path / "said"
    here.mkdir()
    small = ["stages=[sft]", "data.source.demonstrations=400", "data.source.validation=16", "model.size=small"]
    process = start(small, here, written)
    metrics = here / "runs/default/sft/metrics.csv"
    for _ in range(600):
        if metrics.exists() and len(metrics.read_text().splitlines()) > 3:
            break
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    assert process.exitcode == 130
    assert "stopped in step sft, runs/default/sft; the same command goes on" in " ".join(written.read_text().split())
    again = rlhf(small, here)
    assert again.code == 0
    assert Path(here / "runs/default/sft/model").is_dir()


def test_null_among_options_is_a_sentence(tmp_path):
    said = rlhf([f"paths.runs={tmp_path}/runs", "callbacks=[lr_monitor,null]", "plan=true"], tmp_path)
    assert said.code == 1
    assert "takes names alone, and no null" in said.text
    assert "TypeError" not in said.text


def test_a_run_that_waits_for_people_is_no_error(tmp_path):
    prompts = [f"data.source.{name}=8" for name in ("prompts", "demonstrations", "text", "validation")]
    few = ["collect.prompts={train: 2, validation: 0}", "collect.policies=[base]", "collect.labelers=people", *prompts]
    said = rlhf(["debug=fast", "model.size=small", "stages=[collect]", "run=mine", *few], tmp_path)
    assert said.code == 3
    last = said.text.splitlines()[-1]
    assert last.startswith("rlhf: step collect waits for people. 0 of 2 prompts are ranked, 2 more are needed")
    assert "Open the page: rlhf-label runs/mine." in last
    assert "HYDRA_FULL_ERROR" not in said.text
