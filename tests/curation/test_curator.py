import json
import random
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlhf_lightning.curation.account import Account, KindAccount
from rlhf_lightning.curation.curator import Curator
from rlhf_lightning.curation.filters import LanguageFilter, PersonalFilter
from rlhf_lightning.curation.groups import SPLITS, GroupSplits
from rlhf_lightning.curation.thinning import Thinning
from rlhf_lightning.data.few_shot import few_shot_examples
from rlhf_lightning.data.records import Comparison, Demonstration, Prompt, RecordError, Text
from rlhf_lightning.data.rows.readers import SourceRow
from rlhf_lightning.data.tokenize import Tokenization


@pytest.fixture
def curate(tiny_tokenizer, tmp_path):
    """Curates records and returns what was written, what was dropped, and the books."""
    number = 0

    def call(records, few_shot=(), evaluation=(), malformed=None, *, shares=None, language=None, **thinning):
        nonlocal number
        number += 1
        folder = tmp_path / str(number)
        folder.mkdir()
        options = {"prefix_characters": 20, "most_per_group": 3, **thinning}
        curator = Curator(GroupSplits(shares=shares), PersonalFilter(), Thinning(**options), language, overlap_words=5)
        tokenization = Tokenization(tiny_tokenizer, 12, 4)
        account = curator.curate(
            records, tokenization, folder, few_shot=few_shot, evaluation=evaluation, malformed=malformed
        )
        kept = {
            path.name.removesuffix(".jsonl"): [json.loads(line) for line in path.read_text().splitlines()]
            for path in folder.glob("*.*.jsonl")
        }
        rows = [json.loads(line) for line in (folder / "dropped.jsonl").read_text().splitlines()]
        assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == []
        return kept, {row["place"]: row["reason"] for row in rows}, account

    return call


def test_every_reason_once(curate):
    texts = [
        "w3 w4 w5 w6 w7 w8 w9 w10",
        "W3  w4 w5 w6 w7 w8 w9 w10",  # a copy
        "w3 w4 w5 w6 w7 w8 w9 w11",  # the first 20 characters are those of the first
        "w4 w3 w5 w6 w7 w8 w9 w10",  # they are not
        "w5 jo@example.org",
        "w6 " * 13,
        "parlez vous",
        "w20 w21 w22 w23 w24 w25",
        "w30",
    ]
    users = ["a", "b", "c", "a", "d", "d", "d", "e", "f"]
    language = LanguageFilter(lambda text: "fr" if text.startswith("parlez") else "en", ["en"])
    rows = [Prompt(text, user=user) for text, user in zip(texts, users, strict=True)]
    # Personal data are looked for in training rows only.
    held_out = [Prompt("w1 w20 w21 w22 w23 w24", user="t"), Prompt("w2 jo@example.org", user="t")]
    kept, dropped, account = curate({"prompts": {"train": rows, "test": held_out}}, language=language)
    reasons = {int(place.split()[1]): reason for place, reason in dropped.items()}
    assert reasons.pop(7) == "in an evaluation prompt"
    assert reasons.pop(4) == "personal data"
    assert reasons.pop(5) == "prompt over 12 tokens"
    assert reasons.pop(6) == "another language"
    # One of the first three stays, which one is up to a hash.
    assert sorted(reasons.values()) in (["exact duplicate", "same beginning"], ["same beginning", "same beginning"])
    assert set(reasons) < {0, 1, 2}
    assert [row["prompt"] for row in kept["prompts.test"]] == [row.prompt for row in held_out]
    assert len(kept["prompts.train"]) == 3
    books = account.kinds["prompts"]
    assert (books.raw, books.added, books.kept) == (11, 0, {"train": 3, "test": 2})
    assert books.balanced
    assert books.languages == {"en": 8, "fr": 1}
    assert books.personal == {"email": 1}


def test_at_most_so_many_of_one_user(curate):
    rows = [Prompt(f"w{number} from {user}", user=user) for user in "ab" for number in range(5)]
    rows += [Prompt(f"w{number} from nobody") for number in range(5)] + [Prompt("w9 from c", user="c")]
    kept, dropped, _ = curate({"prompts": {"train": rows}})
    assert Counter(row["user"] for row in kept["prompts.train"]) == {"a": 3, "b": 3, None: 5, "c": 1}
    assert Counter(dropped.values()) == {"over 3 of one user": 4}


def test_a_copy_in_a_held_out_split_is_the_one_that_stays(curate):
    for user in "abcdefgh":
        rows = {"train": [Prompt("w3 w4", user=user)], "test": [Prompt("w3  W4", user="t")]}
        kept, dropped, _ = curate({"prompts": rows})
        assert kept["prompts.train"] == []
        assert dropped == {"prompts.train 0": "exact duplicate"}


