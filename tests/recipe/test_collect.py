from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from rlhf_lightning.data.records import Prompt
from rlhf_lightning.data.tokenize import Tokenization
from rlhf_lightning.recipe.collect import collect_comparisons
from rlhf_lightning.recipe.kept import KeptRankings
from rlhf_lightning.recipe.turns import turns

EOS, VOCABULARY = 1, 40


class Speaker(nn.Module):
    """Says one word out of those it knows, each as likely, and then ends."""

    def __init__(self, *words):
        super().__init__()
        self.words = nn.Parameter(torch.tensor(words), requires_grad=False)

    def forward(self, input_ids, attention_mask, position_ids):
        logits = torch.full((*input_ids.shape, VOCABULARY), -1e4)
        logits[..., self.words] = 0.0
        # Prompts have numbers below 20, words from 20 on: after a word comes the end.
        ends = torch.full_like(logits, -1e4)
        ends[..., EOS] = 0.0
        return torch.where((input_ids >= 20).unsqueeze(-1), ends, logits)


class Alphabetic:
    """Ranks by the word; equal where the words are next to each other in pairs, as w20 and w21 are."""

    def __init__(self, name="ann"):
        self.name, self.asked = name, []

    def rank(self, prompt, responses):
        self.asked.append((prompt, list(responses)))
        halves = [int(response[1:]) // 2 for response in responses]
        return [sorted(set(halves)).index(half) + 1 for half in halves]


MANY = range(20, 40)
PROMPTS = [Prompt(f"w{n}" + " w4" * (n % 3)) for n in range(5, 17)]


def collect(tokenizer, policies, prompts=PROMPTS, labelers=None, **options):
    tokenization = Tokenization(tokenizer, max_prompt_tokens=3, max_response_tokens=4)
    return collect_comparisons(policies, tokenization, prompts, labelers or [Alphabetic()], **options)


def test_k_is_drawn_from_its_range(tiny_tokenizer):
    comparisons, dropped = collect(
        tiny_tokenizer, {"one": Speaker(*MANY)}, PROMPTS * 5, min_responses=2, max_responses=4, rounds=9
    )
    assert dropped == {}
    counts = [len(record.completions) for record in comparisons]
    # 60 prompts, each K with probability 1/3: fewer than 8 of one would be a matter of 3 standard deviations.
    assert all(8 < counts.count(k) < 32 for k in (2, 3, 4))
    assert sum(counts.count(k) for k in (2, 3, 4)) == 60
    assert [record.prompt for record in comparisons] == [prompt.prompt for prompt in PROMPTS * 5]


def test_the_defaults_are_those_of_the_paper(tiny_tokenizer):
    comparisons, _ = collect(tiny_tokenizer, {"one": Speaker(*MANY)}, PROMPTS * 2, rounds=20)
    assert {len(record.completions) for record in comparisons} <= set(range(4, 10))


def test_identical_responses_count_once(tiny_tokenizer):
    comparisons, _ = collect(tiny_tokenizer, {"one": Speaker(20, 21, 22)}, min_responses=9, max_responses=9)
    assert len(comparisons) == 12
    for record in comparisons:
        assert sorted(record.completions) == ["w20", "w21", "w22"]


def test_what_cannot_be_ranked_is_dropped_and_counted(tiny_tokenizer):
    prompts = [*PROMPTS, Prompt("w3 w3 w3 w3")]
    comparisons, dropped = collect(tiny_tokenizer, {"one": Speaker(30)}, prompts)
    assert comparisons == []
    assert dropped == {"prompt too long": 1, "one distinct response": 12}


def test_empty_responses_are_none(tiny_tokenizer):
    comparisons, _ = collect(tiny_tokenizer, {"one": Speaker(EOS, 20, 21)}, min_responses=3, max_responses=3, rounds=20)
    assert all(sorted(record.completions) == ["w20", "w21"] for record in comparisons)
    assert len(comparisons) == 12


def test_labelers_rank_what_was_sampled(tiny_tokenizer):
    labelers = [Alphabetic("ann"), Alphabetic("bob")]
    comparisons, _ = collect(tiny_tokenizer, {"one": Speaker(20, 21, 25)}, labelers=labelers, rounds=20)
    asked = {labeler.name: iter(labeler.asked) for labeler in labelers}
    for record in comparisons:
        assert next(asked[record.labeler]) == (record.prompt, record.completions)
        assert dict(zip(record.completions, record.ranks, strict=True)) == {"w20": 1, "w21": 1, "w25": 2}
        assert record.source == "collected"
    assert {record.labeler for record in comparisons} == {"ann", "bob"}


def test_a_labeler_reads_a_conversation_as_text(tiny_tokenizer):
    tiny_tokenizer.chat_template = "{{ messages[0].content }} w9"
    labeler, prompt = Alphabetic(), Prompt([{"role": "user", "content": "w5"}])
    (record,), _ = collect(tiny_tokenizer, {"one": Speaker(*MANY)}, [prompt], [labeler])
    assert record.prompt == prompt.prompt
    assert labeler.asked[0][0] == "w5 w9"


def test_what_is_known_of_a_prompt_goes_into_its_ranking(tiny_tokenizer):
    prompts = [Prompt("w5", user="u7", labels={"use_case": "chat"}), Prompt("w6")]
    known, unknown = collect(tiny_tokenizer, {"one": Speaker(*MANY)}, prompts)[0]
    assert (known.user, known.labels) == ("u7", {"use_case": "chat"})
    assert (unknown.user, unknown.labels) == (None, None)


def test_the_seed_alone_decides(tiny_tokenizer, make_tiny_lm):
    policies = {"one": make_tiny_lm("gpt2", dtype=torch.float64), "two": make_tiny_lm("llama", dtype=torch.float64)}
    labelers = [Alphabetic(name) for name in "abc"]
    for labeler in labelers:
        labeler.rank = lambda prompt, responses: list(range(1, len(responses) + 1))

    def run(**options):
        finished = []
        result = collect(tiny_tokenizer, policies, labelers=labelers, progress=finished.append, **options)
        assert sum(finished) == len(PROMPTS)
        return result

    torch.manual_seed(1)
    expected = run(seed=3)
    assert len(expected[0]) == len(PROMPTS)
    torch.manual_seed(2)
    for batch_size in (1, 5, 256):
        assert run(seed=3, batch_size=batch_size) == expected
    assert run(seed=4) != expected


def test_policies_that_share_a_prompt(tiny_tokenizer):
    policies = {"low": Speaker(*range(20, 30)), "high": Speaker(*range(30, 40))}
    comparisons, _ = collect(tiny_tokenizer, policies, min_responses=4, max_responses=4, rounds=9)
    for record in comparisons:
        words = [int(text[1:]) for text in record.completions]
        assert len(words) == 4
        assert {word < 30 for word in words} == {True, False}


def test_batches_are_alike_and_even_in_number(tiny_tokenizer):
    policies, sizes = {"one": Speaker(*MANY)}, []

    def share(batches):
        sizes.extend(len(batch.prompts) for batch in batches)
        return [[None] * len(batch.prompts) for batch in batches]

    collect(tiny_tokenizer, policies, batch_size=10, share=share)
    assert sizes == [3, 3, 3, 3]  # five prompts ask for ten responses or more, and two processes shall have no rest


@pytest.mark.parametrize(("k", "first"), [(4, 2), (9, 5)])
def test_policies_take_turns(tiny_tokenizer, k, first):
    policies = {"low": Speaker(*range(20, 30)), "high": Speaker(*range(30, 40))}
    comparisons, _ = collect(tiny_tokenizer, policies, PROMPTS * 5, min_responses=k, max_responses=k, rounds=1)
    # One round, so that no response stands in for a second one of the same words.
    whole = [record.completions for record in comparisons if len(record.completions) == k]
    assert len(whole) > 3
    assert {sum(int(text[1:]) < 30 for text in completions) for completions in whole} == {first}


def test_policies_have_shares(tiny_tokenizer):
    """Mostly SFT and some PPO: of 9 responses a fifth is 1.8, so that a prompt has 1 or 2, and 5 of 9 never."""
    policies = {"sft": Speaker(*range(20, 30)), "ppo": Speaker(*range(30, 40))}
    options = {"min_responses": 9, "max_responses": 9, "rounds": 9}
    comparisons, _ = collect(tiny_tokenizer, policies, PROMPTS * 5, shares=[0.8, 0.2], **options)
    of_ppo = [sum(int(text[1:]) >= 30 for text in record.completions) for record in comparisons]
    assert set(of_ppo) == {1, 2}
    # 60 prompts with 2 by chance .8 and 1 by .2: 3 standard deviations are 9.3.
    assert abs(sum(of_ppo) - 60 * 1.8) < 9.3
    assert collect(tiny_tokenizer, policies, shares=[1, 1], **options) != collect(tiny_tokenizer, policies, **options)


@pytest.mark.parametrize("shares", [[0.8, 0.2], [3, 1, 1], [1.0]])
def test_over_many_prompts_shares_are_what_they_say(shares):
    drawn = [Counter(turns(len(shares), k, k, shares, f"{k}/{n}")) for k in (4, 5, 9) for n in range(2000)]
    for policy, share in enumerate(shares):
        exact = share / sum(shares)
        assert sum(each[policy] for each in drawn) / (2000 * (4 + 5 + 9)) == pytest.approx(exact, abs=0.005)
        for each in drawn:
            assert abs(each[policy] - exact * each.total()) < 1


def test_every_policy_needs_a_share(tiny_tokenizer):
    policies = {"sft": Speaker(20, 21), "ppo": Speaker(30, 31)}
    with pytest.raises(ValueError, match=r"shares=\[1.0\] is not one for each of the policies \(sft, ppo\)"):
        collect(tiny_tokenizer, policies, shares=[1.0])
    with pytest.raises(ValueError, match="shares"):
        collect(tiny_tokenizer, policies, shares=[1.0, -1.0])


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (1, 4, "min_responses must be a whole number of at least 2, got 1"),
        (5, 4, "from min_responses=5 to max_responses=4"),
    ],
)
def test_k_out_of_range(tiny_tokenizer, low, high, said):
    with pytest.raises(ValueError, match=said):
        collect(tiny_tokenizer, {"one": Speaker(20)}, min_responses=low, max_responses=high)


