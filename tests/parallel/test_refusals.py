"""What the first process of several refuses ends all of them at once, and is said once."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_lightning.runs.folders import begin_stage
from rlhf_lightning.runs.lock import being_made

WORKER = Path(__file__).with_name("refused_worker.py")
TWO = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "model.size=small", "run=one"]


def in_two(folder: Path, commands: list[list[str]]) -> list[list[tuple[int, float, str]]]:
    """Exit code, seconds and what was said of each command, in the first process and in the second."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    (folder / "commands.json").write_text(json.dumps(commands))
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    shared |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TORCHELASTIC_RUN_ID": "test"}
    processes = []
    for rank in ("0", "1"):
        environment = os.environ | shared | {"RANK": rank, "LOCAL_RANK": rank}
        command = [sys.executable, str(WORKER), str(folder / "commands.json")]
        with (folder / f"process-{rank}.log").open("w") as log:
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
    try:
        for process in processes:
            process.wait(timeout=100)
    finally:
        for process in processes:
            process.kill()
    found = []
    for rank in ("0", "1"):
        log = (folder / f"process-{rank}.log").read_text()
        parts = re.split(r"^\[(\d+), ([\d.]+)\]\n", log, flags=re.MULTILINE)
        found.append([(int(parts[i]), float(parts[i + 1]), parts[i - 1]) for i in range(1, len(parts), 3)])
        assert len(found[-1]) == len(commands), log
    return found


@pytest.mark.slow
def test_what_the_first_process_refuses_ends_all_of_them_and_is_said_once(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    begin_stage(runs / "one" / "sft", {"stage": "another"}, False)
    (runs / "one" / "sft" / "work").touch()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "demonstrations.train.jsonl").write_text('{"prompt": "a", "response": "b"\n')
    rlhf = ["rlhf", *TWO, f"paths.runs={runs}"]
    cases = [
        (1, "is being made by process", [*rlhf, "stages=[collect]", "collect.policies=[base]"]),
        (1, "is half-done with other settings", [*rlhf, "stages=[sft]"]),
        (
            1,
            "no prompts for the split train",
            [
                *rlhf,
                "stages=[collect]",
                "collect.policies=[base]",
                "run=two",
                "data=jsonl",
                f"data.root={tmp_path / 'data'}",
            ],
        ),
        (1, "rows that the checkpoint", ["metrics", str(tmp_path)]),
        (1, "samples.jsonl cannot be read", ["samples", str(tmp_path)]),
        (1, "is another folder for machine-1 than for the first process", ["disk", str(tmp_path), "apart"]),
        (0, "", ["disk", str(tmp_path), "shared"]),
        (0, "", ["divided", ""]),
        (1, "a part is wrong", ["divided", "wrong"]),
        (1, "a value is wrong", ["value", ""]),
        (1, "odd", ["odd", ""]),
        (143, "", ["ended", ""]),
        (1, "", ["last", ""]),
    ]
    with being_made(runs / "one" / "collect"):
        first, second = in_two(tmp_path, [command for _, _, command in cases])
    for (code, said, command), here, there in zip(cases, first, second, strict=True):
        assert (here[0], there[0]) == (code, code), (command, here, there)
        assert max(here[1], there[1]) < 30, (command, here, there)
        assert said in here[2], (command, here)
        assert [here[2].count("rlhf: "), there[2].count("rlhf: ")] == [int(said != ""), int(command[0] == "last")], (
            command
        )
        assert there[2] == "" or command[0] == "last", (command, there)
    assert "the last one alone" in second[-1][2]
    assert not list(runs.rglob("error.txt"))
