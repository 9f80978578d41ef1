import re

import pytest

from rlhf_lightning.curation.account import ANNOTATIONS, Account, KindAccount
from rlhf_lightning.curation.card import card_page, data_card
from rlhf_lightning.curation.card_tables import card_tables
from rlhf_lightning.curation.groups import GroupSplits
from rlhf_lightning.curation.rows import Row
from rlhf_lightning.data.records import Comparison, Demonstration, Prompt


def booked(rows, ranked=None):
    account = Account(GroupSplits(), ranked)
    for kind, split, record, *tokens in rows:
        account.kinds.setdefault(kind, KindAccount())
        account.kinds[kind].raw += 1
        account.keep(kind, Row("", split, record, *tokens))
    return account


def labels(use_case, **said):
    return {"use_case": use_case, **dict.fromkeys(ANNOTATIONS, False), **said}


FULL = [
    ("prompts", "train", Prompt("a", "u", "api", labels("chat", ambiguous=True)), 10),
    ("prompts", "train", Prompt("b", "u", "api", labels("chat")), 20),
    ("prompts", "train", Prompt("c", "v", "api", labels("qa")), 30),
    ("prompts", "test", Prompt("d", "w", "api", labels("qa")), 40),
    ("demonstrations", "train", Demonstration("e", "x", "l", "labeler", labels("qa")), 50, 6),
    ("demonstrations", "train", Demonstration("f", "x", "m", "api", labels("chat", closed_domain=True)), 60, 8),
]


def tables(account):
    return {table.number: table for table in card_tables(account)}


def test_the_seven_tables():
    found = tables(booked(FULL))
    assert list(found) == [1, 6, 7, 8, 9, 10, 11]
    assert found[1].columns == ["use case", "SFT", "SFT, %", "PPO", "PPO, %"]
    assert found[1].rows == [["chat", 1, 50.0, 2, 50.0], ["qa", 1, 50.0, 2, 50.0]]
    assert found[6].rows == [
        ["SFT", "train", "labeler", 1],
        ["SFT", "train", "api", 1],
        ["PPO", "train", "api", 3],
        ["PPO", "test", "api", 1],
    ]
    assert found[7].columns == ["annotation", "SFT train %", "PPO train %", "PPO test %"]
    assert found[7].rows[0] == ["ambiguous", 0.0, pytest.approx(100 / 3), 0.0]
    assert found[7].rows[3] == ["closed domain", 50.0, 0.0, 0.0]
    assert len(found[7].rows) == 11
    assert found[8].rows == [["SFT", "train", 2, 1.0, 1], ["PPO", "train", 2, 1.5, 2], ["PPO", "test", 1, 1.0, 1]]
    assert found[9].rows[1] == ["PPO", "train", 3, 20.0, pytest.approx(8.16497, abs=1e-4), 10, 15, 20, 25, 30]
    assert [row[:3] for row in found[10].rows] == [["chat", 3, 30.0], ["qa", 3, 40.0]]
    assert found[11].rows[:2] == [
        ["labeler", "prompt", 1, 50.0, 0.0, 50, 50, 50, 50, 50],
        ["labeler", "demonstration", 1, 6.0, 0.0, 6, 6, 6, 6, 6],
    ]
    assert [sentence for table in found.values() for sentence in table.missing] == []


def test_what_the_data_do_not_say_is_named():
    account = booked(
        [("prompts", "train", Prompt("a"), 3), ("comparisons", "train", Comparison("a", ["b", "c"], [1, 1]), 3)]
    )
    found = tables(account)
    assert (found[1].rows, found[7].rows, found[8].rows, found[10].rows, found[11].rows) == ([], [], [], [], [])
    assert found[6].rows == [["RM", "train", "not given", 1], ["PPO", "train", "not given", 1]]
    assert found[1].missing == ["table 1 needs the field `use_case`: not in these records"]
    assert found[8].missing == ["table 8 needs the field `user`: not in these records"]
    assert found[11].missing == ["table 11 needs the field `response`: not in these records"]
    (sentence,) = found[7].missing
    assert sentence.startswith("table 7 needs the fields `ambiguous`, `sensitive_content`, ")


def test_what_some_rows_lack_is_counted():
    rows = [*FULL, ("prompts", "test", Prompt("g"), 5)]
    found = tables(booked(rows))
    assert found[1].missing == ["table 1: 1 of 7 rows lack the field `use_case`"]
    assert found[6].rows[-1] == ["PPO", "test", "not given", 1]


def test_prompts_that_will_be_ranked_stand_for_rankings():
    found = tables(booked(FULL, {"train": 2, "validation": 7}))
    assert [row for row in found[6].rows if row[0] == "RM"] == [["RM", "train", "api", 2]]
    assert found[10].rows[0][:2] == ["chat", 3]


def test_the_page_needs_nothing_from_outside_and_says_it_all():
    account = booked(FULL)
    books = account.kinds["prompts"]
    books.raw += 7
    books.dropped.update({"exact duplicate": 4, "over 2 of one <user>": 3})
    books.languages.update({"en": 10, "fr": 1})
    card = data_card(account, {"seed": 0})
    assert card["kinds"]["prompts"]["dropped"] == {"exact duplicate": 4, "over 2 of one <user>": 3}
    assert card["kinds"]["prompts"]["splits"] == {"train": 3, "validation": 0, "test": 1}
    assert sum(card["histograms"]["PPO"]["counts"]) == 4
    page = card_page(card, "my & data")
    assert not re.search(r"(src|href)\s*=|https?://|@import", page)
    assert "11 read + 0 added from few-shot prompts = 4 kept + 7 dropped" in page
    assert "my &amp; data" in page
    assert "over 2 of one &lt;user&gt;" in page
    assert page.count('<h3 id="table-') == 7
    assert page.count("<svg") > 10


def test_an_empty_account_has_a_page():
    account = Account(GroupSplits())
    account.kinds["prompts"] = KindAccount(raw=1)
    account.kinds["prompts"].dropped["personal data"] += 1
    assert "0 of 1 prompts stay" in card_page(data_card(account, {}), "nothing")
