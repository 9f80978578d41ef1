"""Two processes on one folder, at random moments and with random kills: nothing is lost, doubled or torn."""

import random
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rlhf_lightning.runs.files import read_metrics
from rlhf_lightning.runs.folders import read_stage

STEPS = ("sft", "collect", "reward", "ppo", "ppo_ptx", "evaluate", "curate")
PAIRS = 20
REFUSED = r"rlhf: \S+/{step} is being made by process {pid} on host \S+ since "


@dataclass
class Small:
    """A finished run, and each step made from it without any disturbance, in the seconds that it took."""

    kill_test: Any
    runs: Path
    seconds: dict[str, float]

    def start(self, run: str, step: str, log: str) -> Any:
        arguments = [f"stages=[{step}]", f"run={run}", "upstream=base", f"paths.runs={self.runs}"]
        arguments += [*self.kill_test.SMALL, "evaluate.num_prompts=24", "evaluate.judges=null"]
        process = self.kill_test.PROCESSES.Process(target=self.kill_test.rlhf, args=(self.runs / log, arguments))
        process.start()
        return process

    def log(self, name: str) -> str:
        path = self.runs / name
        return " ".join(path.read_text(encoding="utf-8").split()) if path.exists() else ""

    def finish(self, run: str, step: str) -> float:
        begun, log = time.monotonic(), f"{run}.{step}.log"
        process = self.start(run, step, log)
        process.join()
        assert process.exitcode == 0, self.log(log)[-2000:]
        return time.monotonic() - begun

    def left(self, run: str, step: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Digests of what a step left, without pages that name the run, and its metrics without times."""
        folder = self.runs / run / step
        files = {name: file for name, file in read_stage(folder)["files"].items() if not name.startswith("data_card")}
        rows = read_metrics(folder / "metrics.csv") if (folder / "metrics.csv").exists() else []
        return files, [{n: value for n, value in row.items() if not n.startswith("time/")} for row in rows]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[1] / "scripts")
        patch.setenv("OMP_NUM_THREADS", "1")
        import kill_test

        kill_test.PROCESSES.set_forkserver_preload(["rlhf_lightning.cli"])
        made = Small(kill_test, tmp_path_factory.mktemp("pairs"), {})
        for step in ("sft", "collect", "reward"):
            made.finish("base", step)
        yield made


@pytest.mark.slow
@pytest.mark.parametrize("number", range(PAIRS))
def test_of_two_processes_on_one_folder_one_works(small: Small, number: int) -> None:
    step, moments = STEPS[number % len(STEPS)], random.Random(number)
    run, whole = f"pair{number}", f"whole_{step}"
    if step not in small.seconds:
        small.seconds[step] = small.finish(whole, step)
    length = small.seconds[step]
    killed = moments.choice([(0,), (1,), (0, 1)]) if number % 2 else ()
    first = small.start(run, step, f"{run}.0.log")
    time.sleep(moments.uniform(0, length))
    second = small.start(run, step, f"{run}.1.log")
    pair = (first, second)
    time.sleep(moments.uniform(0, length / 2) if killed else 0)
    for place in killed:
        pair[place].kill()
    for process in pair:
        process.join()
    survivors = [place for place in (0, 1) if pair[place].exitcode != -9]
    for place in survivors:
        if pair[place].exitcode != 0:
            named = REFUSED.format(step=step, pid=pair[1 - place].pid)
            assert re.search(named, small.log(f"{run}.{place}.log")), small.log(f"{run}.{place}.log")[-2000:]
    assert killed or any(process.exitcode == 0 for process in pair)
    small.finish(run, step)
    assert small.left(run, step) == small.left(whole, step)