def test_demonstrations_and_rankings_of_one_prompt_stay(curate):
    records = {
        "demonstrations": {"train": [Demonstration("w3", "w4"), Demonstration("w3", "w5"), Demonstration("W3", "w4")]},
        "comparisons": {
            "train": [
                Comparison("w3", ["w4", "w5"], [1, 2], labeler="a"),
                Comparison("w3", ["w4", "w5"], [1, 2], labeler="b"),
                Comparison("w3", ["w4", "w5"], [2, 1], labeler="a"),
                Comparison("w3", ["w4", "w5"], [1, 2], labeler="a"),
            ]
        },
    }
    kept, dropped, _ = curate(records)
    assert [len(kept[f"{kind}.train"]) for kind in records] == [2, 3]
    assert set(dropped.values()) == {"exact duplicate"}


def test_all_kinds_are_kept_from_what_the_test_split_asks(curate):
    asked = "w3 w4 w5 w6 w7 w8"
    records = {
        "demonstrations": {"train": [Demonstration(asked + " w9", "w4", user="l")]},
        "prompts": {"test": [Prompt(asked, user="t")]},
        "comparisons": {"train": [Comparison("w9 " + asked, ["w4", "w5"], [1, 2])]},
    }
    _, dropped, _ = curate(records)
    assert dropped == {
        "demonstrations.train 0": "in an evaluation prompt",
        "comparisons.train 0": "in an evaluation prompt",
    }
    records["prompts"] = {"train": [Prompt(asked, user="t")]}
    _, dropped, _ = curate(records)
    assert dropped == {}
    _, dropped, _ = curate(records, evaluation=[asked])
    assert len(dropped) == 3


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("kind", ["demonstrations", "prompts", "comparisons", "judge_comparisons"])
def test_what_any_kind_holds_out_is_in_no_training_row_of_another(curate, kind, split):
    asked = "w3 w4 w5 w6 w7 w8"

    def records(user, prompt, answer):
        ranking = Comparison(prompt, [answer, "w9"], [1, 2], user=user)
        return {
            "demonstrations": Demonstration(prompt, answer, user=user),
            "prompts": Prompt(prompt, user=user),
            "comparisons": ranking,
            "judge_comparisons": ranking,
        }

    given = {name: {"train": [record]} for name, record in records("a", f"w9 {asked}", "w5").items()}
    # Those that are held out may be dropped for another reason: too long, here.
    given[kind][split] = [records("t", asked + " w9" * 9, "w5")[kind]]
    given["text"] = {"train": [Text(f"w2 {asked.upper()}"), Text("w2 w3")], split: [Text(asked)]}
    kept, dropped, account = curate(given)
    overlapping = {f"{name}.train 0" for name in ("demonstrations", "prompts", "comparisons", "judge_comparisons")}
    assert {place for place, reason in dropped.items() if reason == "in an evaluation prompt"} == {
        *overlapping,
        "text.train 0",
    }
    assert dropped[f"{kind}.{split} 0"] == "prompt over 12 tokens"
    assert [row["text"] for row in kept["text.train"]] == ["w2 w3"]
    assert [row["text"] for row in kept[f"text.{split}"]] == [asked]
    assert all(books.balanced for books in account.kinds.values())


def test_responses_may_not_hold_what_is_held_out(curate):
    asked = "w3 w4 w5 w6"
    records = {
        "demonstrations": {"train": [Demonstration("w9", asked), Demonstration("w9", "w4")]},
        "comparisons": {"train": [Comparison("w8", ["w4", asked], [1, 2]), Comparison("w8", ["w4", "w5"], [1, 2])]},
    }
    _, dropped, _ = curate(
        records, evaluation=[[{"role": "user", "content": "W3 w4"}, {"role": "assistant", "content": "w5, w6"}]]
    )
    assert dropped == {
        "demonstrations.train 0": "in an evaluation prompt",
        "comparisons.train 0": "in an evaluation prompt",
    }


def test_rankings_for_the_judge_are_curated_as_others_are(curate):
    rankings = [Comparison("w3", ["w4", "jo@example.org"], [1, 2]), Comparison("w5", ["w4", "w6"], [1, 2], user="t")]
    held_out = {"test": [Prompt("w7", user="t")]}
    kept, dropped, _ = curate({"judge_comparisons": {"train": rankings}, "prompts": held_out})
    assert dropped == {"judge_comparisons.train 0": "personal data"}
    assert [row["prompt"] for row in kept["judge_comparisons.test"]] == ["w5"]


def test_blank_users_are_many_and_rankings_follow_their_user(curate):
    shares = {"train": 0.5, "test": 0.5}
    prompts = [Prompt(f"w{n} asked by nobody", user="") for n in range(3, 90)]
    rankings = [Comparison(f"w{n} ranked", ["w4", "w5"], [1, 2], user=f"u{n}") for n in range(3, 43)]
    asked = [Prompt(f"w{n} asked", user=f"u{n}") for n in range(3, 43)]
    kept, dropped, _ = curate(
        {"prompts": {"train": prompts + asked}, "comparisons": {"train": rankings}}, shares=shares
    )
    assert dropped == {}
    assert all(10 < sum(not row["user"] for row in kept[f"prompts.{split}"]) < 77 for split in shares)
    for split in shares:
        users = [{row["user"] for row in kept[f"{kind}.{split}"] if row["user"]} for kind in ("prompts", "comparisons")]
        assert users[0] == users[1]
        assert len(users[0]) > 5


