from hypothesis import given
from hypothesis import strategies as st

from rlhf_lightning.curation.overlap import EvaluationOverlap

WORDS = [f"w{number}" for number in range(30)]


def test_a_run_of_words_is_found_whatever_stands_around_it():
    overlap = EvaluationOverlap(words=5)
    overlap.add("What is the capital of France, and why?")
    assert overlap("please tell me: what is THE capital of spain")
    assert not overlap("what is the largest capital of france")
    assert overlap("... of France and why? the capital of france and why")


def test_the_length_of_a_run_counts():
    overlap = EvaluationOverlap(words=13)
    overlap.add(" ".join(WORDS[:20]))
    assert overlap(" ".join(["x", *WORDS[4:17], "y"]))
    assert not overlap(" ".join(["x", *WORDS[4:16], "y"]))


def test_short_prompts_are_compared_whole():
    overlap = EvaluationOverlap(words=13)
    overlap.add("What is 2 + 3?")
    assert overlap("what is 2 + 3 ?")
    assert not overlap("what is 2 + 3 + 4 ?")
    assert not overlap("what is 2")


def test_scripts_without_spaces_are_compared_by_characters():
    overlap = EvaluationOverlap(words=5)
    overlap.add("法国的首都是什么城市 请说明理由。")
    assert overlap("请回答:法国的首都是什么城市。")
    assert not overlap("德国的首都是什么城市。")  # nine characters are shared, ten are a run
    # A word among them weighs as much as two.
    overlap.add("iPhone 的电池容量是多少毫安")
    assert overlap("告诉我 iPhone 的电池容量是多少")
    assert not overlap("告诉我手机的电池容量是多少")
    thai = "เมืองหลวงของประเทศฝรั่งเศสคือเมืองอะไร"
    overlap.add(thai)
    assert overlap("ช่วยบอกที " + thai[4:30])
    assert not overlap(thai[:9] + "ก")


def test_nothing_overlaps_with_nothing():
    overlap = EvaluationOverlap()
    assert not overlap
    assert not overlap("")
    overlap.add("one")
    assert overlap("one")
    overlap.add("two")
    assert overlap("one")
    assert overlap("two")
    assert not overlap("")
    assert overlap


def test_signs_alone_overlap_with_nothing():
    overlap = EvaluationOverlap()
    overlap.add("???")
    assert not overlap("???")


@given(st.lists(st.sampled_from(WORDS), max_size=8), st.lists(st.sampled_from(WORDS), max_size=8), st.integers(1, 4))
def test_as_the_comparison_of_all_runs(first, second, length):
    overlap = EvaluationOverlap(length)
    overlap.add(" ".join(first))

    def runs(words):
        whole = {tuple(words)} if words else set()
        return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)} if len(words) >= length else whole

    assert overlap(" ".join(second)) == bool(runs(first) & runs(second))
