import pytest

from rlhf_lightning.evaluation.intervals import first_places
from rlhf_lightning.evaluation.ranking import ranking_results


def test_accuracy_by_hand():
    results = ranking_results(
        completions=[["aa", "b", "cc"], ["long one", "x"], ["p", "q"]],
        ranks=[[1, 2, 2], [2, 1], [1, 1]],
        groups=["web", "book", "web"],
        scores=[[1.0, 0.0, 1.0], [3.0, 2.0], [9.0, 0.0]],
    )
    # web: 1 > 0 is right, 1 = 1 counts half; the pairs with equal ranks do not count. Longer: 2 > 1 right, 2 = 2 half.
    assert results["web"]["accuracy"]["value"] == 0.75
    assert results["web"]["longer_wins"]["value"] == 0.75
    assert (results["web"]["prompts"], results["web"]["pairs"]) == (1, 2)
    # book: the worse has the higher score, and is the longer.
    # 0 of 1 by Wilson: 0 .. z^2 / (1 + z^2) with z^2 = 3.8415.
    assert results["book"]["accuracy"] == pytest.approx({"value": 0.0, "low": 0.0, "high": 3.8415 / 4.8415}, abs=1e-5)
    assert results["book"]["longer_wins"]["value"] == 0.0
    assert results["all"]["accuracy"]["value"] == pytest.approx(1.5 / 3)
    assert (results["all"]["prompts"], results["all"]["pairs"]) == (2, 3)
    assert set(results) == {"web", "book", "all"}


def test_intervals_are_over_prompts():
    # 20 prompts of 6 pairs, all right or all wrong: a mean of 20 values, 1.96 * sqrt(0.25 / 20) on each side.
    signs = [1 if n % 2 else -1 for n in range(20)]
    results = ranking_results(
        [["a"] * 4] * 20, [[1, 2, 3, 4]] * 20, ["g"] * 20, [[-sign * rank for rank in range(4)] for sign in signs]
    )
    interval = results["all"]["accuracy"]
    assert interval["value"] == 0.5
    assert interval["high"] - interval["low"] == pytest.approx(2 * 1.96 * 0.1118, rel=0.15)
    assert results["all"]["pairs"] == 120


def test_rankings_of_one_prompt_are_one_cluster():
    """Ten rankings of each of 20 prompts are 20 prompts, not 200."""
    signs = [1 if n // 10 % 2 else -1 for n in range(200)]
    rows = [["a", "b"]] * 200, [[1, 2]] * 200, ["g"] * 200, [[sign * 1.0, 0.0] for sign in signs]
    apart, together = ranking_results(*rows), ranking_results(*rows, first_places([n // 10 for n in range(200)]))
    assert (apart["all"]["prompts"], together["all"]["prompts"]) == (200, 20)
    widths = [found["all"]["accuracy"]["high"] - found["all"]["accuracy"]["low"] for found in (apart, together)]
    assert widths[1] / widths[0] == pytest.approx(10**0.5, rel=0.1)


def test_the_order_of_completions_does_not_matter():
    texts, ranks, scores = ["a", "bb", "ccc"], [2, 1, 3], [0.5, 0.25, -1.0]
    turned = ranking_results([texts[::-1]], [ranks[::-1]], ["g"], [scores[::-1]])
    assert turned == ranking_results([texts], [ranks], ["g"], [scores])
    assert turned["g"]["accuracy"]["value"] == pytest.approx(2 / 3)
    assert turned["g"]["longer_wins"]["value"] == pytest.approx(1 / 3)


def test_nothing_but_ties_gives_no_result():
    assert ranking_results([["a", "b"]], [[1, 1]], ["g"], [[1.0, 2.0]]) == {}


def test_longer_wins_of_the_whole_text_and_of_what_the_model_reads():
    """Cut to four letters the first pair is level, and the second turns round."""
    whole, read = [["aaaaaaaa", "bbbbb"], ["c", "dddddd"]], [["aaaa", "bbbb"], ["cc", "d"]]
    found = ranking_results(whole, [[1, 2], [1, 2]], ["g", "g"], [[1.0, 0.0]] * 2, read=read)["all"]
    assert found["longer_wins"]["value"] == 0.5
    assert found["longer_read_wins"]["value"] == 0.75
