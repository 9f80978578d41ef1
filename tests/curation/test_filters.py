import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

from rlhf_lightning.curation.account import KindAccount
from rlhf_lightning.curation.cut import cut_response
from rlhf_lightning.curation.filters import LanguageFilter, PersonalFilter, hidden_identifiers, within_lengths
from rlhf_lightning.curation.personal import Finding
from rlhf_lightning.curation.rows import Row
from rlhf_lightning.data.records import Comparison, Demonstration, Prompt
from rlhf_lightning.data.tokenize import Tokenization

CHAT = [
    {"role": "user", "content": "i am jo@example.org"},
    {"role": "assistant", "content": "hi"},
    {"role": "user", "content": "who am i ?"},
]


@pytest.mark.parametrize(
    ("record", "cleaned"),
    [
        (Prompt("mail jo@example.org"), Prompt("mail [email]")),
        (Prompt(CHAT, user="u"), Prompt([{"role": "user", "content": "i am [email]"}, *CHAT[1:]], user="u")),
        (Demonstration("a", "call 415-555-2671"), Demonstration("a", "call [phone]")),
        (Comparison("a", ["b", "8.8.4.4"], [1, 2], "l"), Comparison("a", ["b", "[ip_address]"], [1, 2], "l")),
    ],
)
def test_every_text_of_a_row_is_looked_at(record, cleaned):
    books = KindAccount()
    assert PersonalFilter("mask")(record, books) == cleaned
    assert books.changed == {"personal data masked": 1}
    assert PersonalFilter()(record, books) is None
    assert books.personal.total() == 2


def test_clean_rows_pass_as_they_are():
    books = KindAccount()
    record = Comparison("a", ["b", "c"], [1, 2])
    assert PersonalFilter("mask")(record, books) is record
    assert books == KindAccount()


def test_further_finders_add_to_the_regular_expressions():
    def names(text):
        return [Finding("name", text.index("Jo"), text.index("Jo") + 2)] if "Jo" in text else []

    books = KindAccount()
    assert PersonalFilter("mask", [names])(Prompt("Jo, Jo@example.org"), books) == Prompt("[name], [email]")
    assert books.personal == {"email": 1, "name": 1}


def test_an_unknown_action():
    with pytest.raises(ValueError, match="action must be one of filter, mask, got 'drop'"):
        PersonalFilter("drop")


def test_languages_are_counted_and_dropped_where_told():
    def identify(text):
        return {"hallo": "de", "hello": "en"}.get(text, "unsure")

    books, texts = KindAccount(), ("hallo", "hello", "hello", "x")
    assert [LanguageFilter(identify)(Prompt(text), books) for text in texts] == [True] * 4
    assert books.languages == {"de": 1, "en": 2, "unsure": 1}
    assert [LanguageFilter(identify, ["en"])(Prompt(text), books) for text in texts] == [False, True, True, True]


@pytest.fixture
def tokenization(tiny_tokenizer):
    return Tokenization(tiny_tokenizer, max_prompt_tokens=4, max_response_tokens=3)


def test_long_responses_are_cut_after_their_last_token(tokenization):
    books = KindAccount()
    row = within_lengths(Row("", "train", Demonstration("w3", "w4 w5  w6 w7 w8")), tokenization, books)
    assert (row.record.response, row.response_tokens) == ("w4 w5  w6", 3)
    row = within_lengths(Row("", "train", Demonstration("w3", "w4 w5")), tokenization, books)
    assert (row.record.response, row.response_tokens) == ("w4 w5", 3)  # with its EOS
    row = within_lengths(Row("", "train", Comparison("w3", ["w4", "w5 w6 w7 w8"], [1, 2])), tokenization, books)
    assert row.record.completions == ["w4", "w5 w6 w7"]
    assert books.changed == {"response cut": 2}


def test_what_was_cut_is_read_back_as_long_as_the_limit(tokenization):
    cut = cut_response(tokenization, "w4 w5 w6 w7 w8")
    assert tokenization.response_ids(cut) == tokenization.response_ids("w4 w5 w6 w7 w8")


