"""Signals end a process and its children in order; nothing of them runs on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rlhf_lightning.runs.signals import Children, Ended, ended_by_signals

CHILD = """
import os, signal, subprocess, sys, time
deaf, file = sys.argv[1] == "deaf", sys.argv[2]
below = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])

def obey(*_):
    below.kill()
    sys.exit(143)

signal.signal(signal.SIGTERM, signal.SIG_IGN if deaf else obey)
with open(file + ".unfinished", "w") as written:
    written.write(f"{os.getpid()} {below.pid}")
os.rename(file + ".unfinished", file)
time.sleep(60)
"""
PARENT = """
import sys
from concurrent.futures import ThreadPoolExecutor
from rlhf_lightning.runs.signals import Children
child, kind, *files = sys.argv[1:]
with ThreadPoolExecutor(2) as workers, Children(limit=0.5 if kind == "deaf" else 30) as children:
    jobs = [workers.submit(children.run, [sys.executable, "-c", child, kind, file]) for file in files]
    [job.result() for job in jobs]
"""


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and that nobody asked about does not."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks processes up in /proc")
@pytest.mark.parametrize(("name", "code"), [("SIGINT", None), ("SIGTERM", 143), ("SIGHUP", 129)])
@pytest.mark.parametrize("kind", ["obeys", "deaf"])
def test_children_and_theirs_end_with_their_parent(name: str, code: int | None, kind: str, tmp_path: Path) -> None:
    files = [tmp_path / "pids0", tmp_path / "pids1"]
    parent = subprocess.Popen([sys.executable, "-c", PARENT, CHILD, kind, *files], stderr=subprocess.PIPE)
    while not all(file.exists() for file in files):
        assert parent.poll() is None, parent.communicate()[1]
        time.sleep(0.02)
    pids = [int(pid) for file in files for pid in file.read_text().split()]
    assert all(map(alive, pids))
    begun = time.monotonic()
    parent.send_signal(getattr(signal, name))
    said = parent.communicate(timeout=60)[1]
    if code is None:  # of Ctrl-C: Python's own, unless a library runs code at exit
        assert parent.returncode in (1, -signal.SIGINT), said.decode()
    else:
        assert parent.returncode == code, said.decode()
    assert time.monotonic() - begun < 20
    time.sleep(0.1)
    assert not any(map(alive, pids))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_is_an_exception_with_its_exit_code(name: str) -> None:
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with pytest.raises(Ended) as ended, ended_by_signals():
        os.kill(os.getpid(), number)
    assert (ended.value.code, ended.value.name) == (128 + number, name)
    assert signal.getsignal(number) is before


def test_a_signal_that_a_finaliser_swallows_still_ends_the_process() -> None:
    class Swallows:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    seen: list[Any] = []
    hook, sys.unraisablehook = sys.unraisablehook, seen.append
    try:
        with pytest.raises(Ended), ended_by_signals():
            Swallows()
    finally:
        sys.unraisablehook = hook
    assert len(seen) == 1


def test_what_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ended_by_signals():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_children_are_run_as_by_subprocess_and_not_after_the_end() -> None:
    with Children() as children:
        done = children.run([sys.executable, "-c", "print('hello'); exit(3)"], stdout=subprocess.PIPE, text=True)
        assert (done.returncode, done.stdout) == (3, "hello\n")
    with pytest.raises(RuntimeError, match="is not started: this process ends"):
        children.run([sys.executable, "-c", ""])


def test_processes_that_ended_are_not_killed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[int] = []
    monkeypatch.setattr(os, "killpg", lambda pid, _: killed.append(pid))
    with Children() as children:
        process = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"], start_new_session=True)
        children._running.append(process)  # as `run` does in another thread
    assert process.returncode == -signal.SIGTERM
    assert not killed
