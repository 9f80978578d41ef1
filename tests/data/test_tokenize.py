import pytest

from rlhf_lightning.data.examples import ComparisonExample, LMExample, PromptExample, split_into_pairs
from rlhf_lightning.data.records import Comparison, Demonstration, Prompt, RecordError, Text
from rlhf_lightning.data.tokenize import Tokenization

EOS, UNKNOWN = 1, 2
CHAT = (
    "{% for m in messages %}{{ {'system': 'w7', 'user': 'w8'}[m.role] }} {{ m.content }} <eos> {% endfor %}"
    "{% if add_generation_prompt %}w9{% endif %}"
)
CONVERSATION = [{"role": "system", "content": "w3 w4"}, {"role": "user", "content": "w5"}]


def test_a_demonstration_splits_into_prompt_and_target(tiny_tokenizer):
    tokenization = Tokenization(tiny_tokenizer, prompt_template="{prompt} w30")
    examples = tokenization.demonstrations([Demonstration("w3 w4", "w5 nonsense"), Demonstration("w6", "w7")])
    # EOS ends the response and is one of its targets.
    assert examples == [LMExample([3, 4, 30, 5, UNKNOWN, EOS], 3), LMExample([6, 30, 7, EOS], 2)]
    assert tokenization.dropped == {}


@pytest.mark.parametrize(("limit", "ids"), [(1, [5]), (3, [5, 6, 7]), (4, [5, 6, 7, EOS]), (9, [5, 6, 7, EOS])])
def test_a_cut_response_has_no_end(tiny_tokenizer, limit, ids):
    assert Tokenization(tiny_tokenizer, max_response_tokens=limit).response_ids("w5 w6 w7") == ids


def test_long_prompts_are_dropped_and_counted(tiny_tokenizer):
    tokenization = Tokenization(tiny_tokenizer, max_prompt_tokens=2)
    prompts = [Prompt("w3 w4"), Prompt("w3 w4 w5"), Prompt("w6")]
    # Numbers are places in the records: the key of a prompt's random numbers.
    assert tokenization.prompts(prompts) == [PromptExample([3, 4], 0, "w3 w4"), PromptExample([6], 2, "w6")]
    tokenization.demonstrations([Demonstration("w3 w3 w3", "w4")])
    tokenization.comparisons([Comparison("w3 w3 w3", ["w4", "w5"], [1, 2])])
    assert tokenization.dropped == {"prompt over 2 tokens": 3}


def test_rankings_without_a_pair_are_dropped_and_counted(tiny_tokenizer):
    tokenization = Tokenization(tiny_tokenizer, max_prompt_tokens=2)
    ranks = [[1, 1, 1], [1, 1, 2], [1, 1]]
    examples = tokenization.comparisons([Comparison("w3", ["w4", "w5", "w6"][: len(r)], r) for r in ranks])
    assert [example.ranks for example in examples] == [[1, 1, 2]]
    assert tokenization.dropped == {"all responses tied": 2}


def test_a_prompt_keeps_the_text_that_was_asked(tiny_tokenizer):
    tokenization = Tokenization(tiny_tokenizer, prompt_template="w39 {prompt} w30")
    assert tokenization.prompts([Prompt("w3")]) == [PromptExample([39, 3, 30], 0, "w3")]


def test_a_comparison_keeps_its_order_and_group(tiny_tokenizer):
    records = [
        Comparison("w3", ["w4", "w5 w6", "w7"], [2, 1, 2], "ann", "web"),
        Comparison("w3", ["w4", "w5"], [1, 2], "ann"),
        Comparison("w3", ["w4", "w5"], [1, 2]),
    ]
    first, second, third = Tokenization(tiny_tokenizer).comparisons(records)
    assert first == ComparisonExample([3], [[4, EOS], [5, 6, EOS], [7, EOS]], [2, 1, 2], "web")
    assert (second.group, third.group) == ("ann", "all")


