"""The plan and the runner: what is needed is started once, in order, and failures are told."""

import io
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_runs import write_job, write_runs
from hydra import compose, initialize_config_dir
from rich.console import Console

from rlhf_lightning.cli import CONFIG_DIR, resolved
from rlhf_lightning.recipe.pipeline import Pipeline
from rlhf_lightning.reproduce.__main__ import main
from rlhf_lightning.reproduce.claims import CLAIMS, kinds_of
from rlhf_lightning.reproduce.plan import BATCH, EPISODES, SIZES, jobs, selected
from rlhf_lightning.reproduce.runner import cores, fingerprint_of, plan_table, run_jobs, state_of, unfinished
from rlhf_lightning.runs.folders import Runs
from rlhf_lightning.runs.identity import fingerprint
from rlhf_lightning.runs.signals import Children
from rlhf_lightning.runs.targets import builder

SAMPLE = (
    "small",
    "large",
    "ptx-2.0",
    "klbase-2.0",
    "klptx-0.0",
    "weak-0.0-25",
    "weak-0.05-100",
    "whole",
    "pairs",
    "team-3",
    "epochs",
    "medium-alike",
    "init-0.0",
    "initepochs-1",
    "klinit-2.0",
    "lr-0.317",
    "lrptx-3.17",
    "twice-2.0",
    "reward-fast",
    "reward-epochs",
    "reward-base",
    "batch-64",
)


NUMBERS = {claim.name: claim.number for claim in CLAIMS}
SEEDS = (1, 2, 3)


def names(claims: list[str], seeds: tuple[int, ...] = (1, 2, 3)) -> list[str]:
    return [job.name for job in selected(jobs(seeds), kinds_of(NUMBERS[name] for name in claims))]


def printed(table: Any) -> str:
    output = io.StringIO()
    Console(file=output, width=200).print(table)
    return output.getvalue()


class Calls:
    """Stands in for `Children.run`: notes the jobs, and makes those succeed that are not to fail."""

    def __init__(self, runs: Path, failing: tuple[str, ...] = ()) -> None:
        self.runs, self.failing = runs, failing
        self.started: list[str] = []
        self.commands: list[list[str]] = []
        self.environments: list[dict[str, str]] = []
        self.clearing = False

    def __call__(self, command: list[str], **options: Any) -> Any:
        name = next(text.removeprefix("run=") for text in command if text.startswith("run="))
        self.started.append(name)
        self.commands.append(command)
        if self.clearing:
            shutil.rmtree(self.runs / name)
        self.environments.append(options["env"])
        if name in self.failing:
            options["stdout"].write("all was well\nValueError: it broke\n")
            return SimpleNamespace(returncode=1)
        write_job(self.runs, next(job for job in jobs() if job.name == name))
        return SimpleNamespace(returncode=0)


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Calls:
    recorder = Calls(tmp_path)
    monkeypatch.setattr(Children, "run", staticmethod(recorder))
    return recorder


def test_every_job_once_and_upstream_first() -> None:
    everything = jobs()
    assert len({job.name for job in everything}) == len(everything) == 5 * 54
    seen: set[str] = set()
    for job in everything:
        assert set(job.upstream) <= seen
        seen.add(job.name)


def test_only_what_the_claims_need() -> None:
    assert names(["small-over-large"], (1,)) == ["medium-s1", "small-s1", "large-s1"]
    assert names(["whole-rankings"], (1, 2)) == [
        *(f"{size}-s{seed}" for seed in (1, 2) for size in ("medium", "small")),
        *(f"{arm}-s{seed}" for seed in (1, 2) for arm in ("whole", "pairs")),
    ]
    assert names(["teams"], (1,)) == ["medium-s1", "small-s1", *(f"team-{team}-s1" for team in range(5))]
    assert set(names(list(NUMBERS))) == {job.name for job in jobs(SEEDS)}
    assert {job.kind for job in jobs()} == {kind for claim in CLAIMS for kind in claim.kinds}
    assert len(names(["held-out", "metadata", "tax"])) == 3 * len(SIZES)