@pytest.fixture(scope="module")
def signs():
    """A tokenizer of single signs, but of white space before other white space or the end all at once (as GPT-2's)."""
    words = Tokenizer(WordLevel({"<pad>": 0, "<eos>": 1, "<unk>": 2}, unk_token="<unk>"))
    words.pre_tokenizer = Split(Regex(r"\s+(?!\S)|[\s\S]"), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")


def test_what_is_read_back_as_fewer_tokens_goes_on(signs):
    tokenization = Tokenization(signs, max_response_tokens=4)
    # a, b, two spaces, one space; these three at the end are one token, and an EOS would follow.
    assert tokenization.response_ids("ab   ") == [2, 2, 2, 1]
    assert cut_response(tokenization, "ab   cd") == "ab   c"
    assert tokenization.response_ids("ab   c") == [2, 2, 2, 2]


@given(st.text("ab cd\n", min_size=1, max_size=40), st.integers(2, 6))
def test_what_is_cut_never_ends_with_eos(signs, text, limit):
    tokenization = Tokenization(signs, max_response_tokens=limit)
    cut = cut_response(tokenization, text)
    assert text.startswith(cut)
    whole = tokenization.response_ids(text)
    assert (tokenization.response_ids(cut)[-1] == 1) == (whole[-1] == 1)
    assert len(tokenization.response_ids(cut)) == len(whole)


def test_a_response_of_which_nothing_is_left_drops_the_row(signs):
    tokenization = Tokenization(signs, max_response_tokens=1)
    books = KindAccount()
    reason = "response empty after the cut"
    assert within_lengths(Row("", "train", Demonstration("a", "   x")), tokenization, books) == reason
    ranking = Comparison("a", ["a", " \n\n b"], [1, 2])
    assert within_lengths(Row("", "train", ranking), tokenization, books) == reason
    assert books.changed == {}


@pytest.mark.parametrize(
    ("completions", "ranks", "merged"),
    [
        (["w4 w5 w6 w7", "w4 w5 w6 w8", "w9"], [1, 3, 2], (["w4 w5 w6", "w9"], [1, 1])),
        (["w4 w5 w6 w7", "w4 w5 w6 w8", "w9"], [1, 2, 3], (["w4 w5 w6", "w9"], [1, 2])),
        (["w9", "w4", "w9"], [1, 2, 3], (["w9", "w4"], [1, 1])),
        (["w9", "w4", "w9", "w5"], [3, 2, 3, 1], (["w9", "w4", "w5"], [3, 2, 1])),
        (["w4 w5 w6 w7", "w4 w5 w6 w8"], [1, 2], None),
        (["w4", "w4"], [1, 2], None),
    ],
)
def test_responses_that_are_the_same_become_one(tokenization, completions, ranks, merged):
    books = KindAccount()
    row = within_lengths(Row("", "train", Comparison("w3", completions, ranks)), tokenization, books)
    if merged is None:
        assert row == "all responses the same"
    else:
        assert (row.record.completions, row.record.ranks) == merged
        assert books.changed["same responses merged"] == 1


def test_identifiers_that_are_personal_data_become_keys():
    books = KindAccount()
    records = [
        Prompt("a", "jo@example.org", labels={"organisation": "jo@example.org", "use_case": "chat", "ambiguous": True}),
        Comparison("a", ["b", "c"], [1, 2], labeler="jo@example.org", user="u"),
        Prompt("b", "user 17"),
    ]
    first, second, third = (hidden_identifiers(record, books) for record in records)
    assert re.fullmatch("id-[0-9a-f]{16}", first.user)
    assert first.labels == {"organisation": first.user, "use_case": "chat", "ambiguous": True}
    assert (second.labeler, second.user) == (first.user, "u")
    assert third is records[2]
    assert books.changed == {"identifier hidden": 2}


def test_lengths_of_many_prompts_are_those_of_each(tokenization):
    prompts = ["w3", "w3 w4 w5 w6 w7", "w3  w4"]
    assert tokenization.prompt_lengths(prompts) == [1, 5, 2]
    assert tokenization.prompt_lengths([]) == []
    tokenization.tokenizer.chat_template = "{% for message in messages %}{{ message.content }} {% endfor %}"
    assert tokenization.prompt_lengths(["w3", [{"role": "user", "content": "w3 w4"}], "w5"]) == [1, 2, 1]
    assert tokenization.dropped == {}