def test_a_conversation_goes_through_the_chat_template(tiny_tokenizer):
    tiny_tokenizer.chat_template = CHAT
    tokenization = Tokenization(tiny_tokenizer, prompt_template="w39 {prompt}")
    assert tokenization.prompt_text(CONVERSATION) == "w7 w3 w4 <eos> w8 w5 <eos> w9"
    assert tokenization.demonstrations([Demonstration(CONVERSATION, "w10")]) == [
        LMExample([7, 3, 4, EOS, 8, 5, EOS, 9, 10, EOS], 8)
    ]
    # Strings do not: they have the prompt template.
    assert tokenization.prompt_ids("w3") == [39, 3]


def test_a_conversation_without_chat_template_is_a_sentence(tiny_tokenizer):
    with pytest.raises(
        RecordError,
        match=r"prompt number 1: .* no chat template\. Set model\.chat_template=<file or name> .* prompts as strings",
    ):
        Tokenization(tiny_tokenizer).prompts([Prompt("w3"), Prompt(CONVERSATION)])


def with_special_tokens(tokenizer, single):
    from tokenizers.processors import TemplateProcessing

    ids = [("<unk>", UNKNOWN), ("<eos>", EOS)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=ids)
    return Tokenization(tokenizer)


def test_special_tokens_open_a_prompt_and_a_document(tiny_tokenizer):
    # <unk> plays the part of BOS: some tokenizers open every text, some close it as well.
    tokenization = with_special_tokens(tiny_tokenizer, "<unk> $A <eos>")
    assert tokenization.demonstrations([Demonstration("w3", "w4")]) == [LMExample([UNKNOWN, 3, 4, EOS], 2)]
    assert tokenization.texts([Text("w5"), Text("w6")], 9) == [LMExample([UNKNOWN, 5, EOS, UNKNOWN, 6, EOS], 1)]
    tiny_tokenizer.chat_template = CHAT
    assert tokenization.prompt_ids(CONVERSATION) == [7, 3, 4, EOS, 8, 5, EOS, 9]


@pytest.mark.parametrize(
    ("block_size", "blocks"),
    [
        (100, [[3, 4, EOS, 5, EOS, 6, 7, 8, EOS]]),
        (4, [[3, 4, EOS, 5], [EOS, 6, 7, 8]]),  # the last block would be one token, which predicts nothing
        (5, [[3, 4, EOS, 5, EOS], [6, 7, 8, EOS]]),
    ],
)
def test_texts_are_packed(tiny_tokenizer, block_size, blocks):
    texts = [Text("w3 w4"), Text("w5"), Text("w6 w7 w8")]
    assert Tokenization(tiny_tokenizer).texts(texts, block_size) == [LMExample(block, 1) for block in blocks]


@pytest.mark.parametrize("pad", ["<eos>", None])
def test_padding_must_differ_from_the_end(tiny_tokenizer, pad):
    tiny_tokenizer.pad_token = pad
    with pytest.raises(ValueError, match=r"pad token .* must exist and differ from its EOS token .*load_tokenizer"):
        Tokenization(tiny_tokenizer)


def test_a_template_must_hold_the_prompt(tiny_tokenizer):
    with pytest.raises(ValueError, match=r"prompt_template must contain '\{prompt\}', got 'Q: '"):
        Tokenization(tiny_tokenizer, prompt_template="Q: ")


def test_braces_in_a_prompt_are_text(tiny_tokenizer):
    assert Tokenization(tiny_tokenizer, prompt_template="Q {prompt} A").prompt_text("f{x}") == "Q f{x} A"


def test_a_ranking_splits_into_its_pairs():
    ranked = ComparisonExample([3], [[4], [5], [6], [7]], [2, 1, 2, 3], "team")
    pairs = split_into_pairs([ranked, ComparisonExample([8], [[4], [5]], [1, 1], "team")])
    # Six pairs, one of them a tie; the tie of the second ranking is no pair either.
    expected = [([4], [5], [2, 1]), ([4], [7], [1, 2]), ([5], [6], [1, 2]), ([5], [7], [1, 2]), ([6], [7], [1, 2])]
    assert [(*pair.response_ids, pair.ranks) for pair in pairs] == expected
    assert {(tuple(pair.prompt_ids), pair.group) for pair in pairs} == {((3,), "team")}
