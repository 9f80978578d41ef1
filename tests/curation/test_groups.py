import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lightning.curation.groups import GroupSplits
from rlhf_lightning.data.records import Comparison, Demonstration, Prompt, RecordError

SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}


@given(st.lists(st.tuples(st.text("abc", min_size=1), st.sampled_from("uvwxyz")), min_size=1), st.integers(0, 9))
def test_no_user_is_in_two_splits(rows, seed):
    splits = GroupSplits(shares=SHARES, seed=seed)
    found = {(user, splits.split(Prompt(text, user=user))) for text, user in rows}
    assert len(found) == len({user for user, _ in found})


def test_the_shares_are_of_the_users():
    splits = GroupSplits(shares=SHARES)
    found = [splits.split(Prompt("a", user=f"user-{number}")) for number in range(4000)]
    for split, share in SHARES.items():
        # Four standard deviations of a share of 4,000.
        assert found.count(split) / 4000 == pytest.approx(share, abs=4 * (share * (1 - share) / 4000) ** 0.5)


def test_another_seed_deals_out_anew():
    users = [Prompt("a", user=f"user-{number}") for number in range(100)]
    first, second = GroupSplits(shares=SHARES, seed=1), GroupSplits(shares=SHARES, seed=2)
    assert [first.split(user) for user in users] != [second.split(user) for user in users]
    assert [first.split(user) for user in users] == [first.split(user) for user in users[::-1]][::-1]


def test_without_shares_everything_stays_in_training():
    assert {GroupSplits().split(Prompt("a", user=str(number))) for number in range(50)} == {"train"}


def test_a_group_may_be_a_label():
    splits = GroupSplits("organisation", SHARES)
    rows = [Prompt("a", user="u", labels={"organisation": str(number)}) for number in range(50)]
    assert splits.group(rows[7]) == "7"
    assert {splits.split(row) for row in rows} == {"train", "validation", "test"}
    assert splits.group(Prompt("a", user="u")) is None
    assert GroupSplits("labeler").group(Comparison("a", ["b", "c"], [1, 2], labeler="l")) == "l"


@pytest.mark.parametrize("blank", ["", " ", "\t"])
def test_a_blank_is_nobody(blank):
    assert GroupSplits().group(Prompt("a", user=blank)) is None
    assert GroupSplits("organisation").group(Prompt("a", labels={"organisation": blank})) is None
    assert len({GroupSplits(shares=SHARES).split(Prompt(f"question {n} ?", user=blank)) for n in range(50)}) == 3


def test_a_column_that_is_in_no_row():
    rows = [Prompt("a", user="u", labels={"organization": "o"}), Prompt("b")]
    GroupSplits("organization").check_column(rows[::-1])
    GroupSplits().check_column([Prompt("a")])  # the usual one may be missing
    with pytest.raises(
        RecordError, match=r"splits.column is 'tenant', which is in no row.*'columns: \{labels: \{tenant: "
    ):
        GroupSplits("tenant").check_column(rows)


def test_a_prompt_of_nobody_is_in_one_split_whatever_the_kind():
    splits = GroupSplits(shares=SHARES)
    for number in range(50):
        prompt = f"question {number} ?"
        kinds = [Prompt(prompt.upper()), Demonstration(prompt, "b"), Comparison(prompt, ["b", "c"], [1, 2])]
        assert len({splits.split(record) for record in kinds}) == 1
    # A user may have asked it too, who is in another split.
    assert len({splits.split(Prompt("question ?", user=str(number))) for number in range(50)}) == 3


def test_who_is_held_out_stays_held_out():
    splits = GroupSplits(shares={"train": 1.0})
    splits.hold_out(
        {
            "prompts": {
                "train": [Prompt("a", user="t")],
                "validation": [Prompt("b", user="v"), Prompt("c", user="both")],
            },
            "demonstrations": {"test": [Demonstration("d", "e", user="both"), Demonstration("f", "g", user="x")]},
        }
    )
    found = {user: splits.split(Prompt("z", user=user)) for user in ("t", "v", "both", "x")}
    assert found == {"t": "train", "v": "validation", "both": "test", "x": "test"}


@pytest.mark.parametrize("shares", [{"train": 0.5}, {"train": 0.5, "holdout": 0.5}, {"train": 0.9, "test": 0.2}])
def test_shares_that_make_no_sense(shares):
    with pytest.raises(ValueError, match="shares must be of train, validation, test and add up to 1"):
        GroupSplits(shares=shares)
