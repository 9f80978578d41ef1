"""Quick bootstraps."""

from functools import partial

import pytest


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """The differences in these tests are far wider than a short bootstrap is coarse."""
    from rlhf_lightning.reproduce import measure

    for name in ("pooled_interval", "pooled_ratio"):
        monkeypatch.setattr(measure, name, partial(getattr(measure, name), resamples=200))