def test_what_is_no_text_is_named(curate):
    chat = [{"role": role, "content": "w3"} for role in ("system", "user")]
    with pytest.raises(
        RecordError, match=r"^prompts.train 1: a prompt is a conversation, but the tokenizer has no chat"
    ):
        curate({"prompts": {"train": [Prompt("w3"), Prompt(chat)]}})


def test_books_that_do_not_balance_stop(curate):
    books = KindAccount(raw=2)
    books.kept["train"] = 1
    account = Account(GroupSplits())
    account.kinds["prompts"] = books
    with pytest.raises(RuntimeError, match=r"prompts do not balance: 2 read \+ 0 added are not 1 kept \+ 0 dropped"):
        account.check()


def test_few_shot_prompts_are_expanded_and_stay_together(curate):
    shares = {"train": 0.5, "test": 0.5}
    few_shot = [
        few_shot_examples(f"w{n}", [(f"w{n + 1} w{n + 2}", "w3"), (f"w{n + 3}", "w4"), ("w5", "w6")])
        for n in range(3, 23)
    ]
    kept, _, account = curate({"demonstrations": {"train": [Demonstration("w3", "w4")]}}, few_shot, shares=shares)
    books = account.kinds["demonstrations"]
    assert (books.raw, books.added, books.kept.total(), books.dropped.total()) == (21, 40, 61, 0)
    assert books.balanced
    for examples in few_shot:
        prompts = {example.prompt for example in examples}
        assert sum(any(row["prompt"] in prompts for row in kept[f"demonstrations.{split}"]) for split in SPLITS) == 1
    assert len(kept["demonstrations.test"]) > 3


def test_few_shot_prompts_need_no_other_demonstrations(curate):
    kept, _, account = curate({"prompts": {"train": [Prompt("w3")]}}, [few_shot_examples("w4", [("w5", "w6")])])
    assert [row["prompt"] for row in kept["demonstrations.train"]] == ["w4\n\nw5"]
    assert list(account.kinds) == ["prompts", "demonstrations"]


def test_malformed_rows_are_booked(curate):
    records = {"prompts": {"train": [Prompt("w3")]}}
    rows = [
        SourceRow("a.jsonl, line 3", None, "field 'prompt' is empty"),
        SourceRow("a.jsonl, line 9", None, "broken", True),
    ]
    _, dropped, account = curate(records, malformed={"prompts": rows})
    assert dropped == {"a.jsonl, line 3": "malformed", "a.jsonl, line 9": "rest of a file, unread"}
    assert (account.kinds["prompts"].raw, account.kinds["prompts"].balanced) == (3, True)


WORD = st.sampled_from(["w3", "w4", "w5", "jo@example.org"])
PROMPTS = st.lists(
    st.tuples(st.lists(WORD, min_size=1, max_size=14), st.sampled_from([None, "a", "b", "c"])), max_size=25
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # each call has a folder of its own
@given(PROMPTS, PROMPTS, st.integers(0, 99), st.sampled_from([None, 0.3, 0.7]))
def test_counts_add_up_and_no_user_is_in_two_splits_in_whatever_order(curate, train, test, seed, share):
    train, test = ([Prompt(" ".join(words), user=user) for words, user in rows] for rows in (train, test))
    shares = share and {"train": share, "validation": 1 - share}
    kept, dropped, account = curate({"prompts": {"train": train, "test": test}}, shares=shares)
    books = account.kinds["prompts"]
    assert books.raw == len(train) + len(test)
    assert books.balanced
    assert books.dropped.total() == len(dropped)
    assert books.kept.total() == sum(len(rows) for rows in kept.values())
    users = [(row["user"], name) for name, rows in kept.items() for row in rows if row["user"]]
    assert len(set(users)) == len({user for user, _ in users})
    assert max(Counter(users).values(), default=0) <= 3
    texts = [row["prompt"] for rows in kept.values() for row in rows]
    assert len(set(texts)) == len(texts)
    assert "jo@" not in json.dumps(kept.get("prompts.train"))

    random.Random(seed).shuffle(train)
    again, _, other = curate({"prompts": {"train": train, "test": test}}, shares=shares)
    assert {name: sorted(map(json.dumps, rows)) for name, rows in kept.items()} == {
        name: sorted(map(json.dumps, rows)) for name, rows in again.items()
    }
    assert other.kinds["prompts"].dropped == books.dropped


@pytest.mark.parametrize(
    "options", [{"prefix_characters": 0}, {"most_per_group": 0}, {"near_similarity": 0.0}, {"near_similarity": 1.1}]
)
def test_numbers_out_of_range(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
        Thinning(**options)
