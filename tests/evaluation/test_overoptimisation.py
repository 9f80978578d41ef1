"""The warning that a judge falls while the reward rises, on planted series, and which validation is the best."""

import pytest

from rlhf_lightning.evaluation.overoptimisation import Overoptimisation

PROMPTS = 40
SPREAD = [0.1 * (n % 5 - 2) for n in range(PROMPTS)]
"""Of mean 0."""


def series(scores: list[float], judged: list[float] | None) -> tuple[Overoptimisation, list[bool], list[bool]]:
    """Every prompt has the mean of its validation, and what is its own: the difference has no width."""
    watch = Overoptimisation(range(PROMPTS))
    best, warned = [], []
    for number, score in enumerate(scores):
        found = {"score": [score + own for own in SPREAD]}
        if judged is not None:
            found["judge"] = [judged[number] + own for own in SPREAD]
        best.append(watch.add(10 * (number + 1), found))
        warned.append(watch.warns)
    return watch, best, warned


@pytest.mark.parametrize(
    ("scores", "judged", "best", "warned"),
    [
        ([0, 1, 2, 3], [0, 1, 2, 3], "TTTT", "...."),
        ([0, 1, 2, 3], [0, 1, 0.9, 0.8], "TT..", "...W"),  # the second one that is lower says so
        ([0, 1, 2, 3, 4], [0, 1, 0.9, 1.1, 1.0], "TT.T.", "....."),  # one alone is chance
        ([0, 1, 0.9, 0.8], [0, 1, 0.9, 0.8], "TT..", "...."),  # both fall: that is no over-optimisation
        ([0, 1, 2, 0.5, 2], [0, 1, 0.9, 0.8, 0.9], "TT...", "....."),
        ([0, 1, 2, 3], [0, 1, 1, 1], "TT..", "...."),
        ([0, 1, 0.5, 2], None, "TT.T", "...."),
    ],
)
def test_planted_series(scores: list[float], judged: list[float] | None, best: str, warned: str) -> None:
    _, found, said = series(scores, judged)
    assert ["T" if each else "." for each in found] == list(best)
    assert ["W" if each else "." for each in said] == list(warned)


def test_a_fall_within_chance_is_none() -> None:
    """The mean is 0.1 lower; of 40 prompts with a spread of 1 the interval of that is about 0.3 to either side."""
    watch = Overoptimisation(range(PROMPTS))
    watch.add(1, {"score": [0.0] * PROMPTS, "judge": [0.0] * PROMPTS})
    for iteration in (2, 3, 4):
        watch.add(iteration, {"score": [1.0] * PROMPTS, "judge": [-0.1 + (1 if n % 2 else -1) for n in range(PROMPTS)]})
    assert not watch.warns


def test_a_prompt_that_comes_again_is_no_further_evidence() -> None:
    """Four prompts, ten times each: three fall by 1 and one rises by 1, which is -0.5 and may well be chance."""
    fall = [-1.0, -1.0, -1.0, 1.0] * 10
    for clusters, expected in ((range(40), True), ([n % 4 for n in range(40)], False)):
        watch = Overoptimisation(clusters)
        watch.add(1, {"score": [0.0] * 40, "judge": [0.0] * 40})
        for iteration in (2, 3):
            watch.add(iteration, {"score": [1.0] * 40, "judge": fall})
        assert watch.warns is expected


def test_the_sentence_has_the_figures_and_the_remedy() -> None:
    watch, *_ = series([0, 1, 2, 3], [0, 1, 0.75, 0.5])
    said = watch.sentence("ppo_ptx")
    for words in ("from 1 after iteration 20 to 0.5", "from 1 to 3", "ppo_ptx.module.kl_coef", "ppo_ptx.keep=best"):
        assert words in said