@pytest.mark.parametrize(("policies", "labelers"), [({}, [Alphabetic()]), ({"one": Speaker(20)}, [])])
def test_nobody_to_ask(tiny_tokenizer, policies, labelers):
    with pytest.raises(ValueError, match="at least one policy and one labeler"):
        collect_comparisons(policies, Tokenization(tiny_tokenizer), PROMPTS, labelers)


def test_a_labeler_needs_a_name_and_rank():
    from rlhf_lightning.labeling.labelers import Labeler

    assert isinstance(Alphabetic(), Labeler)
    assert not isinstance(SimpleNamespace(name="ann"), Labeler)


THRICE = 3 * PROMPTS


class Interrupted(Alphabetic):
    """Is asked so many times, and then the process ends."""

    def __init__(self, times):
        super().__init__()
        self.times = times

    def rank(self, prompt, responses):
        if len(self.asked) == self.times:
            raise KeyboardInterrupt
        return super().rank(prompt, responses)


@pytest.mark.parametrize("torn", [False, True])
@pytest.mark.parametrize("words", [MANY, (20, 21)], ids=["many words", "some prompts are dropped"])
def test_what_was_ranked_is_not_asked_again(tiny_tokenizer, tmp_path, torn, words):
    options = {"min_responses": 2, "max_responses": 3, "batch_size": 5, "rounds": 1, "seed": 4}
    policies, file = {"one": Speaker(*words)}, tmp_path / "ranked.unfinished"
    whole = Alphabetic()
    expected = collect(tiny_tokenizer, policies, THRICE, [whole], **options)
    with pytest.raises(KeyboardInterrupt):
        collect(tiny_tokenizer, policies, THRICE, [Interrupted(12)], kept=KeptRankings(file, {"seed": 4}), **options)
    first = file.read_bytes()
    assert first.count(b"\n") >= 2
    if torn:
        file.write_bytes(first + first[-50:-1])
    again, kept = Alphabetic(), KeptRankings(file, {"seed": 4})
    finished = []
    found = collect(tiny_tokenizer, policies, THRICE, [again], kept=kept, progress=finished.append, **options)
    assert found == expected
    assert found[1].get("one distinct response", 0) == len(THRICE) - len(whole.asked)
    assert 0 < len(again.asked) < len(whole.asked)
    assert sum(finished) == len(THRICE)
