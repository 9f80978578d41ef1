"""`rlhf-sweep`: run folders become one table, means over seeds and a picture, whatever became of a job."""

import csv
import io
from dataclasses import replace
from pathlib import Path
from shutil import copytree, rmtree
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from pyarrow import parquet
from rich.console import Console

from rlhf_lightning.cli.sweep import print_jobs
from rlhf_lightning.cli.sweep_report import came_out, main
from rlhf_lightning.evaluation.sweep_figures import across, mean_rows, measure_label, shown
from rlhf_lightning.evaluation.sweep_measures import differences, measured, pooled, rows, varied
from rlhf_lightning.recipe.legend import legend_of
from rlhf_lightning.recipe.pipeline import RECIPE
from rlhf_lightning.runs.errors import PipelineError
from rlhf_lightning.runs.files import read_json, write_json
from rlhf_lightning.runs.jobs import COMPLETE, FAILED, UNFINISHED, Job, jobs_of

KL = "ppo.module.kl_coef"
LOSSES = {("0", "1"): 1.0, ("0", "2"): 1.2, ("0.1", "1"): 0.9, ("0.1", "2"): 0.9}
"""Of PPO on pretraining text, by KL coefficient and seed."""


def stage(metrics: dict) -> dict:
    known = {"git_commit": "abcdef0123", "date": "2026-11-27", "environment": {"device": "A CPU"}}
    return {"status": "complete", "identity": {}, "metrics": metrics, **known}


def finished(folder: Path, metrics: dict) -> None:
    folder.mkdir(parents=True)
    write_json(folder / "stage.json", stage(metrics))


def make_job(root: Path, number: int, kl: str, seed: str, study: str = "kl") -> Job:
    name = f"{KL}={kl},seed={seed}"
    job = Job("id", number, "mine", study, name, {KL: kl, "seed": seed}, folder=root / f"mine.{name}", state=COMPLETE)
    job.write()
    finished(job.folder / "ppo", {"rollout/kl": 2.0 if kl == "0" else 1.0, "time/flops": 5.0})
    policies = {"sft": {"pretrain_loss": 1.5}, "ppo": {"pretrain_loss": LOSSES[kl, seed]}}
    finished(job.folder / "evaluate", {"baseline": "sft", "policies": policies})
    shared = {"kl": [0.5, 0.5, 0.5], "lengths": [3.0, 4.0, 5.0], "responses": ["a", "b", "c"]}
    sft = {"scores": [0.0, 0.0, 2.0], **shared, "metadata": {"likert": [3.0, 3.0, 3.0]}}
    likert = [4.0, None, 6.0] if seed == "1" else [2.0, 2.0, 2.0]
    ppo = {
        "scores": [1.0, 0.0, 1.0],
        **shared,
        "metadata": {"likert": likert},
        "probes": {"qa": {"accuracy": [1.0, 1.0, 1.0, 0.0]}},
    }
    write_json(job.folder / "evaluate" / "samples.json", {"prompts": ["x", "y", "z"], "sft": sft, "ppo": ppo})
    return job


@pytest.fixture
def jobs(tmp_path: Path) -> list[Job]:
    for number, (kl, seed) in enumerate(LOSSES):
        make_job(tmp_path / "runs", number, kl, seed)
    failed = Job("id", 4, "mine", "kl", f"{KL}=2,seed=1", {KL: "2", "seed": "1"}, state=FAILED, said="It diverged.")
    replace(failed, folder=tmp_path / "runs" / "mine.2").write()
    stopped = Job("id", 5, "mine", "kl", f"{KL}=2,seed=2", {KL: "2", "seed": "2"}, folder=tmp_path / "runs" / "mine.3")
    stopped.write()
    finished(stopped.folder / "ppo", {"rollout/kl": 99.0})
    return jobs_of([tmp_path / "runs"])


