"""A folder that is being made has one writer; how the writer ends does not matter."""

import errno
import json
import multiprocessing
import os
import re
import signal
import socket
import time
from pathlib import Path

import pytest

from rlhf_lightning.runs.errors import PipelineError
from rlhf_lightning.runs.lock import being_made, locked

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
PROCESSES = multiprocessing.get_context("fork")


def _hold(folder: Path, ready: Path, forks: bool) -> None:
    with being_made(folder):
        if forks and os.fork() == 0:
            time.sleep(1.5)  # a child that goes on for a moment, as a worker that reads data does
            os._exit(0)
        ready.touch()
        time.sleep(60)


@pytest.fixture
def start():
    """Another process that holds the lock of a folder, once it does."""
    running = []

    def started(folder: Path, forks: bool = False):
        ready = folder.parent.parent / f"ready{len(running)}"
        process = PROCESSES.Process(target=_hold, args=(folder, ready, forks))
        running.append(process)
        process.start()
        while not ready.exists():
            assert process.is_alive()
            time.sleep(0.01)
        return process

    yield started
    for process in running:
        process.kill()
        process.join()


def refused(folder: Path, wait: float = 0.1) -> str:
    with pytest.raises(PipelineError) as error, being_made(folder, wait):
        pass
    return str(error.value)


@pytest.mark.parametrize("forks", [False, True])
def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path, start, forks):
    folder = tmp_path / "run" / "ppo"
    first = start(folder, forks)
    named = rf"{folder} is being made by process {first.pid} on host {socket.gethostname()} since \d{{4}}-\d\d-\d\d "
    assert re.match(named, sentence := refused(folder))
    assert "wait for it, or name another run=<name>" in sentence
    assert not folder.exists()
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    with being_made(folder, wait=0.1):
        assert str(os.getpid()) in refused(folder)


def test_who_waits_says_for_whom_and_goes_on_when_that_one_is_gone(tmp_path, start):
    folder, said = tmp_path / "runs" / "mine.shared-1", []
    first = start(folder)

    def say(line):
        said.append(line)
        if len(said) == 2:
            os.kill(first.pid, signal.SIGKILL)
            first.join()

    with locked(folder, 0.1, say):
        named = f"waiting for 0 min: {folder} is being made by process {first.pid} on host {socket.gethostname()} since"
        assert len(said) == 2
        assert all(line.startswith(named) for line in said)


def test_it_goes_when_the_block_ends_also_with_an_error(tmp_path):
    folder = tmp_path / "run" / "sft"
    with pytest.raises(KeyError), being_made(folder):
        raise KeyError
    with being_made(folder):
        assert [path.name for path in folder.parent.iterdir()] == [".locks"]
    assert not (folder.parent / ".locks" / "sft.json").exists()


def test_other_steps_of_the_run_are_free(tmp_path):
    with being_made(tmp_path / "run" / "ppo"), being_made(tmp_path / "run" / "ppo_ptx"):
        pass


def test_the_lock_is_that_of_the_folder_behind_links(tmp_path):
    (tmp_path / "disk" / "ppo").mkdir(parents=True)
    for run in ("a", "b"):
        (tmp_path / run).mkdir()
        (tmp_path / run / "ppo").symlink_to(tmp_path / "disk" / "ppo")
    (tmp_path / "c").symlink_to(tmp_path / "disk")
    with being_made(tmp_path / "a" / "ppo"):
        assert "is being made" in refused(tmp_path / "b" / "ppo")
        assert "is being made" in refused(tmp_path / "c" / "ppo")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"process": 1}'])
def test_a_damaged_name_of_the_first_is_no_obstacle(tmp_path, content):
    folder = tmp_path / "run" / "ppo"
    with being_made(folder):
        (folder.parent / ".locks" / "ppo.json").write_bytes(content)
        assert "is being made by another process" in refused(folder)


def test_a_process_of_another_host_is_not_taken_for_dead(tmp_path, monkeypatch):
    folder = tmp_path / "run" / "ppo"
    with being_made(folder):
        first = {"process": 2**22 + 1, "host": "elsewhere", "since": "2026-01-01 00:00"}
        (folder.parent / ".locks" / "ppo.json").write_text(json.dumps(first))
        begun = time.monotonic()
        assert "on host elsewhere since 2026-01-01 00:00" in refused(folder)
        assert time.monotonic() - begun < 5


def test_only_the_first_of_several_processes_locks(tmp_path, monkeypatch):
    monkeypatch.setattr("rlhf_lightning.runs.lock.on_rank_zero", lambda _: None)
    with being_made(tmp_path / "run" / "ppo"), being_made(tmp_path / "run" / "ppo"):
        assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore:.*falling back to SoftFileLock.*")
def test_without_locks_of_the_file_system_the_first_is_known_by_host_and_process(tmp_path, start, monkeypatch):
    def missing(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", missing)
    folder = tmp_path / "run" / "ppo"
    first = start(folder)
    assert f"is being made by process {first.pid} on host" in refused(folder)
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    with being_made(folder):
        assert f"process {os.getpid()} on host" in refused(folder)
