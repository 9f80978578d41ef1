import pytest

from rlhf_lightning.curation.account import KindAccount
from rlhf_lightning.curation.filters import LanguageFilter, PersonalFilter, within_lengths
from rlhf_lightning.curation.personal import Finding
from rlhf_lightning.curation.rows import Row
from rlhf_lightning.data.records import Comparison, Demonstration, Prompt
from rlhf_lightning.data.tokens import Tokenization

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
    with pytest.raises(ValueError, match="action must be filter or mask, got 'drop'"):
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
    cut = tokenization.cut_response("w4 w5 w6 w7 w8")
    assert tokenization.response_ids(cut) == tokenization.response_ids("w4 w5 w6 w7 w8")


def test_lengths_of_many_prompts_are_those_of_each(tokenization):
    prompts = ["w3", "w3 w4 w5 w6 w7", "w3  w4"]
    assert tokenization.prompt_lengths(prompts) == [1, 5, 2]
    assert tokenization.prompt_lengths([]) == []
    tokenization.tokenizer.chat_template = "{% for message in messages %}{{ message.content }} {% endfor %}"
    assert tokenization.prompt_lengths(["w3", [{"role": "user", "content": "w3 w4"}], "w5"]) == [1, 2, 1]
    assert tokenization.dropped == {}