def test_tasks_of_the_automatic_suite_have_their_panels(tmp_path: Path) -> None:
    for number, (kl, seed) in enumerate(LOSSES):
        job = make_job(tmp_path / "runs", number, kl, seed)
        whole = {"value": 0.25 * (number + 1), "low": 0.0, "high": 1.0}
        task = {"metric": "f1", **whole, "items": 4, "shots": 0, "further": {"exact_match": {**whole, "items": 4}}}
        finished(job.folder / "benchmarks", {"policies": {"ppo": {"drop@0": task}}})
    means = pooled(measured(jobs_of([tmp_path / "runs"]))[1])
    found = {each.settings[KL]: each.interval["value"] for each in means if each.measure == "benchmarks/drop@0/f1"}
    assert found == {"0": pytest.approx(0.375), "0.1": pytest.approx(0.875)}
    assert {"benchmarks/drop@0/f1", "benchmarks/drop@0/exact_match"} <= {*shown(means)}


def test_what_never_varies_within_a_prompt_is_no_share(tmp_path: Path) -> None:
    make_job(tmp_path / "runs", 0, "0", "2")
    (found,) = [
        each
        for each in pooled(measured(jobs_of([tmp_path / "runs"]))[1])
        if (each.policy, each.measure) == ("sft", "kl")
    ]
    assert found.interval == {"value": 0.5, "low": 0.5, "high": 0.5}


