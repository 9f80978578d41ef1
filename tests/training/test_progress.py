"""The figures beside the bar are read in 120 columns."""

import io

from rich.console import Console

from rlhf_lightning.training.heartbeat import Heartbeat
from rlhf_lightning.training.progress import _figures, progress_bar

METRICS = {
    "rollout/score": -0.12345,
    "rollout/kl": 12.3456,
    "rollout/ended": 0.87654,
    "rollout/length": 128.456,
    "update/ptx_loss": 3.45678,
    "time/rollout_seconds": 12.0,
    "time/rollout_tokens_per_second": 12345.6,
    "time/update_seconds": 9.0,
    "time/update_tokens_per_second": 2345.6,
}


def test_the_figures_of_ppo_fit_into_120_columns() -> None:
    console = Console(file=io.StringIO(), width=120)
    with progress_bar(Heartbeat(console), "ppo_ptx", 1000) as (bar, task):
        bar.update(task, completed=1000, figures=_figures(METRICS, console.width))
    assert isinstance(console.file, io.StringIO)
    (line,) = console.file.getvalue().splitlines()
    assert line.endswith("score -0.123  KL 12.3  ended 0.877  len 128  ptx 3.46  tok/s 12346")
    assert "ppo_ptx" in line
    assert "1000/1000" in line


def test_where_there_is_room_every_phase_has_its_time() -> None:
    shown = _figures(METRICS, 200)
    assert "rollout s 12  tok/s 12346  update s 9  update tok/s 2346" in shown
    assert _figures({"validation/loss": 1.25, "train/loss": 1.5}, 120) == "val. loss 1.25  loss 1.5"
