"""Sweeps: a job that fails stops no other, is named in the closing table, and the exit code is 1."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from command import rlhf
from hydra.types import RunMode

from rlhf_lightning.cli.sweep import SweepSummary, runs_of


@pytest.mark.parametrize("keep_going", [True, False])
def test_a_job_that_fails(keep_going, tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    swept = ["-m", "stages=[pretrain]", "sft.fit.epochs=1,0,2", f"keep_going={str(keep_going).lower()}"]
    said = rlhf(swept, here)
    assert said.code == 1
    assert said.text.count("skipped: ") == (2 if keep_going else 1)
    assert said.text.count("sft.fit.epochs must be a whole number of at least 1, got 0") == (2 if keep_going else 1)
    assert ("1 of 3 jobs failed" in said.text) == keep_going
    assert "Traceback" not in said.text


def test_a_sweep_that_goes_well_ends_with_0(tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    assert rlhf(["-m", "stages=[pretrain]", "seed=1,2"], here).code == 0


def test_a_sweep_that_waits_for_people_says_so_and_ends_with_3(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "60")
    summary = SweepSummary()
    summary.numbers = {0: "seed=1", 1: "seed=2"}
    monkeypatch.setattr(SweepSummary, "waiting", {1: "open /a/folder/whose/name/is/longer/than/the/table/is/wide"})
    with pytest.raises(SystemExit) as stop:
        summary.on_multirun_end(None)
    said = capsys.readouterr().out
    assert stop.value.code == 3
    assert "1 of 2 jobs wait for people" in said
    assert "pooled" not in said
    assert "wide" in said  # nothing is cut off


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
