"""Sweeps: a job that fails stops no other, is named in the closing table, and the exit code is 1."""

from dataclasses import replace
from enum import Enum
from pathlib import Path
from types import SimpleNamespace

import pytest
from command import rlhf
from hydra.types import RunMode
from omegaconf import OmegaConf

from rlhf_lightning.cli.sweep import SweepSummary, record_job, runs_of
from rlhf_lightning.cli.sweep_checks import check_alone, check_objectives, check_study
from rlhf_lightning.runs.errors import PipelineError
from rlhf_lightning.runs.jobs import BEGUN, COMPLETE, FAILED, WAITS, Job, jobs_below


@pytest.mark.parametrize("keep_going", [True, False])
def test_a_job_that_fails(keep_going, tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    swept = ["-m", "stages=[pretrain]", "trainer.devices=1,2,[0]", f"keep_going={str(keep_going).lower()}"]
    said = rlhf(swept, here)
    assert said.code == 1
    assert said.text.count("skipped: ") == (2 if keep_going else 1)
    assert said.text.count("trainer.devices=2 cannot be used in a multirun") == (2 if keep_going else 1)
    assert ("1 of 3 jobs failed" in said.text) == keep_going
    assert "Traceback" not in said.text
    jobs = {job.overrides["trainer.devices"]: job for job in jobs_below(here / "runs")}
    assert {value: job.state for value, job in jobs.items()} == {"1": COMPLETE, "2": FAILED} | (
        {"[0]": COMPLETE} if keep_going else {}
    )
    assert "trainer.devices=2 cannot" in jobs["2"].said


@pytest.mark.parametrize(
    ("arguments", "sentences"),
    [
        (["ppo.module.kl_coef=0.1,-3", "seed=1,2,oops"], ["kl_coef must be a number of at least 0, got -3", "oops"]),
        (["sft.fit.epochs=0", "seed=1,2"], ["sft.fit.epochs must be a whole number of at least 1, got 0"]),
        (["sweep=kl", "seed=1,-2"], ["seed must be a whole number in [0, 4294967295], got -2"]),
        (["shared=[colect]", "seed=1,2"], ["shared names colect; the stages are check,", "Did you mean collect?"]),
    ],
)
def test_values_that_no_job_could_use_are_said_once_before_all_jobs(arguments, sentences, tmp_path):
    said = rlhf(["-m", "stages=[sft,ppo]", *arguments], tmp_path)
    assert said.code == 1
    assert [said.text.count(sentence) for sentence in sentences] == [1] * len(sentences)
    assert "Launching" not in said.text
    assert not (tmp_path / "runs").exists()


def test_a_sweep_that_goes_well_ends_with_0(tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    assert (
        rlhf(["-m", "stages=[pretrain]", "seed=1,2", "tags=[job-${hydra:job.num}]", "run=n${hydra:job.num}"], here).code
        == 0
    )
    assert {path.name[:2] for path in (here / "runs").glob("n*")} == {"n0", "n1"}
    assert all(job.sweep for job in jobs_below(here / "runs"))


def test_jobs_that_differ_in_what_names_leave_out_have_folders_of_their_own(tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    assert rlhf(["-m", "stages=[pretrain]", "tags=[a],[b]", "keep_going=true,false"], here).code == 0
    jobs = jobs_below(here / "runs")
    assert len(jobs) == 4
    assert {(job.overrides["tags"], job.overrides["keep_going"]) for job in jobs} == {
        (tag, going) for tag in ("[a]", "[b]") for going in ("True", "False")
    }


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["sweep=seeds"], "seeds is for a multirun. Start it with -m"),
        (["shared=[sft]"], "shared=[sft] is for a multirun. Start it with -m"),
        (["-m", "experiment=demo", "sweep=kl,ptx"], "sweep: a multirun is one study. Start one after the other."),
        (["-m", "run=a/b/c", "seed=1,2"], "Use one slash at most."),
        (["-m", "run=1.5", "seed=1,2"], "run must be text, got 1.5; quote it"),
        (["-m", "ppo.module.kl_coeff=0.01,0.2"], "kl_coeff=0.01 is no setting; did you mean ppo.module.kl_coef?"),
        (["-m", "hydra.sweeper.max_batch=1"], "is no setting; did you mean hydra.sweeper.max_batch_size?"),
        (["-m", "hydra.sweeper.parms.seed=1"], "hydra.sweeper.parms is no setting; did you mean hydra.sweeper.params?"),
        (["-m", "sweep=seeds", "+hydra.sweeper.params.sede='1,2'"], "is no setting; did you mean seed?"),
        (["-m", "seed=interval(1,2)"], "an interval is for a sweeper that draws from it, such as that of"),
        (["-m", "hydra.job.foo=1", "seed=1,2"], "hydra.job.foo is not there; hydra.job has name, chdir,"),
        (["-m", "sft.fit.epochs=1,interval(1,2)"], "epochs=1,interval(1,2): a sweep has either values or one interval"),
        (["-m", "shared=[sfft]", "seed=1,2"], "shared names sfft; the stages are check,"),
        (["-m", "stages=[sft]", "shared=[sft]", "seed=1,2", "keep_going=false"], "would measure nothing of its own"),
        (["-m", "shared=[sft]", "rounds=2", "seed=1,2", "keep_going=false"], "Set shared=[] or rounds=1"),
        (
            ["-m", "experiment=demo", "sweep=minibatch", "minibatch=8,256", "seed=1"],
            "ppo.module.num_minibatches: 128 / 256 is 0.5, no whole number of at least 1. Mend what it refers to.",
        ),
    ],
)
def test_what_a_sweep_does_not_share_is_refused(arguments, sentence, tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    said = rlhf(arguments, here)
    assert said.code == 1
    assert sentence in said.text
    assert not [*here.glob("runs/*/sft")]


def test_a_sweep_ends_with_the_first_job_that_lacks_what_is_optimized(tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    small = ["stages=[sft]", "model.size=small", "data.source.demonstrations=24", "data.source.validation=8"]
    said = rlhf(["-m", *small, "sft.fit.epochs=1", "optimized_metric=sft.nothing", "seed=1,2"], here)
    assert said.code == 1
    assert "'nothing' is not in ['train/loss'" in said.text
    (job,) = jobs_below(here / "runs")
    assert (job.overrides["seed"], job.state) == ("1", FAILED)
    assert (job.folder / "sft" / "model").is_dir()


def test_a_sweep_is_started_once():
    check_alone({"SLURM_STEP_ID": "0", "SLURM_NTASKS": "1"})
    with pytest.raises(PipelineError, match="2 processes run this command, and each would start the whole sweep"):
        check_alone({"WORLD_SIZE": "2"})


def test_nothing_that_goes_wrong_before_the_first_job_is_only_a_warning(capsys):
    with pytest.raises(SystemExit) as stop:
        SweepSummary().on_multirun_start(OmegaConf.create({"hydra": None}))
    assert stop.value.code == 1
    assert "AttributeError" in capsys.readouterr().err


Direction = Enum("Direction", ["minimize", "maximize"])


@pytest.mark.parametrize(
    ("metrics", "direction", "sentence"),
    [
        (None, "maximize", "optimizes 1 number .*, and optimized_metric names 0"),
        ("a.b", ["maximize", "minimize"], "optimizes 2 numbers .*, and optimized_metric names 1"),
        (["a.b", "c.d"], "minimize", "optimizes 1 number .*, and optimized_metric names 2"),
        ("a.b", Direction.minimize, "would minimize optimized_metric=a.b. Say which is wanted"),
        ("b.d", "maximize", "optimized_metric=b.d: no such step runs; stages has a, c."),
        (["a.b", "c.d"], ["maximize", "minimize"], None),
        ("a.b", "maximize", None),
    ],
)
def test_a_sweeper_and_the_metrics_agree_before_the_first_job(metrics, direction, sentence):
    sweeper = {"_target_": "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper", "direction": direction}
    config = {"hydra": {"sweeper": sweeper, "runtime": {"choices": {"hydra/sweeper": "optuna"}}}}
    config["hydra"]["overrides"] = {"task": []}
    created = OmegaConf.create({**config, "optimized_metric": metrics, "stages": ["a", "c"]})
    if sentence is None:
        check_objectives(created)
    else:
        with pytest.raises(PipelineError, match=sentence):
            check_objectives(created)


def test_a_sweep_that_waits_for_people_says_so_and_ends_with_3(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("COLUMNS", "60")
    summary = SweepSummary()
    summary.id = "mine"
    said = {
        "seed=1": (COMPLETE, ""),
        "seed=2": (WAITS, "open /a/folder/whose/name/is/longer/than/the/table/is/wide"),
        "seed=3": (BEGUN, ""),
    }
    for number, (name, (state, why)) in enumerate(said.items()):
        Job("mine", number, "run", "", name, state=state, said=why, folder=tmp_path / f"run.{name}").write()
    Job("other", 0, "run", "", "seed=4", state=FAILED, said="of another sweep", folder=tmp_path / "run.seed=4").write()
    with pytest.raises(SystemExit) as stop:
        summary.on_multirun_end(OmegaConf.create({"run": "run", "paths": {"runs": str(tmp_path)}}))
    said = capsys.readouterr().out
    assert stop.value.code == 3
    assert "1 of 3 jobs wait for people" in said
    assert "1 of 3 jobs were not finished" in said
    assert "wide" in said  # nothing is cut off
    assert "another" not in said


def test_a_record_that_cannot_be_written_is_kept_beside_the_runs(tmp_path):
    own = {"override_dirname": "seed=1", "num": 0}
    composed = {"mode": RunMode.MULTIRUN, "job": own, "overrides": {"task": ["seed=1"]}, "runtime": {"choices": {}}}
    hydra_config = OmegaConf.create({"hydra": composed})
    config = OmegaConf.create({"run": "mine", "upstream": None, "paths": {"runs": str(tmp_path)}, "plan": False})
    (tmp_path / "mine.seed=1").touch()
    with pytest.raises(PipelineError, match=r"mine\.seed=1 cannot be written"):
        record_job(config, hydra_config, BEGUN)
    record_job(config, hydra_config, FAILED, "There is no room.")
    assert [(job.name, job.state, job.said) for job in jobs_below(tmp_path)] == [
        ("seed=1", FAILED, "There is no room.")
    ]
    (tmp_path / "mine.seed=1").unlink()
    record_job(config, hydra_config, COMPLETE)
    assert [(job.folder.name, job.state) for job in jobs_below(tmp_path)] == [("mine.seed=1", COMPLETE)]


def test_a_job_that_another_sweep_makes_fails_this_one_and_leaves_its_record_alone(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("RLHF_SWEEP", "mine")
    own = {"override_dirname": "seed=1", "num": 0}
    composed = {"mode": RunMode.MULTIRUN, "job": own, "overrides": {"task": ["seed=1"]}, "runtime": {"choices": {}}}
    hydra_config = OmegaConf.create({"hydra": composed})
    config = OmegaConf.create({"run": "mine", "upstream": None, "paths": {"runs": str(tmp_path)}, "plan": False})
    record_job(config, hydra_config, COMPLETE)
    record_job(config, hydra_config, FAILED, "It is being made by process 7.")
    (job,) = jobs_below(tmp_path)
    assert (job.state, job.reached) == (FAILED, True)
    for changed in ({"stages": ["sft", "ppo"]}, {"rounds": 2}, {"overwrite": True}):  # it has not reached that
        record_job(OmegaConf.create({**config, **changed}), hydra_config, BEGUN)
        assert not jobs_below(tmp_path)[0].reached
        job.write()
    replace(job, sweep="another", state=COMPLETE).write()
    summary = SweepSummary()
    summary.id = "mine"
    with pytest.raises(SystemExit) as ended:
        summary.on_multirun_end(config)
    assert ended.value.code == 1
    assert "It is being made by process 7." in capsys.readouterr().out


@pytest.mark.slow
def test_jobs_whose_records_cannot_be_written_are_failed_ones_and_the_others_go_on(tmp_path):
    here = tmp_path / "here"
    (here / "runs" / "default.seed=1" / "job.json.unfinished").mkdir(parents=True)
    (here / "runs" / "default.seed=2").touch()
    said = rlhf(["-m", "stages=[pretrain]", "seed=1,2,3"], here)
    assert said.code == 1
    assert said.text.count("skipped: ") == 1
    assert "2 of 3 jobs failed" in said.text
    jobs = {job.name: job for job in jobs_below(here / "runs") if job.sweep}
    assert {name: job.state for name, job in jobs.items()} == {"seed=1": FAILED, "seed=2": FAILED, "seed=3": COMPLETE}
    assert "job.json" in jobs["seed=1"].said
    assert "default.seed=2" in jobs["seed=2"].said


@pytest.mark.slow
def test_a_step_that_jobs_share_is_shown_like_their_own(tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    small = ["evaluate.policies=[base]", "evaluate.baseline=base", "evaluate.reference=base", "evaluate.num_prompts=4"]
    said = rlhf(["-m", "stages=[pretrain,evaluate]", "shared=[evaluate]", *small, "seed=1"], here)
    assert said.code == 0, said.text
    assert "one sample each" in said.text


def test_two_studies_at_once_are_refused():
    both = {"sweep": "kl", "hparams_search": "tax"}
    for choices in ({"sweep": "kl"}, {"sweep": None, "hparams_search": "tax"}):
        check_study(OmegaConf.create({"run": "a", "hydra": {"runtime": {"choices": choices}}}))
    with pytest.raises(PipelineError, match="sweep=kl and hparams_search=tax both say what jobs differ in"):
        check_study(OmegaConf.create({"run": "a", "hydra": {"runtime": {"choices": both}}}))


@pytest.mark.parametrize("state", [BEGUN, None])
def test_a_job_without_an_end_and_a_record_that_cannot_be_read_end_with_1(tmp_path, state):
    """An exception of a callback is a warning of Hydra's, and the status would be 0."""
    summary = SweepSummary()
    summary.id = "mine"
    Job("mine", 0, "run", "", "seed=1", state=state or COMPLETE, folder=tmp_path / "run.seed=1").write()
    if state is None:
        (tmp_path / "run.seed=1" / "job.json").write_text("{")
    with pytest.raises(SystemExit) as stop:
        summary.on_multirun_end(OmegaConf.create({"run": "run", "paths": {"runs": str(tmp_path)}}))
    assert stop.value.code == 1


def job(name: str, number: int = 0) -> SimpleNamespace:
    own = SimpleNamespace(mode=RunMode.MULTIRUN, job=SimpleNamespace(override_dirname=name, num=number))
    return SimpleNamespace(hydra=own)


def test_jobs_write_to_folders_of_their_own(tmp_path: Path):
    config = {"run": "base", "upstream": None, "paths": {"runs": str(tmp_path)}}
    names = ["model.path=a/b", "model.path=a_b", "model.path=a//b", "x" * 150, "x" * 151, "seed=1"]
    runs = [runs_of(config, job(name)) for name in names]
    assert len({each.run for each in runs}) == len(names)
    assert all(len(each.run) < 140 for each in runs)
    assert runs[-1].run == "base.seed=1"
    assert {each.upstream for each in runs} == {("base",)}
    assert runs_of(config, job("", 3)).run == "base.3"
