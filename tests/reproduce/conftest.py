"""Quick bootstraps, and fingerprints without a configuration behind them."""

from functools import partial
from pathlib import Path

import pytest

from rlhf_lightning.reproduce import claim, measure, page, runner
from rlhf_lightning.reproduce.plan import Job


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """The differences in these tests are far wider than a short bootstrap is coarse."""
    monkeypatch.setattr(measure, "pooled_ratio", partial(measure.pooled_ratio, resamples=40))


@pytest.fixture(autouse=True)
def three_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough where seeds differ in nothing; it takes five outside of these tests."""
    assert claim.LEAST_SEEDS == page.LEAST_SEEDS == 5
    for module in (claim, page):
        monkeypatch.setattr(module, "LEAST_SEEDS", 3)


@pytest.fixture(autouse=True)
def plain_fingerprints(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Composing thirty configurations takes longer than these tests; those marked `real_fingerprints` do."""
    if "real_fingerprints" not in request.keywords:

        def plain(job: Job, stage: str, runs: Path) -> str:
            return " ".join((stage, *job.overrides))

        monkeypatch.setattr(runner, "fingerprint_of", plain)