def test_means_over_seeds(jobs: list[Job]) -> None:
    _, found = measured(jobs)
    assert varied(found) == [KL, "seed"]
    means = {(each.settings[KL], each.policy, each.measure): each for each in pooled(found)}
    loss = means["0", "ppo", "pretrain_loss"]
    assert loss.seeds == 2
    # Student's interval of 1.0 and 1.2: the error of the mean is 0.1, and t with one degree of freedom 12.7062.
    assert loss.interval == pytest.approx({"value": 1.1, "low": 1.1 - 1.27062, "high": 1.1 + 1.27062}, abs=1e-5)
    assert means["0.1", "ppo", "pretrain_loss"].interval == pytest.approx({"value": 0.9, "low": 0.9, "high": 0.9})
    assert means["0", "ppo", "likert"].interval["value"] == pytest.approx((5 + 2) / 2)  # unknown ones left out
    assert means["0", "ppo", "win_rate"].interval["value"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert ("0", "sft", "win_rate") not in means  # it is what others are compared with
    assert means["0", "ppo", "probes/qa/accuracy"].interval["value"] == 0.75
    assert means["0", "ppo", "rollout/kl"].interval["value"] == 2.0
    assert means["0", "ppo", "likert"].made
    assert not means["0", "sft", "likert"].made  # every job has it from upstream
    assert {key for key in means if "flops" in key[2]} == set()
    assert across([*means.values()]) == (KL, ["0", "0.1"])
    assert shown([*means.values()]) == ["likert", "win_rate", "score", "pretrain_loss", "kl", "probes/qa/accuracy"]


def test_the_command_writes_table_picture_and_page(jobs: list[Job], tmp_path: Path, capsys) -> None:
    page, report = tmp_path / "page.md", tmp_path / "report"
    page.write_text("a\n<!-- came out: kl -->\nold\n<!-- end -->\nb\n<!-- came out: ptx -->\nstays\n<!-- end -->\n")
    main([str(tmp_path / "runs"), "--report", str(report), "--into", str(page)])
    with (report / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    table = parquet.read_table(report / "sweep.parquet").to_pylist()
    assert [{name: "" if value is None else str(value) for name, value in row.items()} for row in table] == rows
    assert {row["job"] for row in rows} == {job.folder.name for job in jobs}
    others = [(row["state"], row[KL], row["said"], row["value"]) for row in rows if row["state"] != COMPLETE]
    assert others == [("failed", "2.0", "It diverged.", ""), ("begun", "2.0", UNFINISHED, "")]
    (one,) = [row for row in table if row[KL] == 0 and row["seed"] == 1 and row["measure"] == "likert"][1:]
    assert (one["policy"], one["value"], one["count"]) == ("ppo", 5.0, 2)
    assert one["low"] < 5.0 < one["high"]
    picture = ElementTree.fromstring((report / "mine-kl.svg").read_text())
    assert "pretrain_loss: PPO 0 1.10 (\N{MINUS SIGN}0.17 .. 2.37); PPO 0.1 0.900." in picture.attrib["aria-label"]
    text = page.read_text()
    assert text.startswith(
        "a\n<!-- came out: kl -->\n\n4 of 6 jobs came to their end; run `mine`, seeds 1, 2; commit abcdef012, "
        "2026-11-27, A CPU;"
    )
    assert "old" not in text
    assert text.endswith("<!-- end -->\nb\n<!-- came out: ptx -->\nstays\n<!-- end -->\n")
    cells = {tuple(line.split(" | ")[:2]): line.split(" | ")[2:] for line in text.splitlines() if line.startswith("| ")}
    assert cells["| measure by kl_coef", "policy"][1].startswith("0.1")
    assert cells["| Likert score, 1 to 7", "PPO"][1].startswith("3.5 (")
    assert cells["| loss on pretraining text", "PPO"][1].startswith("0.900")
    said = capsys.readouterr().out
    assert "1 of 6 jobs failed" in said
    assert "1 of 6 jobs were not finished" in said


def test_settings_are_compared_over_the_same_seeds_and_prompts(jobs: list[Job], tmp_path: Path, capsys) -> None:
    """Seeds that differ much hide no difference that all of them have."""
    for number, job in enumerate(jobs[:4]):
        path = job.folder / "evaluate" / "samples.json"
        samples = read_json(path)
        seed, shift = 10.0 * int(job.overrides["seed"]), 0.5 * (job.overrides[KL] == "0.1")
        samples["ppo"]["metadata"]["likert"] = [seed + shift, None if number else 1.0, seed + 1 + shift]
        write_json(path, samples)
    found = measured(jobs)[1]
    (likert,) = [each for each in differences(found, {KL: "0"}) if (each.policy, each.measure) == ("ppo", "likert")]
    assert likert.settings == {KL: "0.1"}
    assert likert.interval == pytest.approx({"value": 0.5, "low": 0.5, "high": 0.5})
    assert likert.seeds == 2
    main([str(tmp_path / "runs"), "--report", str(tmp_path / "report"), "--against", "kl_coef=0.0"])
    text = (tmp_path / "report" / "mine-kl.md").read_text()
    assert f"Differences from `{KL}=0`, over the same seeds and prompts:" in text
    assert "| Likert score, 1 to 7 | PPO | 0.500 |" in text
    for wrong in ("kl_coef=7", "lr=0", "kl_coef"):
        with pytest.raises(SystemExit):
            main([str(tmp_path / "runs"), "--report", str(tmp_path / "report"), "--against", wrong])
        assert f"--against {wrong}: no study has that. They have {KL}=0, " in capsys.readouterr().err


def told(job: Job, step: str, *, seed: int, **identity: Any) -> None:
    """Write into a step what it was made from, as the pipeline does."""
    path = job.folder / step / "stage.json"
    write_json(path, {**read_json(path), "seed": seed, "identity": identity})


def test_jobs_of_other_settings_or_data_are_no_seeds_of_one_thing(jobs: list[Job], tmp_path: Path) -> None:
    root = tmp_path / "runs"
    for job in jobs[:4]:
        shared = f"mine.shared-{job.overrides['seed']}"
        if not (root / shared).exists():
            finished(root / shared / "sft", {})
        write_json(root / shared / "sft" / "stage.json", {**stage({}), "identity": {"config": {"sft": {"lr": 0.1}}}})
        replace(job, upstream=[shared]).write()
        told(job, "ppo", seed=int(job.overrides["seed"]), data="1234", config={"seed": 1, "ppo": {"lr": 1e-3}})
    alike = measured(jobs_of([root]))[1]
    assert varied(alike) == [KL, "seed"]
    told(jobs[0], "ppo", seed=1, data="1234", config={"seed": 1, "ppo": {"lr": 1e-2}})  # the YAML was changed
    found = measured(jobs_of([root]))[1]
    assert varied(found) == [KL, "ppo.lr", "seed"]
    assert {each.seeds for each in pooled(found) if each.settings[KL] == "0"} == {1}
    told(jobs[0], "ppo", seed=1, data="5678", config={"seed": 1, "ppo": {"lr": 1e-3}})  # the records were
    assert varied(measured(jobs_of([root]))[1]) == [KL, "data of ppo", "seed"]
    told(jobs[0], "ppo", seed=1, data="1234", config={"seed": 1, "ppo": {"lr": 1e-3}})
    other = {**stage({}), "identity": {"config": {"sft": {"lr": 0.2}}}}  # a step that was shared
    write_json(root / "mine.shared-1" / "sft" / "stage.json", other)
    assert varied(measured(jobs_of([root]))[1]) == [KL, "sft.lr", "seed"]


def test_trials_are_marked(jobs: list[Job], tmp_path: Path) -> None:
    note = "trainer.limit_train_batches=2: trials, whose figures say that the steps run, and no more."
    for limit in (1.0, 2):
        told(jobs[0], "ppo", seed=1, config={"trainer": {"limit_train_batches": limit}})
        known, found = measured(jobs)
        output = io.StringIO()
        print_jobs(jobs, Console(file=output, width=200))
        text = came_out(known, found, pooled(found), legend_of(RECIPE))
        assert [note in said for said in (text, " ".join(output.getvalue().split()))] == [limit == 2] * 2


def test_values_that_a_sweeper_drew_are_shown_with_few_digits(jobs: list[Job]) -> None:
    values = {"0": "0.0745219605846823", "0.1": "0.1691346467379803"}
    found = [replace(each, settings={**each.settings, KL: values[each.settings[KL]]}) for each in measured(jobs)[1]]
    assert mean_rows(pooled(found), legend_of(RECIPE))[0][2:] == ["0.07452", "0.1691"]
    near = {"0": "0.0745219605846823", "0.1": "0.0745219605846824"}
    found = [replace(each, settings={**each.settings, KL: near[each.settings[KL]]}) for each in measured(jobs)[1]]
    assert mean_rows(pooled(found), legend_of(RECIPE))[0][2:] == [*near.values()]


def test_a_seed_counts_once_also_where_it_was_left_at_its_default(jobs: list[Job], tmp_path: Path) -> None:
    first = next(job for job in jobs if (job.overrides.get(KL), job.overrides["seed"]) == ("0", "1"))
    again = copytree(first.folder, tmp_path / "runs" / "mine.again")
    replace(first, name=f"{KL}=0", overrides={KL: "0"}, folder=again).write()
    for job in jobs_of([tmp_path / "runs"]):
        if (job.folder / "ppo" / "stage.json").exists():
            told(job, "ppo", seed=int(job.overrides.get("seed", "1")))
    means = {(each.settings[KL], each.measure): each for each in pooled(measured(jobs_of([tmp_path / "runs"]))[1])}
    assert means["0", "rollout/kl"].seeds == 2


def test_every_run_of_a_study_has_its_place_and_files(jobs: list[Job], tmp_path: Path) -> None:
    job = jobs[0]
    for run, study in (("other", "kl"), ("mine-kl", "")):
        there = copytree(job.folder, tmp_path / "runs" / f"{run}.x")
        replace(job, run=run, study=study, folder=there).write()
    page, report = tmp_path / "page.md", tmp_path / "report"
    page.write_text("<!-- came out: kl -->\n<!-- end -->\n")
    main([str(tmp_path / "runs"), "--report", str(report), "--into", str(page)])
    assert page.read_text().count("jobs came to their end") == 2
    assert {path.name for path in report.iterdir()} == {
        *("sweep.csv", "sweep.parquet"),
        *(f"{name}.{end}" for name in ("mine-kl", "mine-kl_", "other-kl") for end in ("svg", "md")),
    }


def test_a_failed_job_has_its_settings_in_the_table(tmp_path: Path) -> None:
    for number, rate in enumerate(("1", "2")):
        job = Job("id", number, "mine", "", f"lr={rate}", {"lr": rate}, state=FAILED, said="nan")
        replace(job, folder=tmp_path / "runs" / f"mine.lr={rate}").write()
    assert [row["lr"] for row in rows(*measured(jobs_of([tmp_path / "runs"])))] == [1, 2]


@pytest.mark.parametrize("damage", [{"number": "3"}, {"overrides": None}, {"stages": 3}, {"reached": "yes"}])
def test_a_record_of_other_types_is_a_failed_job(jobs: list[Job], tmp_path: Path, damage: dict) -> None:
    path = jobs[0].folder / "job.json"
    write_json(path, read_json(path) | damage)
    (failed,) = [job for job in jobs_of([tmp_path / "runs"]) if job.folder == jobs[0].folder]
    assert failed.state == FAILED
    assert f"is no record of a job (its {next(iter(damage))} is" in failed.said


def test_a_report_that_is_no_folder_is_refused_first(jobs: list[Job], tmp_path: Path, capsys) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        main([str(tmp_path / "runs"), "--report", str(tmp_path / "file")])
    said = capsys.readouterr()
    assert "this is no folder" in said.err
    assert said.out == ""


def test_the_jobs_of_a_multirun_are_those_of_its_run_and_study(jobs: list[Job], tmp_path: Path) -> None:
    make_job(tmp_path / "runs" / "other", 0, "0", "1", study="ptx")
    path = tmp_path / "runs" / "multirun.yaml"
    path.write_text(yaml.safe_dump({"run": "mine", "hydra": {"runtime": {"choices": {"sweep": "kl"}}}}))
    assert jobs_of([path]) == jobs
    assert len(jobs_of([tmp_path / "runs"])) == len(jobs) + 1
    assert jobs_of([jobs[2].folder]) == [jobs[2]]
    path.write_text("a: b\n")
    with pytest.raises(PipelineError, match=r"no multirun\.yaml of a sweep"):
        jobs_of([path])
    with pytest.raises(PipelineError, match="there is no job of a sweep"):
        jobs_of([jobs[2].folder / "ppo"])


def test_records_that_cannot_be_read_are_failed_jobs_and_the_others_go_on(
    jobs: list[Job], tmp_path: Path, capsys
) -> None:
    write_json(jobs[0].folder / "job.json", {"sweep": "id", "what": 1})
    (jobs[1].folder / "evaluate" / "samples.json").write_text("{")
    (jobs[2].folder / "ppo" / "stage.json").write_text("{")
    main([str(tmp_path / "runs"), "--report", str(tmp_path / "report")])
    table = parquet.read_table(tmp_path / "report" / "sweep.parquet").to_pylist()
    failed = {row["job"]: row["said"] for row in table if row["state"] == FAILED}
    assert "job.json is no record of a job" in failed.pop(jobs[0].folder.name)
    assert "samples.json cannot be read" in failed.pop(jobs[1].folder.name)
    assert "stage.json is torn" in failed.pop(jobs[2].folder.name)
    assert [*failed.values()] == ["It diverged."]
    assert {row["job"] for row in table if row["state"] == COMPLETE} == {jobs[3].folder.name}
    assert "4 of 6 jobs failed" in capsys.readouterr().out


def test_the_table_at_the_end_of_a_sweep(jobs: list[Job], tmp_path: Path) -> None:
    output = io.StringIO()
    print_jobs(jobs, Console(file=output, width=80))
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.getvalue().splitlines()]
    assert "kl: 4 jobs, means over seeds" in output.getvalue()
    found = {tuple(line[:2]): line[2:] for line in lines if len(line) > 2}
    assert found["win rate against the baseline", "PPO"][1] == "0.500"
    assert found["score by the judge", "PPO"][1] == "0.667"
    assert found["loss on pretraining text", "PPO"][1] == "0.900"
    assert "…" not in output.getvalue(), "a narrow terminal shows every number"
    for job in jobs[:4]:
        rmtree(job.folder / "evaluate")
        write_json(job.folder / "ppo" / "stage.json", stage({"rollout/score": 0.5, "rollout/length": 10.0}))
    heads, rows = mean_rows(pooled(measured(jobs)[1]), legend_of(RECIPE))
    assert heads == ["measure by kl_coef", "policy", "0", "0.1"]
    assert rows == [["score of episodes", "PPO", "0.500", "0.500"], ["tokens of episodes", "PPO", "10.0", "10.0"]]


def test_what_further_judges_say_has_its_panels(tmp_path: Path) -> None:
    job = make_job(tmp_path / "runs", 0, "0", "1")
    path = job.folder / "evaluate" / "samples.json"
    samples = read_json(path)
    samples["sft"] |= {"judges": {"rule": [1.0, 1.0, 1.0]}, "likert": {"rule": [2.0, 2.0, 2.0]}}
    samples["ppo"] |= {"judges": {"rule": [2.0, 1.0, 2.0]}, "likert": {"rule": [4.0, 5.0, 6.0]}}
    samples["ppo"]["preferences"] = {"people": [1.0, None, 0.5]}
    write_json(path, samples)
    means = pooled(measured([job])[1])
    values = {each.measure: each.interval["value"] for each in means if each.policy == "ppo"}
    assert values["preferences/rule"] == pytest.approx((1 + 0.5 + 1) / 3)
    assert values["preferences/people"] == 0.75
    assert values["likert/rule"] == 5.0
    panels = ["likert/rule", "preferences/people", "preferences/rule"]
    assert [name for name in shown(means) if name in panels] == panels
    assert [measure_label(name) for name in panels] == [
        "Likert score by rule",
        "win rate by people",
        "win rate by rule",
    ]


def test_a_job_keeps_its_numbers_when_a_later_start_goes_wrong(jobs: list[Job], tmp_path: Path) -> None:
    first = next(job for job in jobs if (job.overrides[KL], job.overrides["seed"]) == ("0", "1"))
    replace(first, state=FAILED, said="a slip", reached=True).write()
    known, found = measured(jobs_of([tmp_path / "runs"]))
    assert len(found) == 4
    written = [row for row in rows(known, found) if row["job"] == first.folder.name]
    assert [row["said"] for row in written][:2] == ["a slip", ""]
    write_json(first.folder / "ppo" / "stage.json", {**stage({}), "status": "half-done"})
    assert len(measured(jobs_of([tmp_path / "runs"]))[1]) == 3


def test_the_same_job_in_two_folders_is_refused(jobs: list[Job], tmp_path: Path) -> None:
    (tmp_path / "moved").mkdir()
    replace(jobs[0], folder=tmp_path / "moved" / "other").write()
    with pytest.raises(PipelineError, match=r"are the same job .*, which would count twice"):
        jobs_of([tmp_path / "runs", tmp_path / "moved"])


def test_what_is_lacking_is_said(
    jobs: list[Job], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    page, runs = tmp_path / "page.md", tmp_path / "runs"
    page.write_text("<!-- came out: kl -->\n<!-- end -->\n")
    (runs / jobs[0].folder.name / "job.json").write_text("{")
    (runs / jobs[1].folder.name / "evaluate" / "samples.json").unlink()
    (runs / "mine.shared-12" / "sft").mkdir(parents=True)
    main([str(runs), str(runs / "mine.shared-12"), "--report", str(tmp_path / "report"), "--into", str(page)])
    text = page.read_text()
    assert "2 of 6 jobs came to their end; run `mine`, seeds 1, 2;" in text
    assert "samples.json" in capsys.readouterr().out
    page.write_text("<!-- came out: ptx -->\n<!-- end -->\n")
    with pytest.raises(SystemExit):
        main([str(runs), "--report", str(tmp_path / "report"), "--into", str(page)])
    assert "has no place for kl, and stays as it is there" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(runs), "--report", str(tmp_path / "report"), "--into", str(tmp_path / "none.md")])
    assert "there is no such page" in capsys.readouterr().err


def test_a_mean_over_fewer_seeds_says_so(jobs: list[Job], tmp_path: Path) -> None:
    rmtree(jobs[0].folder)
    _, found = measured(jobs_of([tmp_path / "runs"]))
    heads, lines = mean_rows(pooled(found), legend_of(RECIPE))
    place = heads.index("0")
    assert all(line[place].endswith(" (n = 1)") for line in lines)
    assert not any("n = " in line[place + 1] for line in lines)


def test_a_single_number_has_no_interval_in_the_table(jobs: list[Job]) -> None:
    known, found = measured(jobs)
    for row in rows(known, found):
        assert (row["low"] is None) == (row["value"] is None or row["count"] == 1), row