def test_the_configuration_knows_every_override() -> None:
    sample = [job for job in jobs((1,)) if job.kind in SAMPLE]
    assert len(sample) == len(SAMPLE)
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        for job in sample:
            config = compose("config", ["paths.runs=elsewhere", *job.overrides])
            assert (config.run, config.seed, tuple(config.stages)) == (job.name, 1, job.stages)
            assert config.model.size == (job.kind.removesuffix("-alike") if job.kind.startswith(SIZES) else "small")
            assert config.evaluate.temperatures == (
                None if job.kind.endswith("-alike") else {"base": 0.7, "prompted": 0.7}
            )
            assert (config.evaluate.probes is not None) == ("evaluate=full" in job.overrides)
    assert all(EPISODES % size == 0 for size in BATCH.values)


def test_times_are_below_nine_hours() -> None:
    """On two cores."""
    assert sum(sum(job.seconds.values()) for job in jobs()) / 2 < 9 * 3600


def test_finished_jobs_are_not_started(tmp_path: Path, calls: Calls) -> None:
    write_runs(tmp_path, kinds={"small", "medium"}, seeds=SEEDS)
    assert run_jobs(selected(jobs(SEEDS), {"pairs"}), tmp_path, Console(file=io.StringIO())) == []
    assert calls.started == ["pairs-s1", "pairs-s2", "pairs-s3"]
    assert calls.environments[0]["HF_HUB_OFFLINE"] == "1"
    assert calls.environments[0]["OMP_WAIT_POLICY"]
    assert run_jobs(selected(jobs(SEEDS), {"pairs"}), tmp_path, Console(file=io.StringIO())) == []
    assert len(calls.started) == 3


@pytest.mark.parametrize("torn", [False, True])
def test_a_stale_job_is_made_again_only_on_request(torn: bool, tmp_path: Path, calls: Calls) -> None:
    write_runs(tmp_path, kinds={"small", "medium", "whole"}, seeds=(1,))
    path = tmp_path / "whole-s1" / "reward" / "stage.json"
    path.write_text("{" if torn else path.read_text().replace('"fingerprint": "', '"fingerprint": "other'))
    chosen, said = selected(jobs((1,)), {"whole"}), io.StringIO()
    assert "stale: reward" in printed(plan_table(chosen, tmp_path, {}))
    assert run_jobs(chosen, tmp_path, Console(file=said, width=300)) == ["whole-s1"]
    assert calls.started == []
    assert "not started, reward in" in said.getvalue()
    assert "--overwrite makes it again" in said.getvalue()
    calls.clearing = True
    assert run_jobs(chosen, tmp_path, Console(file=said), overwrite=True) == []
    assert calls.started == ["whole-s1"]
    assert calls.commands[0][-1] == "overwrite=true"


