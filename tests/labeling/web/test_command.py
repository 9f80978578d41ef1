"""`rlhf-label`: its options, what is refused before work, tasks in and out, the printed address."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import webbrowser

import httpx
import pytest

from rlhf_lightning.labeling.store import LabelStore
from rlhf_lightning.labeling.web import serve
from rlhf_lightning.labeling.web.command import main


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--host", "0.0.0.0"], "lets other machines in"),
        (["--host", "0.0.0.0", "--public", "label.example.org"], "lets other machines in"),
        (["--host", "0.0.0.0", "--behind-proxy"], "lets other machines in"),
        (["--host", "192.168.0.7", "--tls-cert", "c", "--tls-key", "k"], "lets other machines in"),
        (["--host", "::"], "lets other machines in"),
        (["--host", "example.org"], "is no address"),
        (["--public", "label.example.org"], "needs --tls-cert"),
        (["--public", "https://label.example.org", "--behind-proxy"], "without https://"),
        (["--behind-proxy"], "needs --public"),
        (["--tls-cert", "c"], "come together"),
        (["--demonstrations", "0"], "give 1 or more"),
        (["--prompts", "p.jsonl"], "give both"),
        (["--port", "70000"], "0 to 65535"),
    ],
)
def test_refused_before_anything_is_made(tmp_path, capsys, options, sentence):
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / "run"), *options])
    assert ended.value.code == 2
    assert sentence in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_tasks_in_and_answers_out(tmp_path, capsys):
    rows = [
        {"kind": "ranking", "prompt": "Hi.", "responses": ["a", "b"], "policies": ["sft", "ppo"]},
        {"kind": "demonstration", "prompt": "Ho."},
    ]
    (tmp_path / "tasks.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    (tmp_path / "prompts.jsonl").write_text("".join(f'{{"prompt": "P{number}"}}\n' for number in range(5)))
    run, out = tmp_path / "run", str(tmp_path / "out")
    main([str(run), "--import", str(tmp_path / "tasks.jsonl"), "--demonstrations", "3", "--export", out])
    options = ["--demonstrations", "2", "--prompts", str(tmp_path / "prompts.jsonl"), "--export", out]
    main([str(run), "--import", str(tmp_path / "tasks.jsonl"), *options])
    said = capsys.readouterr().out
    assert re.findall(r"(\d \w+) are new", said) == ["2 tasks", "3 demonstrations", "0 tasks", "2 demonstrations"]
    store = LabelStore(run / "labels.sqlite")
    assert [task.prompt for task in store.tasks()] == ["Hi.", "Ho.", None, None, None, "P0", "P1"]
    store.add_labeler("ann")
    given = store.next_task("ann", "ranking")
    store.save(given.id, "ann", {"ranks": [2, 1]}, 1.0, "x")
    main([str(run), "--export", out])
    assert json.loads((tmp_path / "out" / "comparisons.train.jsonl").read_text())["ranks"] == [2, 1]
    store.close()


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", "line 1"),
        ("[]", "a task is an object"),
        ('{"kind": "rating", "prompt": "p"}', "kind"),
        ('{"kind": "ranking", "prompt": "p", "responses": ["a"]}', "line 1"),
        ('{"kind": "demonstration", "prompts": "p"}', "a task is an object"),
    ],
)
def test_a_row_that_is_no_task_is_named(tmp_path, capsys, line, sentence):
    (tmp_path / "tasks.jsonl").write_text(line + "\n")
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / "run"), "--import", str(tmp_path / "tasks.jsonl")])
    assert ended.value.code == 1
    said = " ".join(capsys.readouterr().err.split())
    assert sentence in said
    assert "tasks.jsonl" in said


def test_a_port_that_is_taken_is_replaced_and_said(capsys):
    from rich.console import Console

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with serve.bound("127.0.0.1", port, Console()) as other:
            assert other.getsockname()[1] != port
    assert f"Port {port} cannot be had" in capsys.readouterr().out


def test_the_browser_gets_the_link_by_a_file_of_the_user(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    for link in ("http://127.0.0.1:1/l/first", "http://127.0.0.1:1/l/second"):
        serve._open(link, tmp_path / ".open.html")
        (page,) = tmp_path.iterdir()
        assert f'url={link}"' in page.read_text()
        assert page.stat().st_mode & 0o077 == 0
    assert opened == [page.as_uri()] * 2


@pytest.mark.slow
def test_it_prints_links_that_work_and_ends_quietly(tmp_path):
    command = [sys.executable, "-u", "-c", "from rlhf_lightning.labeling.web.command import main; main()"]
    options = [str(tmp_path), "--labelers", "anna,ben", "--no-browser", "--port", "0"]
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    process = subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    lines = [process.stdout.readline() for _ in range(4)]
    names = [re.match(r"(\w+): (http://127\.0\.0\.1:\d+/l/\S+)\n", line).groups() for line in lines[:3]]
    assert [name for name, _ in names] == ["me", "anna", "ben"]
    for name, link in names:
        assert f"Welcome, {name}" in httpx.get(link).text
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (0, "Ended; everything that was saved is kept.\n", "")
    assert (tmp_path / "instructions.md").read_text().startswith("# Instructions")