def test_jobs_side_by_side_wait_for_what_they_build_on(
    tmp_path: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = threading.Barrier(2, timeout=60)  # lets nobody pass before a second one is there
    order: list[str] = []

    def together(job_command: list[str], **options: Any) -> Any:
        name = next(text.removeprefix("run=") for text in job_command if text.startswith("run="))
        order.append(f"start {name}")
        if name.startswith("medium"):
            both.wait()
        finished = calls(job_command, **options)
        order.append(f"end {name}")
        return finished

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(Children, "run", staticmethod(together))
    assert run_jobs(selected(jobs((1, 2)), {"pairs"}), tmp_path, Console(file=io.StringIO()), at_once=2) == []
    assert set(order[:2]) == {"start medium-s1", "start medium-s2"}
    for seed in (1, 2):
        assert order.index(f"end medium-s{seed}") < order.index(f"start small-s{seed}")
        assert order.index(f"end small-s{seed}") < order.index(f"start pairs-s{seed}")
    assert {environment["OMP_NUM_THREADS"] for environment in calls.environments} == {str(max(1, cores() // 2))}


@pytest.mark.real_fingerprints
def test_a_stage_made_from_something_else_is_not_taken_for_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, small = (job for job in jobs((2,)) if job.name in ("medium-s2", "small-s2"))
    for job in (first, small):
        write_job(tmp_path, job)
        assert state_of(job, tmp_path).done
    path = tmp_path / first.name / "reward" / "stage.json"
    path.write_text(path.read_text().replace('"fingerprint": "', '"fingerprint": "other'))
    # What stands on that reward model is stale too; SFT is not.
    assert list(state_of(small, tmp_path).complete) == ["sft", "ppo_init"]
    path.write_text(path.read_text().replace('"complete"', '"half-done"'))
    assert fingerprint_of(small, "ppo", tmp_path) is None
    monkeypatch.setattr("rlhf_lightning.sandbox.data.WORLD_VERSION", -1)
    assert state_of(small, tmp_path).complete == {}
    assert unfinished([first, small], tmp_path) == ["medium-s2", "small-s2"]


@pytest.mark.real_fingerprints
def test_the_command_line_makes_the_stage_that_the_plan_expects(tmp_path: Path) -> None:
    job = next(job for job in jobs((1,)) if job.kind == "small")
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        config = resolved(compose("config", [f"paths.runs={tmp_path}", *job.overrides]))
    pipeline = Pipeline(config, builder([]), Runs(tmp_path, job.name, job.upstream))
    assert fingerprint(pipeline.step("sft").identity(pipeline.context)) == fingerprint_of(job, "sft", tmp_path)


def test_a_failure_is_told_and_the_rest_goes_on(
    tmp_path: Path, calls: Calls, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("rlhf_lightning.reproduce.page.figures", lambda outcome: [])  # they have tests of their own
    calls.failing = ("small-s2",)
    status = main(
        [str(NUMBERS[name]) for name in ("whole-rankings", "small-over-large")]
        + ["--seeds", "1,2,3", "--jobs", "1", "--runs", str(tmp_path), "--report", str(tmp_path / "report")]
    )
    output = capsys.readouterr().out
    assert status == 1
    assert "small-s2: failed" in output
    assert "ValueError: it broke" in output
    assert "pairs-s2: not started, small-s2 failed" in output
    assert "3 jobs failed or could not be started: small-s2, whole-s2, pairs-s2" in output
    models = [f"{size}-s{seed}" for seed in (1, 2, 3) for size in ("medium", "small", "large")]
    assert calls.started == [*models, "whole-s1", "pairs-s1", "whole-s3", "pairs-s3"]
    assert (tmp_path / "report" / "claims.html").exists()


def test_an_interruption_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Children, "run", interrupted)
    assert main([str(NUMBERS["whole-rankings"]), "--jobs", "2", "--runs", str(tmp_path)]) == 130
    assert "stopped by Ctrl-C, and so are its jobs; the same command goes on" in capsys.readouterr().out


def test_the_plan_runs_nothing_and_shows_times(
    tmp_path: Path, calls: Calls, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    write_runs(tmp_path, kinds={"small"}, seeds=(1,))
    assert main(["--plan", str(NUMBERS["whole-rankings"]), "--seeds", "1,2", "--runs", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert calls.started == []
    assert "8 jobs, 1 complete" in output
    row = next(line for line in output.splitlines() if "small-s1" in line)
    assert "complete" in row
    assert "60 s" in row
    assert "~" in next(line for line in output.splitlines() if "pairs-s2" in line)


def test_a_half_done_job_shows_what_it_has(tmp_path: Path) -> None:
    job = jobs((1,))[0]
    write_job(tmp_path, job)
    (tmp_path / job.name / "evaluate" / "stage.json").unlink()
    assert "sft, ppo_init, collect, reward, ppo, ppo_ptx complete" in printed(
        plan_table([job], tmp_path, {"small": [1]})
    )


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["99"], "'99' is no claim"),
        (["x"], "'x' is no claim"),
        (["--seeds", "1,b"], "is no list of seeds"),
        (["--jobs", "0"], "is no number of jobs"),
    ],
)
def test_wrong_arguments_are_refused(arguments: list[str], fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert fault in capsys.readouterr().err
